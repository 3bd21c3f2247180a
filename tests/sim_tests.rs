//! The judge judged: golden bytes, tshark's reading of them, every breach, and a run with real
//! hosts and a target that is right by construction.

mod health;
mod program;
mod topology;

use std::collections::HashSet;
use std::net::UdpSocket;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::sim::golden;
use crate::sim::golden::Golden;
use crate::sim::gwlb::Config;
use crate::sim::gwlb::CookieRule;
use crate::sim::gwlb::Gwlb;
use crate::sim::gwlb::Host;
use crate::sim::gwlb::Wrapping;
use crate::sim::layout;
use crate::sim::layout::Outer;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::sim::report::Breach;
use crate::support::clock::PATIENCE;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::ledger::Ledger;
use crate::support::mirror::Mirror;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::process::finish;
use crate::support::process::run;
use crate::support::scratch::Scratch;
use crate::support::scratch::unique_name;
use crate::support::tools;

fn golden_wrapping(golden: &Golden) -> Wrapping {
    Wrapping {
        outer: Outer { node: golden.node, target: golden.target, port: golden.port },
        header: layout::geneve_header(golden.endpoint, golden.cookie, golden.inner()),
    }
}

#[test]
fn encapsulation_equals_the_golden_bytes() {
    for golden in golden::ALL {
        let mut gwlb =
            Gwlb::new(Config { outer_checksum: golden.outer_checksum, ..Config::default() });
        let wrapping = golden_wrapping(golden);
        let packet = gwlb.encapsulate_as(golden.endpoint, Host::Client, wrapping, golden.inner());
        assert_eq!(packet.as_deref(), Some(golden.packet), "{}", golden.name);
    }
}

/// A capture file (pcap, microseconds, link type 101 = bare IP) of the golden packets.
fn write_capture(path: &Path) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0002_0004, 0, 0, 65535, 101] {
        // The version is two 16-bit fields, major first.
        file.extend(word.rotate_left(if word == 0x0002_0004 { 16 } else { 0 }).to_le_bytes());
    }
    for golden in golden::ALL {
        let length = u32::try_from(golden.packet.len()).expect("short");
        for word in [0, 0, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(golden.packet);
    }
    std::fs::write(path, file).expect("a capture file");
}

/// What tshark must print for a golden packet, field by field.
fn expected_fields(golden: &Golden) -> Vec<(&'static str, String)> {
    let is_v4 = golden.inner()[0] >> 4 == 4;
    let both = |outer: String| {
        if is_v4 { format!("{outer},{outer}") } else { outer }
    };
    let (inner4, inner6) = if is_v4 {
        let with = |outer, inner| format!("{outer},{inner}");
        let pair = |outer: std::net::Ipv4Addr, inner| with(outer, inner);
        let src = pair(golden.node, golden.inner_src);
        let dst = pair(golden.target, golden.inner_dst);
        ((src, dst), (String::new(), String::new()))
    } else {
        let inner = (golden.inner_src.to_owned(), golden.inner_dst.to_owned());
        ((golden.node.to_string(), golden.target.to_string()), inner)
    };
    let ttl = if is_v4 { "255,64" } else { "255" };
    let endpoint = format!("{:016x}", golden.endpoint);
    vec![
        ("ip.src", inner4.0),
        ("ip.dst", inner4.1),
        ("ip.ttl", ttl.to_owned()),
        ("ip.checksum.status", both("1".to_owned())),
        ("ipv6.src", inner6.0),
        ("ipv6.dst", inner6.1),
        ("geneve.version", "0".to_owned()),
        ("geneve.vni", "0x000000".to_owned()),
        ("geneve.proto_type", if is_v4 { "0x0800" } else { "0x86dd" }.to_owned()),
        ("geneve.option.class", "0x0108,0x0108,0x0108".to_owned()),
        ("geneve.option.type", "0x01,0x02,0x03".to_owned()),
        (
            "geneve.option.unknown.data",
            format!("{endpoint},0000000000000000,{:08x}", golden.cookie),
        ),
    ]
}

