//! Which flow an inner packet belongs to, and how long it really is.
//!
//! [`parse`] reads a packet from a load balancer, whose GENEVE header has already said which
//! family it is; [`parse_any`] reads one from a TUN, which says it only itself. Both look at the
//! IP header, past options and extension headers, at the ports, and at nothing else.
//!
//! A packet is refused only if its own header cannot be right. Nothing is refused for being
//! unusual: no payload, TTL 0, unknown protocols, options, fragments and bytes behind the end of
//! the packet all pass. What cannot be found out is zero in the [`FiveTuple`].
//!
//! Two kinds of packets have no ports of their own, and something else in their place:
//! - **A later fragment** has what tells its packet from others between the same addresses: in
//!   IPv4 protocol and identification (RFC 791 §3.2), in IPv6 the identification, halved (RFC 8200
//!   §4.5). The protocol of its tuple is 44; where a whole packet says so, zeros stand beside it.
//!   The first fragment knows that tuple too: [`later_fragments`].
//! - **An ICMP error** has the ports of the packet that it quotes, so that errors about two flows
//!   are two flows. The quoted packet's own tuple is [`quoted`].

use crate::types::DropReason;
use crate::wire::Addresses;
use crate::wire::Family;
use crate::wire::FiveTuple;
use crate::wire::icmp;
use crate::wire::ipv4;
use crate::wire::ipv6;
use crate::wire::ipv6::Fragment;
use crate::wire::protocol;

/// What is known about an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its flow, in the direction in which the packet goes.
    pub tuple: FiveTuple,
    /// Length that the IP header claims, in bytes: at most the bytes there are.
    pub packet_bytes: usize,
    /// Which part of a packet this is.
    pub part: Part,
}

/// Which part of a packet travels by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The fragment that begins with the transport header.
    FirstFragment,
    /// Any other fragment.
    LaterFragment,
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

/// The tuple of the later fragments of the packet whose first fragment this is. Nothing if it is
/// not a first fragment.
pub fn later_fragments(packet: &[u8]) -> Option<FiveTuple> {
    let layers = Layers::of(packet)?;
    let fragment = layers.fragment.filter(|fragment| !fragment.is_later)?;
    Some(layers.later_fragment(fragment.id))
}

/// The tuple of the packet that an ICMP error is about, in the direction in which that packet
/// went. Nothing if the packet is no ICMP error, or quotes too little to say.
pub fn quoted(packet: &[u8]) -> Option<FiveTuple> {
    Layers::of(packet)?.quoted()
}

/// Whether bytes that begin with a packet are an ICMP error, whatever it quotes.
pub fn is_icmp_error(packet: &[u8]) -> bool {
    Layers::of(packet).is_some_and(|layers| layers.quote().is_some())
}

/// Whether bytes that begin with a packet are a fragment, but not the first one.
pub fn is_later_fragment(packet: &[u8]) -> bool {
    Layers::of(packet).and_then(|layers| layers.fragment).is_some_and(|it| it.is_later)
}

/// Where the TCP header is in bytes that begin with a packet, and the packet's family. Nothing if
/// there is none.
pub fn tcp_start(packet: &[u8]) -> Option<(Family, usize)> {
    let layers = Layers::of(packet)?;
    let transport = layers.transport.filter(|_| layers.protocol == protocol::TCP)?;
    Some((layers.family(), packet.len() - transport.len()))
}

fn parse_v4(packet: &[u8]) -> Result<Inner, DropReason> {
    let header = ipv4::Header::new_checked(packet)?;
    let packet_bytes = usize::from(header.total_bytes());
    if packet_bytes < header.header_bytes() {
        return Err(DropReason::InnerMalformed);
    }
    let packet = packet.get(..packet_bytes).ok_or(DropReason::InnerTruncated)?;
    if has_ports(header.protocol()) && !header.is_fragment() {
        let ports = ports(Some(&packet[header.header_bytes()..]));
        let tuple = tuple(header.addresses(), header.protocol(), ports);
        return Ok(Inner { tuple, packet_bytes, part: Part::Whole });
    }
    Ok(Layers::of_v4(&header, packet).inner(packet_bytes))
}

fn parse_v6(packet: &[u8]) -> Result<Inner, DropReason> {
    let header = ipv6::Header::new_checked(packet)?;
    let payload = &packet[ipv6::HEADER_BYTES..];
    let payload = match usize::from(header.payload_bytes()) {
        // A jumbogram, whose true length stands in an option (RFC 2675 §2).
        0 => payload,
        payload_bytes => payload.get(..payload_bytes).ok_or(DropReason::InnerTruncated)?,
    };
    let packet_bytes = ipv6::HEADER_BYTES + payload.len();
    if has_ports(header.next_header()) {
        let tuple = tuple(header.addresses(), header.next_header(), ports(Some(payload)));
        return Ok(Inner { tuple, packet_bytes, part: Part::Whole });
    }
    Ok(Layers::of_v6(&header, payload).inner(packet_bytes))
}

