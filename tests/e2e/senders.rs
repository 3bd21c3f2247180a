//! Answers where the load balancer's source port cannot be had by binding it: another program has
//! it, it is below 1024, or there are more of them than sockets.

use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::time::Duration;

use super::bytes;
use super::hosts;
use crate::sim::gwlb::Config;
use crate::sim::layout::u16_at;
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
use crate::support::packets::pattern;

/// What `CapabilityBoundingSet=CAP_NET_ADMIN` leaves, as in `VyOS`'s unit.
const ONLY_NET_ADMIN: [&str; 2] = ["setpriv", "--bounding-set=-all,+net_admin"];

/// Another program on the target has this port, as one may that the kernel gave it to.
fn take_port(lab: &Lab, port: u16) -> UdpSocket {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    lab.topology.target().enter(bind).expect("a port")
}

/// A limit on open files that carries 256 send sockets for each of two workers, and an endpoint.
const FEW_SOCKETS: &str = "ulimit -n 260; exec \"$@\"";

/// Far more source ports than that.
fn many_ports() -> Lab {
    Lab::new(0, Config { port_first: 20_000, port_count: 4096, ..Config::default() })
}

/// Each packet of two thousand flows, which are as many ports but for a few, comes back; the
/// simulator looks at the ports.
fn exchange_on_many_ports(injector: &mut Injector) {
    const FLOWS: u16 = 2048;
    const IN_FLIGHT: u16 = 32;
    for first in (0..FLOWS).step_by(IN_FLIGHT.into()) {
        for flow in first..first + IN_FLIGHT {
            injector.send(endpoint_id(0), &packets::udp(V4, (flow, 53), b"a port of its own"));
        }
        for number in 0..IN_FLIGHT {
            let back = injector.receive(PATIENCE);
            assert!(back.is_some(), "{number} of {IN_FLIGHT} from flow {first} on came back");
        }
    }
    injector.assert_clean();
}

/// Lines of a table of sockets in the target's namespace.
fn sockets(engine: &Engine, table: &str) -> usize {
    let path = format!("/proc/{}/net/{table}", engine.pid());
    std::fs::read_to_string(path).expect("/proc").lines().count() - 1
}

#[test]
fn more_ports_than_sockets_are_answered_in_order() {
    let lab = many_ports();
    let args = ["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-p", "8080", "-j", "--workers", "2"];
    let engine = Engine::start_under(&lab, &["sh", "-c", FEW_SOCKETS, "start"], &args);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"the endpoint is there"));
    for _ in 0..3 {
        exchange_on_many_ports(&mut injector);
    }
    bytes::expect_order(&mut injector);
    assert!(sockets(&engine, "udp") <= 2 + 2 * 260);
    assert!((1..=2).contains(&sockets(&engine, "raw")), "one for each worker that needs it");
    let page = engine.status();
    assert_eq!(page["drops"].to_string(), "{}");
}

/// Without `CAP_NET_RAW` sockets are replaced all the time. It takes longer, and is as right.
#[test]
fn more_ports_than_sockets_without_a_raw_socket() {
    let lab = many_ports();
    let args = ["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-p", "8080", "-j", "--workers", "2"];
    let wrapper = [&["sh", "-c", FEW_SOCKETS, "start"], &ONLY_NET_ADMIN[..]].concat();
    let engine = Engine::start_under(&lab, &wrapper, &args);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"the endpoint is there"));
    for _ in 0..2 {
        exchange_on_many_ports(&mut injector);
    }
    assert_eq!(sockets(&engine, "raw"), 0);
    assert_eq!(engine.drops("send_error"), 0);
}

/// Packets of many sizes come back in outer packets as the ordinary way makes them.
fn expect_answers(injector: &mut Injector) {
    for path in [V4, V6] {
        for payload_bytes in (0..100).chain((100..8400).step_by(83)).chain(8440..=8452) {
            let payload = pattern(payload_bytes, payload_bytes);
            let inner = packets::udp(path, (4000, 5000), &payload);
            let outer = injector.exchange(endpoint_id(0), &inner).outer;
            let (tos, flags, ttl) = (outer[1], u16_at(&outer, 6), outer[8]);
            assert_eq!((tos, flags, ttl), (0, 0, 64));
            assert_ne!(u16_at(&outer, 26), 0, "the checksum, which the simulator has found right");
        }
    }
    injector.assert_clean();
}

#[test]
fn answers_leave_from_a_port_that_another_program_has() {
    let lab = Lab::new(0, Config::default());
    let _taken = take_port(&lab, 60_000);
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let mut injector = lab.injector();
    expect_answers(&mut injector);
    bytes::expect_order(&mut injector);
    assert_eq!(engine.drops("send_error"), 0);
    let page = engine.status();
    assert_eq!((&page["healthy"], page["warnings"].to_string()), (&true.into(), "[]".into()));
}

