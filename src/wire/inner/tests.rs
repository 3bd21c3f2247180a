//! Literal packets, each rule at its edge, and any bytes at all.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// TCP SYN, 192.0.2.1:49152 to 198.51.100.2:443, no options.
const TCP_V4: [u8; 40] = [
    0x45, 0x00, 0x00, 0x28, 0x00, 0x01, 0x40, 0x00, 0x40, 0x06, 0x50, 0x68, //
    0xc0, 0x00, 0x02, 0x01, 0xc6, 0x33, 0x64, 0x02, //
    0xc0, 0x00, 0x01, 0xbb, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, //
    0x50, 0x02, 0xff, 0xff, 0x69, 0x63, 0x00, 0x00,
];

/// UDP, `2001:db8::1` port 12345 to `2001:db8::2` port 53, "hi".
const UDP_V6: [u8; 50] = [
    0x60, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x11, 0x40, //
    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, //
    0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, //
    0x30, 0x39, 0x00, 0x35, 0x00, 0x0a, 0x0b, 0x8e, 0x68, 0x69,
];

const V4: Addresses = Addresses::V4 { src: [192, 0, 2, 1], dst: [198, 51, 100, 2] };

const V6: Addresses = Addresses::V6 {
    src: [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    dst: [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
};

fn inner(addresses: Addresses, protocol: u8, ports: (u16, u16), packet_bytes: usize) -> Inner {
    Inner { tuple: tuple(addresses, protocol, ports), packet_bytes, part: Part::Whole }
}

fn tuple(addresses: Addresses, protocol: u8, (src_port, dst_port): (u16, u16)) -> FiveTuple {
    FiveTuple { addresses, protocol, src_port, dst_port }
}

/// An IPv6 packet with this next header and payload.
fn packet_v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = [&UDP_V6[..40], payload].concat();
    packet[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet[6] = next_header;
    packet
}

#[test]
fn golden_packets() {
    let tcp = inner(V4, protocol::TCP, (49152, 443), 40);
    assert_eq!(parse(&TCP_V4, Family::V4), Ok(tcp));
    assert_eq!(parse_any(&TCP_V4), Ok(tcp));
    let udp = inner(V6, protocol::UDP, (12345, 53), 50);
    assert_eq!(parse(&UDP_V6, Family::V6), Ok(udp));
    assert_eq!(parse_any(&UDP_V6), Ok(udp));
}

#[test]
fn every_truncation_is_refused() {
    for (packet, family) in [(&TCP_V4[..], Family::V4), (&UDP_V6, Family::V6)] {
        for length in 0..packet.len() {
            let cut = &packet[..length];
            let reason = parse(cut, family).err();
            assert_eq!(reason, Some(DropReason::InnerTruncated), "{length} bytes");
            assert_eq!(parse_any(cut).err(), Some(DropReason::TunBadFrame));
        }
    }
}

#[test]
fn the_family_must_be_the_one_announced() {
    for first in 0..=u8::MAX {
        for (packet, family, nibble) in [(&TCP_V4[..], Family::V4, 4), (&UDP_V6[..], Family::V6, 6)]
        {
            let mut packet = packet.to_vec();
            packet[0] = first;
            let mismatch = parse(&packet, family) == Err(DropReason::InnerVersionMismatch);
            assert_eq!(mismatch, first >> 4 != nibble, "{first:x}");
        }
        if ![4, 6].contains(&(first >> 4)) {
            let reason = parse_any(&[first; 60]).err();
            assert_eq!(reason, Some(DropReason::TunBadFrame));
        }
    }
}

#[test]
fn lengths_of_ipv4_at_their_edges() {
    // First byte, total length, reason.
    for (first, total, reason) in [
        (0x45, 20, None),
        (0x45, 19, Some(DropReason::InnerMalformed)),
        (0x45, 0, Some(DropReason::InnerMalformed)),
        (0x45, 41, Some(DropReason::InnerTruncated)),
        (0x45, 65535, Some(DropReason::InnerTruncated)),
        (0x44, 40, Some(DropReason::InnerMalformed)),
        (0x40, 40, Some(DropReason::InnerMalformed)),
        (0x4a, 40, None),
        (0x4a, 39, Some(DropReason::InnerMalformed)),
        (0x4b, 40, Some(DropReason::InnerTruncated)),
    ] {
        let mut packet = TCP_V4;
        packet[0] = first;
        packet[2..4].copy_from_slice(&u16::to_be_bytes(total));
        let result = parse(&packet, Family::V4);
        assert_eq!(result.err(), reason, "{first:x}, {total} bytes");
        if let Ok(inner) = result {
            assert_eq!(inner.packet_bytes, usize::from(total));
        }
        let bad_frame = reason.map(|_| DropReason::TunBadFrame);
        assert_eq!(parse_any(&packet).err(), bad_frame);
    }
}

#[test]
fn bytes_behind_the_packet_are_left_out() {
    let long = [&TCP_V4[..], &[0xaa; 6]].concat();
    assert_eq!(parse(&long, Family::V4), parse(&TCP_V4, Family::V4));
    let long = [&UDP_V6[..], &[0xaa; 6]].concat();
    assert_eq!(parse(&long, Family::V6), parse(&UDP_V6, Family::V6));
}

#[test]
fn ports_are_not_read_from_behind_the_packet() {
    let mut packet = TCP_V4;
    for (total, ports) in [(20, (0, 0)), (23, (0, 0)), (24, (49152, 443))] {
        packet[3] = total;
        let expected = inner(V4, protocol::TCP, ports, usize::from(total));
        assert_eq!(parse(&packet, Family::V4), Ok(expected));
    }
    let mut packet = UDP_V6;
    for (payload, ports) in [(3, (0, 0)), (4, (12345, 53))] {
        packet[5] = payload;
        let expected = inner(V6, protocol::UDP, ports, 40 + usize::from(payload));
        assert_eq!(parse(&packet, Family::V6), Ok(expected));
    }
}

#[test]
fn what_is_unusual_passes() {
    let mut packet = TCP_V4;
    packet[8] = 0; // TTL
    assert!(parse(&packet, Family::V4).is_ok());
    packet[3] = 20;
    assert!(parse(&packet[..20], Family::V4).is_ok(), "a header alone");
    let mut packet = UDP_V6;
    packet[5] = 0;
    let jumbogram = inner(V6, protocol::UDP, (12345, 53), 50);
    assert_eq!(parse(&packet, Family::V6), Ok(jumbogram));
    let alone = inner(V6, protocol::UDP, (0, 0), 40);
    assert_eq!(parse(&packet[..40], Family::V6), Ok(alone));
}

#[test]
fn every_protocol_passes_and_two_have_ports() {
    for number in 0..=u8::MAX {
        let has_ports = number == protocol::TCP || number == protocol::UDP;
        let mut packet = TCP_V4;
        packet[9] = number;
        let ports = if has_ports { (49152, 443) } else { (0, 0) };
        let expected = inner(V4, number, ports, 40);
        assert_eq!(parse(&packet, Family::V4), Ok(expected));

        let packet = packet_v6(number, &[0x30, 0x39, 0, 53, 0, 9, 0, 0, 0]);
        let found = parse(&packet, Family::V6).unwrap();
        let ports = (found.tuple.src_port, found.tuple.dst_port);
        assert_eq!(ports == (12345, 53), has_ports, "{number}");
        assert_eq!(found.packet_bytes, 49);
    }
}

#[test]
fn ports_stand_behind_ipv4_options() {
    let mut packet = [&TCP_V4[..20], &[0x94, 0x04, 0, 0], &TCP_V4[20..]].concat();
    packet[0] = 0x46;
    packet[3] = 44;
    let expected = inner(V4, protocol::TCP, (49152, 443), 44);
    assert_eq!(parse(&packet, Family::V4), Ok(expected));
}

#[test]
fn ports_stand_behind_extension_headers() {
    let payload = [
        &[60, 0, 1, 4, 0, 0, 0, 0][..], // hop-by-hop
        &[6, 0, 1, 4, 0, 0, 0, 0],      // destination
        &[0x01, 0xbb, 0xc0, 0x00],
    ]
    .concat();
    let packet = packet_v6(0, &payload);
    let expected = inner(V6, protocol::TCP, (443, 49152), 60);
    assert_eq!(parse(&packet, Family::V6), Ok(expected));
    // Without the ports, and then within the second extension header.
    let cut = packet_v6(0, &payload[..18]);
    let expected = inner(V6, protocol::TCP, (0, 0), 58);
    assert_eq!(parse(&cut, Family::V6), Ok(expected));
    let cut = packet_v6(0, &payload[..12]);
    let expected = inner(V6, 60, (0, 0), 52);
    assert_eq!(parse(&cut, Family::V6), Ok(expected));
}

#[test]
fn fragments_of_ipv4() {
    let whole = inner(V4, protocol::TCP, (49152, 443), 40);
    let later = tuple(V4, 44, (6, 0xbeef));
    for (flags, part) in [
        ([0x40, 0x00], Part::Whole),
        ([0x80, 0x00], Part::Whole), // the reserved bit
        ([0x20, 0x00], Part::FirstFragment),
        ([0x60, 0x00], Part::FirstFragment), // as a load balancer cuts: DF and MF
        ([0x00, 0x01], Part::LaterFragment),
        ([0x20, 0xb9], Part::LaterFragment),
    ] {
        let mut packet = TCP_V4;
        packet[4..6].copy_from_slice(&[0xbe, 0xef]);
        packet[6..8].copy_from_slice(&flags);
        let tuple = if part == Part::LaterFragment { later } else { whole.tuple };
        let expected = Inner { tuple, part, ..whole };
        assert_eq!(parse(&packet, Family::V4), Ok(expected), "{flags:x?}");
        let of_first = (part == Part::FirstFragment).then_some(later);
        assert_eq!(later_fragments(&packet), of_first, "{flags:x?}");
        let has_tcp = part != Part::LaterFragment;
        assert_eq!(tcp_start(&packet), has_tcp.then_some((Family::V4, 20)), "{flags:x?}");
    }
}

#[test]
fn fragments_of_ipv6() {
    let whole = inner(V6, protocol::UDP, (12345, 53), 58);
    let later = tuple(V6, 44, (0x0102, 0x0309));
    for (flags, part) in [
        ([0x00, 0x00], Part::Whole), // atomic
        ([0x00, 0x01], Part::FirstFragment),
        ([0x05, 0xa8], Part::LaterFragment),
        ([0x05, 0xa9], Part::LaterFragment),
    ] {
        let [high, low] = flags;
        let fragment = [17, 0, high, low, 1, 2, 3, 9];
        let packet = packet_v6(44, &[&fragment[..], &UDP_V6[40..]].concat());
        let tuple = if part == Part::LaterFragment { later } else { whole.tuple };
        let expected = Inner { tuple, part, ..whole };
        assert_eq!(parse(&packet, Family::V6), Ok(expected), "{flags:x?}");
        let of_first = (part == Part::FirstFragment).then_some(later);
        assert_eq!(later_fragments(&packet), of_first, "{flags:x?}");
        assert_eq!(tcp_start(&packet), None, "{flags:x?}");
    }
}

#[test]
fn the_ports_of_a_first_fragment_may_stand_behind_more_extension_headers() {
    let headers = [[60, 0, 0, 1, 0, 0, 0, 7], [6, 0, 1, 4, 0, 0, 0, 0]].concat();
    let packet = packet_v6(44, &[&headers[..], &[0x01, 0xbb, 0xc0, 0x00]].concat());
    let found = parse(&packet, Family::V6).unwrap();
    assert_eq!(found.tuple, tuple(V6, protocol::TCP, (443, 49152)));
    assert_eq!(later_fragments(&packet), Some(tuple(V6, 44, (0, 7))));
    assert_eq!(tcp_start(&packet), Some((Family::V6, 56)));
}

#[test]
fn the_same_identification_both_ways_is_two_tuples() {
    let mut packet = TCP_V4;
    packet[7] = 1;
    let there = parse(&packet, Family::V4).unwrap().tuple;
    let (src, dst) = packet[12..20].split_at_mut(4);
    src.swap_with_slice(dst);
    let back = parse(&packet, Family::V4).unwrap().tuple;
    assert_ne!(there, back.reversed());
}

/// An ICMP error of this type about `quote`, from `V4` or `V6`'s source to its destination.
fn error(family: Family, kind: u8, quote: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], quote].concat();
    if family == Family::V6 {
        return packet_v6(protocol::ICMPV6, &message);
    }
    let mut packet = [&TCP_V4[..20], &message].concat();
    packet[9] = protocol::ICMP;
    let length = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet
}

