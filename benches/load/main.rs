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
mod buffers;
mod dissect;
mod lab;
mod latency;
mod latency_report;
mod measure;
mod memory;
mod overload;
mod packet;
mod plot;
mod relay_merge;
mod relay_syscalls;
mod relay_uring;
mod report;
mod run;
mod sight;
mod target;
mod tun;
mod watch;
mod workload;
mod xdp;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use clap::Subcommand;
use serde_json::json;

use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::measure::now;
use crate::measure::pause;
use crate::report::Report;
use crate::run::Conditions;
use crate::target::Engine;
use crate::target::Programs;
use crate::target::Target;
use crate::workload::FLOWS_MAX;
use crate::workload::Shape;
use crate::workload::Workload;

/// How long all endpoints may take: each is two links and a hook.
const IDLE_SET_UP_LIMIT: Duration = Duration::from_mins(1);

/// Time over which the idle engine's CPU use is taken.
const IDLE_SPAN: Duration = Duration::from_secs(10);

/// Packets per second through the engine and through a bare relay, side by side.
#[derive(Debug, Parser)]
#[command(name = "load")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to measure, in this order in every run.
    #[arg(long, value_delimiter = ',', default_values = ["relay-merge", "relay-uring", "ours"])]
    engines: Vec<Engine>,
    /// Runs of each engine.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Repeats of a run that shared its core with others and so is void.
    #[arg(long, default_value_t = 2)]
    repeats: u16,
    /// Measured seconds of a run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    seconds: u16,
    /// What to send; each workload gets a table of its own.
    #[arg(long = "workload", value_delimiter = ',', default_values = ["udp18"])]
    workloads: Vec<Workload>,
    /// AWS's program: one more engine, `peer`, with one thread each for UDP and TUN.
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// One more argument for ours, such as --ours-arg=--no-offload; may be given several times.
    #[arg(long = "ours-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    ours_with: Vec<String>,
    /// One more engine, `variant`: ours with this argument and without those of --ours-arg; may be
    /// given several times.
    #[arg(long = "variant-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    variant_with: Vec<String>,
    /// One more engine, `variant`: ours with --metrics-listen, which is scraped and asked for its
    /// status every 5 s, and for the live page's data every 2 s.
    #[arg(long)]
    watch: bool,
    /// Outer UDP checksum 0.
    #[arg(long)]
    no_checksum: bool,
    /// Inner flows, each with its own cookie, instead of the workload's.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(FLOWS_MAX)))]
    flows: Option<u16>,
    /// Outer UDP source ports over which the flows spread, instead of the workload's; at most one
    /// per flow.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(FLOWS_MAX)))]
    ports: Option<u16>,
    /// Endpoints over which the flows spread. There are at least as many flows.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    endpoints: u16,
    /// Inner payload in bytes, instead of the workload's.
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=8428))]
    payload: Option<u16>,
    /// Packets per second to send; 0 floods.
    #[arg(long, default_value_t = 0)]
    pps: u64,
    /// Switches GRO, and with it NAPI, off at the target's veth.
    #[arg(long)]
    no_gro: bool,
    /// Rules that match nothing, which the link compares each frame with: an inspection's cost.
    #[arg(long, default_value_t = 0)]
    rules: u16,
    /// Instead: added latency at 10,000 packets/s and at half of what the slowest target returns.
    #[arg(long, conflicts_with_all = ["pps", "idle"])]
    latency: bool,
    /// Instead: what ours returns of its peak while twice the peak comes for so many seconds (60 if
    /// no number is given).
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60",
        value_parser = clap::value_parser!(u16).range(5..=3600),
        conflicts_with_all = ["pps", "idle", "latency"])]
    overload: Option<u16>,
    /// Instead: CPU time per packet against packet size, drawn into this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pps", "idle", "latency"])]
    plot: Option<PathBuf>,
    /// Instead: tshark judges the checksums of what comes back.
    #[arg(long, conflicts_with_all = ["pps", "idle", "latency", "plot"])]
    tshark: bool,
    /// Instead: memory of ours, and of the peer if there is one, by so many flows (a million if no
    /// number is given).
    #[arg(long, value_name = "FLOWS", num_args = 0..=1, default_missing_value = "1000000",
        value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    memory: Option<u32>,
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
    /// Is the bare relay that merges.
    #[command(hide = true)]
    RelayMerge,
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
        Some(Role::RelayMerge) => relay_merge::run(),
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
    if let Some(endpoints) = args.idle {
        return idle(endpoints);
    }
    let mut engines = args.engines.clone();
    let mut variant_args = args.variant_with.clone();
    if args.watch {
        variant_args.push(watch::ARGUMENT.to_owned());
    }
    if !variant_args.is_empty() && !engines.contains(&Engine::Variant) {
        engines.push(Engine::Variant);
    }
    match (&args.peer, engines.contains(&Engine::Peer)) {
        (Some(_), false) => engines.push(Engine::Peer),
        (None, true) => return Err("the engine \"peer\" needs --peer PATH".into()),
        (Some(_), true) | (None, false) => {}
    }
    let programs = Programs {
        peer: args.peer.clone(),
        ours_args: args.ours_with.clone(),
        variant_args,
        rules: args.rules,
    };
    if let Some(flows) = args.memory {
        engines.retain(|engine| engine.is_ours() || *engine == Engine::Peer);
        return memory::compare(&programs, &engines, flows);
    }
    let conditions = Conditions {
        programs: &programs,
        seconds: args.seconds,
        pps: args.pps,
        repeats: args.repeats,
        gro: !args.no_gro,
        watch: args.watch,
    };
    if let Some(file) = &args.plot {
        return plot::draw(&conditions, &engines, args.runs, !args.no_checksum, file);
    }
    for workload in &args.workloads {
        let shape = shape(args, *workload);
        if args.tshark {
            dissect::judge(&conditions, &engines, *workload, &shape)?;
        } else if let Some(seconds) = args.overload {
            overload::judge(&conditions, *workload, &shape, seconds)?;
        } else if args.latency {
            latency_report::compare(&conditions, &engines, args.runs, *workload, &shape)?;
        } else {
            compare(&conditions, &engines, args.runs, *workload, shape)?;
        }
    }
    Ok(())
}

