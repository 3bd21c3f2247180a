//! Who may send, which endpoints may come, and what a flood of others costs.

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::libc;
use serde_json::Value;

use crate::sim::gwlb::Config;
use crate::sim::gwlb::Host;
use crate::sim::layout;
use crate::sim::layout::Outer;
use crate::support::books::Known;
use crate::support::books::expect_balance;
use crate::support::books::silence_kernel;
use crate::support::clock::Deadline;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::process::run;
use crate::support::seccomp;

/// The nodes that may send, and one that may not.
const NODES: &str = "10.99.0.11,10.99.0.12/31";
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 14);

/// Datagrams of strangers: GENEVE with an endpoint of theirs, none at all, and an empty one.
fn send_strange(injector: &mut Injector, rounds: u64) -> u64 {
    let inner = packets::ping(V4, 7, b"strange");
    let header = layout::geneve_header(endpoint_id(9), 7, &inner);
    let target = Config::default().target;
    for round in 0..rounds {
        let port = 60000 + u16::try_from(round % 64).expect("below 64");
        let outer = Outer { node: STRANGER, target, port };
        for payload in [&[&header[..], &inner].concat()[..], b"no GENEVE", b""] {
            injector.send_datagram(&layout::datagram(outer, &[payload], true));
        }
    }
    3 * rounds
}

/// Strangers before, between and after packets of the load balancer; the sums agree.
fn expect_strangers_kept_out(lab: &Lab, engine: &Engine) {
    const ROUNDS: u64 = 100;
    let mut injector = lab.injector();
    let (mut packets, mut bytes, mut strange) = (0, 0, 0);
    for path in [V4, V6] {
        strange += send_strange(&mut injector, ROUNDS);
        let inner = packets::udp(path, (4000, 53), b"a friend's");
        let back = injector.exchange(endpoint_id(0), &inner);
        packets += 1;
        bytes += u64::try_from(back.inner.len()).expect("short");
    }
    strange += send_strange(&mut injector, ROUNDS);
    wait_until("all strangers are counted", || engine.drops("source_denied") == strange);
    expect_balance(engine, Known { datagrams: packets + strange, returned: (packets, bytes) });
    assert_eq!(engine.links().len(), 2, "the strangers' endpoint has none");
    let told = format!("Datagrams from {STRANGER} are dropped: --allow-source lacks it.");
    wait_until("that is told", || engine.log().contains(&told));
    injector.expect_silence();
    injector.assert_clean();
}

/// Datagrams that the kernel counts as lost on sockets: what a filter drops is among them.
fn kernel_drops(lab: &Lab) -> u64 {
    let text = run(&lab.topology.target(), "nstat", &["-asz", "UdpInErrors"]);
    let line = text.lines().find(|line| line.starts_with("UdpInErrors")).expect("a counter");
    line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).expect("a count")
}

#[test]
fn r12_strangers_are_kept_out_of_the_queue() {
    let lab = Lab::new(0, Config::default());
    silence_kernel(&lab);
    let engine = Engine::passthrough(&lab, &["--workers", "2", "--allow-source", NODES]);
    expect_strangers_kept_out(&lab, &engine);
    // Two of three are in the queue of no socket, nor is the third.
    assert_eq!(kernel_drops(&lab), engine.drops("source_denied"));
    let told = "taken from 10.99.0.11-10.99.0.13; the kernel drops all others.";
    assert!(engine.log().contains(told), "{}", engine.log());
}

/// The same beside a program that spreads flows.
#[test]
fn r12_strangers_are_kept_out_beside_steering() {
    let lab = Lab::new(0, Config::default());
    silence_kernel(&lab);
    let args = ["--workers", "4", "--steer", "inner", "--allow-source", NODES];
    let engine = Engine::passthrough(&lab, &args);
    expect_strangers_kept_out(&lab, &engine);
    assert_eq!(engine.status()["steering"]["receive"], "inner");
    assert_eq!(kernel_drops(&lab), engine.drops("source_denied"));
}

#[test]
fn r12_without_permission_for_programs_the_workers_drop_strangers() {
    let lab = Lab::new(0, Config::default());
    silence_kernel(&lab);
    let args = ["-j", "-p", "8080", "-c", PASSTHROUGH, "--workers", "2", "--allow-source", NODES];
    let mut command = Engine::command_under(&lab, &[], &args);
    seccomp::forbid(&mut command, libc::SYS_bpf);
    let engine = Engine::launch(&lab, &mut command);
    expect_strangers_kept_out(&lab, &engine);
    assert_eq!(kernel_drops(&lab), 0);
    let told = "the workers drop all others, which take room in the receive queues before: bpf \
                BPF_MAP_CREATE(counters): Operation not permitted; CAP_BPF would spare that.";
    assert!(engine.log().contains(told), "{}", engine.log());
}

