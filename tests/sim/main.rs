//! `gwlb-sim`: a simulated Gateway Load Balancer with its hosts, in namespaces that it makes.
//!
//! `cargo run --example gwlb-sim -- demo` makes `demo-gwlb`, `demo-target`, `demo-client0` and
//! `demo-server0`, prints `ready`, and carries packets until SIGINT or SIGTERM; then it prints its
//! counters as one line of JSON and removes the namespaces. SIGUSR1 prints the counters at once.
//! Start the target with `ip netns exec demo-target …`.
//!
//! Exit status: 0, or 1 with one line on stderr.

use std::io;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use clap::ValueEnum;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SfdFlags;
use nix::sys::signalfd::SignalFd;

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "mod.rs"]
mod sim;

use sim::daemon::Daemon;
use sim::daemon::HostLink;
use sim::gwlb::Config;
use sim::gwlb::CookieRule;
use sim::gwlb::Gwlb;
use sim::gwlb::Host;
use sim::netns::Plan;
use sim::netns::Topology;

/// A simulated Gateway Load Balancer.
#[derive(Debug, Parser)]
#[command(name = "gwlb-sim")]
struct Args {
    /// How the namespaces' names begin
    prefix: String,
    /// Number of endpoints, each with a client and a server
    #[arg(long, value_name = "N", default_value_t = 1)]
    endpoints: u16,
    /// Id of the first endpoint, in hexadecimal; the next ones follow it
    #[arg(long, value_name = "ID", default_value = "2b8ee1d4db0c51c4")]
    endpoint_id: String,
    /// Number of load balancer nodes
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: u8,
    /// Number of outer UDP source ports, spread over the flows
    #[arg(long, value_name = "N", default_value_t = 1)]
    outer_ports: u16,
    /// First outer UDP source port
    #[arg(long, value_name = "PORT", default_value_t = 60000)]
    outer_port_first: u16,
    /// Whether outer UDP checksums are filled in
    #[arg(long, value_enum, default_value_t = Switch::On)]
    outer_checksum: Switch,
    /// Whether both directions of a flow share a cookie
    #[arg(long, value_enum, default_value_t = Cookies::PerFlow)]
    cookie: Cookies,
    /// Move a flow to another node after so many packets; 0 = never
    #[arg(long, value_name = "PACKETS", default_value_t = 0)]
    roam: u64,
    /// Largest packet between load balancer and target, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 9001)]
    outer_mtu: u16,
    /// Whether the target's link merges what arrives, as network cards do
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    target_gro: Switch,
    /// Largest packet of a host, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8500)]
    inner_mtu: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cookies {
    PerFlow,
    PerDirection,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "gwlb-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let first_id = u64::from_str_radix(&args.endpoint_id, 16)
        .map_err(|error| io::Error::other(format!("--endpoint-id: {error}")))?;
    let config = config(args)?;
    let topology = Topology::build(&Plan {
        prefix: args.prefix.clone(),
        nodes: config.nodes.clone(),
        target: config.target,
        endpoints: args.endpoints.into(),
        outer_mtu: args.outer_mtu,
        target_gro: args.target_gro == Switch::On,
    })?;
    let mut links = Vec::new();
    for number in 0..args.endpoints {
        for host in [Host::Client, Host::Server] {
            links.push(HostLink {
                endpoint: first_id.wrapping_add(number.into()),
                host,
                tun: topology.host_tun(number.into(), host, args.inner_mtu)?,
            });
        }
    }
    let daemon = Daemon::new(Gwlb::new(config), topology.open_wire()?, links);
    serve(daemon)
}

fn config(args: &Args) -> io::Result<Config> {
    let ports_end = u32::from(args.outer_port_first) + u32::from(args.outer_ports);
    if args.nodes == 0 || args.nodes > 80 || args.outer_ports == 0 || ports_end > 65536 {
        return Err(io::Error::other("needs 1 to 80 nodes, and ports from 1 to 65535"));
    }
    Ok(Config {
        nodes: (0..args.nodes).map(|node| Ipv4Addr::new(10, 99, 0, 11 + node)).collect(),
        port_first: args.outer_port_first,
        port_count: args.outer_ports,
        outer_checksum: args.outer_checksum == Switch::On,
        cookies: match args.cookie {
            Cookies::PerFlow => CookieRule::PerFlow,
            Cookies::PerDirection => CookieRule::PerDirection,
        },
        roam_packets: args.roam,
        ..Config::default()
    })
}

fn serve(mut daemon: Daemon) -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let received = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    say("ready")?;
    loop {
        if !daemon.turn(received.as_fd())? {
            continue;
        }
        let Some(signal) = received.read_signal()? else {
            continue;
        };
        say(&daemon.gwlb.report().to_json())?;
        if i32::try_from(signal.ssi_signo) != Ok(Signal::SIGUSR1 as i32) {
            return Ok(());
        }
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