#[test]
fn an_error_has_the_ports_of_what_it_quotes() {
    for (family, kinds, addresses, number, quote, quoted_tuple) in [
        (
            Family::V4,
            &[3, 4, 5, 11, 12][..],
            V4,
            protocol::ICMP,
            &TCP_V4[..28], // header and 8 bytes: all that RFC 792 promises
            tuple(V4, protocol::TCP, (49152, 443)),
        ),
        (
            Family::V6,
            &[1, 2, 3, 4, 127],
            V6,
            protocol::ICMPV6,
            &UDP_V6[..],
            tuple(V6, protocol::UDP, (12345, 53)),
        ),
    ] {
        let ports = (quoted_tuple.src_port, quoted_tuple.dst_port);
        for kind in 0..=u8::MAX {
            let is_error = kinds.contains(&kind) || family == Family::V6 && kind < 128;
            let packet = error(family, kind, quote);
            let ports = if is_error { ports } else { (0, 0) };
            let found = parse(&packet, family).unwrap();
            assert_eq!(found.tuple, tuple(addresses, number, ports), "{kind}");
            assert_eq!(quoted(&packet), is_error.then_some(quoted_tuple), "{kind}");
        }
        // Too little to say.
        let header_bytes = if family == Family::V4 { 20 } else { 40 };
        for length in 0..header_bytes {
            let packet = error(family, kinds[0], &quote[..length]);
            assert_eq!(quoted(&packet), None, "{length}");
            assert!(parse(&packet, family).is_ok());
        }
        let portless = FiveTuple { src_port: 0, dst_port: 0, ..quoted_tuple };
        let packet = error(family, kinds[0], &quote[..header_bytes + 3]);
        assert_eq!(quoted(&packet), Some(portless));
    }
}

