//! What goes in comes back: the same bytes, in the same order, all of it.

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::support::clock::PATIENCE;
use crate::support::engine::Engine;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::Path;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::packets::pattern;
use crate::support::process::run;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

fn passthrough(args: &[&str], config: Config) -> (Lab, Engine, Injector) {
    let lab = Lab::new(0, config);
    let engine = Engine::passthrough(&lab, args);
    let injector = lab.injector();
    (lab, engine, injector)
}

/// Sizes of TCP packets that are tried: all small ones, all near the limit, and one in eleven of
/// the rest. Other packets are tried in every size.
fn tcp_sizes(header_bytes: usize) -> impl Iterator<Item = usize> {
    (header_bytes..200).chain((200..8400).step_by(11)).chain(8400..=8500)
}

#[test]
fn every_size_returns_byte_for_byte() {
    let (_lab, _engine, mut injector) = passthrough(&["--workers", "2"], Config::default());
    for (path, header_bytes) in [(V4, 20), (V6, 40)] {
        for bytes in header_bytes..=8500 {
            let payload_bytes = bytes - header_bytes;
            let inner = if payload_bytes < 8 {
                packets::ip(path, 253, &pattern(bytes, payload_bytes))
            } else {
                packets::udp(path, (4000, 5000), &pattern(bytes, payload_bytes - 8))
            };
            assert_eq!(inner.len(), bytes);
            injector.exchange(endpoint_id(0), &inner);
        }
        for bytes in tcp_sizes(header_bytes + 20) {
            let payload = pattern(bytes, bytes - header_bytes - 20);
            let inner = packets::tcp(path, (4000, 443), 7, &payload);
            injector.exchange(endpoint_id(0), &inner);
        }
    }
    injector.assert_clean();
}

/// Packets may leave by gwi as well. The reference program loses some of them there.
#[test]
fn b04_packets_that_leave_by_gwi_return_too() {
    let lab = Lab::new(0, Config { port_count: 8, ..Config::default() });
    let by_gwi = r#"back() {
        tc qdisc add dev "$2" clsact
        tc filter add dev "$2" ingress protocol all u32 match u32 0 0 \
            action mirred egress redirect dev "$2"
    }; back"#;
    let _engine = Engine::start(&lab, &["-c", by_gwi, "--workers", "4"]);
    let mut injector = lab.injector();
    for port in 0..200 {
        for path in [V4, V6] {
            injector.exchange(endpoint_id(0), &packets::udp(path, (port, 53), b"by gwi"));
        }
    }
    injector.assert_clean();
}

#[test]
fn every_protocol_number_returns() {
    let (_lab, _engine, mut injector) = passthrough(&[], Config::default());
    // IGMP 2, GRE 47, ESP 50, AH 51, SCTP 132, experiments 253 and all others. IPv6 extension
    // headers (0, 43, 44, 51, 60, 135) have an own meaning, and the next test.
    for protocol in 0..=255 {
        let payload = pattern(protocol.into(), 64);
        injector.exchange(endpoint_id(0), &packets::ip(V4, protocol, &payload));
        if !matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135) {
            injector.exchange(endpoint_id(0), &packets::ip(V6, protocol, &payload));
        }
    }
    for path in [V4, V6] {
        injector.exchange(endpoint_id(0), &packets::ping(path, 1, b"ping"));
    }
    injector.assert_clean();
}