#[test]
fn tshark_reads_the_golden_bytes_as_we_do() {
    tools::require();
    let scratch = Scratch::new(&unique_name());
    let capture = scratch.file("golden.pcap");
    write_capture(&capture);
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&capture).args(["-T", "fields", "-E", "separator=|"]);
    for protocol in ["ip", "udp", "tcp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    for (field, _) in expected_fields(&golden::ALL[0]) {
        command.args(["-e", field]);
    }
    let printed = finish(&mut command);
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), golden::ALL.len(), "{printed}");
    for (golden, line) in golden::ALL.iter().zip(lines) {
        let printed: Vec<_> = line.split('|').collect();
        let expected = expected_fields(golden);
        assert_eq!(printed.len(), expected.len(), "{line}");
        for ((field, expected), printed) in expected.into_iter().zip(printed) {
            assert_eq!(printed, expected, "{field} of {}", golden.name);
        }
    }
}

#[test]
fn tshark_finds_every_checksum_right() {
    tools::require();
    let scratch = Scratch::new(&unique_name());
    let capture = scratch.file("golden.pcap");
    write_capture(&capture);
    // Status 1 is good, 3 is not present (the outer zero of one packet).
    let expected = [
        ("udp.checksum.status", ["1", "1", "3", "1,1"]),
        ("tcp.checksum.status", ["", "", "1", ""]),
        ("icmp.checksum.status", ["1", "", "", ""]),
        ("icmpv6.checksum.status", ["", "1", "", ""]),
    ];
    for (field, expected) in expected {
        let mut command = Command::new("tshark");
        command.arg("-r").arg(&capture).args(["-T", "fields", "-e", field]);
        for protocol in ["udp", "tcp"] {
            command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        let printed = finish(&mut command);
        let printed: Vec<_> = printed.lines().collect();
        assert_eq!(printed, expected, "{field}");
    }
}

/// What a target that is right sends back: addresses swapped, all else kept. Neither checksum
/// changes by a swap.
fn turned_round(packet: &[u8]) -> Vec<u8> {
    let mut back = packet.to_vec();
    back[12..16].copy_from_slice(&packet[16..20]);
    back[16..20].copy_from_slice(&packet[12..16]);
    back
}

const ENDPOINT: u64 = 0x0123_4567_89ab_cdef;

#[test]
fn a_right_answer_is_delivered_to_the_other_host() {
    let mut gwlb = Gwlb::new(Config::default());
    for (sender, path) in [(Host::Client, V4), (Host::Server, (V4.1, V4.0))] {
        let inner = packets::ping(path, 1, b"there");
        let packet = gwlb.encapsulate(ENDPOINT, sender, &inner).unwrap();
        let back = turned_round(&packet);
        let delivery = gwlb.check(&back, true).unwrap();
        assert_eq!((delivery.endpoint, delivery.to), (ENDPOINT, sender.other()));
        assert_eq!(delivery.inner, inner);
    }
    let report = gwlb.report();
    assert_eq!((report.returned, report.breaches(), report.flows), (2, 0, 1));
}

/// Recomputes what a change to the outer IPv4 header broke.
fn with_header_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let checksum = !layout::fold(layout::sum(&packet[..20], 0));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[test]
fn every_broken_rule_is_counted_under_its_name_and_not_delivered() {
    type Mutation = fn(&mut Vec<u8>);
    let cases: &[(Breach, Mutation)] = &[
        (Breach::InvalidGeneveTunnel, |p| p[23] ^= 1),
        (Breach::InvalidGeneveTunnel, |p| p[15] ^= 1),
        (Breach::InvalidGeneveTunnel, |p| p[19] ^= 1),
        (Breach::InvalidGeneveTunnel, |p| p[28] |= 0x40),
        (Breach::InvalidGeneveTunnel, |p| p[38] = 9),
        (Breach::InvalidGwlbEndpointId, |p| p[47] ^= 1),
        (Breach::InvalidGwlbFlowCookie, |p| p[67] ^= 1),
        (Breach::MissingFlowEntry, |p| p[68 + 19] ^= 0x40),
        (Breach::MissingFlowEntry, |p| p[68] = 0),
        (Breach::BadOuterHeader, |p| p[6] = 0x20),
        (Breach::BadOuterHeader, |p| p.truncate(60)),
        (Breach::BadOuterHeader, |p| p[25] ^= 1),
        (Breach::WrongSourcePort, |p| p[21] ^= 1),
        (Breach::HeaderNotEqual, |p| p[34] = 7),
    ];
    for (case, (breach, mutation)) in cases.iter().enumerate() {
        let mut gwlb = Gwlb::new(Config { outer_checksum: false, ..Config::default() });
        let inner = packets::udp(V4, (1000, 53), b"question");
        let packet = gwlb.encapsulate(ENDPOINT, Host::Client, &inner).unwrap();
        let mut back = turned_round(&packet);
        mutation(&mut back);
        let back = with_header_checksum(back);
        assert_eq!(gwlb.check(&back, true), None, "case {case}");
        let report = gwlb.report();
        assert_eq!(report.count(*breach), 1, "case {case}: {:?}", report.described());
        assert_eq!(report.breaches(), 1, "case {case}");
        assert!(report.described()[0].starts_with(breach.name()));
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["breaches"][breach.name()], 1);
    }
}

