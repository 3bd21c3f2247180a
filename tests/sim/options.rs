//! The command line of the simulator, and what it means.

use std::io;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Parser;
use clap::ValueEnum;

use super::sim::gwlb::Config;
use super::sim::gwlb::CookieRule;
use super::sim::health::Failover;
use super::sim::health::GroupConfig;
use super::sim::health::Thresholds;
use super::sim::layout::AWS_CLASS;
use super::sim::netns::Arms;
use super::sim::netns::Plan;
use super::sim::prober::Check;
use super::sim::prober::Protocol;

const EXAMPLES: &str = "\
Examples:
  gwlb-sim lab
      Makes lab-gwlb, lab-target, lab-client0 and lab-server0, prints \"ready\" and what to type.
  gwlb-sim lab --target 'gwlbtun -c ./hook.sh -r ./hook.sh' -- ping -c 3 10.1.0.2
      Rehearses a hook: starts the target, pings through it, stops it, says which rules it broke.
  gwlb-sim lab --topology two-arm --endpoints 2 --health-port 80
      A target with a second arm to the internet; its health port is checked as AWS does.
  gwlb-sim lab --target 'gwlbtun -c ./hook.sh' -- bash
      A shell at the client.

Signals: SIGUSR1 prints the counters as one line of JSON; SIGUSR2 deregisters the target, and
registers it again; SIGINT and SIGTERM print the counters and end everything in the namespaces.
Lines on stdout: \"ready\", \"health: …\" and \"target: …\" when a state changes, the counters.

Exit status: that of COMMAND if there is one and no rule was broken, else 0; 1 with one line on
stderr if something does not work, the target ended by itself, or it broke a rule; 2 if the
arguments are wrong.";

