//! End-to-end load: how many packets per second go there and back through the engine on one
//! core, against a bare relay that makes the same system calls and nothing else.
//!
//! Method, commands and how to read the figures: `benches/README.md`. In short: fresh namespaces
//! for every run ([`lab`]), a generator that floods from core 0 ([`blast`]), the target alone on
//! core 1 ([`target`]), targets in turn so that what disturbs one disturbs all, medians. Every run
//! checks that what it counted really went through the TUN links.
//!
//! Needs root and Linux 6.7. Leaves nothing behind, even when killed.

mod blast;
mod lab;
mod measure;
mod relay_syscalls;
mod relay_uring;
mod target;
mod tun;

use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use clap::Subcommand;
use serde_json::json;

use crate::blast::Blast;
use crate::blast::Workload;
use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::measure::Outcome;
use crate::measure::Sample;
use crate::measure::median;
use crate::measure::now;
use crate::measure::pause;
use crate::target::Engine;
use crate::target::Target;

/// Rate until the first packet is back: enough to create the endpoint, too little to hurt.
const WARM_UP_PPS: u64 = 1000;

/// How long the first packet may take: the hook runs before it.
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);

/// Load that precedes what is measured.
const SETTLE: Duration = Duration::from_millis(300);

/// How long all endpoints may take: each is two links and a hook.
const IDLE_SET_UP_LIMIT: Duration = Duration::from_mins(1);

/// Time over which the idle engine's CPU use is taken.
const IDLE_SPAN: Duration = Duration::from_secs(10);

/// Packets per second through the engine and through a bare relay, side by side.
#[derive(Debug, Parser)]
#[command(name = "load")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to measure, in this order in every run.
    #[arg(long, value_delimiter = ',', default_values = ["relay-uring", "ours"])]
    engines: Vec<Engine>,
    /// Runs of each engine.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Measured seconds of a run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    seconds: u16,
    /// Inner flows, each with its own cookie.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    flows: u16,
    /// Outer UDP source ports over which the flows spread, at most one per flow.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    ports: u16,
    /// Inner UDP payload in bytes.
    #[arg(long, default_value_t = 18, value_parser = clap::value_parser!(u16).range(0..=8472))]
    payload: u16,
    /// Packets per second to send; 0 floods.
    #[arg(long, default_value_t = 0)]
    pps: u64,
    /// Switches GRO, and with it NAPI, off at the target's veth.
    #[arg(long)]
    no_gro: bool,
    /// Instead: CPU use of the idle engine with this many endpoints (100 if no number is given).
    #[arg(long, value_name = "ENDPOINTS", num_args = 0..=1, default_missing_value = "100")]
    idle: Option<u16>,
    /// What cargo adds for every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What this binary does as a child of itself.
#[derive(Debug, Subcommand)]
enum Role {
    /// Enters a namespace, pins itself and becomes another program.
    #[command(hide = true)]
    Launch {
        #[arg(long)]
        netns: String,
        #[arg(long)]
        core: usize,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Is the bare `io_uring` relay.
    #[command(hide = true)]
    RelayUring,
    /// Is the bare relay with plain system calls.
    #[command(hide = true)]
    RelaySyscalls,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.role {
        Some(Role::Launch { netns, core, command }) => lab::launch(netns, *core, command),
        Some(Role::RelayUring) => relay_uring::run(),
        Some(Role::RelaySyscalls) => relay_syscalls::run(),
        None => bench(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root: it makes network namespaces and TUN links".into());
    }
    lab::pin(lab::SENDER_CORE)?;
    match args.idle {
        Some(endpoints) => idle(endpoints),
        None => compare(args),
    }
}

/// Runs all engines in turn, prints each run as it ends, then medians and ratios, then one line of
/// JSON.
fn compare(args: &Args) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:>3}  {:<15}{:>11}{:>11}{:>8}{:>14}{:>10}{:>9}   core 1: user system softirq idle %",
        "run", "engine", "returned/s", "sent/s", "loss %", "cpu ns/packet", "target %", "rss MiB"
    )?;
    let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); args.engines.len()];
    for run in 1..=args.runs {
        for (engine, outcomes) in args.engines.iter().zip(&mut outcomes) {
            let outcome = run_once(args, *engine)
                .map_err(|error| format!("run {run} of {}: {error}", engine.name()))?;
            writeln!(out, "{run:>3}  {}", row(*engine, &outcome))?;
            outcomes.push(outcome);
        }
    }
    writeln!(out)?;
    for (engine, outcomes) in args.engines.iter().zip(&outcomes) {
        writeln!(
            out,
            "median {}: {:.0} packets/s, {:.0} ns of CPU per packet",
            engine.name(),
            median(outcomes.iter().map(|run| run.returned_per_sec)),
            median(outcomes.iter().map(|run| run.cpu_ns_per_packet)),
        )?;
    }
    let ratios = ratios(args, &outcomes);
    for (engine, ratio) in &ratios {
        writeln!(
            out,
            "{} / {}: median {:.3} of the runs' ratios ({:.3} to {:.3})",
            engine.name(),
            args.engines[0].name(),
            median(ratio.iter().copied()),
            ratio.iter().copied().fold(f64::INFINITY, f64::min),
            ratio.iter().copied().fold(0.0, f64::max),
        )?;
    }
    writeln!(out, "{}", report(args, &outcomes, &ratios)?)?;
    Ok(())
}

