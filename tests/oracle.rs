//! What must become of a datagram on the GENEVE port, told by somebody else: RFC 8926 and the
//! README's table "Dropped packets" read once more, IP headers read by the crate `etherparse`.
//!
//! It shares no code with `src/`, so that a mistake there is not made twice. It decides
//!
//! - whether the inner packet is delivered, else for which reason of the README not;
//! - endpoint, cookie and length of the header;
//! - what the packet belongs to: its flow, or the packet of which it is a fragment, and what an
//!   ICMP error is about. Under which header it returns follows from that and from what came
//!   before: [`returns`](crate::returns).
//!
//! What depends on more than the datagram (limits, endpoints in creation, full queues) is no part
//! of it.

use std::net::IpAddr;

use etherparse::IpAuthHeaderSlice;
use etherparse::Ipv4HeaderSlice;
use etherparse::Ipv6FragmentHeaderSlice;
use etherparse::Ipv6HeaderSlice;
use etherparse::Ipv6RawExtHeaderSlice;

/// What must become of a datagram.
pub(crate) type Verdict<'a> = Result<Delivery<'a>, &'static str>;

/// A datagram whose packet must be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery<'a> {
    pub(crate) endpoint: u64,
    pub(crate) attachment: u64,
    pub(crate) cookie: [u8; 4],
    /// The whole GENEVE header, which a packet of this flow must come back in.
    pub(crate) header: &'a [u8],
    /// Everything behind it, bytes behind the packet's end included.
    pub(crate) packet: &'a [u8],
    /// Where the packet ends by its own header.
    pub(crate) packet_bytes: usize,
    pub(crate) belongs: Belongs,
}

/// What a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Belongs {
    /// What it is known by.
    pub(crate) name: Name,
    /// What its later fragments are known by, if it is a first one.
    pub(crate) later: Option<Name>,
    /// What an ICMP error quotes, in the direction in which that went.
    pub(crate) quoted: Option<Name>,
    is_error: bool,
}

impl Belongs {
    /// The flow of a packet that is neither a fragment nor an ICMP error.
    pub(crate) const fn flow(&self) -> Option<Flow> {
        match *self {
            Self { name: Name::Flow(flow), later: None, is_error: false, .. } => Some(flow),
            _ => None,
        }
    }

    /// Whether it is an ICMP error, whole or the beginning of one.
    pub(crate) const fn is_error(&self) -> bool {
        self.is_error
    }
}

/// What a packet is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// A whole one, or a first fragment. An ICMP error has the ports of what it quotes, or, if that
    /// is a later fragment, the halves of its identification.
    Flow(Flow),
    /// A later fragment: protocol and identification, in IPv6 the identification alone.
    Fragments { src: IpAddr, dst: IpAddr, id: u32 },
}

/// Addresses, protocol and ports; of anything but TCP and UDP the ports are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ports: (u16, u16),
}

impl Flow {
    /// The flow of the packets that go the other way.
    pub(crate) const fn reversed(self) -> Self {
        let Self { src, dst, protocol, ports: (from, to) } = self;
        Self { src: dst, dst: src, protocol, ports: (to, from) }
    }
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// RFC 8200 §4: hop-by-hop, routing, fragment, authentication, destination options.
const EXTENSION_HEADERS: [u8; 5] = [0, 43, 44, 51, 60];

/// Extension headers that are walked over at most (`wire::ipv6`).
const EXTENSION_HEADERS_MAX: usize = 8;

/// Decides.
pub(crate) fn decide(datagram: &[u8]) -> Verdict<'_> {
    if datagram.len() < 8 {
        return Err("short");
    }
    if datagram[0] >> 6 != 0 {
        return Err("bad_version");
    }
    let header_bytes = 8 + 4 * usize::from(datagram[0] & 0x3f);
    if header_bytes > datagram.len() {
        return Err("options_overrun");
    }
    if datagram[1] & 0x80 != 0 {
        return Err("oam");
    }
    let version = match (datagram[2], datagram[3]) {
        (0x08, 0x00) => 4,
        (0x86, 0xdd) => 6,
        _ => return Err("bad_ethertype"),
    };
    let (header, packet) = datagram.split_at(header_bytes);
    let [endpoint, attachment, cookie] = options(&header[8..])?;
    if packet.is_empty() {
        return Err("inner_truncated");
    }
    if packet[0] >> 4 != version {
        return Err("inner_version_mismatch");
    }
    let (packet_bytes, belongs) = self::packet(packet)?;
    Ok(Delivery {
        endpoint: number(endpoint),
        attachment: number(attachment),
        cookie: cookie.try_into().expect("its length was looked at"),
        header,
        packet,
        packet_bytes,
        belongs,
    })
}

