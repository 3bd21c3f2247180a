//! What must become of a datagram on the GENEVE port, told by somebody else: RFC 8926 and the
//! README's table "Dropped packets" read once more, IP headers read by the crate `etherparse`.
//!
//! It shares no code with `src/`, so that a mistake there is not made twice. It decides
//!
//! - whether the inner packet is delivered, else for which reason of the README not;
//! - endpoint, cookie and length of the header;
//! - the flow of a packet that is neither a fragment nor an ICMP error. Where answers to those two
//!   go ([`Belongs::Fragment`], [`Belongs::IcmpError`]) is not decided here: the tests of `path`
//!   and of the program say it.
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
pub(crate) enum Belongs {
    /// To this flow.
    To(Flow),
    /// To whatever the first fragment belongs to.
    Fragment,
    /// To the flow of the packet that it quotes.
    IcmpError,
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
    let (packet_bytes, belongs) = if version == 4 { v4(packet)? } else { v6(packet)? };
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
    let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
    let payload = &packet[header.slice().len()..packet_bytes];
    if header.is_fragmenting_payload() {
        return Ok((packet_bytes, Belongs::Fragment));
    }
    Ok((packet_bytes, whole(src, dst, header.protocol().0, payload)))
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
    let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
    let mut protocol = header.next_header().0;
    let mut rest = &packet[40..packet_bytes];
    for _ in 0..EXTENSION_HEADERS_MAX {
        if protocol == 44 {
            let Ok(fragment) = Ipv6FragmentHeaderSlice::from_slice(rest) else { break };
            if fragment.is_fragmenting_payload() {
                return Ok((packet_bytes, Belongs::Fragment));
            }
        }
        let Some((next, end)) = extension(protocol, rest) else { break };
        (protocol, rest) = (next, &rest[end..]);
    }
    if EXTENSION_HEADERS.contains(&protocol) {
        // A header that is cut, or one too many: nobody knows what follows.
        return Ok((packet_bytes, Belongs::To(Flow { src, dst, protocol, ports: (0, 0) })));
    }
    Ok((packet_bytes, whole(src, dst, protocol, rest)))
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

/// What a packet with this payload belongs to.
fn whole(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Belongs {
    // RFC 792; RFC 4443 §2.1: the high bit is that of messages that report no error.
    let is_error = match protocol {
        ICMP => payload.first().is_some_and(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        ICMPV6 => payload.first().is_some_and(|kind| kind & 0x80 == 0),
        _ => false,
    };
    if is_error {
        return Belongs::IcmpError;
    }
    let ports = match (protocol, payload) {
        (TCP | UDP, [a, b, c, d, ..]) => {
            (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
        }
        _ => (0, 0),
    };
    Belongs::To(Flow { src, dst, protocol, ports })
}
