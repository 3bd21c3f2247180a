//! The second arm: a server outside, and the way back to the clients past the load balancer.
//!
//! ```text
//!  <prefix>-client<N>              <prefix>-gwlb        <prefix>-target
//!    lb0 (TUN, default route) ──── simulator ── gw0 ══ eth0 ── gwi-<X> ─┐ forwards and
//!    eth0 ◀─┐                                                  eth1 ◀───┘ translates
//!           │        <prefix>-internet                          ║
//!         vpc<N> ◀── routes to the clients ◀─────────────────── out0   10.98.0.1, fd00:98::1
//!                    lo: the server, 198.51.100.1 and 2001:db8:100::1
//! ```
//!
//! `<prefix>-internet` is the VPC's router, the internet gateway and a server in one. The
//! target's default route leads there, so that a hook finds its way out as it does on AWS: it
//! sends to the server by `eth1`, and what it has translated back goes out by `eth1` again and is
//! routed to the client. Only what the target sends is routed to clients. The server's own
//! packets to their addresses have no route, as on the internet, so that a target that does not
//! translate gets no answer.
//!
//! Where clients overlap, the router knows only the first of them: hooks must return packets of
//! the others through their endpoint.

use std::fs;
use std::io;

use super::gwlb::Host;
use super::netns::Namespace;
use super::netns::Plan;
use super::netns::Topology;

/// The target's address outside.
pub(crate) const TARGET_V4: &str = "10.98.0.100";
/// The target's address outside.
pub(crate) const TARGET_V6: &str = "fd00:98::100";
/// The server's address.
pub(crate) const INTERNET_V4: &str = "198.51.100.1";
/// The server's address.
pub(crate) const INTERNET_V6: &str = "2001:db8:100::1";

/// Routing table with the clients, for packets from the target.
const CLIENTS_TABLE: &str = "100";

const ROUTER_V4: &str = "10.98.0.1";
const ROUTER_V6: &str = "fd00:98::1";
const ROUTER_MAC: &str = "02:00:00:00:01:01";
const TARGET_MAC: &str = "02:00:00:00:01:02";
const CLIENT_MAC: &str = "02:00:00:00:02:02";

/// Connects the target and every client with the router and server.
pub(crate) fn connect(topology: &Topology, plan: &Plan) -> io::Result<()> {
    let (internet, target) = (topology.internet(), topology.target());
    let mtu = plan.outer_mtu;
    internet.ip(&[
        format!(
            "link add out0 mtu {mtu} address {ROUTER_MAC} type veth \
             peer name eth1 mtu {mtu} address {TARGET_MAC} netns {}",
            target.0
        ),
        "link set out0 up".into(),
        format!("addr add {ROUTER_V4}/24 dev out0"),
        format!("addr add {ROUTER_V6}/64 dev out0 nodad"),
        format!("neigh add {TARGET_V4} lladdr {TARGET_MAC} dev out0 nud permanent"),
        format!("neigh add {TARGET_V6} lladdr {TARGET_MAC} dev out0 nud permanent"),
        format!("addr add {INTERNET_V4}/32 dev lo"),
        format!("addr add {INTERNET_V6}/128 dev lo"),
    ])?;
    let rule = format!("rule add iif out0 lookup {CLIENTS_TABLE}");
    internet.ip(std::slice::from_ref(&rule))?;
    internet.ip6(&[rule])?;
    target.ip(&[
        "link set eth1 up".into(),
        format!("addr add {TARGET_V4}/24 dev eth1"),
        format!("addr add {TARGET_V6}/64 dev eth1 nodad"),
        format!("neigh add {ROUTER_V4} lladdr {ROUTER_MAC} dev eth1 nud permanent"),
        format!("neigh add {ROUTER_V6} lladdr {ROUTER_MAC} dev eth1 nud permanent"),
        format!("route add default via {ROUTER_V4} dev eth1"),
        format!("route add default via {ROUTER_V6} dev eth1"),
    ])?;
    settings(&internet, &["ipv4/ip_forward", "ipv6/conf/all/forwarding"], "1")?;
    settings(&internet, &["ipv4/conf/all/rp_filter", "ipv4/conf/out0/rp_filter"], "0")?;
    // What the target has translated back comes from the server's address, which is ours.
    settings(&internet, &["ipv4/conf/out0/accept_local"], "1")?;
    for endpoint in 0..plan.endpoints {
        connect_client(topology, endpoint)?;
    }
    Ok(())
}

/// Gives a client the link by which answers come.
fn connect_client(topology: &Topology, endpoint: usize) -> io::Result<()> {
    let (internet, client) = (topology.internet(), topology.host(endpoint, Host::Client));
    let (v4, v6) = topology.addresses(endpoint, Host::Client);
    let link = format!("vpc{endpoint}");
    let mut lines = vec![
        format!(
            "link add {link} mtu 9001 type veth \
             peer name eth0 mtu 9001 address {CLIENT_MAC} netns {}",
            client.0
        ),
        format!("link set {link} up"),
        format!("neigh add {v4} lladdr {CLIENT_MAC} dev {link} nud permanent"),
        format!("neigh add {v6} lladdr {CLIENT_MAC} dev {link} nud permanent"),
    ];
    // Of clients with the same address the first is the one that the router knows.
    let is_known =
        (0..endpoint).any(|earlier| topology.addresses(earlier, Host::Client) == (v4, v6));
    if !is_known {
        lines.push(format!("route add {v4}/32 dev {link} table {CLIENTS_TABLE}"));
        lines.push(format!("route add {v6}/128 dev {link} table {CLIENTS_TABLE}"));
    }
    internet.ip(&lines)?;
    client.ip(&["link set eth0 up".into()])?;
    settings(&client, &["ipv4/conf/all/rp_filter", "ipv4/conf/eth0/rp_filter"], "0")
}

/// Writes a value to files below /proc/sys/net.
fn settings(namespace: &Namespace, names: &[&str], value: &str) -> io::Result<()> {
    namespace.enter(|| {
        for name in names {
            fs::write(format!("/proc/sys/net/{name}"), value)
                .map_err(|error| io::Error::other(format!("/proc/sys/net/{name}: {error}")))?;
        }
        Ok(())
    })
}