/// Runs all engines in turn, prints each run as it ends, then medians and ratios, then one line of
/// JSON.
fn compare(
    conditions: &Conditions<'_>,
    engines: &[Engine],
    runs: u16,
    workload: Workload,
    shape: Shape,
) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let outcomes = engines.iter().map(|engine| (*engine, Vec::new())).collect();
    let mut report = Report { workload, shape, conditions, outcomes };
    report.print_head(&mut out)?;
    for run in 1..=runs {
        for (engine, outcomes) in &mut report.outcomes {
            let outcome = conditions
                .run_until_valid(*engine, &report.shape, workload.claim(), |outcome| {
                    let row = report::row(run, *engine, outcome, conditions.is_flood());
                    Ok(writeln!(out, "{row}")?)
                })
                .map_err(|error| told(&error, workload, run, *engine))?;
            outcomes.push(outcome);
        }
    }
    report.print_end(&mut out)
}

fn told(error: &Failure, workload: Workload, run: u16, engine: Engine) -> Failure {
    format!("{}, run {run} of {}: {error}", workload.name(), engine.name()).into()
}

/// What the workload sends, with what the command line changes of it.
fn shape(args: &Args, workload: Workload) -> Shape {
    let mut shape = workload.shape(!args.no_checksum);
    shape.flows = args.flows.unwrap_or(shape.flows);
    shape.endpoints = args.endpoints;
    shape.flows = shape.flows.max(shape.endpoints);
    shape.ports = args.ports.unwrap_or(shape.ports).min(shape.flows);
    if let Some(payload) = args.payload {
        shape.payloads = vec![payload];
    }
    shape
}

/// CPU use of the engine with `endpoints` endpoints and no traffic.
fn idle(endpoints: u16) -> Result<(), Failure> {
    let lab = Arc::new(Lab::build(true, false)?);
    let target = Target::start(&lab, Engine::Ours, &Programs::default())?;
    blast::greet(&lab, endpoints)?;
    let deadline = now() + IDLE_SET_UP_LIMIT;
    let wanted = usize::from(endpoints);
    loop {
        let (listed, returned) = (target::endpoints(&lab)?, lab.returned()?.packets);
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
        "machine": report::machine()?,
    });
    writeln!(out, "{report}")?;
    Ok(())
}
