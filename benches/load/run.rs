//! One run: one target under one load in namespaces of its own, from start to end, with the checks
//! that make its figures worth printing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::blast::Blast;
use crate::dissect;
use crate::lab::Books;
use crate::lab::Failure;
use crate::lab::Lab;
use crate::latency;
use crate::latency::Latency;
use crate::measure;
use crate::measure::Merged;
use crate::measure::Outcome;
use crate::measure::Sample;
use crate::measure::Verdict;
use crate::measure::now;
use crate::measure::pause;
use crate::sight;
use crate::target;
use crate::target::Engine;
use crate::target::InnerPackets;
use crate::target::Programs;
use crate::target::Target;
use crate::watch::Watcher;
use crate::workload::Claim;
use crate::workload::Shape;

/// Rate until the first packet is back: enough to create the endpoint, too little to hurt.
const WARM_UP_PPS: u64 = 1000;

/// How long the first packet may take: the hook runs before it.
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);

/// Load that precedes what is measured, and what each flow adds to it: a target opens a socket for
/// each outer port it has not seen.
const SETTLE: Duration = Duration::from_millis(300);
const SETTLE_PER_FLOW: Duration = Duration::from_micros(50);

/// Counters are read one after the other: 1 may come out as a little less.
const CLAIM_TOLERANCE: f64 = 0.99;

/// How long what is still in the queues may take to be counted after the load has ended.
const CLOSING_LIMIT: Duration = Duration::from_secs(10);

/// Starts of the peer before it is given up. AWS's program crashes in one start of four on a quiet
/// core, and in most starts on a core that it has to share.
pub(crate) const PEER_STARTS: u32 = 50;

/// What is the same in all runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions<'a> {
    /// What targets need to be told.
    pub(crate) programs: &'a Programs,
    /// Measured seconds.
    pub(crate) seconds: u16,
    /// Packets per second to send; 0 floods.
    pub(crate) pps: u64,
    /// How often a void run is repeated.
    pub(crate) repeats: u16,
    /// Whether the target's veth merges what arrives.
    pub(crate) gro: bool,
    /// Whether the variant is looked at all the time.
    pub(crate) watch: bool,
}

/// A target that has returned its first packet, and the load on it.
pub(crate) struct Running {
    pub(crate) lab: Arc<Lab>,
    pub(crate) target: Target,
    pub(crate) blast: Blast,
}