/// The kernel gives each receive socket a copy of what is for everybody: all are dropped, and
/// counted where they are.
#[test]
fn what_is_sent_to_everybody_is_dropped() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let mut injector = lab.injector();
    let inner = packets::ping(V4, 7, b"to all");
    injector.exchange(endpoint_id(0), &inner);
    let header = layout::geneve_header(endpoint_id(0), 7, &inner);
    let node = Config::default().nodes[0];
    for target in
        [Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 99, 255, 255), Ipv4Addr::new(224, 0, 0, 1)]
    {
        let outer = Outer { node, target, port: 60000 };
        injector.send_datagram(&layout::datagram(outer, &[&header, &inner], true));
    }
    wait_until("each worker's copies are counted", || engine.drops("not_unicast") == 2 * 3);
    injector.exchange(endpoint_id(0), &inner);
    injector.expect_silence();
    injector.assert_clean();
}

#[test]
fn endpoints_that_are_not_allowed_are_refused() {
    let lab = Lab::new(0, Config::default());
    let allowed = format!("vpce-{:017x},{:017x}", endpoint_id(0), endpoint_id(2));
    let engine = Engine::passthrough(&lab, &["--allow-endpoint", &allowed]);
    let mut injector = lab.injector();
    let inner = packets::ping(V4, 1, b"allowed");
    injector.exchange(endpoint_id(0), &inner);
    for _ in 0..50 {
        injector.send(endpoint_id(1), &inner);
    }
    wait_until("the other is refused", || engine.drops("endpoint_denied") == 50);
    injector.exchange(endpoint_id(2), &inner);
    injector.expect_silence();
    assert_eq!(engine.links().len(), 4);
    let told =
        format!("Traffic of ENI ID {:017x} is dropped: --allow-endpoint lacks it.", endpoint_id(1));
    wait_until("that is told", || engine.log().contains(&told));
    assert_eq!(engine.status()["warnings"], Value::Array(Vec::new()), "the operator wanted that");
    injector.assert_clean();
}

/// The burst, then one a second.
#[test]
fn endpoints_come_at_the_operator_s_pace() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(
        &lab,
        &["--workers", "2", "--endpoint-burst", "3", "--endpoint-rate", "1"],
    );
    let mut injector = lab.injector();
    let inner = packets::ping(V4, 1, b"in time");
    for endpoint in 0..12 {
        injector.send(endpoint_id(endpoint), &inner);
    }
    wait_until("what is too fast is refused", || engine.drops("endpoint_rate") >= 7);
    assert_eq!(engine.drops("endpoint_limit"), 0);
    // Refused is not for ever.
    wait_until("all are there in the end", || {
        (0..12).for_each(|endpoint| injector.send(endpoint_id(endpoint), &inner));
        engine.links().len() == 2 * 12
    });
    injector.assert_clean();
}

/// Somebody made endpoints up until there was no room. Real ones come all the same, and the one
/// through which hosts talk stays.
#[test]
#[ignore = "takes more than a minute"]
fn r11_idle_strangers_make_room() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--max-endpoints", "8"]);
    let mut injector = lab.injector();
    let (asks, answers) =
        (packets::udp(V4, (4000, 53), b"?"), packets::udp((V4.1, V4.0), (53, 4000), b"!"));
    injector.exchange(endpoint_id(0), &asks);
    let answer = injector.gwlb.encapsulate(endpoint_id(0), Host::Server, &answers);
    injector.send_datagram(&answer.expect("an IP packet"));
    assert!(injector.receive(PATIENCE).is_some());
    for endpoint in 1..8 {
        injector.exchange(endpoint_id(endpoint), &asks);
    }
    let before = engine.links();
    injector.send(endpoint_id(8), &asks);
    wait_until("there is no room", || engine.drops("endpoint_limit") == 1);
    let too_late = Deadline::after(Duration::from_secs(100));
    loop {
        injector.send(endpoint_id(8), &asks);
        match injector.receive(Duration::from_millis(200)) {
            Some(back) if back.endpoint == endpoint_id(8) => break,
            _ => assert!(!too_late.is_over(), "nobody made room"),
        }
    }
    let after = engine.links();
    // Up to five go in a second, and one comes.
    assert!(after.len() + 2 * 4 >= before.len(), "{before:?} became {after:?}");
    let stays = "gwi-5bqWvzLwwkk";
    assert!(after.iter().any(|link| link == stays), "{after:?}");
    injector.exchange(endpoint_id(0), &asks);
    injector.assert_clean();
}
