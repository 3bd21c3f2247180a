//! What the reference program does wrong, each as a test by its number.
//!
//! | bug | of the reference | tests |
//! |---|---|---|
//! | B1 | crashes at one start in three | here |
//! | B2 | takes missing options from the packet before, or from inside | here, `wire::gwlb` |
//! | B3 | removes an endpoint under one-way traffic | `lifecycle` |
//! | B4 | loses packets that leave by `gwi` | `bytes` |
//! | B5 | leaves descriptors and links after a teardown | `lifecycle` |
//! | B6 | takes a packet for a format when a send fails | here |
//! | B7 | resets and loses health clients, or dies of them | `http` |
//! | B8 | runs hooks on the way of the packets | `lifecycle`, `hooks` |
//! | B9 | writes past an `fd_set` | `permissions` |
//! | B10 | makes links for every id that is sent to it | here |
//! | B11 | shows 200 and carries nothing without `CAP_NET_RAW` | `permissions` |
//! | B12 | hashes flows by adding | `flow::table` |
//! | B13 | has no limit on flows | here |
//! | B14 | loses flows when the wall clock steps | `tidy` |
//! | B15 | overflows a buffer of 16,000 bytes, sends an unset checksum | here |
//! | B16 | formats what comes from outside | `logs` |
//! | B17 | needs two seconds per endpoint to end | `lifecycle` |
//! | B18 | runs no DESTROY hook at SIGTERM | `lifecycle` |
//! | B19 | leaves its sockets to a hook's children | `hooks` |
//! | B20 | aborts with more than 128 threads | here |

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::sim::layout;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::packets::pattern;
use crate::support::process::run;

#[test]
fn b01_every_start_is_a_start() {
    let lab = Lab::new(0, Config::default());
    for round in 0..40 {
        let mut engine = Engine::start(&lab, &[]);
        engine.signal(Signal::SIGTERM);
        assert_eq!(engine.wait().code(), Some(0), "start number {round}");
    }
}

/// After a good datagram, so that there is something to be taken for theirs.
#[test]
fn b02_datagrams_without_their_options_go_nowhere() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &[]);
    let mut injector = lab.injector();
    let inner = packets::udp(V4, (4000, 53), b"whose is this?");
    injector.exchange(endpoint_id(0), &inner);
    let header = layout::geneve_header(endpoint_id(0), 1, &inner);
    let (fixed, options) = header.split_at(8);
    let (endpoint, rest) = options.split_at(12);
    let (attachment, cookie) = rest.split_at(12);
    let overrun = {
        // The endpoint's option alone, which says that it is longer than the header.
        let mut option = endpoint[..4].to_vec();
        option[3] = 2;
        option
    };
    for (what, options, reason) in [
        ("no options", Vec::new(), "option_missing"),
        ("the cookie only", cookie.to_vec(), "option_missing"),
        ("the endpoint only", endpoint.to_vec(), "option_missing"),
        ("no endpoint", [attachment, cookie].concat(), "option_missing"),
        ("an option into the packet", overrun, "options_overrun"),
    ] {
        let mut fixed = fixed.to_vec();
        fixed[0] = u8::try_from(options.len() / 4).expect("few words");
        let before = engine.drops(reason);
        injector.send_raw(&[&fixed[..], &options, &inner].concat());
        wait_until(&format!("{what} counts as {reason}"), || engine.drops(reason) == before + 1);
        injector.expect_silence();
    }
    assert_eq!(engine.links().len(), 2, "no endpoint was made of packet bytes");
    injector.exchange(endpoint_id(0), &inner);
    injector.assert_clean();
}

/// The interface becomes too small for the way back while the packet waits for its hook.
#[test]
fn b06_a_send_that_fails_is_a_count_and_no_format() {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let links = run(&target, "ip", &["-o", "link"]);
    let uplink = links.lines().find(|line| line.contains("mtu 9001")).expect("an uplink");
    let uplink = uplink.split([' ', '@']).nth(1).expect("a name").trim_end_matches(':');
    let hook = format!("ip link set {uplink} mtu 1500 && exec {PASSTHROUGH}");
    let engine = Engine::start(&lab, &["-c", &hook, "-j"]);
    let mut injector = lab.injector();
    let payload = b"%n%s%n%s%1$n%99999d".repeat(100);
    injector.send(endpoint_id(0), &packets::udp(V4, (4000, 53), &payload));
    wait_until("it is counted", || engine.drops("mtu") == 1);
    injector.exchange(endpoint_id(0), &packets::udp(V4, (4000, 53), b"%n%s"));
    assert_eq!(engine.health("/").status, 200);
    injector.assert_clean();
}

