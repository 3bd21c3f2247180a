//! What the simulator tells a person who has just started it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::sim::gwlb::Host;
use super::sim::netns::Arms;
use super::sim::netns::Plan;
use super::sim::netns::Topology;
use super::sim::outside;

/// How many endpoints are described one by one.
const ENDPOINTS_SHOWN: usize = 3;

/// Namespaces with their addresses, and what to type.
pub(crate) fn guide(topology: &Topology, plan: &Plan) -> String {
    let mut text = String::new();
    let mut row = |name: &str, links: &str| {
        let _ = writeln!(text, "  {name:<20} {links}");
    };
    let nodes: Vec<_> = plan.nodes.iter().map(Ipv4Addr::to_string).collect();
    row(&topology.gwlb().0, &format!("gw0 {}", nodes.join(" ")));
    let arm = match plan.arms {
        Arms::One => String::new(),
        Arms::Two => format!(", eth1 {} {}", outside::TARGET_V4, outside::TARGET_V6),
    };
    row(&topology.target().0, &format!("eth0 {}{arm}", plan.target));
    for endpoint in 0..plan.endpoints.min(ENDPOINTS_SHOWN) {
        for &host in topology.hosts() {
            let (v4, v6) = topology.addresses(endpoint, host);
            row(&topology.host(endpoint, host).0, &format!("lb0 {v4} {v6}"));
        }
    }
    if plan.endpoints > ENDPOINTS_SHOWN {
        row("...", &format!("{} endpoints", plan.endpoints));
    }
    if plan.arms == Arms::Two {
        let server = format!("{} {}", outside::INTERNET_V4, outside::INTERNET_V6);
        row(&topology.internet().0, &format!("out0 10.98.0.1 fd00:98::1, lo {server}"));
    }
    let (v4, v6) = match plan.arms {
        Arms::One => {
            let (v4, v6) = topology.addresses(0, Host::Server);
            (v4.to_string(), v6.to_string())
        }
        Arms::Two => (outside::INTERNET_V4.to_owned(), outside::INTERNET_V6.to_owned()),
    };
    let (target, client) = (topology.target().0, topology.host(0, Host::Client).0);
    let _ = write!(
        text,
        "in other shells:\n  \
           ip netns exec {target} gwlbtun -c HOOK -r HOOK -p 80\n  \
           ip netns exec {client} ping {v4}\n  \
           ip netns exec {client} ping {v6}\n  \
           kill -USR1 {}     # the counters",
        std::process::id()
    );
    text
}
