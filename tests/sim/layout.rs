//! Bytes of the outer packet and what tells one inner flow from another.
//!
//! ```text
//!  0        20       28           36                                             68
//!  ├─ IPv4 ─┼─ UDP ──┼─ GENEVE ───┼─ endpoint id 12 ─ attachment id 12 ─ cookie 8 ┼─ packet …
//! ```
//!
//! Sources: RFC 791, 768, 8926 §3; AWS guide "Gateway Load Balancers" and the field captures of
//! 2021–22 (TOS 0, TTL 255, IP id 0, no flags, VNI 0, attachment id 0, options 1, 2, 3 in order).
//!
//! All offsets are literal on purpose: this file is the second opinion on `src/wire`.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

/// UDP destination port of GENEVE, in both directions.
pub(crate) const GENEVE_PORT: u16 = 6081;

/// Bytes of the outer IPv4 and UDP headers.
pub(crate) const OUTER_BYTES: usize = 28;

/// Largest inner packet in bytes that AWS takes back.
pub(crate) const INNER_BYTES_MAX: usize = 8500;

/// Addresses and port of a datagram on its way to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outer {
    /// The load balancer node.
    pub(crate) node: Ipv4Addr,
    /// The target.
    pub(crate) target: Ipv4Addr,
    /// UDP source port that the node uses for the flow.
    pub(crate) port: u16,
}

/// Class of AWS's GENEVE options.
pub(crate) const AWS_CLASS: u16 = 0x0108;

/// The GENEVE header that AWS puts before an inner packet, which it looks at for the IP version.
pub(crate) fn geneve_header(endpoint: u64, cookie: u32, inner: &[u8]) -> Vec<u8> {
    geneve_header_of(AWS_CLASS, endpoint, cookie, inner)
}

/// The same with options of another class.
pub(crate) fn geneve_header_of(class: u16, endpoint: u64, cookie: u32, inner: &[u8]) -> Vec<u8> {
    let [high, low] = class.to_be_bytes();
    let ethertype: [u8; 2] =
        if inner.first().is_some_and(|byte| byte >> 4 == 6) { [0x86, 0xdd] } else { [0x08, 0x00] };
    let mut header = vec![0x08, 0x00]; // Version 0, 8 words of options; no flags.
    header.extend(ethertype);
    header.extend([0, 0, 0, 0]); // VNI 0, reserved.
    header.extend([high, low, 0x01, 0x02]); // Endpoint id: class, type 1, 2 words.
    header.extend(endpoint.to_be_bytes());
    header.extend([high, low, 0x02, 0x02]); // Attachment id: type 2, 2 words.
    header.extend([0; 8]);
    header.extend([high, low, 0x03, 0x01]); // Flow cookie: type 3, 1 word.
    header.extend(cookie.to_be_bytes());
    header
}

/// A complete IPv4 packet from the node to the target's GENEVE port around `payload`.
///
/// # Panics
/// If the payload does not fit an IPv4 packet.
pub(crate) fn datagram(outer: Outer, payload: &[&[u8]], with_checksum: bool) -> Vec<u8> {
    let payload_bytes: usize = payload.iter().map(|part| part.len()).sum();
    let total = u16::try_from(OUTER_BYTES + payload_bytes).expect("fits an IPv4 packet");
    let mut packet = Vec::with_capacity(usize::from(total));
    packet.extend([0x45, 0x00]); // Version 4, 5 words; TOS 0.
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0]); // Id 0, no flags, offset 0.
    packet.extend([255, 17, 0, 0]); // TTL 255, UDP, checksum to come.
    packet.extend(outer.node.octets());
    packet.extend(outer.target.octets());
    let header_sum = !fold(sum(&packet, 0));
    packet[10..12].copy_from_slice(&header_sum.to_be_bytes());
    packet.extend(outer.port.to_be_bytes());
    packet.extend(GENEVE_PORT.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    for part in payload {
        packet.extend(*part);
    }
    if with_checksum {
        let udp_sum = match !fold(pseudo_sum(&packet)) {
            0 => 0xffff, // RFC 768: zero says that there is no checksum.
            other => other,
        };
        packet[26..28].copy_from_slice(&udp_sum.to_be_bytes());
    }
    packet
}

/// Why bytes from the target are no acceptable IPv4/UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OuterFault {
    /// Not UDP: nothing of the tunnel.
    NotUdp,
    /// A wrong length, checksum or fragment.
    Ipv4(&'static str),
    /// The UDP checksum is there and wrong.
    UdpChecksum,
}

