//! One run: one target under one load in namespaces of its own, from start to end, with the checks
//! that make its figures worth printing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::blast::Blast;
use crate::lab::Books;
use crate::lab::Failure;
use crate::lab::Lab;
use crate::measure;
use crate::measure::Outcome;
use crate::measure::Sample;
use crate::measure::float;
use crate::measure::now;
use crate::measure::pause;
use crate::sight;
use crate::target;
use crate::target::Engine;
use crate::target::Target;
use crate::workload::Shape;

/// Rate until the first packet is back: enough to create the endpoint, too little to hurt.
const WARM_UP_PPS: u64 = 1000;

/// How long the first packet may take: the hook runs before it.
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);

/// Load that precedes what is measured, and what each flow adds to it: a target opens a socket for
/// each outer port it has not seen.
const SETTLE: Duration = Duration::from_millis(300);
const SETTLE_PER_FLOW: Duration = Duration::from_micros(50);

/// How long what is still in the queues may take to be counted after the load has ended.
const CLOSING_LIMIT: Duration = Duration::from_secs(10);

/// Starts of the peer before it is given up. AWS's program crashes in one start of four on a quiet
/// core, and in most starts on a core that it has to share.
const PEER_STARTS: u32 = 50;

/// What is the same in all runs.
#[derive(Debug)]
pub(crate) struct Conditions<'a> {
    /// AWS's program.
    pub(crate) peer: Option<&'a Path>,
    /// Measured seconds.
    pub(crate) seconds: u16,
    /// Packets per second to send; 0 floods.
    pub(crate) pps: u64,
    /// Whether the target's veth merges what arrives.
    pub(crate) gro: bool,
}

/// A target that has returned its first packet, and the load on it.
struct Running {
    lab: Arc<Lab>,
    target: Target,
    blast: Blast,
}

impl Conditions<'_> {
    /// One target from start to end.
    pub(crate) fn run(&self, engine: Engine, shape: &Shape) -> Result<Outcome, Failure> {
        let Running { lab, target, blast } = self.start(engine, shape)?;
        blast.set_pps(self.pps);
        pause(SETTLE + SETTLE_PER_FLOW * u32::from(shape.flows));
        let first = Sample::take(&lab, target.pid(), || blast.sent())?;
        pause(Duration::from_secs(u64::from(self.seconds)));
        let last = Sample::take(&lab, target.pid(), || blast.sent())?;
        let rss_kib = measure::rss_kib(target.pid())?;
        blast.set_pps(sight::PPS);
        sight::verify(&lab, shape)?;
        let sent = blast.stop()?;
        let packets_per_frame = check_books(&lab, target, engine, sent)?;
        let outcome = Outcome::between(&first, &last, rss_kib, packets_per_frame)?;
        check_size(&outcome, shape)?;
        Ok(outcome)
    }

    fn start(&self, engine: Engine, shape: &Shape) -> Result<Running, Failure> {
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
        let lab = Arc::new(Lab::build(self.gro)?);
        let mut target = Target::start(&lab, engine, self.peer)?;
        let blast = Blast::start(&lab, shape.clone(), WARM_UP_PPS);
        match await_first_packet(&lab, &mut target) {
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
///
/// Returns how many packets each frame read from gwo held: the relays and the peer never merge.
fn check_books(lab: &Arc<Lab>, target: Target, engine: Engine, sent: u64) -> Result<f64, Failure> {
    let books = closed_books(lab, engine)?;
    let arrived = books.arrived();
    if !is_balanced(&books, engine) {
        let drops = if engine == Engine::Ours { target::page(lab)? } else { json!(null) };
        return Err(format!("packets got lost in the target: {books:?}, its page: {drops}").into());
    }
    if sent < arrived || books.written_gwi < books.read_gwo {
        return Err(format!("packets from nowhere: {sent} sent, {books:?}").into());
    }
    match target.stop()? {
        Some(said) if said != arrived => {
            Err(format!("the target says {said}, but {books:?}").into())
        }
        _ => Ok(float(arrived)? / float(books.read_gwo)?),
    }
}

/// The counts once nothing moves any more. A target that shares its core may still have packets in
/// hand while it waits for its turn, so books that do not balance get more time.
fn closed_books(lab: &Lab, engine: Engine) -> Result<Books, Failure> {
    let deadline = now() + CLOSING_LIMIT;
    let mut books = lab.books()?;
    loop {
        pause(Duration::from_millis(100));
        let later = lab.books()?;
        if later == books && is_balanced(&books, engine) || now() > deadline {
            return Ok(later);
        }
        books = later;
    }
}

/// Whether all that the target read from gwo has arrived.
fn is_balanced(books: &Books, engine: Engine) -> bool {
    let may_merge = engine == Engine::Ours;
    let arrived = books.arrived();
    books.read_gwo == arrived || may_merge && books.read_gwo < arrived
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
