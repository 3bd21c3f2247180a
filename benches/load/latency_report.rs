//! The latency mode: two rates, all targets in turn, a table, medians and ratios, one line of JSON.

use std::io::Write;

use serde_json::json;

use crate::lab::Failure;
use crate::latency::Latency;
use crate::measure::Outcome;
use crate::measure::Verdict;
use crate::measure::median;
use crate::report;
use crate::run::Conditions;
use crate::target::Engine;
use crate::workload::Shape;
use crate::workload::Workload;

/// The lower rate, in packets per second: a target that does nothing else is nearly idle.
const LOW_PPS: u64 = 10_000;

/// Seconds of the flood that finds out what half load is.
const FLOOD_SECONDS: u16 = 1;

/// A latency and how it is printed.
type Column = (&'static str, fn(&Latency) -> f64);

const COLUMNS: [Column; 3] = [
    ("p50", |latency| latency.p50_us),
    ("p99", |latency| latency.p99_us),
    ("p99.9", |latency| latency.p999_us),
];

/// One run, and whether its core was its own.
struct Run {
    latency: Latency,
    is_void: bool,
}

impl Run {
    /// The latency, if it means something.
    fn valid(&self) -> Option<&Latency> {
        (!self.is_void).then_some(&self.latency)
    }

    fn json(&self) -> serde_json::Value {
        let mut json = self.latency.json();
        json["is_void"] = self.is_void.into();
        json
    }
}

/// The runs of each engine at one rate.
type Runs = Vec<(Engine, Vec<Run>)>;

/// Measures all engines in turn at both rates.
pub(crate) fn compare(
    conditions: &Conditions<'_>,
    engines: &[Engine],
    runs: u16,
    workload: Workload,
    shape: &Shape,
) -> Result<(), Failure> {
    let half = half_load(conditions, engines, shape)?;
    for (name, pps) in [("low", LOW_PPS), ("half load", half)] {
        let conditions = Conditions { pps, ..*conditions };
        measure(&conditions, engines, runs, (workload, name), shape)
            .map_err(|error| format!("{}, {name}: {error}", workload.name()))?;
    }
    Ok(())
}

/// Half of what the slowest target returns under a flood, in packets per second.
fn half_load(
    conditions: &Conditions<'_>,
    engines: &[Engine],
    shape: &Shape,
) -> Result<u64, Failure> {
    let flood = Conditions { pps: 0, seconds: FLOOD_SECONDS, ..*conditions };
    let mut slowest = u64::MAX;
    for engine in engines {
        let outcome = flood.run_until_valid(*engine, shape, None, |_| Ok(()))?;
        slowest = slowest.min(outcome.returned);
    }
    Ok(slowest / u64::from(FLOOD_SECONDS) / 2)
}

fn measure(
    conditions: &Conditions<'_>,
    engines: &[Engine],
    runs: u16,
    (workload, name): (Workload, &str),
    shape: &Shape,
) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{}, {name}: {} packets/s", workload.name(), conditions.pps)?;
    writeln!(
        out,
        "{:>3}  {:<12}{:>9}{:>7}{:>10}{:>10}{:>10}{:>10}  core 1",
        "run", "engine", "packets", "lost", "p50 us", "p99 us", "p99.9 us", "target %"
    )?;
    let mut all: Runs = engines.iter().map(|engine| (*engine, Vec::new())).collect();
    for run in 1..=runs {
        for (engine, finished) in &mut all {
            let mut repeats = 0..conditions.repeats;
            let last = loop {
                let (latency, outcome) = conditions.run_for_latency(*engine, shape)?;
                let is_void = outcome.verdict() == Verdict::Void;
                writeln!(out, "{}", row(run, *engine, &latency, &outcome))?;
                if !is_void || repeats.next().is_none() {
                    break Run { latency, is_void };
                }
            };
            finished.push(last);
        }
    }
    writeln!(out)?;
    print_ratios(&mut out, &all)?;
    let line = json!({
        "bench": "latency",
        "machine": report::machine()?,
        "workload": workload.name(),
        "outer_checksum": shape.has_checksum,
        "seconds": conditions.seconds,
        "pps": conditions.pps,
        "runs": all
            .iter()
            .map(|(engine, runs)| {
                let runs: Vec<_> = runs.iter().map(Run::json).collect();
                (engine.name().to_owned(), json!(runs))
            })
            .collect::<serde_json::Map<_, _>>(),
    });
    writeln!(out, "{line}\n")?;
    Ok(())
}

/// One run as a row of the table.
fn row(run: u16, engine: Engine, latency: &Latency, outcome: &Outcome) -> String {
    let is_void = outcome.verdict() == Verdict::Void;
    format!(
        "{run:>3}  {:<12}{:>9}{:>7}{:>10.1}{:>10.1}{:>10.1}{:>10.0}  {}",
        engine.name(),
        latency.packets,
        latency.lost,
        latency.p50_us,
        latency.p99_us,
        latency.p999_us,
        outcome.target_percent,
        if is_void { "shared: void" } else { "own" },
    )
}

/// Medians of each engine, and what ours takes over what another takes just before or after.
fn print_ratios(out: &mut impl Write, all: &Runs) -> Result<(), Failure> {
    for (engine, runs) in all {
        let valid: Vec<&Latency> = runs.iter().filter_map(Run::valid).collect();
        if valid.is_empty() {
            writeln!(out, "median {}: none, all its runs are void", engine.name())?;
            continue;
        }
        let [p50, p99, p999] = COLUMNS.map(|(_, value)| median(valid.iter().map(|run| value(run))));
        writeln!(out, "median {}: p50 {p50:.1}, p99 {p99:.1}, p99.9 {p999:.1} us", engine.name())?;
    }
    let Some((_, ours)) = all.iter().find(|(engine, _)| *engine == Engine::Ours) else {
        return Ok(());
    };
    for (engine, runs) in all.iter().filter(|(engine, _)| *engine != Engine::Ours) {
        for (name, value) in COLUMNS {
            let pairs =
                ours.iter().zip(runs).filter_map(|pair| Some((pair.0.valid()?, pair.1.valid()?)));
            let ratios: Vec<f64> = pairs.map(|(ours, other)| value(ours) / value(other)).collect();
            if ratios.is_empty() {
                continue;
            }
            writeln!(
                out,
                "{name}, ours / {}: median {:.3} of the runs' ratios ({:.3} to {:.3})",
                engine.name(),
                median(ratios.iter().copied()),
                ratios.iter().copied().fold(f64::INFINITY, f64::min),
                ratios.iter().copied().fold(0.0, f64::max),
            )?;
        }
    }
    Ok(())
}
