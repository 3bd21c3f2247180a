//! `gwlb-sim`: a simulated Gateway Load Balancer with its hosts, in namespaces that it makes.
//!
//! `cargo run --example gwlb-sim -- demo` makes `demo-gwlb`, `demo-target`, `demo-client0` and
//! `demo-server0`, prints `ready` and what to type, and carries packets until SIGINT or SIGTERM;
//! then it prints its counters as one line of JSON and removes the namespaces. With a command
//! after `--` it is a rehearsal: see [`rehearsal`]. `--help` says the rest.

use std::io;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;
use std::process::ExitStatus;

use clap::Parser;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SfdFlags;
use nix::sys::signalfd::SignalFd;

mod guide;
mod options;
mod rehearsal;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "mod.rs"]
mod sim;

use options::Args;
use rehearsal::Rehearsal;
use sim::daemon::Daemon;
use sim::daemon::host_links;
use sim::gwlb::Gwlb;
use sim::netns::Topology;
use sim::os;
use sim::prober::Probers;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "gwlb-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<ExitCode> {
    let config = args.config()?;
    let check = args.check()?;
    if args.endpoint_count() == 0 && !args.client.is_empty() {
        return Err(io::Error::other("--endpoints 0: there is no client to run a command in"));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("needs root to make network namespaces; run it with sudo"));
    }
    // Before any thread begins: a signal must reach none but the loop below.
    let signals = block_signals()?;
    let plan = args.plan(&config);
    let topology = Topology::build(&plan)?;
    let links = host_links(&topology, args.endpoint_id, args.inner_mtu)?;
    let wire = topology.open_wire()?;
    let probers = check
        .map(|check| Probers::start(&topology.gwlb(), &config.nodes, config.target, &check))
        .transpose()?;
    let mut daemon = Daemon::new(Gwlb::new(config), wire, links, probers);
    say("ready")?;
    let mut rehearsal = Rehearsal::start(args, &topology)?;
    if args.target.is_none() && args.client.is_empty() {
        say(&guide::guide(&topology, &plan))?;
    }
    let result = serve(&mut daemon, &mut rehearsal, &signals);
    let end = end_target(&mut daemon, &mut rehearsal, &signals);
    let report = daemon.gwlb.report();
    say(&report.to_json())?;
    let status = result?;
    end?;
    if report.breaches() > 0 {
        let first = report.described().first().map_or("", String::as_str);
        return Err(io::Error::other(format!("the target broke a rule of AWS: {first}")));
    }
    Ok(ExitCode::from(status.map_or(0, shell_status)))
}

fn block_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    let handled =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD];
    for signal in handled {
        signals.add(signal);
    }
    signals.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&signals, flags)?)
}

/// Carries packets until a signal or the client's end, whose status it returns.
fn serve(
    daemon: &mut Daemon,
    rehearsal: &mut Rehearsal,
    signals: &SignalFd,
) -> io::Result<Option<ExitStatus>> {
    loop {
        let is_woken = daemon.turn(signals.as_fd(), rehearsal.waits())?;
        tell_changes(daemon)?;
        let mut is_over = false;
        while is_woken && let Some(signal) = signals.read_signal()? {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGUSR1)) => say(&daemon.gwlb.report().to_json())?,
                Ok(Ok(Signal::SIGUSR2)) => daemon.gwlb.toggle_registration(),
                Ok(Ok(Signal::SIGCHLD)) => {}
                _ => is_over = true,
            }
        }
        if is_over && rehearsal.is_unfinished() {
            return Err(io::Error::other("interrupted before the client's command ended"));
        } else if is_over {
            return Ok(None);
        }
        if is_woken || rehearsal.waits() {
            let status = rehearsal.proceed()?;
            if status.is_some() {
                return Ok(status);
            }
        }
    }
}

/// Lets the target end while packets still flow.
fn end_target(
    daemon: &mut Daemon,
    rehearsal: &mut Rehearsal,
    signals: &SignalFd,
) -> io::Result<()> {
    rehearsal.ask_to_end();
    let asked = os::monotonic();
    while !rehearsal.has_ended(asked)? {
        daemon.turn(signals.as_fd(), true)?;
        while signals.read_signal()?.is_some() {}
    }
    Ok(())
}

fn tell_changes(daemon: &mut Daemon) -> io::Result<()> {
    for change in daemon.gwlb.take_changes() {
        say(change.trim_end())?;
    }
    Ok(())
}

/// What a shell makes of a status: 128 and the signal's number if it was one.
fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
