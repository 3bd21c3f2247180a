//! What is printed: a table with one row per run, then medians and ratios, then one line of JSON.

use std::fs;
use std::io::Write;

use serde_json::json;

use crate::lab::Failure;
use crate::measure::Merged;
use crate::measure::Outcome;
use crate::measure::Verdict;
use crate::measure::median;
use crate::measure::median_interval;
use crate::run::Conditions;
use crate::target::Engine;
use crate::workload::Shape;
use crate::workload::Workload;

/// One workload and the runs of each engine under it.
pub(crate) struct Report<'a> {
    pub(crate) workload: Workload,
    pub(crate) shape: Shape,
    pub(crate) conditions: &'a Conditions<'a>,
    /// Engines in their order, each with its runs so far.
    pub(crate) outcomes: Vec<(Engine, Vec<Outcome>)>,
}

/// Of one engine: a value of its runs over that of another engine's runs just before or after.
struct Ratio {
    engine: Engine,
    of: Engine,
    runs: Vec<f64>,
}

impl Report<'_> {
    /// The line over the rows.
    pub(crate) fn print_head(&self, out: &mut impl Write) -> Result<(), Failure> {
        let Shape { flows, ports, has_checksum, .. } = self.shape;
        writeln!(
            out,
            "{}: {flows} flows, {ports} outer ports, outer checksum {}",
            self.workload.name(),
            if has_checksum { "present" } else { "0" },
        )?;
        writeln!(
            out,
            "{:>3}  {:<12}{:>11}{:>7}{:>10}{:>8}{:>14}{:>9}{:>8}{:>8}{:>8}{:>8}  {:<8}core 1: \
             user system softirq idle %",
            "run",
            "engine",
            "returned/s",
            "Gbit/s",
            "sent/s",
            "loss %",
            "cpu ns/packet",
            "target %",
            "rss MiB",
            "p/recv",
            "p/frame",
            "p/send",
            "verdict",
        )?;
        Ok(())
    }

    /// Medians, ratios and JSON.
    pub(crate) fn print_end(&self, out: &mut impl Write) -> Result<(), Failure> {
        writeln!(out)?;
        for (engine, runs) in &self.outcomes {
            let name = format!("{}, median {}", self.workload.name(), engine.name());
            let costed: Vec<_> = runs.iter().filter(|run| self.has_cost(run)).collect();
            if costed.is_empty() {
                writeln!(out, "{name}: none, all its runs are void")?;
                continue;
            }
            let median = |value: fn(&Outcome) -> f64| median(costed.iter().map(|run| value(run)));
            writeln!(
                out,
                "{name}: {:.0} packets/s, {:.2} Gbit/s, {:.0} ns of CPU per packet; packets per \
                 receive {:.2}, frame {:.2}, send {:.2}",
                median(|run| run.returned_per_sec),
                median(|run| run.gbits_per_sec),
                median(|run| run.cpu_ns_per_packet),
                median(|run| run.merged.receive),
                median(|run| run.merged.frame),
                median(|run| run.merged.send),
            )?;
        }
        let rates = self.rate_ratios();
        let costs = self.cost_ratios();
        for (what, ratios) in [("packets/s", &rates), ("CPU ns per packet", &costs)] {
            for Ratio { engine, of, runs } in ratios.iter().filter(|ratio| !ratio.runs.is_empty()) {
                writeln!(
                    out,
                    "{}, {what}, {} / {}: median {:.3} of the runs' ratios ({:.3} to {:.3}; \
                     {} of {} below 1{})",
                    self.workload.name(),
                    engine.name(),
                    of.name(),
                    median(runs.iter().copied()),
                    runs.iter().copied().fold(f64::INFINITY, f64::min),
                    runs.iter().copied().fold(0.0, f64::max),
                    runs.iter().filter(|ratio| **ratio < 1.0).count(),
                    runs.len(),
                    median_interval(runs).map_or_else(String::new, |(least, greatest)| format!(
                        "; 95 % of the median {least:.3} to {greatest:.3}"
                    )),
                )?;
            }
        }
        writeln!(out, "{}\n", self.json(&rates, &costs)?)?;
        Ok(())
    }

    /// Of each engine but the first: its packets/s over those of the first.
    fn rate_ratios(&self) -> Vec<Ratio> {
        let (first, _) = self.outcomes[0];
        self.ratios(first, |run| run.returned_per_sec, |run| self.has_rate(run))
    }

    /// Of each engine but ours: its CPU time per packet over that of ours, if ours runs too.
    fn cost_ratios(&self) -> Vec<Ratio> {
        self.ratios(Engine::Ours, |run| run.cpu_ns_per_packet, |run| self.has_cost(run))
    }

    /// Whether a run's packets/s mean something.
    fn has_rate(&self, run: &Outcome) -> bool {
        !self.conditions.is_flood() || run.verdict() == Verdict::Valid
    }

    /// Whether a run's CPU time per packet means something.
    fn has_cost(&self, run: &Outcome) -> bool {
        !self.conditions.is_flood() || run.verdict() != Verdict::Void
    }

    /// Ratios of the rounds in which both runs count.
    fn ratios(
        &self,
        of: Engine,
        value: impl Fn(&Outcome) -> f64,
        counts: impl Fn(&Outcome) -> bool,
    ) -> Vec<Ratio> {
        let Some((_, base)) = self.outcomes.iter().find(|(engine, _)| *engine == of) else {
            return Vec::new();
        };
        let others = self.outcomes.iter().filter(|(engine, _)| *engine != of);
        let pairs = |runs: &[Outcome]| -> Vec<f64> {
            let pairs = runs.iter().zip(base).filter(|(run, base)| counts(run) && counts(base));
            pairs.map(|(run, base)| value(run) / value(base)).collect()
        };
        others.map(|(engine, runs)| Ratio { engine: *engine, of, runs: pairs(runs) }).collect()
    }

    /// A run for machines. Only a flood has a verdict.
    fn run_json(&self, run: &Outcome) -> serde_json::Value {
        let mut json = run.json();
        if self.conditions.is_flood() {
            json["verdict"] = run.verdict().name().into();
        }
        json
    }

    fn json(&self, rates: &[Ratio], costs: &[Ratio]) -> Result<serde_json::Value, Failure> {
        let runs: serde_json::Map<_, _> = self
            .outcomes
            .iter()
            .map(|(engine, runs)| {
                let runs: Vec<_> = runs.iter().map(|run| self.run_json(run)).collect();
                (engine.name().to_owned(), json!(runs))
            })
            .collect();
        let table = |ratios: &[Ratio]| -> serde_json::Map<_, _> {
            ratios.iter().map(|ratio| (ratio.engine.name().to_owned(), json!(ratio.runs))).collect()
        };
        Ok(json!({
            "bench": "load",
            "machine": machine()?,
            "workload": self.workload.name(),
            "seconds": self.conditions.seconds,
            "flows": self.shape.flows,
            "ports": self.shape.ports,
            "payload_bytes": self.shape.payloads,
            "outer_checksum": self.shape.has_checksum,
            "pps": self.conditions.pps,
            "gro": self.conditions.gro,
            "endpoints": self.shape.endpoints,
            "ours_args": self.conditions.programs.ours_args,
            "variant_args": self.conditions.programs.variant_args,
            "watched": self.conditions.watch,
            "runs": runs,
            "ratios_to_first": table(rates),
            "cpu_ratios_to_ours": table(costs),
        }))
    }
}

