//! The overload mode: the most packets per second that come back at any rate, then twice that rate
//! for a minute. What is lost then should be lost in the socket's queue, where nothing has been
//! done about it yet; a target that takes more than it can send back falls behind its peak.
//!
//! A shared machine is faster in one minute than in the next. So each piece of the overload is
//! compared with the peak's rate just before and just after it.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::lab::Failure;
use crate::measure;
use crate::measure::Outcome;
use crate::measure::Sample;
use crate::measure::Verdict;
use crate::measure::float;
use crate::measure::median;
use crate::measure::pause;
use crate::report;
use crate::run::Conditions;
use crate::run::Running;
use crate::target;
use crate::target::Engine;
use crate::workload::Shape;
use crate::workload::Workload;

/// How long each rate is tried, and what precedes what is measured of it.
const STEP: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_millis(500);

/// Rates that are tried: from this share of what comes back under a flood, each so much above the
/// one before, until no more comes back.
const FIRST_PERCENT: u64 = 40;
const STEP_PERCENT: u64 = 115;
const STEPS_MAX: usize = 16;

/// Rates beyond the best one that bring less: then the peak is behind.
const WORSE_MAX: usize = 3;

/// Measurements at the best rate, of which the median is the peak.
const PEAK_RUNS: usize = 3;

/// Least share of a rate that the generator must reach.
const REACHED: f64 = 0.95;

/// Least share of the peak that must come back under overload.
const KEPT_MIN: f64 = 0.95;

/// Measured pieces of the overload, each between two short ones at the peak's rate.
const WINDOW: Duration = Duration::from_secs(5);

/// What a packet that was lost had cost by then, in packets over the overload. Only the first is
/// cheap.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    /// The socket's queue was full (UDP-MIB, `RcvbufErrors`; counted before datagrams are merged).
    socket: u64,
    /// Written to gwi and not read from gwo: the link's queue was full.
    between_links: u64,
    /// Dropped by the engine, whatever the reason.
    engine: u64,
}

impl Losses {
    /// All until now.
    fn read(running: &Running) -> Result<Self, Failure> {
        let page = target::page(&running.lab, Engine::Ours)?;
        let counts = |value: &serde_json::Value| -> u64 {
            let reasons = value.as_object().into_iter().flatten();
            reasons.filter_map(|(_, count)| count.as_u64()).sum()
        };
        let inner = target::inner_packets(&running.lab)?;
        Ok(Self {
            socket: measure::socket_overflows(running.target.pid())?,
            between_links: inner.to_gwi.saturating_sub(inner.from_gwo),
            engine: counts(&page["drops"]),
        })
    }

    fn since(self, first: Self) -> Self {
        Self {
            socket: self.socket - first.socket,
            // What was under way at the start has come back since.
            between_links: self.between_links.saturating_sub(first.between_links),
            engine: self.engine - first.engine,
        }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            socket: self.socket + more.socket,
            between_links: self.between_links + more.between_links,
            engine: self.engine + more.engine,
        }
    }
}

/// Finds the peak, overloads, prints a row for each rate and what was kept.
///
/// # Errors
/// If less than 95 % of the peak is kept.
pub(crate) fn judge(
    conditions: &Conditions<'_>,
    workload: Workload,
    shape: &Shape,
    seconds: u16,
) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let flood = Conditions { seconds: 1, pps: 0, ..*conditions };
    let flooded = flood.run_until_valid(Engine::Ours, shape, None, |_| Ok(()))?.returned;
    let running = conditions.start(Engine::Ours, shape)?;
    let name = workload.name();
    writeln!(out, "{name}: {:>12}{:>12}{:>12}{:>10}", "rate", "sent/s", "returned/s", "target %")?;
    let rates = rates(flooded);
    let (rate, peak) = find_peak(&running, &rates, &mut out)?;
    writeln!(out, "{name}: the peak is {peak:.0} packets/s, at {rate} packets/s")?;

    let overload = Overload { running: &running, rate, offered: 2 * whole(peak) };
    let (losses, pieces) = overload.measure(seconds, &mut out)?;
    let kept = median(pieces.iter().map(Piece::kept));
    let kept_least = pieces.iter().map(Piece::kept).fold(f64::INFINITY, f64::min);
    let times = median(pieces.iter().map(|piece| piece.overload.sent_per_sec / peak));
    let is_void = pieces.iter().any(|piece| piece.overload.verdict() == Verdict::Void);
    let verdict = match times >= 2.0 * REACHED {
        _ if is_void => Verdict::Void,
        true => Verdict::Valid,
        false => Verdict::Starved,
    };
    writeln!(
        out,
        "{name}: at {times:.2} times the peak {:.1} % of it comes back, the median of {} pieces of \
         {} s; the least is {:.1} %; {}",
        kept * 100.0,
        pieces.len(),
        WINDOW.as_secs(),
        kept_least * 100.0,
        verdict.name(),
    )?;
    let Losses { socket, between_links, engine } = losses;
    writeln!(
        out,
        "{name}: lost in the socket's queue {socket} datagrams, as the kernel merged them; between \
         gwi and gwo {between_links} packets, in the engine {engine}"
    )?;
    let line = json!({
        "bench": "overload",
        "machine": report::machine()?,
        "workload": name,
        "seconds": seconds,
        "peak_per_sec": peak,
        "peak_at_pps": rate,
        "kept": kept,
        "kept_least": kept_least,
        "verdict": verdict.name(),
        "overload": pieces.iter().map(|piece| piece.overload.json()).collect::<Vec<_>>(),
        "lost": { "socket": socket, "between_links": between_links, "engine": engine },
    });
    writeln!(out, "{line}\n")?;
    running.blast.stop()?;
    running.target.stop()?;
    if kept < KEPT_MIN && verdict == Verdict::Valid {
        return Err(format!("{name}: {:.1} % of the peak is left", kept * 100.0).into());
    }
    Ok(())
}