fn number(data: &[u8]) -> u64 {
    u64::from_be_bytes(data.try_into().expect("its length was looked at"))
}

/// The data of endpoint, attachment and cookie, in this order.
fn options(mut rest: &[u8]) -> Result<[&[u8]; 3], &'static str> {
    let mut found = [None; 3];
    while !rest.is_empty() {
        let end = 4 + 4 * usize::from(rest[3] & 0x1f);
        if end > rest.len() {
            return Err("options_overrun");
        }
        let is_ours = rest[..2] == [0x01, 0x08] && (1..=3).contains(&rest[2]);
        if is_ours {
            let place = usize::from(rest[2]) - 1;
            if end - 4 != [8, 8, 4][place] {
                return Err("option_bad_length");
            }
            if found[place].replace(&rest[4..end]).is_some() {
                return Err("option_duplicate");
            }
        } else if rest[2] & 0x80 != 0 {
            return Err("critical_option_unknown");
        }
        rest = &rest[end..];
    }
    match found {
        [Some(endpoint), Some(attachment), Some(cookie)] => Ok([endpoint, attachment, cookie]),
        _ => Err("option_missing"),
    }
}

/// Decides about a packet without a header around it: its length by its own header, and what it
/// belongs to.
pub(crate) fn packet(packet: &[u8]) -> Result<(usize, Belongs), &'static str> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => v4(packet),
        Some(6) => v6(packet),
        _ => Err("inner_version_mismatch"),
    }
}

fn v4(packet: &[u8]) -> Result<(usize, Belongs), &'static str> {
    if packet[0] & 0x0f < 5 {
        return Err("inner_malformed");
    }
    let header = Ipv4HeaderSlice::from_slice(packet).map_err(|_| "inner_truncated")?;
    let packet_bytes = usize::from(header.total_len());
    if packet_bytes < header.slice().len() {
        return Err("inner_malformed");
    }
    if packet_bytes > packet.len() {
        return Err("inner_truncated");
    }
    Ok((packet_bytes, Upper::of_v4(&header, &packet[..packet_bytes]).belongs()))
}

fn v6(packet: &[u8]) -> Result<(usize, Belongs), &'static str> {
    let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_| "inner_truncated")?;
    // Of a jumbogram (RFC 2675) the length stands in an option: it is all there is.
    let packet_bytes = match usize::from(header.payload_length()) {
        0 => packet.len(),
        bytes => 40 + bytes,
    };
    if packet_bytes > packet.len() {
        return Err("inner_truncated");
    }
    Ok((packet_bytes, Upper::of_v6(&header, &packet[..packet_bytes]).belongs()))
}

/// Where the TCP header begins in a packet that has one.
pub(crate) fn tcp_start(packet: &[u8]) -> Option<usize> {
    let (packet_bytes, _) = self::packet(packet).ok()?;
    let upper = Upper::of(&packet[..packet_bytes])?;
    let is_tcp = upper.protocol == TCP && !upper.payload.is_empty();
    is_tcp.then(|| packet_bytes - upper.payload.len())
}

/// What stands behind the IP header and its extensions.
struct Upper<'a> {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// Of a fragment: what tells its packet from others, and whether it is a later one.
    fragment: Option<(u32, bool)>,
    /// Nothing in a later fragment, and where nobody knows what follows.
    payload: &'a [u8],
}