#[test]
fn a_quote_of_the_other_family_is_none() {
    assert_eq!(quoted(&error(Family::V4, 3, &UDP_V6)), None);
    assert_eq!(quoted(&error(Family::V6, 1, &TCP_V4)), None);
    let mut icmp_v6_in_v4 = error(Family::V4, 3, &TCP_V4);
    icmp_v6_in_v4[9] = protocol::ICMPV6;
    assert_eq!(quoted(&icmp_v6_in_v4), None);
}

#[test]
fn a_quoted_fragment_and_a_quoted_error() {
    let mut fragment = TCP_V4;
    fragment[7] = 3;
    let later = tuple(V4, 44, (6, 1));
    assert_eq!(quoted(&error(Family::V4, 11, &fragment)), Some(later));
    // Errors about errors about errors: looked into once.
    let mut packet = TCP_V4.to_vec();
    for _ in 0..300 {
        packet = error(Family::V4, 3, &packet);
    }
    assert_eq!(quoted(&packet), Some(tuple(V4, protocol::ICMP, (0, 0))));
    assert_eq!(parse(&packet, Family::V4).unwrap().tuple, tuple(V4, protocol::ICMP, (0, 0)));
}

/// A router solicitation as a TUN that comes up emits it.
const ROUTER_SOLICITATION: [u8; 48] = [
    0x60, 0x00, 0x00, 0x00, 0x00, 0x08, 0x3a, 0xff, //
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, //
    0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, //
    0x85, 0x00, 0x30, 0x6f, 0x00, 0x00, 0x00, 0x00,
];