/// A flood of ids makes as many links as the limit says, costs the endpoints that are there no
/// packet, and the health page answers.
#[test]
fn b10_a_flood_of_ids_is_bounded() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--max-endpoints", "10"]);
    let mut injector = lab.injector();
    let witness = packets::ping(V4, 1, b"witness");
    injector.exchange(endpoint_id(0), &witness);
    let threads = engine.threads().len();
    for number in 0..20_000 {
        // Any 64 bits: multiples of an odd number do not repeat.
        let id = (number + 1_u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        injector.send(id, &witness);
        if number % 1000 == 0 {
            assert_eq!(engine.health("/").status, 200);
        }
    }
    wait_until("the flood is counted", || engine.drops("endpoint_limit") > 0);
    assert_eq!(engine.links().len(), 2 * 10);
    assert_eq!(engine.threads().len(), threads, "endpoints have no threads");
    while injector.receive(std::time::Duration::from_millis(200)).is_some() {}
    injector.exchange(endpoint_id(0), &witness);
    injector.exchange(endpoint_id(0), &packets::ping(V6, 1, b"witness"));
    let told = || engine.log().matches("An endpoint was refused").count();
    wait_until("the refusal is told", || told() > 0);
    assert_eq!(told(), 1, "the refusal is told once:\n{}", engine.log());
}

#[test]
fn b13_flows_are_bounded() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--max-flows", "1000", "--workers", "1"]);
    let mut injector = lab.injector();
    for port in 1..=3000 {
        injector.exchange(endpoint_id(0), &packets::udp(V4, (port, 53), b"one of many"));
    }
    let page = engine.status();
    let flows = page["enis"][0]["v4FlowCache"][1][1].as_u64();
    assert!(flows.is_some_and(|flows| (500..=1100).contains(&flows)), "{page}");
    injector.assert_clean();
}

/// The host sends more than the reference's buffer holds, because a hook raised the MTU.
#[test]
fn b15_giant_packets_of_the_host_are_counted() {
    let lab = Lab::new(0, Config::default());
    let hook = format!("ip link set \"$3\" mtu 60000; exec {PASSTHROUGH}");
    let script = lab.scratch.file("giant.sh");
    std::fs::write(&script, format!("#!/bin/sh\n{hook} \"$@\"\n")).expect("a script");
    let command = format!("sh {}", script.display());
    let engine = Engine::start(&lab, &["-c", &command, "-j"]);
    let mut injector = lab.injector();
    let witness = packets::udp(V4, (4000, 53), b"witness");
    injector.exchange(endpoint_id(0), &witness);
    let target = lab.topology.target();
    let gwo = "gwo-5bqWvzLwwkk";
    run(&target, "ip", &["addr", "add", "10.77.0.1/24", "dev", gwo]);
    let mut ping = target.command("ping");
    ping.args(["-c", "3", "-i", "0.1", "-W", "1", "-M", "do", "-s", "30000", "10.77.0.2"]);
    assert!(!ping.output().expect("ping").status.success());
    wait_until("they are counted", || {
        engine.drops("tun_bad_frame") + engine.drops("mtu") + engine.drops("flow_unknown") >= 3
    });
    // The largest that the load balancer takes.
    injector.exchange(endpoint_id(0), &packets::udp(V4, (4000, 53), &pattern(1, 8500 - 28)));
    injector.exchange(endpoint_id(0), &witness);
    injector.assert_clean();
}

/// As many as a TUN has queues; what is more is refused in one line (`cli`).
#[test]
fn b20_more_than_128_threads_are_fine() {
    let lab = Lab::new(0, Config::default());
    let args = ["--udpthreads", "200", "--tunthreads", "129"];
    let mut engine = Engine::passthrough(&lab, &args);
    let mut injector = lab.injector();
    for endpoint in 0..2 {
        for path in [V4, V6] {
            injector.exchange(endpoint_id(endpoint), &packets::ping(path, 1, b"many"));
        }
    }
    let workers = engine.threads().iter().filter(|name| name.starts_with("gwlbtun U")).count();
    assert_eq!(workers, 200);
    assert_eq!(engine.health("/").status, 200);
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    injector.assert_clean();
}
