//! Inner packets: complete, with right checksums, and recognisable.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use crate::sim::layout::fold;
use crate::sim::layout::sum;

/// A client's IPv4 address.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
/// A server's IPv4 address.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
/// A client's IPv6 address.
pub(crate) const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1));
/// A server's IPv6 address.
pub(crate) const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2));

/// Source and destination.
pub(crate) type Path = (IpAddr, IpAddr);
/// From client to server over IPv4.
pub(crate) const V4: Path = (CLIENT, SERVER);
/// From client to server over IPv6.
pub(crate) const V6: Path = (CLIENT6, SERVER6);

/// `count` bytes that differ from each other and, by `seed`, from other packets'.
pub(crate) fn pattern(seed: usize, count: usize) -> Vec<u8> {
    (0..count).map(|place| (seed * 31 + place * 7 + place / 256).to_le_bytes()[0]).collect()
}

/// An IP packet of any protocol.
pub(crate) fn ip(path: Path, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match path {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(src, dst, protocol, 0, payload),
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let length = u16::try_from(payload.len()).expect("fits");
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            packet.extend(payload);
            packet
        }
        (src, dst) => panic!("{src} and {dst} are of different families"),
    }
}

/// An IPv4 packet with flags and fragment offset as they stand in the header.
pub(crate) fn ipv4(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).expect("fits");
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    let checksum = !fold(sum(&packet, 0));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A UDP datagram in its packet.
pub(crate) fn udp(path: Path, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("fits");
    let mut datagram = Vec::new();
    datagram.extend(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let checksum = match transport_checksum(path, 17, &datagram) {
        0 => 0xffff,
        other => other,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    ip(path, 17, &datagram)
}

/// A TCP segment with ACK set in its packet.
pub(crate) fn tcp(path: Path, ports: (u16, u16), sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 1]);
    segment.extend([0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    let checksum = transport_checksum(path, 6, &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    ip(path, 6, &segment)
}

/// An ICMP or `ICMPv6` echo request in its packet.
pub(crate) fn ping(path: Path, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let is_v4 = path.0.is_ipv4();
    let mut message = vec![if is_v4 { 8 } else { 128 }, 0, 0, 0, 0x12, 0x34];
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    let checksum =
        if is_v4 { !fold(sum(&message, 0)) } else { transport_checksum(path, 58, &message) };
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    ip(path, if is_v4 { 1 } else { 58 }, &message)
}

/// One IPv6 fragment: `fragment` holds offset and the M flag as they stand in the header.
pub(crate) fn ipv6_fragment(path: Path, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut content = vec![protocol, 0];
    content.extend(fragment.to_be_bytes());
    content.extend([0, 0, 0x56, 0x78]);
    content.extend(payload);
    ip(path, 44, &content)
}

fn transport_checksum(path: Path, protocol: u8, segment: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [path.0, path.1] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    let length = u64::try_from(segment.len()).expect("fits");
    !fold(sum(segment, sum(&pseudo, u64::from(protocol) + length)))
}
