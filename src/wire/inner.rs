//! Which flow an inner packet belongs to, and how long it really is.
//!
//! [`parse`] reads a packet from a load balancer, whose GENEVE header has already said which
//! family it is; [`parse_any`] reads one from a TUN, which says it only itself. Both look at the
//! IP header, past options and extension headers, at the ports, and at nothing else.
//!
//! A packet is refused only if its own header cannot be right. Nothing is refused for being
//! unusual: no payload, TTL 0, unknown protocols, options, fragments and bytes behind the end of
//! the packet all pass. What cannot be found out is zero in the [`FiveTuple`].

use crate::types::DropReason;
use crate::wire::Addresses;
use crate::wire::Family;
use crate::wire::FiveTuple;
use crate::wire::ipv4;
use crate::wire::ipv6;
use crate::wire::protocol;

/// What is known about an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its flow, in the direction in which the packet goes.
    pub tuple: FiveTuple,
    /// Length that the IP header claims, in bytes: at most the bytes there are.
    pub packet_bytes: usize,
}

/// Reads the packet behind a GENEVE header that announced `family`.
///
/// # Errors
/// [`InnerVersionMismatch`](DropReason::InnerVersionMismatch) if the packet says otherwise,
/// [`InnerTruncated`](DropReason::InnerTruncated) if its header or its length reaches beyond the
/// bytes there are, [`InnerMalformed`](DropReason::InnerMalformed) if the header is shorter than
/// a header or longer than the packet.
pub fn parse(packet: &[u8], family: Family) -> Result<Inner, DropReason> {
    match family {
        Family::V4 => parse_v4(packet),
        Family::V6 => parse_v6(packet),
    }
}

/// Reads a packet from a TUN, the virtio header already taken off.
///
/// # Errors
/// [`TunBadFrame`](DropReason::TunBadFrame) if it is no IP packet or was cut: everything that
/// [`parse`] distinguishes, because here it is the host that said it.
pub fn parse_any(packet: &[u8]) -> Result<Inner, DropReason> {
    let family = match packet.first().map(|first| first >> 4) {
        Some(4) => Family::V4,
        Some(6) => Family::V6,
        _ => return Err(DropReason::TunBadFrame),
    };
    parse(packet, family).map_err(|_| DropReason::TunBadFrame)
}

/// Whether a packet is one that the target's own kernel sends on any link that comes up, on
/// nobody's behalf: IPv6 multicast of link or interface scope from an address of the link or from
/// none (router solicitations, duplicate address detection, MLD: RFC 4861, 4862, 3810), and IGMP
/// to the local control block (RFC 3376, RFC 5771 §4).
///
/// Bytes that are no packet are no noise.
pub fn is_host_noise(packet: &[u8]) -> bool {
    if let Ok(header) = ipv6::Header::new_checked(packet) {
        return is_link_chatter(header.addresses());
    }
    ipv4::Header::new_checked(packet).is_ok_and(|header| {
        header.protocol() == protocol::IGMP
            && matches!(header.addresses(), Addresses::V4 { dst: [224, 0, 0, _], .. })
    })
}

fn parse_v4(packet: &[u8]) -> Result<Inner, DropReason> {
    let header = ipv4::Header::new_checked(packet)?;
    let packet_bytes = usize::from(header.total_bytes());
    if packet_bytes < header.header_bytes() {
        return Err(DropReason::InnerMalformed);
    }
    let packet = packet.get(..packet_bytes).ok_or(DropReason::InnerTruncated)?;
    // Only the first fragment has ports, and all must belong to one flow.
    let transport = (!header.is_fragment()).then(|| &packet[header.header_bytes()..]);
    Ok(Inner { tuple: tuple(header.addresses(), header.protocol(), transport), packet_bytes })
}

fn parse_v6(packet: &[u8]) -> Result<Inner, DropReason> {
    let header = ipv6::Header::new_checked(packet)?;
    let payload = &packet[ipv6::HEADER_BYTES..];
    let payload = match usize::from(header.payload_bytes()) {
        // A jumbogram, whose true length stands in an option (RFC 2675 §2).
        0 => payload,
        payload_bytes => payload.get(..payload_bytes).ok_or(DropReason::InnerTruncated)?,
    };
    let upper = ipv6::upper_layer(header.next_header(), payload);
    Ok(Inner {
        tuple: tuple(header.addresses(), upper.protocol, upper.bytes),
        packet_bytes: ipv6::HEADER_BYTES + payload.len(),
    })
}

fn tuple(addresses: Addresses, protocol: u8, transport: Option<&[u8]>) -> FiveTuple {
    let (src_port, dst_port) = match protocol {
        protocol::TCP | protocol::UDP => ports(transport.unwrap_or_default()),
        _ => (0, 0),
    };
    FiveTuple { addresses, protocol, src_port, dst_port }
}

/// Both ports, which TCP and UDP have in the same place; zeros where they are cut off. The rest
/// of the transport header may be missing.
fn ports(transport: &[u8]) -> (u16, u16) {
    match *transport {
        [a, b, c, d, ..] => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        _ => (0, 0),
    }
}

fn is_link_chatter(addresses: Addresses) -> bool {
    let Addresses::V6 { src, dst } = addresses else {
        return false;
    };
    let from_link = src == [0; 16] || (src[0] == 0xfe && src[1] & 0xc0 == 0x80);
    // RFC 4291 §2.7: the scope is the lower half of the second byte, 1 interface, 2 link.
    from_link && dst[0] == 0xff && matches!(dst[1] & 0x0f, 1 | 2)
}

#[cfg(test)]
mod tests;