impl Conditions<'_> {
    /// Runs a target, again and again while its run is void. `look` sees every run.
    pub(crate) fn run_until_valid(
        &self,
        engine: Engine,
        shape: &Shape,
        claim: Option<Claim>,
        mut look: impl FnMut(&Outcome) -> Result<(), Failure>,
    ) -> Result<Outcome, Failure> {
        let mut repeats = 0..self.repeats;
        loop {
            let outcome = self.run(engine, shape, claim)?;
            look(&outcome)?;
            let is_void = self.is_flood() && outcome.verdict() == Verdict::Void;
            if !is_void || repeats.next().is_none() {
                return Ok(outcome);
            }
        }
    }

    /// One target from start to end.
    pub(crate) fn run(
        &self,
        engine: Engine,
        shape: &Shape,
        claim: Option<Claim>,
    ) -> Result<Outcome, Failure> {
        let Running { lab, target, blast } = self.start(engine, shape)?;
        blast.set_pps(self.pps);
        let watcher = (self.watch && engine == Engine::Variant).then(|| Watcher::start(&lab));
        pause(SETTLE + SETTLE_PER_FLOW * u32::from(shape.flows));
        let first = Sample::take(&lab, target.pid(), || blast.sent())?;
        pause(Duration::from_secs(u64::from(self.seconds)));
        let last = Sample::take(&lab, target.pid(), || blast.sent())?;
        watcher.map_or(Ok(()), |watcher| watcher.stop(self.seconds))?;
        let rss_kib = measure::rss_kib(target.pid())?;
        blast.set_pps(sight::PPS);
        sight::verify(&lab, shape)?;
        let sent = blast.stop()?;
        check_books(&lab, target, engine, sent)?;
        let outcome = Outcome::between(&first, &last, rss_kib)?;
        check_size(&outcome, shape)?;
        if let Some(claim) = claim.filter(|_| self.is_flood() && self.merges(engine)) {
            check_claim(&outcome.merged, claim)?;
        }
        Ok(outcome)
    }

    /// One target from start to end at a fixed rate, and how long its packets took.
    pub(crate) fn run_for_latency(
        &self,
        engine: Engine,
        shape: &Shape,
    ) -> Result<(Latency, Outcome), Failure> {
        let Running { lab, target, blast } = self.start(engine, shape)?;
        blast.set_pps(self.pps);
        pause(SETTLE + SETTLE_PER_FLOW * u32::from(shape.flows));
        let first = Sample::take(&lab, target.pid(), || blast.sent())?;
        let latency = latency::measure(&lab, Duration::from_secs(u64::from(self.seconds)))?;
        let last = Sample::take(&lab, target.pid(), || blast.sent())?;
        let rss_kib = measure::rss_kib(target.pid())?;
        let sent = blast.stop()?;
        check_books(&lab, target, engine, sent)?;
        Ok((latency, Outcome::between(&first, &last, rss_kib)?))
    }

    /// One target from start to end at a moderate rate, its packets judged by tshark.
    pub(crate) fn run_for_tshark(&self, engine: Engine, shape: &Shape) -> Result<Outcome, Failure> {
        let Running { lab, target, blast } = self.start(engine, shape)?;
        dissect::fill_checksums(&lab)?;
        blast.set_pps(sight::PPS);
        pause(SETTLE);
        let first = Sample::take(&lab, target.pid(), || blast.sent())?;
        dissect::verify(&lab)?;
        let last = Sample::take(&lab, target.pid(), || blast.sent())?;
        let rss_kib = measure::rss_kib(target.pid())?;
        let sent = blast.stop()?;
        check_books(&lab, target, engine, sent)?;
        Outcome::between(&first, &last, rss_kib)
    }

    /// Whether the generator sends as fast as it can.
    pub(crate) const fn is_flood(&self) -> bool {
        self.pps == 0
    }

    /// Whether the engine merges all that can be merged.
    fn merges(&self, engine: Engine) -> bool {
        match engine {
            Engine::RelayMerge => true,
            Engine::Ours | Engine::Variant => self.programs.args(engine).is_empty(),
            Engine::RelayUring | Engine::RelaySyscalls | Engine::Peer => false,
        }
    }

    /// A target under as little load as makes it return its first packets.
    pub(crate) fn start(&self, engine: Engine, shape: &Shape) -> Result<Running, Failure> {
        for _ in 1..PEER_STARTS {
            let outcome = self.start_once(engine, shape);
            if outcome.is_ok() || engine != Engine::Peer {
                return outcome;
            }
        }
        let outcome = self.start_once(engine, shape);
        outcome.map_err(|error| format!("{PEER_STARTS} starts failed, the last: {error}").into())
    }

    fn start_once(&self, engine: Engine, shape: &Shape) -> Result<Running, Failure> {
        let lab = Arc::new(Lab::build(self.gro, shape.clears_checksums())?);
        let mut target = Target::start(&lab, engine, self.programs)?;
        let blast = Blast::start(&lab, shape.clone(), WARM_UP_PPS);
        let is_running = await_first_packet(&lab, &mut target).and_then(|()| {
            if shape.endpoints == 1 {
                return Ok(());
            }
            blast.set_pps(sight::PPS);
            sight::await_flows(&lab, shape)
        });
        match is_running {
            Ok(()) => Ok(Running { lab, target, blast }),
            Err(error) => {
                // What the generator says is the cause, if it says something.
                blast.stop()?;
                Err(error)
            }
        }
    }
}

fn await_first_packet(lab: &Lab, target: &mut Target) -> Result<(), Failure> {
    let deadline = now() + WARM_UP_LIMIT;
    while lab.returned()?.packets == 0 {
        if !target.is_running()? {
            return Err("it ended before the first packet came back".into());
        }
        if now() > deadline {
            return Err(format!("no packet came back within {WARM_UP_LIMIT:?}").into());
        }
        pause(Duration::from_millis(20));
    }
    Ok(())
}