/// What the target sent, taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Returned<'a> {
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    /// The UDP payload.
    pub(crate) payload: &'a [u8],
}

/// Takes an IPv4 packet apart and checks everything outside the UDP payload.
///
/// `checksum_ready` is false if the sending kernel left the UDP checksum to a device that does
/// not exist here.
pub(crate) fn returned(packet: &[u8], checksum_ready: bool) -> Result<Returned<'_>, OuterFault> {
    let fault = |why| Err(OuterFault::Ipv4(why));
    if packet.len() < 20 || packet[0] >> 4 != 4 || packet[0] & 15 < 5 {
        return fault("no IPv4 header");
    }
    let header_bytes = usize::from(packet[0] & 15) * 4;
    if packet.len() < header_bytes || usize::from(u16_at(packet, 2)) != packet.len() {
        return fault("total length differs from what arrived");
    }
    if fold(sum(&packet[..header_bytes], 0)) != 0xffff {
        return fault("header checksum");
    }
    if packet[9] != 17 {
        return Err(OuterFault::NotUdp);
    }
    if header_bytes != 20 {
        return fault("options");
    }
    if u16_at(packet, 6) & 0x3fff != 0 {
        return fault("a fragment");
    }
    if packet.len() < OUTER_BYTES || usize::from(u16_at(packet, 24)) != packet.len() - 20 {
        return fault("UDP length differs from the packet's");
    }
    if checksum_ready && u16_at(packet, 26) != 0 && fold(pseudo_sum(packet)) != 0xffff {
        return Err(OuterFault::UdpChecksum);
    }
    Ok(Returned {
        src: Ipv4Addr::from(u32_at(packet, 12)),
        dst: Ipv4Addr::from(u32_at(packet, 16)),
        src_port: u16_at(packet, 20),
        dst_port: u16_at(packet, 22),
        payload: &packet[OUTER_BYTES..],
    })
}

/// A GENEVE header with AWS's options, and what follows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geneve<'a> {
    pub(crate) endpoint: u64,
    pub(crate) cookie: u32,
    pub(crate) header: &'a [u8],
    pub(crate) inner: &'a [u8],
}

/// Reads a GENEVE header in which all three options of this class stand.
pub(crate) fn geneve(payload: &[u8], class: u16) -> Option<Geneve<'_>> {
    let header_bytes = 8 + usize::from(payload.first()? & 0x3f) * 4;
    if payload[0] >> 6 != 0 || payload.len() < header_bytes {
        return None;
    }
    let (header, inner) = payload.split_at(header_bytes);
    let (mut endpoint, mut attachment, mut cookie) = (None, None, None);
    let mut rest = &header[8..];
    while !rest.is_empty() {
        let value_bytes = usize::from(rest.get(3)? & 0x1f) * 4;
        let value = rest.get(4..4 + value_bytes)?;
        match (u16_at(rest, 0) == class, rest[2], value_bytes) {
            (true, 1, 8) => endpoint = Some(u64::from_be_bytes(value.try_into().ok()?)),
            (true, 2, 8) => attachment = Some(()),
            (true, 3, 4) => cookie = Some(u32::from_be_bytes(value.try_into().ok()?)),
            _ => {}
        }
        rest = &rest[4 + value_bytes..];
    }
    attachment?;
    Some(Geneve { endpoint: endpoint?, cookie: cookie?, header, inner })
}

/// One end of an inner flow: address and port, the port zero where there is none.
pub(crate) type End = (IpAddr, u16);

/// What a load balancer hashes: protocol, source and destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) src: End,
    pub(crate) dst: End,
}

impl Tuple {
    fn reversed(self) -> Self {
        Self { protocol: self.protocol, src: self.dst, dst: self.src }
    }
}

/// The 5-tuple of an inner packet. Ports are read of TCP and UDP; later fragments have none.
pub(crate) fn inner_tuple(packet: &[u8]) -> Option<Tuple> {
    walk(packet).map(|inner| inner.tuple)
}

/// An ICMP error belongs to the flow of the packet that it quotes, in the other direction.
pub(crate) fn quoting_tuple(packet: &[u8]) -> Option<Tuple> {
    let Inner { tuple, transport, .. } = walk(packet)?;
    let is_error = match (tuple.protocol, transport.first()?) {
        (1, kind) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (58, kind) => *kind < 128,
        _ => false,
    };
    if is_error { inner_tuple(transport.get(8..)?).map(Tuple::reversed) } else { None }
}