#[test]
fn checksums_and_sizes_are_judged_too() {
    let mut gwlb = Gwlb::new(Config::default());
    let inner = packets::udp(V6, (1000, 53), b"question");
    let packet = gwlb.encapsulate(ENDPOINT, Host::Client, &inner).unwrap();
    let mut back = turned_round(&packet);
    back[26] ^= 1;
    assert_eq!(gwlb.check(&back, true), None);
    assert_eq!(gwlb.report().count(Breach::BadUdpChecksum), 1);
    assert!(gwlb.check(&back, false).is_some(), "a checksum left to the device");
    back[26..28].fill(0);
    assert!(gwlb.check(&back, true).is_some(), "no checksum");
    back[11] ^= 1;
    assert_eq!(gwlb.check(&back, true), None);
    assert_eq!(gwlb.report().count(Breach::BadOuterHeader), 1);

    for (payload_bytes, is_taken) in [(8472, true), (8473, false)] {
        let inner = packets::udp(V4, (1, 2), &packets::pattern(0, payload_bytes));
        let packet = gwlb.encapsulate(ENDPOINT, Host::Client, &inner).unwrap();
        assert_eq!(gwlb.check(&turned_round(&packet), true).is_some(), is_taken);
    }
    assert_eq!(gwlb.report().count(Breach::InnerTooLarge), 1);
}

#[test]
fn an_outdated_header_is_taken_only_while_it_may_be_in_flight() {
    let mut gwlb = Gwlb::new(Config { roam_packets: 1, in_flight_packets: 1, ..Config::default() });
    let inner = packets::tcp(V4, (1000, 443), 1, b"");
    let sent: Vec<_> =
        (0..3).map(|_| gwlb.encapsulate(ENDPOINT, Host::Client, &inner).unwrap()).collect();
    assert_ne!(sent[1][12..16], sent[2][12..16], "the node changes with every packet");
    assert!(gwlb.check(&turned_round(&sent[2]), true).is_some());
    assert!(gwlb.check(&turned_round(&sent[1]), true).is_some());
    assert!(gwlb.check(&turned_round(&sent[0]), true).is_none());
    gwlb.renew(ENDPOINT, &inner);
    assert!(gwlb.check(&turned_round(&sent[2]), true).is_none(), "the old cookie is over");
    let anew = gwlb.encapsulate(ENDPOINT, Host::Client, &inner).unwrap();
    assert_ne!(anew[64..68], sent[2][64..68]);
    assert!(gwlb.check(&turned_round(&anew), true).is_some());
}

#[test]
fn the_other_directions_header_is_told_apart() {
    let mut gwlb = Gwlb::new(Config {
        cookies: CookieRule::PerDirection,
        outer_checksum: false,
        ..Config::default()
    });
    let there = packets::udp(V4, (1000, 53), b"question");
    let answer = packets::udp((V4.1, V4.0), (53, 1000), b"question");
    let first = gwlb.encapsulate(ENDPOINT, Host::Client, &there).unwrap();
    // The answer in the question's header, before and after the answer's own was sent.
    let mut back = turned_round(&first);
    back[68..].copy_from_slice(&answer);
    assert!(gwlb.check(&back, true).is_some());
    assert_eq!(gwlb.report().other_direction, 0);
    let second = gwlb.encapsulate(ENDPOINT, Host::Server, &answer).unwrap();
    assert_ne!(first[64..68], second[64..68]);
    assert!(gwlb.check(&back, true).is_some());
    assert_eq!(gwlb.report().other_direction, 1);
}