/// The link becomes too small while the packet waits for its hook.
#[test]
fn what_is_too_long_for_the_link_is_counted_and_never_cut() {
    let lab = Lab::new(0, Config::default());
    let _taken = take_port(&lab, 60_000);
    let hook = format!("ip link set eth0 mtu 1500 && exec {PASSTHROUGH}");
    let engine = Engine::start(&lab, &["-c", &hook, "-j"]);
    let mut injector = lab.injector();
    // 68 bytes around it, and 28 inside.
    let inner = |bytes: usize| packets::udp(V4, (4000, 53), &vec![0xaa; bytes - 68 - 28]);
    injector.send(endpoint_id(0), &inner(1501));
    wait_until("it is counted", || engine.drops("mtu") == 1);
    injector.exchange(endpoint_id(0), &inner(1500));
    assert_eq!(engine.drops("mtu"), 1);
    injector.assert_clean();
}

#[test]
fn ping_and_download_while_another_program_has_the_port() {
    let lab = Lab::new(1, Config::default());
    let _taken = take_port(&lab, 60_000);
    let _engine = Engine::passthrough(&lab, &["--workers", "2", "--kernel-floor"]);
    let simulator = lab.simulator();
    hosts::ping(&lab, 0);
    hosts::download(&lab, 0, 50_000_000);
    simulator.stop_clean();
}

#[test]
fn answers_leave_from_ports_below_1024() {
    for port_first in [1, 80] {
        let lab = Lab::new(0, Config { port_first, port_count: 2, ..Config::default() });
        let engine = Engine::passthrough(&lab, &["--workers", "2"]);
        let mut injector = lab.injector();
        expect_answers(&mut injector);
        assert_eq!(engine.drops("send_error"), 0);
    }
}

/// Without `CAP_NET_RAW` there is no way to answer then. The reference, and this program once,
/// said 200 to that, and nothing else.
#[test]
fn a_port_that_another_program_has_is_never_healthy_but_dead() {
    let lab = Lab::new(0, Config::default());
    let taken = take_port(&lab, 60_000);
    let args = ["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-p", "8080", "-j", "--workers", "2"];
    let engine = Engine::start_under(&lab, &ONLY_NET_ADMIN, &args);
    let mut injector = lab.injector();
    let lost = packets::ping(V4, 1, b"cannot return");
    wait_until("the page says so", || {
        injector.send(endpoint_id(0), &lost);
        engine.health("/").status == 503
    });
    assert!(engine.drops("send_error") > 0);
    let why = "answer from UDP 10.99.0.100:60000: Address already in use: another program on this \
               host has the load balancer's source port (ss -aunp sport = 60000); reserve it with \
               sysctl net.ipv4.ip_local_reserved_ports=60000, or give the unit CAP_NET_RAW";
    let page = engine.status();
    for list in ["reasons", "warnings"] {
        assert!(page[list].to_string().contains(why), "{page}");
    }
    let line = format!("(udp,critical) : : Cannot {why}.\n");
    assert_eq!(engine.log().matches(&line).count(), 1, "{}", engine.log());

    // No packet has to come for the page to find out.
    drop(taken);
    wait_until("the page is good again", || engine.health("/").status == 200);
    let page = engine.status();
    assert_eq!(
        (page["reasons"].to_string(), page["warnings"].to_string()),
        ("[]".into(), "[]".into())
    );
    assert!(engine.log().contains("Can answer from UDP 10.99.0.100:60000 again.\n"));
    expect_answers(&mut injector);
}

/// One source port of several cannot be had: the others' flows are reason enough to stay.
#[test]
fn one_port_of_several_is_a_warning() {
    let lab = Lab::new(0, Config { port_count: 8, ..Config::default() });
    let _taken = take_port(&lab, 60_003);
    let args = ["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-p", "8080", "-j", "--workers", "2"];
    let engine = Engine::start_under(&lab, &ONLY_NET_ADMIN, &args);
    let mut injector = lab.injector();
    // Until refusals have gone on for longer than it takes to be called dead.
    wait_until("packets are refused again and again", || {
        for port in 0..64 {
            injector.send(endpoint_id(0), &packets::udp(V4, (port, 53), b"one of eight"));
        }
        while injector.receive(Duration::from_millis(50)).is_some() {}
        assert_eq!(engine.health("/").status, 200);
        engine.drops("send_error") > 400
    });
    let warnings = engine.status()["warnings"].to_string();
    assert!(warnings.contains("cannot answer from UDP 10.99.0.100:60003: "), "{warnings}");
    injector.assert_clean();
}

#[test]
fn ports_below_1024_without_a_raw_socket_are_refused_with_a_warning() {
    let lab = Lab::new(0, Config { port_first: 80, ..Config::default() });
    let args = ["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-p", "8080", "-j", "--workers", "1"];
    let engine = Engine::start_under(&lab, &ONLY_NET_ADMIN, &args);
    let mut injector = lab.injector();
    let why = "10.99.0.100:80: Permission denied: a port below 1024 needs a raw socket: give the \
               unit CAP_NET_RAW";
    wait_until("the page says so", || {
        injector.send(endpoint_id(0), &packets::ping(V4, 1, b"cannot return"));
        engine.status()["warnings"].to_string().contains(why)
    });
    assert_eq!(engine.health("/").status, 200, "AWS uses no such port");
    injector.expect_silence();
}
