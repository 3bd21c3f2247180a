//! The flow table as tenants, attackers and operators see it: whose flows stay when it is full, who
//! may teach a flow, the load balancers of other clouds, and no way back at all.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use nix::sys::socket::LinkAddr;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::sendto;
use serde_json::Value;

use crate::sim::gwlb::Config;
use crate::sim::gwlb::Host;
use crate::sim::gwlb::Wrapping;
use crate::sim::layout::Outer;
use crate::sim::layout::geneve_header;
use crate::sim::os;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::Path;
use crate::support::packets::SERVER;
use crate::support::packets::V4;
use crate::support::packets::V6;

/// Names of the links of the lab's first two endpoints: the ids in base 60.
const GWI: &str = "gwi-5bqWvzLwwkk";
const GWO: [&str; 2] = ["gwo-5bqWvzLwwkk", "gwo-5bqWvzLwwkl"];

/// A program of the target that sends IPv4 packets out by a link.
pub(super) struct Sender {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Sender {
    pub(super) fn open(lab: &Lab, link: &str) -> Self {
        let open = || {
            let socket = os::packet_socket(link)?;
            os::link_addr(link, [0; 6]).map(|link| Self { socket, link })
        };
        lab.topology.target().enter(open).expect("a packet socket")
    }

    pub(super) fn send(&self, packet: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), packet, &self.link, MsgFlags::empty());
        assert_eq!(sent, Ok(packet.len()));
    }
}

/// Datagrams that the workers have received.
fn received(engine: &Engine) -> u64 {
    let status = engine.status();
    let threads = status["udp"]["UDPPacketReceiver"]["threads"].as_array().expect("threads");
    threads.iter().map(|thread| thread["pktsIn"].as_u64().expect("a count")).sum()
}

/// From the `number`th of many clients to the server.
fn many(number: u16) -> Path {
    let [high, low] = number.to_be_bytes();
    (IpAddr::V4(Ipv4Addr::new(10, 7, high, low)), SERVER)
}

fn question(number: u16) -> Vec<u8> {
    packets::udp(many(number), (4000, 53), b"question")
}

fn answer(number: u16) -> Vec<u8> {
    let (client, server) = many(number);
    packets::udp((server, client), (53, 4000), b"answer")
}

/// R13, small: the packets are real and the table holds 2,000 flows. Tests of the table have the
/// numbers in full.
#[test]
fn r13_a_flood_takes_no_answered_flow_and_none_of_another_tenant() {
    let lab = Lab::new(0, Config::default());
    // Without a hook the host drops what arrives: only what this test sends out comes back.
    let engine = Engine::start(&lab, &["-j", "--workers", "2", "--max-flows", "2000"]);
    let mut injector = lab.injector();
    let [flooded, other] = [0, 1].map(endpoint_id);
    for number in 0..300 {
        injector.send(flooded, &question(number));
        let answer = injector.gwlb.encapsulate(flooded, Host::Server, &answer(number));
        injector.send_datagram(&answer.expect("an IP packet"));
        // One-way, and within the tenant's share.
        injector.send(other, &question(number));
    }
    wait_until("all live flows are known", || received(&engine) == 900);
    for batch in 1..=20 {
        for number in 0..500 {
            injector.send(flooded, &question(500 * batch + number));
        }
        let sent = 900 + 500 * u64::from(batch);
        wait_until("the flood has arrived", || received(&engine) == sent);
    }
    let status = engine.status();
    let evicted = status["flowsEvicted"].as_u64().expect("a count");
    assert!(evicted > 8000, "{status}");
    assert_eq!(status["enis"][1]["v4FlowCache"][1][1], 300, "{status}");
    for (endpoint, link) in [(flooded, GWO[0]), (other, GWO[1])] {
        let host = Sender::open(&lab, link);
        for number in 0..300 {
            host.send(&answer(number));
            let back = injector.receive(PATIENCE).expect("its flow is known");
            assert_eq!((back.endpoint, back.inner), (endpoint, answer(number)));
        }
    }
    assert_eq!(engine.drops("flow_unknown"), 0);
    injector.assert_clean();
}

/// Sends a packet by way of a node of the load balancer.
fn send_by(injector: &mut Injector, node: usize, port: u16, inner: &[u8]) {
    let config = Config::default();
    let outer = Outer { node: config.nodes[node], target: config.target, port };
    let wrapping = Wrapping { outer, header: geneve_header(endpoint_id(0), 7, inner) };
    let sent = injector.gwlb.encapsulate_as(endpoint_id(0), Host::Client, wrapping, inner);
    injector.send_datagram(&sent.expect("an IP packet"));
}

