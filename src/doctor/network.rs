//! The interface to the load balancer, and what Linux does with packets that leave by `gwi`.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;

use serde_json::Value;

use super::Finding;
use super::Grade;
use super::host;
use crate::client;
use crate::control::netdev;
use crate::stats::NicRow;
use crate::types::GENEVE_PORT;
use crate::types::INNER_BYTES_MAX;
use crate::types::request::About;
use crate::types::request::Request;
use crate::types::request::Topic;

/// What a datagram of the load balancer has before the packet inside, bytes: IPv4, UDP and GENEVE
/// headers and three AWS options.
const OUTER_BYTES: usize = 68;

/// Least MTU that carries the largest packet.
const MTU_MIN: usize = INNER_BYTES_MAX + OUTER_BYTES;

/// Packets into `gwi` after which the first one should have come back.
const ONE_WAY_MIN: u64 = 100;

pub(super) fn examine(devices: &[String]) -> Vec<Finding> {
    let exceeded = allowances(&netdev::allowances());
    vec![mtu(devices), rp_filter(), forwarding(), source_dest_check(), conntrack(), exceeded]
}

/// What AWS held back or dropped because the instance is too small, since the device came up.
fn allowances(nics: &[NicRow]) -> Finding {
    const CHECK: &str = "allowances";
    let exceeded = nics.iter().flat_map(|nic| {
        let counts = nic.exceeded.iter().filter(|(_, count)| *count > 0);
        counts.map(|(name, count)| format!("{} {name} {count} times", nic.name))
    });
    let exceeded: Vec<_> = exceeded.collect();
    if !exceeded.is_empty() {
        let text = format!("exceeded: {}", exceeded.join(", "));
        return Finding::bad(Grade::Warn, CHECK, text, "a larger instance, or more of them");
    }
    let text = match nics {
        [] => "no driver here counts them, as ENA does on EC2",
        _ => "none was exceeded",
    };
    Finding::ok(CHECK, text)
}

fn mtu(devices: &[String]) -> Finding {
    const CHECK: &str = "mtu";
    if devices.is_empty() {
        let text = "no IPv4 route shows the interface to the load balancer";
        return Finding::bad(Grade::Warn, CHECK, text, "give it its address, see ip address");
    }
    let mut known = Vec::new();
    for device in devices {
        let mtu = host::read(format!("/sys/class/net/{device}/mtu"));
        let Some(mtu) = mtu.and_then(|mtu| mtu.parse::<usize>().ok()) else {
            let text = format!("cannot be known here: /sys shows no {device}");
            let fix = "enter the network namespace with ip netns exec, which mounts its /sys";
            return Finding::bad(Grade::Warn, CHECK, text, fix);
        };
        if mtu < MTU_MIN {
            let text = format!(
                "{device} has {mtu}, less than {MTU_MIN}: packets of up to {INNER_BYTES_MAX} bytes \
                 do not fit"
            );
            let fix = format!("ip link set dev {device} mtu 9001");
            return Finding::bad(Grade::Fail, CHECK, text, fix);
        }
        known.push(format!("{device} has {mtu}"));
    }
    Finding::ok(CHECK, format!("{}; {MTU_MIN} or more are needed", known.join(", ")))
}

/// Families of addresses, and the sysctl that lets Linux forward their packets. A host without IPv6
/// has none for that.
const FAMILIES: [(&str, &str); 2] =
    [("IPv4", "net/ipv4/ip_forward"), ("IPv6", "net/ipv6/conf/all/forwarding")];

