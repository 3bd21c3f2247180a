//! What a hook may change in a namespace, as text to compare.

use super::clock::wait_until;
use super::process::run;
use crate::sim::netns::Namespace;

/// Each is one list. Built-in chains stay when iptables has used them once, so of iptables only
/// rules count, and of nft only tables that no iptables made.
const LISTS: &str = "
    ip rule; ip -6 rule
    ip route show table all; ip -6 route show table all
    ip -o addr | sed 's/^[0-9]*: //; s/ valid_lft.*//'
    ip -o link | sed 's/^[0-9]*: //; s/ state [A-Z]*//; s/,LOWER_UP//; s/NO-CARRIER,//'
    tc qdisc
    for link in $(ls /sys/class/net); do tc filter show dev $link ingress; done | grep -v index
    nft list tables | grep -vE ' (raw|mangle|nat|filter)$'
    iptables-save; ip6tables-save
    cd /proc/sys/net; grep -r . ipv4/ip_forward ipv4/conf ipv6/conf
";

/// Rules, routes, addresses, queues, filters and settings of a namespace. Without what the kernel
/// itself does with link-local and multicast addresses, which takes its time.
pub(crate) fn kernel_state(namespace: &Namespace) -> String {
    let text = run(namespace, "sh", &["-c", &format!("{{ {LISTS} }} 2>/dev/null; true")]);
    let is_state = |line: &&str| {
        let is_of_iptables = line.starts_with(['#', '*', ':']) || *line == "COMMIT";
        !is_of_iptables && !line.contains("fe80::") && !line.contains("ff00::")
    };
    let mut lines: Vec<_> = text.lines().filter(is_state).collect();
    // The order of some lists is that in which links came.
    lines.sort_unstable();
    lines.join("\n")
}

/// Waits until an IPv6 address that was added is in use. The kernel sees to that in its own time,
/// even if it looks for no duplicate: the state without it is not yet the one to compare with.
pub(crate) fn wait_for_address(namespace: &Namespace, address: &str) {
    wait_until(&format!("{address} is in use"), || {
        let addresses = run(namespace, "ip", &["-6", "-o", "addr", "show", "to", address]);
        let routes = run(namespace, "ip", &["-6", "route", "show", "table", "local"]);
        let is_valid = !addresses.is_empty() && !addresses.contains("tentative");
        is_valid && routes.contains(&format!("local {address} "))
    });
}

/// Requires that two states are the same; says what is not.
pub(crate) fn assert_same(before: &str, after: &str) {
    let only = |these: &str, those: &str| {
        let is_strange = |line: &&str| !those.lines().any(|other| other == *line);
        these.lines().filter(is_strange).map(str::to_owned).collect::<Vec<_>>()
    };
    let difference =
        || format!("gone: {:#?}\nnew: {:#?}", only(before, after), only(after, before));
    assert!(before == after, "{}", difference());
}