/// A simulated AWS Gateway Load Balancer with its hosts, in network namespaces that it makes and
/// removes. Needs root.
#[derive(Debug, Parser)]
#[command(name = "gwlb-sim", after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    /// How the namespaces' names begin
    pub(crate) prefix: String,
    /// Runs in the first client as soon as the target listens on UDP port 6081; its end is the
    /// simulator's
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) client: Vec<String>,
    /// Shell command to run in the target; gets SIGTERM at the end, and 10 s
    #[arg(long, value_name = "COMMAND")]
    pub(crate) target: Option<String>,
    /// Shell command to run in the first server (two-arm: in the internet)
    #[arg(long, value_name = "COMMAND")]
    pub(crate) server: Option<String>,

    /// Where the target sends packets: back to the load balancer, or out by a second interface
    #[arg(long, value_enum, default_value_t = Topology::OneArm, help_heading = "Topology")]
    topology: Topology,
    /// Number of endpoints, each with a client and, one-arm, a server
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(..=250),
        help_heading = "Topology"
    )]
    endpoints: u16,
    /// Number of different client networks, which endpoints take in turn; default: one-arm 1, so
    /// that all overlap, two-arm as many as endpoints
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=250),
        help_heading = "Topology"
    )]
    networks: Option<u16>,
    /// Id of the first endpoint, in hexadecimal; the next ones follow it
    #[arg(
        long,
        value_name = "ID",
        default_value = "2b8ee1d4db0c51c4",
        value_parser = hexadecimal,
        help_heading = "Topology"
    )]
    pub(crate) endpoint_id: u64,
    /// Largest packet between load balancer and target, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 9001, help_heading = "Topology")]
    outer_mtu: u16,
    /// Largest packet of a host, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8500, help_heading = "Topology")]
    pub(crate) inner_mtu: u16,
    /// Whether the target's link merges what arrives, as network cards do
    #[arg(long, value_enum, default_value_t = Switch::Off, help_heading = "Topology")]
    target_gro: Switch,

    /// Number of load balancer nodes
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=80),
        help_heading = "Load balancer"
    )]
    nodes: u8,
    /// Number of outer UDP source ports, spread over the flows
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load balancer")]
    outer_ports: u16,
    /// First outer UDP source port
    #[arg(long, value_name = "PORT", default_value_t = 60000, help_heading = "Load balancer")]
    outer_port_first: u16,
    /// Whose load balancer to play: the class of the GENEVE options
    #[arg(long, value_enum, default_value_t = Profile::Aws, help_heading = "Load balancer")]
    profile: Profile,
    /// Whether outer UDP checksums are filled in
    #[arg(long, value_enum, default_value_t = Switch::On, help_heading = "Load balancer")]
    outer_checksum: Switch,
    /// Whether both directions of a flow share a cookie
    #[arg(long, value_enum, default_value_t = Cookies::PerFlow, help_heading = "Load balancer")]
    cookie: Cookies,
    /// Move a flow to another node after so many packets; 0 = never
    #[arg(long, value_name = "PACKETS", default_value_t = 0, help_heading = "Load balancer")]
    roam: u64,
    /// After how long without a packet a TCP flow is over; others: 120 s
    #[arg(long, value_name = "S", default_value = "350", value_parser = seconds,
        help_heading = "Load balancer")]
    tcp_idle: Duration,

    /// Port of the target to check; 0 = no health checks (AWS: 80)
    #[arg(long, value_name = "PORT", default_value_t = 0, help_heading = "Health checks")]
    health_port: u16,
    /// What a check asks
    #[arg(long, value_enum, default_value_t = HealthProtocol::Http,
        help_heading = "Health checks")]
    health_protocol: HealthProtocol,
    /// Path of the HTTP request
    #[arg(long, value_name = "PATH", default_value = "/", help_heading = "Health checks")]
    health_path: String,
    /// HTTP status codes that pass, as FIRST-LAST or one
    #[arg(long, value_name = "CODES", default_value = "200-399", value_parser = codes,
        help_heading = "Health checks")]
    health_codes: RangeInclusive<u16>,
    /// Time from one check of a node to its next (AWS: 5 to 300)
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds,
        help_heading = "Health checks")]
    health_interval: Duration,
    /// How long an answer may take, at most the interval (AWS: 2 to 120)
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds,
        help_heading = "Health checks")]
    health_timeout: Duration,
    /// Successes in a row until the target is healthy (AWS: 2 to 10)
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Health checks")]
    healthy_threshold: u32,
    /// Failures in a row until the target is unhealthy (AWS: 2 to 10)
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Health checks")]
    unhealthy_threshold: u32,

    /// Whether there is another target, always healthy, that sends every packet back; without it
    /// an unhealthy target gets everything all the same
    #[arg(long, value_enum, default_value_t = Switch::Off, help_heading = "Target group")]
    other_target: Switch,
    /// Whether flows of a failed or deregistered target move to the other one
    #[arg(long, value_enum, default_value_t = TargetFailover::NoRebalance,
        help_heading = "Target group")]
    target_failover: TargetFailover,
    /// How long a deregistered target is draining
    #[arg(long, value_name = "S", default_value = "300", value_parser = seconds,
        help_heading = "Target group")]
    deregistration_delay: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    Aws,
    Tencent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cookies {
    PerFlow,
    PerDirection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Topology {
    OneArm,
    TwoArm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HealthProtocol {
    Http,
    Tcp,
}

/// AWS's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TargetFailover {
    #[value(name = "no_rebalance")]
    NoRebalance,
    #[value(name = "rebalance")]
    Rebalance,
}

impl Args {
    /// The namespaces to make for a load balancer.
    pub(crate) fn plan(&self, config: &Config) -> Plan {
        let arms = match self.topology {
            Topology::OneArm => Arms::One,
            Topology::TwoArm => Arms::Two,
        };
        let own_networks = if arms == Arms::One { 1 } else { self.endpoints.max(1) };
        Plan {
            prefix: self.prefix.clone(),
            nodes: config.nodes.clone(),
            target: config.target,
            arms,
            endpoints: self.endpoints.into(),
            networks: self.networks.unwrap_or(own_networks).into(),
            outer_mtu: self.outer_mtu,
            target_gro: self.target_gro == Switch::On,
        }
    }

    /// How many endpoints have hosts.
    pub(crate) fn endpoint_count(&self) -> u16 {
        self.endpoints
    }

    /// How the load balancer is to behave.
    pub(crate) fn config(&self) -> io::Result<Config> {
        let ports_end = u32::from(self.outer_port_first) + u32::from(self.outer_ports);
        if self.outer_port_first == 0 || self.outer_ports == 0 || ports_end > 65536 {
            return Err(io::Error::other("--outer-ports: needs ports from 1 to 65535"));
        }
        Ok(Config {
            nodes: (0..self.nodes).map(|node| Ipv4Addr::new(10, 99, 0, 11 + node)).collect(),
            port_first: self.outer_port_first,
            port_count: self.outer_ports,
            option_class: match self.profile {
                Profile::Aws => AWS_CLASS,
                Profile::Tencent => 0x0167,
            },
            outer_checksum: self.outer_checksum == Switch::On,
            cookies: match self.cookie {
                Cookies::PerFlow => CookieRule::PerFlow,
                Cookies::PerDirection => CookieRule::PerDirection,
            },
            roam_packets: self.roam,
            tcp_idle: self.tcp_idle,
            group: GroupConfig {
                thresholds: Thresholds {
                    healthy: self.healthy_threshold,
                    unhealthy: self.unhealthy_threshold,
                },
                failover: match self.target_failover {
                    TargetFailover::NoRebalance => Failover::NoRebalance,
                    TargetFailover::Rebalance => Failover::Rebalance,
                },
                other_target: self.other_target == Switch::On,
                deregistration_delay: self.deregistration_delay,
            },
            ..Config::default()
        })
    }

    /// The health check to make, if any.
    pub(crate) fn check(&self) -> io::Result<Option<Check>> {
        if self.health_timeout > self.health_interval {
            return Err(io::Error::other("--health-timeout: is longer than --health-interval"));
        }
        if !self.health_path.starts_with('/') || self.health_path.contains(char::is_whitespace) {
            return Err(io::Error::other("--health-path: needs a path that begins with /"));
        }
        Ok((self.health_port != 0).then(|| Check {
            protocol: match self.health_protocol {
                HealthProtocol::Http => Protocol::Http,
                HealthProtocol::Tcp => Protocol::Tcp,
            },
            port: self.health_port,
            path: self.health_path.clone(),
            codes: self.health_codes.clone(),
            interval: self.health_interval,
            timeout: self.health_timeout,
        }))
    }
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|error| error.to_string())
}

/// A time in seconds, with a fraction if need be.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (0.01..=100_000.0).contains(&number) {
        Ok(Duration::from_secs_f64(number))
    } else {
        Err("is not from 0.01 to 100000".into())
    }
}

fn codes(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let code = |text: &str| {
        let code = text.parse().ok().filter(|code| (100..=599).contains(code));
        code.ok_or_else(|| format!("{text:?} is no HTTP status"))
    };
    Ok(code(first)?..=code(last)?)
}