/// One run as a row of the table.
pub(crate) fn row(run: u16, engine: Engine, outcome: &Outcome, is_flood: bool) -> String {
    let core = outcome.core_percent.map(|percent| format!("{percent:.0}"));
    let merged = &outcome.merged;
    format!(
        "{run:>3}  {:<12}{:>11.0}{:>7.2}{:>10.0}{:>8.1}{:>14.0}{:>9.0}{:>8}{:>8}{:>8}{:>8}  \
         {:<8}{}",
        engine.name(),
        outcome.returned_per_sec,
        outcome.gbits_per_sec,
        outcome.sent_per_sec,
        outcome.loss_percent,
        outcome.cpu_ns_per_packet,
        outcome.target_percent,
        outcome.rss_kib / 1024,
        per(merged.receive),
        per(merged.frame),
        per(merged.send),
        if is_flood { outcome.verdict().name() } else { "-" },
        core.join(" "),
    )
}

/// How much was merged, in words.
pub(crate) fn merged(outcome: &Outcome) -> String {
    let Merged { receive, frame, send } = outcome.merged;
    format!("packets per receive {}, frame {}, send {}", per(receive), per(frame), per(send))
}

/// Packets per something; nothing where the kernel counted none.
fn per(packets: f64) -> String {
    if packets == 0.0 { "-".to_owned() } else { format!("{packets:.2}") }
}

/// What the figures belong to.
pub(crate) fn machine() -> Result<serde_json::Value, Failure> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(json!({
        "cpu": model,
        "cores": cpus.lines().filter(|line| line.starts_with("processor")).count(),
        "kernel": kernel.trim(),
    }))
}