#[test]
fn unusual_packets_return_too() {
    let (_lab, _engine, mut injector) = passthrough(&[], Config::default());
    let datagram = packets::udp(V4, (4000, 5000), &pattern(1, 3000));
    let (first, later) = datagram[20..].split_at(1480);
    let more_fragments = 0x2000;
    let v6_datagram = packets::udp(V6, (4000, 5000), &pattern(2, 3000));
    let (v6_first, v6_later) = v6_datagram[40..].split_at(1480);
    // Hop-by-hop options (padding) and destination options before UDP.
    let mut extended = vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
    extended.extend(&v6_datagram[40..140]);
    let mut with_options = packets::ipv4(CLIENT, SERVER, 17, 0, &datagram[16..60]);
    with_options[0] = 0x46; // One word of options: no-operation four times.
    with_options[20..24].fill(1);
    let mut wrong_checksums = packets::tcp(V4, (1, 2), 3, b"damaged on its way");
    wrong_checksums[10] ^= 0xff;
    wrong_checksums[36] ^= 0xff;
    let mut zero_udp_checksum = packets::udp(V4, (1, 2), b"no checksum");
    zero_udp_checksum[26..28].fill(0);
    let mut behind_the_end = packets::udp(V4, (1, 2), b"short");
    behind_the_end.extend([0xee; 13]);
    for inner in [
        packets::ipv4(CLIENT, SERVER, 17, more_fragments, first),
        packets::ipv4(CLIENT, SERVER, 17, 1480 / 8, later),
        packets::ipv4(CLIENT, SERVER, 17, 4000 / 8, &[9]),
        packets::ipv4(CLIENT, SERVER, 6, 4000 / 8, &[9, 9]),
        packets::ipv6_fragment(V6, 17, 1, v6_first),
        packets::ipv6_fragment(V6, 17, 1480, v6_later),
        packets::ipv6_fragment(V6, 6, 4000, &[9]),
        packets::ip(V6, 0, &extended),
        with_options,
        wrong_checksums,
        zero_udp_checksum,
        behind_the_end,
        packets::ip(V4, 6, &[1, 2, 3]),
        packets::ip(V6, 17, &[1, 2, 3]),
        packets::ip(V6, 59, &[]),
    ] {
        injector.exchange(endpoint_id(0), &inner);
    }
    injector.assert_clean();
}

/// A datagram of one of `FLOWS` flows with its number in the payload.
fn numbered(path: Path, flow: u16, number: u32) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend(pattern(usize::from(flow), usize::from(flow)));
    packets::udp(path, (10000 + flow, 53), &payload)
}

/// Flow and number of a datagram that [`numbered`] made.
fn flow_and_number(inner: &[u8]) -> (u16, u32) {
    let udp = &inner[if inner[0] >> 4 == 4 { 20 } else { 40 }..];
    let port = u16::from_be_bytes([udp[0], udp[1]]);
    let number = u32::from_be_bytes([udp[8], udp[9], udp[10], udp[11]]);
    (port - 10000, number)
}

const FLOWS: u16 = 64;

fn receive_in_order(injector: &mut Injector, next: &mut [u32], count: usize) {
    for received in 0..count {
        let Some(back) = injector.receive(PATIENCE) else {
            panic!("{received} of {count} came back; next numbers {next:?}");
        };
        let (flow, number) = flow_and_number(&back.inner);
        assert_eq!(number, next[usize::from(flow)], "flow {flow} lost its order");
        next[usize::from(flow)] += 1;
    }
}

fn order_is_kept(arguments: &[&str], port_count: u16) {
    let config = Config { port_count, ..Config::default() };
    let (_lab, _engine, mut injector) = passthrough(arguments, config);
    expect_order(&mut injector);
}

/// Packets of many flows come back, each flow's in the order in which they were sent.
pub(super) fn expect_order(injector: &mut Injector) {
    const ROUNDS: u32 = 200;
    /// 8 × 64 packets are under way, which any queue takes.
    const ROUNDS_IN_FLIGHT: u32 = 8;
    // The endpoint comes first, at every worker that a flow leads to: until a worker has it, it
    // holds 64 packets and no more.
    for flow in 0..FLOWS {
        injector.exchange(endpoint_id(0), &numbered(V4, flow, 0));
    }
    let mut next = vec![0; FLOWS.into()];
    for round in 0..ROUNDS {
        for flow in 0..FLOWS {
            let path = if flow % 2 == 0 { V4 } else { V6 };
            injector.send(endpoint_id(0), &numbered(path, flow, round));
        }
        if round % ROUNDS_IN_FLIGHT == ROUNDS_IN_FLIGHT - 1 {
            let in_flight = usize::from(FLOWS) * 8;
            receive_in_order(injector, &mut next, in_flight);
        }
    }
    assert_eq!(next, vec![ROUNDS; FLOWS.into()]);
    injector.assert_clean();
}