impl<'a> Upper<'a> {
    /// That of a packet, of whose end some may be missing.
    fn of(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Some(Self::of_v4(&Ipv4HeaderSlice::from_slice(packet).ok()?, packet)),
            6 => Some(Self::of_v6(&Ipv6HeaderSlice::from_slice(packet).ok()?, packet)),
            _ => None,
        }
    }

    fn of_v4(header: &Ipv4HeaderSlice<'_>, packet: &'a [u8]) -> Self {
        let protocol = header.protocol().0;
        let id = u32::from(protocol) << 16 | u32::from(header.identification());
        let is_later = header.fragments_offset().value() > 0;
        Self {
            src: header.source_addr().into(),
            dst: header.destination_addr().into(),
            protocol,
            fragment: header.is_fragmenting_payload().then_some((id, is_later)),
            payload: if is_later { &[] } else { &packet[header.slice().len()..] },
        }
    }

    fn of_v6(header: &Ipv6HeaderSlice<'_>, packet: &'a [u8]) -> Self {
        let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
        let mut protocol = header.next_header().0;
        let mut rest = &packet[40..];
        let mut fragment = None;
        for _ in 0..EXTENSION_HEADERS_MAX {
            // Of several fragment headers the outermost counts: its sender cut last.
            if protocol == 44 && fragment.is_none() {
                let Ok(header) = Ipv6FragmentHeaderSlice::from_slice(rest) else { break };
                let is_later = header.fragment_offset().value() > 0;
                fragment =
                    header.is_fragmenting_payload().then_some((header.identification(), is_later));
            }
            if fragment.is_some_and(|(_, is_later)| is_later) {
                return Self { src, dst, protocol, fragment, payload: &[] };
            }
            let Some((next, end)) = extension(protocol, rest) else { break };
            (protocol, rest) = (next, &rest[end..]);
        }
        // A header that is cut, or one too many: nobody knows what follows.
        let payload = if EXTENSION_HEADERS.contains(&protocol) { &[] } else { rest };
        Self { src, dst, protocol, fragment, payload }
    }

    fn belongs(&self) -> Belongs {
        let quoted = self.quote().and_then(Self::of);
        let quoted = quoted.filter(|quoted| quoted.src.is_ipv4() == self.src.is_ipv4());
        let quoted = quoted.map(|quoted| quoted.name(None));
        let later = match self.fragment {
            Some((id, false)) => Some(Name::Fragments { src: self.src, dst: self.dst, id }),
            _ => None,
        };
        Belongs { name: self.name(quoted), later, quoted, is_error: self.is_error() }
    }

    fn name(&self, quoted: Option<Name>) -> Name {
        let Self { src, dst, protocol, .. } = *self;
        if let Some((id, true)) = self.fragment {
            return Name::Fragments { src, dst, id };
        }
        let ports = match (protocol, self.payload, quoted) {
            (TCP | UDP, [a, b, c, d, ..], _) => {
                (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
            }
            (_, _, Some(Name::Flow(quoted))) => quoted.ports,
            (_, _, Some(Name::Fragments { id, .. })) => {
                let [a, b, c, d] = id.to_be_bytes();
                (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            _ => (0, 0),
        };
        Name::Flow(Flow { src, dst, protocol, ports })
    }

    /// RFC 792; RFC 4443 §2.1: the high bit is that of messages that report no error.
    fn is_error(&self) -> bool {
        let kind = self.payload.first();
        match (self.protocol, self.src) {
            (ICMP, IpAddr::V4(_)) => kind.is_some_and(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
            (ICMPV6, IpAddr::V6(_)) => kind.is_some_and(|kind| kind & 0x80 == 0),
            _ => false,
        }
    }

    /// What an ICMP error quotes.
    fn quote(&self) -> Option<&'a [u8]> {
        self.payload.get(8..).filter(|_| self.is_error())
    }
}

/// What follows an extension header, and where. Nothing if it is none, or cut.
fn extension(protocol: u8, rest: &[u8]) -> Option<(u8, usize)> {
    match protocol {
        0 | 43 | 60 => {
            let header = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
            Some((header.next_header().0, header.slice().len()))
        }
        44 => {
            let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
            Some((header.next_header().0, header.slice().len()))
        }
        // etherparse refuses a length of 0, which can't be right (RFC 4302 §2.2). The kernel walks
        // over such a header by what it says.
        51 if rest.len() >= 8 && rest[1] == 0 => Some((rest[0], 8)),
        51 => {
            let header = IpAuthHeaderSlice::from_slice(rest).ok()?;
            Some((header.next_header().0, header.slice().len()))
        }
        _ => None,
    }
}
