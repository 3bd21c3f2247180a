//! Segments against what the header views write, which are tested by golden bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::Addresses;

/// An IPv4 header for TCP: 24 bytes with an option, DF, identification 0xfffe.
const V4: [u8; 24] =
    [0x46, 0x28, 0, 0, 0xff, 0xfe, 0x40, 0, 61, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2, 1, 1, 1, 0];

/// An IPv6 header with flow label and class, and 8 bytes of destination options behind it.
const V6: [u8; 48] = [
    0x6a, 0xbc, 0xde, 0xf1, 0, 0, 60, 64, // destination options, then TCP
    0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // from
    0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, // to
    6, 0, 1, 4, 0, 0, 0, 0,
];

/// TCP with a time stamp, and CWR, ACK, PSH and FIN at once; the sequence wraps soon.
const TCP: [u8; 32] = [
    0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 7, 0x80, 0x99, 1, 0, 0xab, 0xcd, 0,
    0, //
    1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2,
];

const UDP: [u8; 8] = [0x12, 0x34, 0, 53, 0, 0, 0xab, 0xcd];

/// A super-packet as a TUN hands it over.
fn super_packet(ip: &[u8], transport: &[u8], payload: &[u8], gso_bytes: u16) -> (Vec<u8>, Header) {
    let mut packet = [ip, transport, payload].concat();
    let is_udp = transport.len() == 8;
    let length = u16::try_from(packet.len()).unwrap();
    let gso = if ip[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        if is_udp { Gso::UdpL4 } else { Gso::TcpV4 }
    } else {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        if is_udp { Gso::UdpL4 } else { Gso::TcpV6 }
    };
    let header = Header {
        needs_checksum: true,
        gso,
        // The kernel's linear part: it says nothing.
        header_bytes: length,
        gso_bytes,
        checksum_start: u16::try_from(ip.len()).unwrap(),
        checksum_offset: if is_udp { 6 } else { 16 },
    };
    (packet, header)
}

/// All segments, whole.
fn segments(packet: &[u8], header: &Header) -> Vec<Vec<u8>> {
    let segmenter = Segmenter::new(packet, header).unwrap();
    let segment = |number| {
        let payload = &packet[segmenter.payload(number)];
        let mut headers = vec![0xee; segmenter.headers_bytes()];
        segmenter.write(number, checksum::sum(payload), &mut headers);
        [&headers[..], payload].concat()
    };
    let segments: Vec<_> = (0..segmenter.segments()).map(segment).collect();
    let bytes: usize = segments.iter().map(Vec::len).sum();
    assert_eq!(bytes, segmenter.segments_bytes());
    assert!(segments.iter().all(|segment| segment.len() <= segmenter.segment_bytes_max()));
    segments
}

/// The same by the views.
fn by_the_views(ip: &[u8], transport: &[u8], payload: &[u8], gso_bytes: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(gso_bytes);
    payload
        .chunks(gso_bytes)
        .enumerate()
        .map(|(number, payload)| one_by_the_views(ip, transport, payload, number, gso_bytes, count))
        .collect()
}

fn one_by_the_views(
    ip: &[u8],
    transport: &[u8],
    payload: &[u8],
    number: usize,
    gso_bytes: usize,
    count: usize,
) -> Vec<u8> {
    let (mut ip, mut transport) = (ip.to_vec(), transport.to_vec());
    let number_16 = u16::try_from(number).unwrap();
    let bytes = u16::try_from(transport.len() + payload.len()).unwrap();
    let addresses = if ip[0] >> 4 == 4 {
        let ip_bytes = u16::try_from(ip.len()).unwrap();
        let mut header = ipv4::Header::new_checked(&mut ip).unwrap();
        header.set_total_bytes(ip_bytes + bytes);
        if !(header.dont_fragment() && header.id() == 0) {
            header.set_id(header.id().wrapping_add(number_16));
        }
        header.fill_checksum();
        header.addresses()
    } else {
        let behind = u16::try_from(ip.len() - 40).unwrap();
        let mut header = ipv6::Header::new_checked(&mut ip).unwrap();
        header.set_payload_bytes(behind + bytes);
        header.addresses()
    };
    let payload_sum = checksum::sum(payload);
    let pseudo_header = |protocol| checksum::pseudo_header(addresses, protocol, bytes.into());
    if transport.len() == 8 {
        let mut header = udp::Header::new_checked(&mut transport).unwrap();
        header.set_length_bytes(bytes);
        header.fill_checksum(pseudo_header(protocol::UDP), payload_sum);
    } else {
        let mut header = tcp::Header::new_checked(&mut transport).unwrap();
        let start = u32::try_from(number * gso_bytes).unwrap();
        header.set_sequence(header.sequence().wrapping_add(start));
        let mut flags = header.flags();
        if number > 0 {
            flags &= !flag::CWR;
        }
        if number + 1 < count {
            flags &= !(flag::PSH | flag::FIN);
        }
        header.set_flags(flags);
        header.fill_checksum(pseudo_header(protocol::TCP), payload_sum);
    }
    [ip, transport, payload.to_vec()].concat()
}