#[test]
fn ports_nodes_and_cookies_spread_over_the_flows() {
    let mut gwlb = Gwlb::new(Config { port_first: 50000, port_count: 64, ..Config::default() });
    let mut seen = [(); 3].map(|()| HashSet::new());
    for client_port in 0..1000 {
        let inner = packets::udp(V4, (client_port, 53), b"");
        let packet = gwlb.encapsulate(ENDPOINT, Host::Client, &inner).unwrap();
        for (seen, field) in seen.iter_mut().zip([20..22, 12..16, 64..68]) {
            seen.insert(packet[field].to_vec());
        }
    }
    assert_eq!(seen.each_ref().map(HashSet::len), [64, 3, 1000]);
}

#[test]
fn real_hosts_talk_through_a_target_that_is_right() {
    let lab = Lab::new(
        2,
        Config {
            roam_packets: 2,
            port_count: 3,
            cookies: CookieRule::PerDirection,
            ..Config::default()
        },
    );
    let simulator = lab.simulator();
    let _mirror = Mirror::start(&lab.topology.target(), lab.config.target);
    for endpoint in 0..2 {
        for address in [SERVER_V4, SERVER_V6] {
            let options = ["-c", "3", "-i", "0.1", "-s", "8000", "-W", "10", address];
            run(&lab.client(endpoint), "ping", &options);
        }
    }
    let report = simulator.report();
    assert!(report.returned >= 2 * 2 * 6, "{}", report.to_json());
    simulator.stop_clean();
}

/// A socket that takes merged datagrams in the target, and how many reads it needs for what comes.
fn reads_of_a_burst(lab: &Lab, datagrams: u16) -> usize {
    let bind = || UdpSocket::bind((lab.config.target, layout::GENEVE_PORT));
    let socket = lab.topology.target().enter(bind).expect("port 6081");
    setsockopt(&socket, sockopt::UdpGroSegment, &true).expect("UDP_GRO");
    socket.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    let mut injector = lab.injector();
    for _ in 0..datagrams {
        injector.send(endpoint_id(0), &packets::udp(V4, (1, 2), b"one of many"));
    }
    let datagram_bytes = 40 + 28 + b"one of many".len();
    let (mut buffer, mut reads, mut bytes) = (vec![0; 65536], 0, 0);
    while bytes < usize::from(datagrams) * datagram_bytes {
        bytes += socket.recv(&mut buffer).expect("the burst arrives");
        reads += 1;
    }
    reads
}

#[test]
fn a_link_that_merges_does() {
    const BURST: u16 = 100;
    let plain = reads_of_a_burst(&Lab::new(0, Config::default()), BURST);
    assert_eq!(plain, usize::from(BURST));
    let merged = reads_of_a_burst(&Lab::with_gro(0, Config::default()), BURST);
    assert!(merged < usize::from(BURST), "{merged} reads");
    let without = Config { outer_checksum: false, ..Config::default() };
    let unmerged = reads_of_a_burst(&Lab::with_gro(0, without), BURST);
    assert_eq!(unmerged, usize::from(BURST), "without a checksum nothing may be merged");
}

#[test]
fn a_ledger_wants_every_packet_once_unchanged_and_in_order() {
    let packet = |flow, number: u8| packets::udp(V4, (flow, 53), &[number]);
    let judge = |returns: &[Vec<u8>]| {
        let mut ledger = Ledger::default();
        for number in 0..3 {
            ledger.sent(ENDPOINT, &packet(1, number));
            ledger.sent(ENDPOINT, &packet(2, number));
        }
        let attempt = AssertUnwindSafe(|| {
            for packet in returns {
                ledger.came_back(ENDPOINT, packet);
            }
            ledger.on_their_way()
        });
        catch_unwind(attempt).ok()
    };
    let other_flow_first = [packet(2, 0), packet(2, 1), packet(1, 0)];
    assert_eq!(judge(&other_flow_first), Some(3));
    assert_eq!(judge(&[packet(1, 1)]), None, "overtaking");
    assert_eq!(judge(&[packet(1, 0), packet(1, 0)]), None, "twice");
    assert_eq!(judge(&[packet(3, 0)]), None, "of nobody");
    let mut changed = packet(1, 0);
    changed[28] ^= 1;
    assert_eq!(judge(&[changed]), None);
}