/// The layers of a packet, whatever its length field says.
struct Layers<'a> {
    addresses: Addresses,
    protocol: u8,
    /// The transport header and what follows.
    transport: Option<&'a [u8]>,
    fragment: Option<Fragment>,
}

impl<'a> Layers<'a> {
    /// Those of bytes that begin with a packet, of which the end may be missing.
    fn of(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => ipv4::Header::new_checked(packet).ok().map(|it| Self::of_v4(&it, packet)),
            6 => {
                let payload = packet.get(ipv6::HEADER_BYTES..)?;
                ipv6::Header::new_checked(packet).ok().map(|it| Self::of_v6(&it, payload))
            }
            _ => None,
        }
    }

    fn of_v4(header: &ipv4::Header<&'a [u8]>, packet: &'a [u8]) -> Self {
        let fragment = header.is_fragment().then(|| Fragment {
            id: u32::from(header.protocol()) << 16 | u32::from(header.id()),
            is_later: header.is_later_fragment(),
        });
        let has_transport = !fragment.is_some_and(|fragment| fragment.is_later);
        Self {
            addresses: header.addresses(),
            protocol: header.protocol(),
            transport: has_transport.then(|| &packet[header.header_bytes()..]),
            fragment,
        }
    }

    fn of_v6(header: &ipv6::Header<&'a [u8]>, payload: &'a [u8]) -> Self {
        let upper = ipv6::upper_layer(header.next_header(), payload);
        Self {
            addresses: header.addresses(),
            protocol: upper.protocol,
            transport: upper.bytes,
            fragment: upper.fragment,
        }
    }

    /// What most packets need not be asked for: they are whole, with ports.
    #[cold]
    fn inner(&self, packet_bytes: usize) -> Inner {
        let (tuple, part) = match self.fragment {
            None => (self.tuple(), Part::Whole),
            Some(Fragment { is_later: false, .. }) => (self.tuple(), Part::FirstFragment),
            Some(Fragment { id, .. }) => (self.later_fragment(id), Part::LaterFragment),
        };
        Inner { tuple, packet_bytes, part }
    }

    fn tuple(&self) -> FiveTuple {
        match self.protocol {
            protocol::TCP | protocol::UDP => self.with_ports(ports(self.transport)),
            protocol::ICMP | protocol::ICMPV6 => self.icmp(),
            _ => self.with_ports((0, 0)),
        }
    }

    fn icmp(&self) -> FiveTuple {
        let quoted = self.quoted();
        self.with_ports(quoted.map_or((0, 0), |quoted| (quoted.src_port, quoted.dst_port)))
    }

    /// The tuple of a quoted packet. What that quotes in its turn is not looked at: an error about
    /// an error must not be (RFC 1122 §3.2.2), and whoever nests them wants us to walk.
    fn tuple_unquoted(&self) -> FiveTuple {
        match (self.fragment, self.protocol) {
            (Some(Fragment { id, is_later: true }), _) => self.later_fragment(id),
            (_, protocol::TCP | protocol::UDP) => self.with_ports(ports(self.transport)),
            _ => self.with_ports((0, 0)),
        }
    }

    fn later_fragment(&self, id: u32) -> FiveTuple {
        let [high, low] = [id >> 16, id & 0xffff].map(|half| u16::try_from(half).expect("16 bits"));
        FiveTuple { protocol: protocol::FRAGMENT, ..self.with_ports((high, low)) }
    }

    const fn with_ports(&self, ports: (u16, u16)) -> FiveTuple {
        tuple(self.addresses, self.protocol, ports)
    }

    /// The tuple of the packet that this one, an ICMP error, is about.
    fn quoted(&self) -> Option<FiveTuple> {
        let quoted = Self::of(self.quote()?)?;
        (quoted.family() == self.family()).then(|| quoted.tuple_unquoted())
    }

    /// What this packet quotes, if it is an ICMP error.
    fn quote(&self) -> Option<&'a [u8]> {
        let family = match (self.family(), self.protocol) {
            (Family::V4, protocol::ICMP) | (Family::V6, protocol::ICMPV6) => self.family(),
            _ => return None,
        };
        let transport = self.transport?;
        let message = icmp::Message::new_checked(transport, family)?;
        message.is_error().then(|| &transport[icmp::HEADER_BYTES..])
    }

    const fn family(&self) -> Family {
        match self.addresses {
            Addresses::V4 { .. } => Family::V4,
            Addresses::V6 { .. } => Family::V6,
        }
    }
}

const fn tuple(addresses: Addresses, protocol: u8, (src_port, dst_port): (u16, u16)) -> FiveTuple {
    FiveTuple { addresses, protocol, src_port, dst_port }
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}

/// Both ports, which TCP and UDP have in the same place; zeros where they are cut off. The rest
/// of the transport header may be missing.
fn ports(transport: Option<&[u8]>) -> (u16, u16) {
    match transport {
        Some(&[a, b, c, d, ..]) => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
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