fn ip_headers() -> impl Strategy<Value = Vec<u8>> {
    let v4 = (any::<u16>(), prop::bool::ANY, prop::bool::ANY).prop_map(|(id, df, options)| {
        let mut ip = V4.to_vec();
        ip[4..6].copy_from_slice(&(if id % 3 == 0 { 0 } else { id }).to_be_bytes());
        ip[6] = if df { 0x40 } else { 0 };
        if !options {
            ip.truncate(20);
            ip[0] = 0x45;
        }
        ip
    });
    let v6 = prop::bool::ANY.prop_map(|extended| {
        let mut ip = V6.to_vec();
        if !extended {
            ip.truncate(40);
            ip[6] = 6;
        }
        ip
    });
    prop_oneof![v4, v6]
}

/// Makes headers for TCP ones for UDP.
fn for_udp(ip: &mut [u8]) {
    match ip.len() {
        20 | 24 => ip[9] = protocol::UDP,
        40 => ip[6] = protocol::UDP,
        _ => ip[40] = protocol::UDP,
    }
}

proptest! {
    #[test]
    fn segments_are_what_the_views_write(
        mut ip in ip_headers(),
        is_udp: bool,
        flags: u8,
        payload in vec(any::<u8>(), 1..3000),
        gso_bytes in 1..1500_u16,
    ) {
        let mut transport = TCP.to_vec();
        transport[13] = flags;
        if is_udp {
            for_udp(&mut ip);
            transport = UDP.to_vec();
        }
        let (packet, header) = super_packet(&ip, &transport, &payload, gso_bytes);
        let expected = by_the_views(&ip, &transport, &payload, gso_bytes.into());
        prop_assert_eq!(segments(&packet, &header), expected);
    }

    #[test]
    fn no_frame_makes_it_panic(
        packet in vec(any::<u8>(), 0..200),
        first in prop::sample::select(vec![0x45_u8, 0x4f, 0x60]),
        fields: [u16; 4],
        gso in prop::sample::select(vec![Gso::TcpV4, Gso::TcpV6, Gso::UdpL4, Gso::None]),
    ) {
        let mut packet = packet;
        if let Some(byte) = packet.first_mut() {
            *byte = first;
        }
        let [header_bytes, gso_bytes, start, offset] = fields;
        let header = Header {
            needs_checksum: true,
            gso,
            header_bytes,
            gso_bytes: gso_bytes % 64,
            checksum_start: start % 64,
            checksum_offset: offset,
        };
        if let Ok(segmenter) = Segmenter::new(&packet, &header) {
            let mut out = [0; HEADERS_BYTES_MAX];
            for number in 0..segmenter.segments() {
                let payload = &packet[segmenter.payload(number)];
                segmenter.write(number, checksum::sum(payload), &mut out);
            }
        }
    }
}

/// RFC 768, and the other way round for TCP.
#[test]
fn a_udp_checksum_of_zero_becomes_all_ones_and_a_tcp_one_stays() {
    let addresses = Addresses::V4 { src: [192, 0, 2, 1], dst: [198, 51, 100, 2] };
    for (transport, number) in [(&UDP[..], protocol::UDP), (&TCP[..], protocol::TCP)] {
        let mut ip = V4[..20].to_vec();
        (ip[0], ip[9]) = (0x45, number);
        // The first word of the payload is what brings the sum of the first segment to all ones.
        let mut payload = [0; 6];
        let first = by_the_views(&ip, transport, &payload[..2], 2);
        let at = 20 + if number == protocol::UDP { 6 } else { 16 };
        payload[..2].copy_from_slice(&first[0][at..at + 2]);
        if number == protocol::TCP {
            // PSH and FIN are the last segment's only.
            let word = u16::from_be_bytes([payload[0], payload[1]]);
            payload[..2].copy_from_slice(&checksum::update(word, 0x8099, 0x8090).to_be_bytes());
        }
        let (packet, header) = super_packet(&ip, transport, &payload, 2);
        let field = &segments(&packet, &header)[0][at..at + 2];
        let expected = if number == protocol::UDP { [0xff; 2] } else { [0; 2] };
        assert_eq!(field, expected);
        let length = u32::try_from(transport.len() + 2).unwrap();
        let sum = checksum::pseudo_header(addresses, number, length)
            + checksum::sum(&segments(&packet, &header)[0][20..]);
        assert!(sum.is_valid());
    }
}

#[test]
fn what_is_no_super_packet_is_refused() {
    let (packet, header) = super_packet(&V4, &TCP, &[0; 100], 40);
    assert!(Segmenter::new(&packet, &header).is_ok());
    for broken in [
        Header { gso_bytes: 0, ..header },
        Header { gso: Gso::TcpV6, ..header },
        Header { gso: Gso::None, ..header },
        Header { checksum_start: 20, ..header },
        Header { checksum_start: 140, ..header },
    ] {
        assert_eq!(Segmenter::new(&packet, &broken).err(), Some(DropReason::TunBadFrame));
    }
    let headers_only = &packet[..V4.len() + TCP.len()];
    assert_eq!(Segmenter::new(headers_only, &header).err(), Some(DropReason::TunBadFrame));
    let mut short = packet.clone();
    short[V4.len() + 12] = 0x40;
    assert!(Segmenter::new(&short, &header).is_err(), "a TCP header of 16 bytes");
}