/// What the fragments of a packet have in common, and whether this is the first one.
pub(crate) fn fragment(packet: &[u8]) -> Option<((Tuple, u32), bool)> {
    let Inner { tuple, fragment, .. } = walk(packet)?;
    let (id, is_first) = fragment?;
    let common = Tuple { src: (tuple.src.0, 0), dst: (tuple.dst.0, 0), ..tuple };
    Some(((common, id), is_first))
}

/// What is found on the way to a packet's ports.
struct Inner<'a> {
    tuple: Tuple,
    transport: &'a [u8],
    /// Of a fragment: its id, and whether it is the first one.
    fragment: Option<(u32, bool)>,
}

fn walk(packet: &[u8]) -> Option<Inner<'_>> {
    match packet.first()? >> 4 {
        4 => walk_ipv4(packet),
        6 => walk_ipv6(packet),
        _ => None,
    }
}

fn walk_ipv4(packet: &[u8]) -> Option<Inner<'_>> {
    if packet.len() < 20 {
        return None;
    }
    let protocol = packet[9];
    let cut = u16_at(packet, 6) & 0x3fff;
    // The offset are the lower 13 bits.
    let fragment = (cut != 0).then(|| (u16_at(packet, 4).into(), cut << 3 == 0));
    let transport = packet.get(usize::from(packet[0] & 15) * 4..)?;
    let ports = ports(protocol, fragment, transport);
    let address = |at| IpAddr::V4(Ipv4Addr::from(u32_at(packet, at)));
    let tuple = Tuple { protocol, src: (address(12), ports.0), dst: (address(16), ports.1) };
    Some(Inner { tuple, transport, fragment })
}

fn walk_ipv6(packet: &[u8]) -> Option<Inner<'_>> {
    if packet.len() < 40 {
        return None;
    }
    let mut protocol = packet[6];
    let mut behind = 40;
    let mut fragment = None;
    let is_later = |fragment: Option<(u32, bool)>| fragment.is_some_and(|(_, is_first)| !is_first);
    // Hop-by-hop 0, routing 43, fragment 44, destination options 60 (RFC 8200 §4).
    while matches!(protocol, 0 | 43 | 44 | 60) && !is_later(fragment) {
        let header = packet.get(behind..behind + 8)?;
        let cut = u16_at(header, 2);
        // An atomic fragment is a whole packet (RFC 6946).
        if protocol == 44 && cut & 0xfff9 != 0 {
            fragment = Some((u32_at(header, 4), cut & 0xfff8 == 0));
        }
        behind += if protocol == 44 { 8 } else { 8 + usize::from(header[1]) * 8 };
        protocol = header[0];
    }
    let transport = packet.get(behind..).unwrap_or(&[]);
    let ports = ports(protocol, fragment, transport);
    let address = |at: usize| {
        let octets: [u8; 16] = packet[at..at + 16].try_into().expect("16 bytes");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let tuple = Tuple { protocol, src: (address(8), ports.0), dst: (address(24), ports.1) };
    Some(Inner { tuple, transport, fragment })
}

fn ports(protocol: u8, fragment: Option<(u32, bool)>, segment: &[u8]) -> (u16, u16) {
    let is_later = fragment.is_some_and(|(_, is_first)| !is_first);
    let has_ports = matches!(protocol, 6 | 17) && !is_later && segment.len() >= 4;
    if has_ports { (u16_at(segment, 0), u16_at(segment, 2)) } else { (0, 0) }
}

/// Whether an endpoint's route tables would send this packet through it: hosts also emit
/// neighbour discovery and group membership, which stay on their link.
pub(crate) fn is_routable(packet: &[u8]) -> bool {
    let Some(tuple) = inner_tuple(packet) else {
        return false;
    };
    match (tuple.src.0, tuple.dst.0) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => !src.is_unicast_link_local() && !dst.is_multicast(),
        (_, dst) => !dst.is_multicast(),
    }
}

/// Adds up big-endian 16-bit words, the last one padded with zero (RFC 1071). Two words at a
/// time: the high halves of the sum fold into the same result.
pub(crate) fn sum(bytes: &[u8], start: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = start;
    for word in words {
        total += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum to the 16 bits whose complement is the checksum.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).expect("folded")
}

/// Sum over the UDP pseudo header and datagram of an IPv4 packet without options.
fn pseudo_sum(packet: &[u8]) -> u64 {
    let udp_bytes = u64::from(u16_at(packet, 24));
    sum(&packet[12..], 17 + udp_bytes)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