/// One target from start to end, in namespaces of its own.
fn run_once(args: &Args, engine: Engine) -> Result<Outcome, Failure> {
    let workload = Workload {
        flows: args.flows,
        ports: args.ports.min(args.flows),
        payload_bytes: args.payload,
    };
    let lab = Arc::new(Lab::build(!args.no_gro)?);
    let target = Target::start(&lab, engine)?;
    let blast = Blast::start(&lab, workload, WARM_UP_PPS);
    let deadline = now() + WARM_UP_LIMIT;
    while lab.returned()? == 0 {
        if now() > deadline {
            return Err(format!("no packet came back within {WARM_UP_LIMIT:?}").into());
        }
        pause(Duration::from_millis(20));
    }
    blast.set_pps(args.pps);
    pause(SETTLE);
    let first = Sample::take(&lab, target.pid(), || blast.sent())?;
    pause(Duration::from_secs(u64::from(args.seconds)));
    let last = Sample::take(&lab, target.pid(), || blast.sent())?;
    let rss_kib = measure::rss_kib(target.pid())?;
    let sent = blast.stop()?;
    check_books(&lab, target, sent)?;
    Outcome::between(&first, &last, rss_kib)
}

/// Every packet that the sink counted was read from gwo, was written to gwi before, and was sent by
/// the generator before; and what the target read and the sink did not count was lost at the sink.
fn check_books(lab: &Lab, target: Target, sent: u64) -> Result<(), Failure> {
    let mut books = lab.books()?;
    loop {
        pause(Duration::from_millis(100));
        let later = lab.books()?;
        if later == books {
            break;
        }
        books = later;
    }
    let arrived = books.returned + books.lost_at_sink;
    let said = target.stop()?.unwrap_or(arrived);
    if sent < books.written_gwi || books.written_gwi < books.read_gwo {
        return Err(format!("packets from nowhere: {sent} sent, {books:?}").into());
    }
    if books.read_gwo != arrived || said != arrived {
        return Err(format!("the target says {said}, but {books:?}").into());
    }
    Ok(())
}

/// CPU use of the engine with `endpoints` endpoints and no traffic.
fn idle(endpoints: u16) -> Result<(), Failure> {
    let lab = Arc::new(Lab::build(true)?);
    let target = Target::start(&lab, Engine::Ours)?;
    blast::greet(&lab, endpoints)?;
    let deadline = now() + IDLE_SET_UP_LIMIT;
    let wanted = usize::from(endpoints);
    loop {
        let (listed, returned) = (target::endpoints(&lab)?, lab.returned()?);
        if listed == wanted && returned == u64::from(endpoints) {
            break;
        }
        if now() > deadline {
            return Err(format!("{listed} of {wanted} endpoints, {returned} packets back").into());
        }
        pause(Duration::from_millis(100));
    }
    let links = lab.run(Host::Target, "ip -o link show type tun")?;
    let links = links.lines().count();
    if links != wanted * 2 {
        return Err(format!("{links} TUN links for {endpoints} endpoints").into());
    }
    pause(Duration::from_secs(1));
    let first = (now(), measure::cpu_time(target.pid())?);
    pause(IDLE_SPAN);
    let last = (now(), measure::cpu_time(target.pid())?);
    let span = last.0.duration_since(first.0);
    let percent = last.1.saturating_sub(first.1).as_secs_f64() / span.as_secs_f64() * 100.0;
    let rss_kib = measure::rss_kib(target.pid())?;
    target.stop()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{endpoints} endpoints, idle: {percent:.3} % of one core, {rss_kib} KiB resident"
    )?;
    let report = json!({
        "bench": "idle",
        "endpoints": endpoints,
        "cpu_percent": percent,
        "rss_kib": rss_kib,
        "machine": machine()?,
    });
    writeln!(out, "{report}")?;
    Ok(())
}

/// Of each engine but the first: packets/s of its runs over those of the first engine's runs.
fn ratios(args: &Args, outcomes: &[Vec<Outcome>]) -> Vec<(Engine, Vec<f64>)> {
    let of_run =
        |(ours, first): (&Outcome, &Outcome)| ours.returned_per_sec / first.returned_per_sec;
    let engines = args.engines.iter().zip(outcomes).skip(1);
    engines
        .map(|(engine, runs)| (*engine, runs.iter().zip(&outcomes[0]).map(of_run).collect()))
        .collect()
}

fn row(engine: Engine, outcome: &Outcome) -> String {
    let core = outcome.core_percent.map(|percent| format!("{percent:.0}"));
    format!(
        "{:<15}{:>11.0}{:>11.0}{:>8.1}{:>14.0}{:>10.0}{:>9}   {}",
        engine.name(),
        outcome.returned_per_sec,
        outcome.sent_per_sec,
        outcome.loss_percent,
        outcome.cpu_ns_per_packet,
        outcome.target_percent,
        outcome.rss_kib / 1024,
        core.join(" "),
    )
}

fn report(
    args: &Args,
    outcomes: &[Vec<Outcome>],
    ratios: &[(Engine, Vec<f64>)],
) -> Result<serde_json::Value, Failure> {
    let engines: serde_json::Map<_, _> = args
        .engines
        .iter()
        .zip(outcomes)
        .map(|(engine, runs)| {
            let runs: Vec<_> = runs.iter().map(Outcome::json).collect();
            (engine.name().to_owned(), json!(runs))
        })
        .collect();
    let ratios: serde_json::Map<_, _> =
        ratios.iter().map(|(engine, ratio)| (engine.name().to_owned(), json!(ratio))).collect();
    Ok(json!({
        "bench": "load",
        "machine": machine()?,
        "seconds": args.seconds,
        "flows": args.flows,
        "ports": args.ports.min(args.flows),
        "payload_bytes": args.payload,
        "pps": args.pps,
        "gro": !args.no_gro,
        "runs": engines,
        "ratios_to_first": ratios,
    }))
}

/// What the figures belong to.
fn machine() -> Result<serde_json::Value, Failure> {
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