/// The rates to try, where so many packets per second come back under a flood.
fn rates(flooded: u64) -> Vec<u64> {
    let first = (flooded * FIRST_PERCENT / 100).max(1000);
    let next = |rate: &u64| Some(rate * STEP_PERCENT / 100);
    std::iter::successors(Some(first), next).take(STEPS_MAX).collect()
}

/// The rate at which most comes back, and how much that is, in packets per second.
fn find_peak(
    running: &Running,
    rates: &[u64],
    out: &mut impl Write,
) -> Result<(u64, f64), Failure> {
    let mut best = (0, 0.0);
    let mut worse = 0;
    for rate in rates {
        let outcome = measure_at(running, *rate, out)?;
        if outcome.returned_per_sec > best.1 {
            best = (*rate, outcome.returned_per_sec);
            worse = 0;
        } else {
            worse += 1;
        }
        let rate = float(*rate)?;
        if worse == WORSE_MAX || outcome.sent_per_sec < rate * REACHED {
            break;
        }
    }
    let mut again = Vec::new();
    for _ in 0..PEAK_RUNS {
        again.push(measure_at(running, best.0, out)?.returned_per_sec);
    }
    Ok((best.0, median(again)))
}

fn measure_at(running: &Running, rate: u64, out: &mut impl Write) -> Result<Outcome, Failure> {
    running.blast.set_pps(rate);
    pause(SETTLE);
    let first = sample(running)?;
    pause(STEP);
    let outcome = between(running, &first, &sample(running)?)?;
    print_row(out, rate, &outcome)?;
    Ok(outcome)
}

/// A piece of the overload.
struct Piece {
    overload: Outcome,
    /// What came back at the peak's rate around it, packets per second.
    peak_per_sec: f64,
}

impl Piece {
    /// Share of the peak that came back.
    fn kept(&self) -> f64 {
        self.overload.returned_per_sec / self.peak_per_sec
    }
}

/// What is compared.
struct Overload<'a> {
    running: &'a Running,
    /// The peak's rate, and that of the overload, packets per second.
    rate: u64,
    offered: u64,
}

impl Overload<'_> {
    /// So many seconds of overload, in pieces, and what was lost in them.
    fn measure(&self, seconds: u16, out: &mut impl Write) -> Result<(Losses, Vec<Piece>), Failure> {
        let mut losses = Losses::default();
        let mut pieces = Vec::new();
        let mut before = measure_at(self.running, self.rate, out)?.returned_per_sec;
        for _ in 0..u64::from(seconds).div_ceil(WINDOW.as_secs()) {
            self.running.blast.set_pps(self.offered);
            pause(SETTLE);
            let (first, lost) = (sample(self.running)?, Losses::read(self.running)?);
            pause(WINDOW);
            let overload = between(self.running, &first, &sample(self.running)?)?;
            losses = losses.plus(Losses::read(self.running)?.since(lost));
            print_row(out, self.offered, &overload)?;
            let after = measure_at(self.running, self.rate, out)?.returned_per_sec;
            pieces.push(Piece { overload, peak_per_sec: f64::midpoint(before, after) });
            before = after;
        }
        Ok((losses, pieces))
    }
}

fn print_row(out: &mut impl Write, rate: u64, outcome: &Outcome) -> Result<(), Failure> {
    let Outcome { sent_per_sec, returned_per_sec, target_percent, .. } = outcome;
    writeln!(out, "{rate:>20}{sent_per_sec:>12.0}{returned_per_sec:>12.0}{target_percent:>10.0}")?;
    Ok(())
}

fn sample(running: &Running) -> Result<Sample, Failure> {
    Sample::take(&running.lab, running.target.pid(), || running.blast.sent())
}

fn between(running: &Running, first: &Sample, last: &Sample) -> Result<Outcome, Failure> {
    Outcome::between(first, last, measure::rss_kib(running.target.pid())?)
}

/// A rate without its fraction.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are positive and far below 2^53"
)]
fn whole(rate: f64) -> u64 {
    rate as u64
}