#[test]
fn order_within_flows_with_one_worker() {
    order_is_kept(&["--workers", "1"], 1);
}

#[test]
fn order_within_flows_with_what_the_oldest_kernel_has() {
    order_is_kept(&["--workers", "1", "--kernel-floor"], 4);
}

#[test]
fn order_within_flows_with_two_workers() {
    order_is_kept(&["--workers", "2"], 64);
}

#[test]
fn order_within_flows_with_four_workers() {
    order_is_kept(&["--workers", "4"], 7);
}

#[test]
fn order_within_flows_that_are_spread_over_four_workers() {
    order_is_kept(&["--workers", "4", "--steer", "inner"], 1);
}

/// The burst waits in the engine's sockets, so that it finds all of it at once.
fn a_burst_loses_nothing(arguments: &[&str]) {
    a_burst_loses_nothing_after(arguments, |_, _| {});
}

/// The same, after `change` has done something to the target.
fn a_burst_loses_nothing_after(arguments: &[&str], change: impl Fn(&Lab, &Engine)) {
    const BURST: u32 = 4000;
    let config = Config { port_count: 4, ..Config::default() };
    let (lab, engine, mut injector) = passthrough(arguments, config);
    // The endpoint comes first, at every worker that a flow leads to: until a worker has it, it
    // holds 64 packets and no more.
    for flow in 0..FLOWS {
        injector.exchange(endpoint_id(0), &numbered(V4, flow, 0));
    }
    change(&lab, &engine);
    for burst in 0..3 {
        engine.signal(Signal::SIGSTOP);
        for number in 0..BURST {
            let flow = u16::try_from(number % u32::from(FLOWS)).unwrap();
            let sequence = burst * BURST + number;
            injector.send(endpoint_id(0), &numbered(V4, flow, sequence));
        }
        engine.signal(Signal::SIGCONT);
        let mut returned = 0;
        while returned < BURST {
            let back = injector.receive(PATIENCE);
            let back = back.unwrap_or_else(|| {
                panic!("burst {burst}: {returned} of {BURST}, {}", engine.status())
            });
            let (_, sequence) = flow_and_number(&back.inner);
            assert_eq!(sequence / BURST, burst, "a packet of another burst");
            returned += 1;
        }
        assert_eq!(injector.receive(Duration::ZERO), None, "more than was sent");
    }
    injector.assert_clean();
}

#[test]
fn a_burst_of_4000_loses_nothing_with_one_worker() {
    a_burst_loses_nothing(&["--workers", "1"]);
}

/// Then the kernel cuts what was merged, and its queue holds 4,096 packets.
#[test]
fn a_burst_of_4000_loses_nothing_where_gwo_takes_no_super_packets() {
    a_burst_loses_nothing_after(&["--workers", "1"], |lab, engine| {
        let gwo = engine.links().into_iter().find(|link| link.starts_with("gwo-")).unwrap();
        let features = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
        let arguments = [&["-K", &gwo][..], &features].concat();
        run(&lab.topology.target(), "ethtool", &arguments);
    });
}

#[test]
fn a_burst_of_4000_loses_nothing_with_two_workers() {
    a_burst_loses_nothing(&["--workers", "2"]);
}

#[test]
fn a_burst_of_4000_loses_nothing_with_four_workers() {
    a_burst_loses_nothing(&["--workers", "4"]);
}

#[test]
fn a_burst_of_4000_loses_nothing_with_what_the_oldest_kernel_has() {
    a_burst_loses_nothing(&["--workers", "1", "--kernel-floor"]);
}