/// Every packet that the sink counted was read from gwo, was written to gwi before, and was sent by
/// the generator before; and what the target read and the sink did not count was lost at the sink.
fn check_books(lab: &Arc<Lab>, target: Target, engine: Engine, sent: u64) -> Result<(), Failure> {
    let books = closed_books(lab, engine)?;
    let arrived = books.kernel.arrived();
    if !books.are_balanced(engine) {
        let page = if engine.is_ours() { target::page(lab, engine)? } else { json!(null) };
        return Err(format!("packets got lost in the target: {books:?}, its page: {page}").into());
    }
    if sent < arrived || books.kernel.written_gwi < books.kernel.read_gwo {
        return Err(format!("packets from nowhere: {sent} sent, {books:?}").into());
    }
    match target.stop()? {
        Some(said) if said != arrived => {
            Err(format!("the target says {said}, but {books:?}").into())
        }
        _ => Ok(()),
    }
}

/// The kernel's counts, in frames and datagrams, and the engine's, in inner packets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BothBooks {
    kernel: Books,
    engine: Option<InnerPackets>,
}

impl BothBooks {
    fn read(lab: &Arc<Lab>, engine: Engine) -> Result<Self, Failure> {
        let engine = engine.is_ours().then(|| target::inner_packets(lab)).transpose()?;
        Ok(Self { kernel: lab.books()?, engine })
    }

    /// Whether all that the target read from gwo has arrived. A frame may hold several packets:
    /// how many, the engine says, and the relay that merges says when it ends how many it sent.
    fn are_balanced(&self, engine: Engine) -> bool {
        let Books { written_gwi, read_gwo, .. } = self.kernel;
        let arrived = self.kernel.arrived();
        if let Some(InnerPackets { to_gwi, from_gwo }) = self.engine {
            let is_redirected =
                if written_gwi == read_gwo { to_gwi == from_gwo } else { to_gwi > from_gwo };
            return from_gwo == arrived && read_gwo <= from_gwo && is_redirected;
        }
        match engine {
            Engine::RelayMerge => read_gwo <= arrived,
            Engine::RelayUring | Engine::RelaySyscalls | Engine::Peer => read_gwo == arrived,
            Engine::Ours | Engine::Variant => false,
        }
    }
}

/// The counts once nothing moves any more. A target that shares its core may still have packets in
/// hand while it waits for its turn, so books that do not balance get more time.
fn closed_books(lab: &Arc<Lab>, engine: Engine) -> Result<BothBooks, Failure> {
    let deadline = now() + CLOSING_LIMIT;
    let mut books = BothBooks::read(lab, engine)?;
    loop {
        pause(Duration::from_millis(100));
        let later = BothBooks::read(lab, engine)?;
        if later == books && books.are_balanced(engine) || now() > deadline {
            return Ok(later);
        }
        books = later;
    }
}

/// The target merged, and had its sends cut, as the load allows it.
fn check_claim(merged: &Merged, claim: Claim) -> Result<(), Failure> {
    let is_met = merged.frame >= claim.frame * CLAIM_TOLERANCE
        && merged.send >= claim.send * CLAIM_TOLERANCE;
    if is_met {
        return Ok(());
    }
    Err(format!("the load was not merged as it can be: {merged:.2?}, not {claim:?}").into())
}

/// The mean size of what the kernel counted at the sink is that of the load; where sizes are mixed,
/// losses make it differ a little.
fn check_size(outcome: &Outcome, shape: &Shape) -> Result<(), Failure> {
    let sizes = shape.sizes();
    let [claimed, seen] = [
        sizes.iter().map(|(bytes, share)| f64::from(*bytes) * share).sum::<f64>(),
        outcome.inner_bytes,
    ];
    let tolerance = if sizes.len() == 1 { 0.001 } else { 0.05 };
    if (seen - claimed).abs() > claimed * tolerance {
        return Err(format!("inner packets of {seen:.1} bytes on average, not {claimed:.1}").into());
    }
    Ok(())
}