/// An `IGMPv3` report to 224.0.0.22, with a router alert.
const IGMP_REPORT: [u8; 32] = [
    0x46, 0xc0, 0x00, 0x20, 0x00, 0x00, 0x40, 0x00, 0x01, 0x02, 0x00, 0x00, //
    0xc0, 0x00, 0x02, 0x01, 0xe0, 0x00, 0x00, 0x16, 0x94, 0x04, 0x00, 0x00, //
    0x22, 0x00, 0xdd, 0xff, 0x00, 0x00, 0x00, 0x00,
];

#[test]
fn host_noise_is_recognised() {
    assert!(is_host_noise(&ROUTER_SOLICITATION));
    assert!(is_host_noise(&IGMP_REPORT));
    let mut detection = ROUTER_SOLICITATION;
    detection[8..24].fill(0);
    detection[24..40].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 1, 2, 3]);
    assert!(is_host_noise(&detection), "duplicate address detection");
    detection[25] = 0x11;
    assert!(is_host_noise(&detection), "interface scope, with a flag");
}

#[test]
fn hosts_packets_are_no_noise() {
    assert!(!is_host_noise(&TCP_V4));
    assert!(!is_host_noise(&UDP_V6));
    // Byte of the solicitation, value.
    for (at, value) in [
        (8, 0x20),  // a global source
        (9, 0xc0),  // fec0::/10
        (24, 0xfe), // no multicast
        (25, 0x05), // site scope
        (25, 0x0e), // global scope
        (25, 0x00), // reserved scope
    ] {
        let mut packet = ROUTER_SOLICITATION;
        packet[at] = value;
        assert!(!is_host_noise(&packet), "byte {at} is {value:#x}");
    }
    for (at, value) in [(9, 17), (16, 225), (17, 1), (18, 1)] {
        let mut packet = IGMP_REPORT;
        packet[at] = value;
        assert!(!is_host_noise(&packet), "byte {at} is {value}");
    }
    for length in 0..40 {
        assert!(!is_host_noise(&ROUTER_SOLICITATION[..length]));
    }
    for length in 0..24 {
        assert!(!is_host_noise(&IGMP_REPORT[..length]));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200), is_v6: bool) {
        let mut bytes = bytes;
        let _ = (parse(&bytes, Family::V4), parse(&bytes, Family::V6), is_host_noise(&bytes));
        let _ = (later_fragments(&bytes), quoted(&bytes));
        prop_assert!(tcp_start(&bytes).is_none_or(|(_, start)| start <= bytes.len()));
        // Random bytes hardly are a packet: help them.
        if let Some(first) = bytes.first_mut() {
            *first = if is_v6 { 0x60 } else { 0x40 | *first & 0x07 };
        }
        if let Some(high) = bytes.get_mut(if is_v6 { 4 } else { 2 }) {
            *high = 0;
        }
        let family = if is_v6 { Family::V6 } else { Family::V4 };
        let parsed = parse(&bytes, family);
        prop_assert_eq!(parse_any(&bytes).ok(), parsed.ok());
        if let Ok(inner) = parsed {
            prop_assert!(inner.packet_bytes <= bytes.len());
            prop_assert_eq!(inner.tuple.family(), family);
            // Nothing beyond the packet counts, jumbograms apart.
            if !is_v6 || bytes[5] != 0 {
                prop_assert_eq!(parse(&bytes[..inner.packet_bytes], family), Ok(inner));
            }
        }
    }

    /// Chains of extension headers, cut and whole.
    #[test]
    fn no_chain_makes_it_panic(
        kinds in vec(prop::sample::select(vec![0_u8, 43, 44, 51, 60, 6, 17]), 1..12),
        length in 0..2_u8,
        cut in 0..200_usize,
    ) {
        let mut payload = Vec::new();
        for &kind in &kinds[1..] {
            payload.extend([kind, length, 0, 0, 0, 0, 0, 0]);
            payload.extend(vec![0; usize::from(length) * 8]);
        }
        payload.truncate(cut);
        let packet = packet_v6(kinds[0], &payload);
        let inner = parse(&packet, Family::V6).unwrap();
        prop_assert_eq!(inner.packet_bytes, packet.len());
    }
}