/// The larger of the values for all interfaces and for one counts for that one.
fn rp_filter() -> Finding {
    const CHECK: &str = "rp-filter";
    let names = host::names_in("/proc/sys/net/ipv4/conf");
    let links = names.iter().filter(|name| name.starts_with("gwi-"));
    let subjects = ["all"].into_iter().chain(links.map(String::as_str)).chain(["default"]);
    for name in subjects {
        let value = host::sysctl_number(&format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
        if value == 0 {
            continue;
        }
        // A packet that nobody routes is not filtered either.
        let is_lost =
            value == 1 && name != "default" && host::sysctl_number(FAMILIES[0].1) != Some(0);
        let kind = if value == 1 { "strict" } else { "loose" };
        let of_new =
            if name == "default" { ", as new gwi have it until a hook sets it" } else { "" };
        let text = format!(
            "net.ipv4.conf.{name}.rp_filter is {value} ({kind}){of_new}: of what gwi delivers \
             Linux drops what it has no route back for"
        );
        let fix = format!("sysctl -w net.ipv4.conf.{name}.rp_filter=0");
        let grade = if is_lost { Grade::Fail } else { Grade::Warn };
        return Finding::bad(grade, CHECK, text, fix);
    }
    Finding::ok(CHECK, "off for all, for new and for gwi interfaces")
}

fn forwarding() -> Finding {
    const CHECK: &str = "forwarding";
    let is_off = |(_, path): &(&str, &str)| host::sysctl_number(path) == Some(0);
    let off: Vec<_> = FAMILIES.into_iter().filter(is_off).collect();
    if off.is_empty() {
        return Finding::ok(CHECK, "on");
    }
    let names: Vec<_> = off.iter().map(|(name, _)| *name).collect();
    let text = format!(
        "off for {}: hooks that route or translate pass nothing on; tc needs none",
        names.join(" and ")
    );
    let settings = off.iter().map(|(_, path)| format!("{}=1", path.replace('/', ".")));
    let fix = format!("sysctl -w {}", settings.collect::<Vec<_>>().join(" "));
    Finding::bad(Grade::Warn, CHECK, text, fix)
}

/// The check is done outside of the host, which sees nothing but that no answer comes.
fn source_dest_check() -> Finding {
    const CHECK: &str = "source-dest-check";
    let request = Request { about: About::Topic(Topic::Endpoints), json: true };
    let answered = client::ask(request).ok();
    let json = answered.and_then(|it| serde_json::from_str::<Value>(&it.answer.text).ok());
    let Some(rows) = json.as_ref().and_then(|json| json["endpoints"].as_array()) else {
        let text = "cannot be known while gwlbtun does not run; two arms without NAT need it off";
        return Finding::ok(CHECK, text);
    };
    let sum = |key: &str| rows.iter().filter_map(|row| row[key].as_u64()).sum::<u64>();
    let (inward, back) = (sum("in"), sum("out"));
    if inward >= ONE_WAY_MIN && back == 0 {
        let text = format!(
            "of {inward} packets none came back, as where EC2 drops what this host forwards under \
             the addresses of others"
        );
        let fix = "aws ec2 modify-instance-attribute --no-source-dest-check --instance-id ID, if \
                   there are two arms; else see example-scripts/README.md, When nothing comes back";
        return Finding::bad(Grade::Warn, CHECK, text, fix);
    }
    Finding::ok(CHECK, format!("no sign of it: {inward} packets in, {back} back"))
}

/// An entry for each datagram's flow costs time, and a full table loses packets.
fn conntrack() -> Finding {
    const CHECK: &str = "conntrack";
    let Some(count) = host::sysctl_number("net/netfilter/nf_conntrack_count") else {
        return Finding::ok(CHECK, "this host tracks no connections");
    };
    if count == 0 {
        return Finding::ok(CHECK, "no connections are tracked at present");
    }
    let Ok(table) = File::open("/proc/net/nf_conntrack") else {
        let text = "cannot be known here: /proc/net/nf_conntrack cannot be read";
        return Finding::ok(CHECK, text);
    };
    let port = format!(" dport={GENEVE_PORT} ");
    let mut lines = BufReader::new(table).lines().map_while(Result::ok);
    if lines.any(|line| line.contains(" udp ") && line.contains(&port)) {
        let text = format!("GENEVE is tracked, by rules that see UDP port {GENEVE_PORT} too");
        let fix = "tuning/tune.sh apply --two-arm, which makes notrack rules for it";
        return Finding::bad(Grade::Warn, CHECK, text, fix);
    }
    Finding::ok(CHECK, "GENEVE makes no entries in the connection table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_that_was_exceeded_is_named() {
        let nic = |counts: &[(&str, u64)]| NicRow {
            name: "eth0".to_owned(),
            exceeded: counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        };
        assert_eq!(allowances(&[]).grade, Grade::Ok);
        let finding = allowances(&[nic(&[("pps", 0)])]);
        assert_eq!(finding, Finding::ok("allowances", "none was exceeded"));
        let finding = allowances(&[nic(&[("bw_in", 0), ("pps", 7)])]);
        assert_eq!(
            finding.to_string(),
            "WARN allowances: exceeded: eth0 pps 7 times; fix: a larger instance, or more of them"
        );
    }
}
