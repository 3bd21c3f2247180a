//! Where every packet went, to the last one: what was sent is what came back, what the program
//! dropped, and what Linux dropped before and behind it.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::packets::pattern;
use crate::support::process::run;
use crate::support::vitals::KernelDrops;

/// All numbers of an object.
fn sum(object: &Value) -> u64 {
    object.as_object().expect("an object").values().filter_map(Value::as_u64).sum()
}

/// What the health page says was dropped: by the program, at the sockets, between the links.
fn dropped(page: &Value) -> [u64; 3] {
    let queues = page["enis"].as_array().expect("endpoints").iter();
    let queues = queues.flat_map(|eni| ["tunnelIn", "tunnelOut"].map(|side| &eni[side]));
    [
        sum(&page["drops"]),
        page["socketDrops"].as_u64().expect("a number"),
        queues.map(|tunnel| tunnel["queueDrops"].as_u64().expect("a number")).sum(),
    ]
}

/// Merging is off: what Linux drops it counts by what it holds, which is a packet then. With it on,
/// its numbers are a lower bound.
#[test]
fn r31_every_packet_is_back_or_in_exactly_one_counter() {
    let lab = Lab::new(0, Config { port_count: 16, ..Config::default() });
    let target = lab.topology.target();
    // What the target itself says on a new link would be dropped at a full queue too.
    let quiet = ["all", "default"].map(|of| format!("net.ipv6.conf.{of}.disable_ipv6=1"));
    run(&target, "sysctl", &["-qw", &quiet[0], &quiet[1]]);
    let engine = Engine::passthrough(&lab, &["--workers", "2", "--rcvbuf", "1", "--no-offload"]);
    let mut injector = lab.injector();
    let endpoint = endpoint_id(0);
    for path in [V4, V6] {
        injector.exchange(endpoint, &packets::udp(path, (1, 2), b"first"));
    }
    // A queue in which next to nothing has room, and what fills it: the program stands still while
    // more comes than its sockets hold, and then writes as much as it can at once.
    let gwo = "gwo-5bqWvzLwwkk";
    run(&target, "ip", &["link", "set", gwo, "txqueuelen", "20"]);
    let (mut sent, mut back) = (2, 2);
    // What a burst loses before it is at the target, and behind it.
    let lost_before = KernelDrops::read(&lab, &engine).wire;
    let on_the_wire = || KernelDrops::read(&lab, &engine).wire - lost_before;
    for round in 0..3_u16 {
        engine.signal(Signal::SIGSTOP);
        for number in 0..4000_u16 {
            let ports = (1000 * round + number % 300, 53);
            let path = if number % 2 == 0 { V4 } else { V6 };
            let bytes = 600 + usize::from(number % 900);
            injector.send(endpoint, &packets::udp(path, ports, &pattern(bytes, bytes)));
            if number % 50 == 0 {
                injector.send_raw(b"short");
                injector.send(endpoint, &packets::udp(path, ports, &pattern(1, 8600)));
                sent += 2;
            }
        }
        sent += 4000;
        engine.signal(Signal::SIGCONT);
        wait_until("the round is over", || {
            let before = back;
            while injector.receive(Duration::from_millis(20)).is_some() {
                back += 1;
            }
            before == back
        });
    }
    wait_until("every packet is accounted for", || {
        while injector.receive(Duration::from_millis(10)).is_some() {
            back += 1;
        }
        let page = engine.status();
        let answers = page["enis"][0]["packetTooBigSent"].as_u64().expect("a number");
        sent == back - answers + dropped(&page).iter().sum::<u64>() + on_the_wire()
    });
    let page = engine.status();
    let [program, sockets, queues] = dropped(&page);
    assert!(program > 0 && sockets > 0 && queues > 0, "{page}");
    assert!(page["drops"]["short"].as_u64() > Some(0), "{page}");
    assert!(page["drops"]["mtu"].as_u64() > Some(0), "{page}");
    injector.assert_clean();
}