/// The same, and requires that it comes back to that node.
fn exchange_by(injector: &mut Injector, node: usize, port: u16, inner: &[u8]) {
    send_by(injector, node, port, inner);
    let back = injector.receive(PATIENCE).expect("it comes back");
    assert_eq!(back.inner, inner);
    assert_eq!(back.outer[16..20], Config::default().nodes[node].octets());
    assert_eq!(back.outer[20..22], port.to_be_bytes());
}

#[test]
fn a_flow_that_another_source_teaches_is_counted() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "1"]);
    let mut injector = lab.injector();
    let is_retaught = |times: u64| {
        wait_until("what was taught is counted", || engine.status()["flowsRetaught"] == times);
    };
    for (times, path) in [(0, V4), (2, V6)] {
        let inner = packets::udp(path, (4000, 53), b"roaming");
        exchange_by(&mut injector, 0, 60000, &inner);
        exchange_by(&mut injector, 0, 60001, &inner);
        is_retaught(times);
        // The newest header wins at once.
        exchange_by(&mut injector, 1, 60001, &inner);
        is_retaught(times + 1);
        exchange_by(&mut injector, 0, 60000, &inner);
        is_retaught(times + 2);
    }
    injector.assert_clean();
}

#[test]
fn a_pinned_flow_takes_no_header_from_another_source() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "1", "--pin-source"]);
    let mut injector = lab.injector();
    for (before, path) in [(0, V4), (3, V6)] {
        let inner = packets::udp(path, (4000, 53), b"pinned");
        exchange_by(&mut injector, 0, 60000, &inner);
        for _ in 0..3 {
            send_by(&mut injector, 1, 60000, &inner);
        }
        let is_dropped = || engine.drops("source_pinned") == before + 3;
        wait_until("others are refused", is_dropped);
        injector.expect_silence();
        // Its own node may change the port.
        exchange_by(&mut injector, 0, 60001, &inner);
    }
    assert_eq!(engine.status()["flowsRetaught"], 0);
    injector.assert_clean();
}

#[test]
fn the_load_balancer_of_tencent_is_served_and_that_of_aws_is_not_then() {
    let lab = Lab::new(0, Config { option_class: 0x0167, ..Config::default() });
    let engine = Engine::passthrough(&lab, &["--profile", "tencent"]);
    let mut injector = lab.injector();
    for path in [V4, V6] {
        for size in [1, 100, 1400, 8000] {
            injector.exchange(endpoint_id(0), &packets::udp(path, (4000, 53), &vec![7; size]));
        }
    }
    let inner = packets::ping(V4, 1, b"foreign");
    injector.send_raw(&[geneve_header(endpoint_id(0), 1, &inner), inner].concat());
    wait_until("AWS's options are nobody's", || engine.drops("option_missing") == 1);
    injector.assert_clean();
}

/// What the reference does when it is built so, and what becomes of a packet that the host sends
/// all the same.
#[test]
fn where_nothing_returns_packets_only_go_in() {
    let lab = Lab::new(0, Config::default());
    let notes = lab.scratch.file("notes");
    let hook = format!("note() {{ echo \"$* $GWLBTUN_GWO\" >>{}; }}; note", notes.display());
    let hooks = ["-j", "-c", &hook, "-r", &hook];
    let args = [&hooks[..], &["--no-return", "--workers", "2"]].concat();
    let mut engine = Engine::start(&lab, &args);
    let mut injector = lab.injector();
    for number in 0..500 {
        for path in [V4, V6] {
            injector.send(endpoint_id(0), &packets::udp(path, (4000 + number, 53), b"inwards"));
        }
    }
    let written = || engine.status()["enis"][0]["tunnelIn"]["pktsOut"].as_u64();
    wait_until("all packets are in", || written() == Some(1000));
    assert_eq!(engine.links(), [GWI]);
    let status = engine.status();
    let keys: Vec<_> = status["enis"][0].as_object().expect("an endpoint").keys().collect();
    assert_eq!(keys, ["decapDrops", "encapDrops", "eniStr", "packetTooBigSent", "tunnelIn"]);
    assert_eq!(status["drops"], Value::Object(serde_json::Map::default()), "{status}");
    let host = Sender::open(&lab, GWI);
    host.send(&packets::udp((V4.1, V4.0), (53, 4000), b"outwards"));
    wait_until("it is counted", || engine.drops("no_return") == 1);
    let id = "02b8ee1d4db0c51c4";
    let created = format!("New interface {GWI} and none for ENI ID {id} created.");
    assert!(engine.log().contains(&created), "{}", engine.log());
    engine.signal(Signal::SIGTERM);
    assert!(engine.wait().success());
    let noted = std::fs::read_to_string(&notes).expect("the hook has run");
    let call = |action| format!("{action} {GWI} none {id} none\n");
    assert_eq!(noted, ["CREATE", "DESTROY"].map(call).concat());
    injector.expect_silence();
    assert_eq!(injector.gwlb.report().returned, 0);
    injector.assert_clean();
}
