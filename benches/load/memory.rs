//! The memory mode: how much a target grows by flows that are all alive at once.
//!
//! Each flow is one small datagram. All come within less than the time after which targets forget
//! idle UDP flows (120 s).

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::blast;
use crate::lab::Failure;
use crate::lab::Lab;
use crate::measure;
use crate::measure::float;
use crate::measure::now;
use crate::measure::pause;
use crate::report;
use crate::run::PEER_STARTS;
use crate::target;
use crate::target::Engine;
use crate::target::Programs;
use crate::target::Target;

/// Rate at which flows begin, in flows per second: a target keeps up on a core that it shares.
const FLOWS_PER_SEC: u64 = 20_000;

/// Datagrams of one flow that come before: more than a target has buffers, so that all are in use.
const WARM_UP_DATAGRAMS: u32 = 20_000;

/// How long the first packet may take, and then the last ones.
const LIMIT: Duration = Duration::from_secs(10);

/// How long the number of flows must stand still.
const STILL: Duration = Duration::from_secs(1);

/// Least share of the flows that must be there. A target that shares its core may miss some; what a
/// flow takes is reckoned from those that it lists.
const PRESENT_MIN: f64 = 0.8;

/// Measures each engine, and prints a line for each and one of JSON.
pub(crate) fn compare(programs: &Programs, engines: &[Engine], flows: u32) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let mut grown = Vec::new();
    for engine in engines {
        let one = measure(programs, *engine, flows)
            .map_err(|error| format!("{} flows in {}: {error}", flows, engine.name()))?;
        writeln!(
            out,
            "{}: {} IPv4 flows, resident memory from {} to {} KiB, {:.1} bytes per flow",
            engine.name(),
            one.flows,
            one.before_kib,
            one.after_kib,
            one.bytes_per_flow()?,
        )?;
        grown.push((*engine, one));
    }
    let grown_of = |wanted| grown.iter().find(|(engine, _)| *engine == wanted);
    if let (Some((_, ours)), Some((_, peer))) = (grown_of(Engine::Ours), grown_of(Engine::Peer)) {
        let ratio = ours.bytes_per_flow()? / peer.bytes_per_flow()?;
        writeln!(out, "bytes per flow, ours / peer: {ratio:.3}")?;
    }
    let rows: serde_json::Map<_, _> =
        grown.iter().map(|(engine, one)| (engine.name().to_owned(), one.json())).collect();
    let line = json!({ "bench": "memory", "machine": report::machine()?, "engines": rows });
    writeln!(out, "{line}")?;
    Ok(())
}

/// What flows took.
struct Grown {
    flows: u64,
    before_kib: u64,
    after_kib: u64,
}

impl Grown {
    fn bytes_per_flow(&self) -> Result<f64, Failure> {
        Ok(float(self.after_kib - self.before_kib)? * 1024.0 / float(self.flows)?)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "flows": self.flows,
            "before_kib": self.before_kib,
            "after_kib": self.after_kib,
        })
    }
}

fn measure(programs: &Programs, engine: Engine, flows: u32) -> Result<Grown, Failure> {
    let (lab, target) = start(programs, engine)?;
    blast::sow(&lab, WARM_UP_DATAGRAMS, 1, FLOWS_PER_SEC)?;
    let before_kib = measure::rss_kib(target.pid())?;
    blast::sow(&lab, flows, flows, FLOWS_PER_SEC)?;
    let there = settled(&lab, engine)?;
    if float(there)? < float(u64::from(flows))? * PRESENT_MIN {
        return Err(format!("it lists only {there}, the core was too busy").into());
    }
    let after_kib = measure::rss_kib(target.pid())?;
    target.stop()?;
    Ok(Grown { flows: there, before_kib, after_kib })
}

/// How many flows a target lists once their number has stood still.
fn settled(lab: &Arc<Lab>, engine: Engine) -> Result<u64, Failure> {
    let deadline = now() + LIMIT;
    let mut there = target::flows(lab, engine)?;
    loop {
        pause(STILL);
        let later = target::flows(lab, engine)?;
        if later == there || now() > deadline {
            return Ok(later);
        }
        there = later;
    }
}

/// A target with one endpoint and one flow. The peer is started again if it crashes.
fn start(programs: &Programs, engine: Engine) -> Result<(Arc<Lab>, Target), Failure> {
    let attempts = if engine == Engine::Peer { PEER_STARTS } else { 1 };
    let mut outcome = Err("not started".into());
    for _ in 0..attempts {
        outcome = start_once(programs, engine);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn start_once(programs: &Programs, engine: Engine) -> Result<(Arc<Lab>, Target), Failure> {
    let lab = Arc::new(Lab::build(true, false)?);
    let mut target = Target::start(&lab, engine, programs)?;
    let deadline = now() + LIMIT;
    while lab.returned()?.packets == 0 {
        if !target.is_running()? || now() > deadline {
            return Err("no packet came back".into());
        }
        blast::greet(&lab, 1)?;
        pause(Duration::from_millis(100));
    }
    Ok((lab, target))
}
