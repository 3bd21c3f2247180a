//! Merging packets of one flow into a super-packet: what the kernel calls generic receive offload.
//!
//! There is one rule: **a packet is merged if, and only if, the segment that [`gso`] would write
//! for it is the packet itself, bit by bit.** What that takes:
//!
//! | field | of each packet |
//! |---|---|
//! | IP version, header length | IPv4 without options, or IPv6 without extension headers |
//! | lengths | exact: no bytes behind the packet; UDP length as the IP length says |
//! | TOS, class, TTL, hop limit, DF, flow label, addresses, ports | as the first one's |
//! | fragments, reserved bit | none |
//! | IPv4 identification | the last one + 1; with DF set and 0 in the first one, 0 |
//! | TCP flags | ACK; PSH beside it ends the super-packet |
//! | TCP sequence number | right behind the last one |
//! | TCP acknowledgment, byte 12, window, urgent pointer, options | as the first one's |
//! | payload | the first one's: 8 bytes at least; none is longer, and a shorter one is the last |
//! | checksums | valid, and the one of the two forms of zero that a sender writes; UDP has one |
//!
//! That contains the rules of the kernel's own GRO (`net/ipv4/tcp_offload.c`, `udp_offload.c`) and
//! adds to them: a packet that is odd in any way travels alone. Unverified merging would launder a
//! corrupt checksum, because the merged packet gets a new one.
//!
//! A [`Candidate`] is what a packet looks like by itself, a [`Run`] what was merged until now.

use arrayvec::ArrayVec;

use crate::wire::Family;
use crate::wire::checksum;
use crate::wire::checksum::Sum;
use crate::wire::field;
use crate::wire::field::be16;
use crate::wire::field::be32;
use crate::wire::gso;
use crate::wire::gso::Transport;
use crate::wire::ipv4;
use crate::wire::ipv6;
use crate::wire::protocol;
use crate::wire::tcp;
use crate::wire::tcp::flag;
use crate::wire::udp;
use crate::wire::virtio_net;
use crate::wire::virtio_net::Gso;

/// Shortest payload with which others are merged: Linux cuts into no shorter ones, whatever a
/// virtio header says (Debian's 6.1.192: a size of 2 becomes 8; the kernel's `TCP_MIN_GSO_SIZE`).
const SEGMENT_BYTES_MIN: u16 = 8;

/// Longest headers of a packet that may be merged: IPv6 and TCP with all options.
const HEADERS_BYTES_MAX: usize = ipv6::HEADER_BYTES + 60;

/// A packet that may be merged, as far as it can tell by itself. Its checksums are not looked at
/// yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    family: Family,
    transport: Transport,
    /// Length of all headers.
    headers_bytes: u16,
    payload_bytes: u16,
}

impl Candidate {
    /// Looks at a packet of which nothing is known. Nothing if it has to travel alone.
    #[inline]
    pub fn new(packet: &[u8]) -> Option<Self> {
        let (family, number) = match packet.first()? {
            0x45 => (Family::V4, of_v4(packet)?),
            first if first >> 4 == 6 => (Family::V6, of_v6(packet)?),
            _ => return None,
        };
        let transport_at = ip_bytes(family);
        let segment = packet.get(transport_at..)?;
        let (transport, header_bytes) = match number {
            protocol::TCP => (Transport::Tcp, of_tcp(segment)?),
            protocol::UDP => (Transport::Udp, of_udp(segment)?),
            _ => return None,
        };
        let payload_bytes = segment.len().checked_sub(header_bytes).filter(|&bytes| bytes > 0)?;
        Some(Self {
            family,
            transport,
            headers_bytes: u16::try_from(transport_at + header_bytes).ok()?,
            payload_bytes: u16::try_from(payload_bytes).ok()?,
        })
    }

    /// What carries the payload.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// Length of all headers; the payload follows.
    pub const fn headers_bytes(&self) -> usize {
        self.headers_bytes as usize
    }

    /// Length of the payload, at least 1.
    pub const fn payload_bytes(&self) -> usize {
        self.payload_bytes as usize
    }

    /// Whether the checksums of the packet, which is the one that this was made from, are those
    /// that a sender writes.
    #[inline]
    pub fn has_sender_checksums(&self, packet: &[u8]) -> bool {
        let (ip, segment) = packet.split_at(ip_bytes(self.family));
        let ip_is_right = match self.family {
            // All ones stands for zero and is valid, but nobody who adds up a header gets it.
            Family::V4 => {
                let field = be16(ip, ipv4::field::CHECKSUM);
                field != u16::MAX && checksum::sum(ip).is_valid()
            }
            Family::V6 => true,
        };
        let at = self.transport.checksum_at();
        let field = be16(segment, at..at + 2);
        // Of UDP all ones is the form of zero that a sender writes, and 0 says that there is none.
        let has_form = match self.transport {
            Transport::Tcp => field != u16::MAX,
            Transport::Udp => field != 0,
        };
        // The addresses, which are summed too, stand right before the segment.
        let summed = &packet[self.addresses_at()..];
        let sum = self.pseudo_header_ends(segment.len()) + checksum::sum(summed);
        ip_is_right && has_form && sum.is_valid()
    }

    const fn addresses_at(self) -> usize {
        match self.family {
            Family::V4 => ipv4::field::SRC.start,
            Family::V6 => ipv6::field::SRC.start,
        }
    }

    /// The sum of a pseudo header but for its addresses.
    fn pseudo_header_ends(self, segment_bytes: usize) -> Sum {
        let length = u16::try_from(segment_bytes).expect("a packet is below 64 KiB");
        Sum::of_word(self.transport.protocol().into()) + Sum::of_word(length)
    }
}

const fn ip_bytes(family: Family) -> usize {
    match family {
        Family::V4 => ipv4::HEADER_BYTES_MIN,
        Family::V6 => ipv6::HEADER_BYTES,
    }
}

/// The protocol of an IPv4 packet without options that is whole and exactly as long as it says.
#[inline]
fn of_v4(packet: &[u8]) -> Option<u8> {
    let header: &[u8; ipv4::HEADER_BYTES_MIN] = packet.first_chunk()?;
    let is_exact = usize::from(be16(header, ipv4::field::TOTAL_BYTES)) == packet.len();
    // Neither the reserved bit, nor more fragments, nor an offset.
    let is_whole = be16(header, ipv4::field::FRAGMENT) & 0xbfff == 0;
    (is_exact && is_whole).then_some(header[ipv4::field::PROTOCOL])
}

/// The same of IPv6 without extension headers.
#[inline]
fn of_v6(packet: &[u8]) -> Option<u8> {
    let (header, payload) = packet.split_first_chunk::<{ ipv6::HEADER_BYTES }>()?;
    let is_exact = usize::from(be16(header, ipv6::field::PAYLOAD_BYTES)) == payload.len();
    is_exact.then_some(header[ipv6::field::NEXT_HEADER])
}

/// Header length of a TCP segment of an established connection that wants nothing but to carry
/// data.
#[inline]
fn of_tcp(segment: &[u8]) -> Option<usize> {
    let header = tcp::Header::new_checked(segment)?;
    (header.flags() & !flag::PSH == flag::ACK).then(|| header.header_bytes())
}

/// Header length of a UDP datagram that has a checksum and is as long as it says.
#[inline]
fn of_udp(segment: &[u8]) -> Option<usize> {
    let header = udp::Header::new_checked(segment)?;
    let is_exact = usize::from(header.length_bytes()) == segment.len();
    (is_exact && header.has_checksum()).then_some(udp::HEADER_BYTES)
}

/// Packets of one flow, one right behind the other, that can become one super-packet.
#[derive(Clone, Debug)]
pub struct Run {
    first: Candidate,
    /// Those of the first packet.
    headers: ArrayVec<u8, HEADERS_BYTES_MAX>,
    packets: u32,
    payload_bytes: u32,
    next_sequence: u32,
    next_id: u16,
    ids_count: bool,
    /// The last packet asks to be pushed.
    pushed: bool,
    /// Nothing may follow the last packet.
    is_over: bool,
}

impl Run {
    /// A run of no packet, which waits for [`Self::begin`].
    pub const fn none() -> Self {
        Self {
            first: Candidate {
                family: Family::V4,
                transport: Transport::Tcp,
                headers_bytes: 0,
                payload_bytes: 0,
            },
            headers: ArrayVec::new_const(),
            packets: 0,
            payload_bytes: 0,
            next_sequence: 0,
            next_id: 0,
            ids_count: false,
            pushed: false,
            is_over: true,
        }
    }

    /// What carries the payload, if the run is more than one packet.
    pub const fn transport(&self) -> Option<Transport> {
        if self.packets > 1 { Some(self.first.transport()) } else { None }
    }

    /// Begins anew with one packet, from which `first` was made.
    #[inline]
    pub fn begin(&mut self, first: Candidate, packet: &[u8]) {
        self.first = first;
        self.headers.clear();
        let headers = packet.get(..first.headers_bytes()).unwrap_or_default();
        // A candidate's headers have room.
        let _ = self.headers.try_extend_from_slice(headers);
        self.packets = 0;
        self.payload_bytes = 0;
        self.pushed = false;
        (self.ids_count, self.next_id) = match first.family {
            Family::V4 => (gso::ids_count_up(packet), be16(packet, ipv4::field::ID)),
            Family::V6 => (false, 0),
        };
        self.append(first, packet);
    }

    /// How many packets it has.
    pub const fn packets(&self) -> u32 {
        self.packets
    }

    /// Length of the super-packet, headers included.
    pub fn packet_bytes(&self) -> usize {
        self.headers.len() + self.payload_bytes as usize
    }

    /// Whether nothing may follow.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether the kernel too, where it cuts the super-packet, writes these packets: it always
    /// counts identifications up.
    pub fn is_cut_alike_by_the_kernel(&self) -> bool {
        self.first.family == Family::V6 || self.ids_count
    }

    /// Whether `packet`, from which `next` was made, is what follows. Nothing is said about its
    /// checksums.
    #[inline]
    pub fn is_continued_by(&self, next: &Candidate, packet: &[u8]) -> bool {
        let is_alike = next.family == self.first.family
            && next.transport == self.first.transport
            && next.headers_bytes == self.first.headers_bytes
            && next.payload_bytes <= self.first.payload_bytes
            && self.first.payload_bytes >= SEGMENT_BYTES_MIN;
        let Some(headers) = packet.get(..self.headers.len()) else {
            return false;
        };
        let has_room =
            self.packet_bytes() + next.payload_bytes() <= gso::PACKET_BYTES_MAX && !self.is_over;
        if !is_alike || !has_room {
            return false;
        }
        let transport_at = ip_bytes(self.first.family);
        let (ip, transport) = headers.split_at(transport_at);
        let (first_ip, first_transport) = self.headers.split_at(transport_at);
        let ip_follows = match self.first.family {
            Family::V4 => {
                let (first, next) = (first_ip.first_chunk(), ip.first_chunk());
                be16(ip, ipv4::field::ID) == self.next_id
                    && first.zip(next).is_some_and(|(first, next)| is_same_v4(first, next))
            }
            Family::V6 => {
                let (first, next) = (first_ip.first_chunk(), ip.first_chunk());
                first.zip(next).is_some_and(|(first, next)| is_same_v6(first, next))
            }
        };
        ip_follows
            && match self.first.transport {
                Transport::Tcp => {
                    be32(transport, tcp::field::SEQUENCE) == self.next_sequence
                        && is_same_tcp(first_transport, transport)
                }
                Transport::Udp => transport[..4] == first_transport[..4],
            }
    }

    /// Adds `packet`, from which `next` was made and which follows.
    #[inline]
    pub fn append(&mut self, next: Candidate, packet: &[u8]) {
        self.packets += 1;
        self.payload_bytes += u32::from(next.payload_bytes);
        self.is_over = next.payload_bytes < self.first.payload_bytes;
        if self.ids_count {
            self.next_id = self.next_id.wrapping_add(1);
        }
        if self.first.transport == Transport::Tcp {
            let header = &packet[ip_bytes(self.first.family)..];
            let sequence = be32(header, tcp::field::SEQUENCE);
            self.next_sequence = sequence.wrapping_add(next.payload_bytes.into());
            self.pushed = header[tcp::field::FLAGS] & flag::PSH != 0;
            self.is_over |= self.pushed;
        }
    }

    /// Makes the headers of the first packet, which are at the start of `packet`, those of the
    /// super-packet. Returns what has to be said about it to a TUN.
    ///
    /// The checksum field gets the sum of the pseudo header, for whoever completes it.
    ///
    /// # Panics
    /// If `packet` is shorter than the headers.
    pub fn finish(&self, packet: &mut [u8]) -> virtio_net::Header {
        let Candidate { family, transport, headers_bytes, payload_bytes } = self.first;
        let packet_bytes = self.packet_bytes();
        let (ip, header) = packet[..self.headers.len()].split_at_mut(ip_bytes(family));
        let segment_bytes = packet_bytes - ip.len();
        let length = |bytes: usize| u16::try_from(bytes).expect("a run has at most 65,535 bytes");
        match family {
            Family::V4 => {
                ip[ipv4::field::TOTAL_BYTES].copy_from_slice(&length(packet_bytes).to_be_bytes());
                ip[ipv4::field::CHECKSUM].fill(0);
                let checksum = checksum::sum(ip).finish();
                ip[ipv4::field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
            }
            Family::V6 => {
                let bytes = length(segment_bytes).to_be_bytes();
                ip[ipv6::field::PAYLOAD_BYTES].copy_from_slice(&bytes);
            }
        }
        match transport {
            Transport::Tcp if self.pushed => header[tcp::field::FLAGS] |= flag::PSH,
            Transport::Tcp => {}
            Transport::Udp => {
                let bytes = length(segment_bytes).to_be_bytes();
                header[udp::field::LENGTH_BYTES].copy_from_slice(&bytes);
            }
        }
        let ends = self.first.pseudo_header_ends(segment_bytes);
        let seed = (ends + checksum::sum(&ip[self.first.addresses_at()..])).fold();
        let at = transport.checksum_at();
        header[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        virtio_net::Header {
            needs_checksum: true,
            gso: match (transport, family) {
                (Transport::Tcp, Family::V4) => Gso::TcpV4,
                (Transport::Tcp, Family::V6) => Gso::TcpV6,
                (Transport::Udp, _) => Gso::UdpL4,
            },
            header_bytes: headers_bytes,
            gso_bytes: payload_bytes,
            checksum_start: length(ip.len()),
            checksum_offset: length(at),
        }
    }

    /// Undoes [`Self::finish`]: the headers of the first packet are again what they were.
    ///
    /// # Panics
    /// If `packet` is shorter than the headers.
    pub fn restore(&self, packet: &mut [u8]) {
        packet[..self.headers.len()].copy_from_slice(&self.headers);
    }
}

/// Whether two IPv4 headers differ in nothing but length, identification and checksum.
#[inline]
fn is_same_v4(a: &[u8; ipv4::HEADER_BYTES_MIN], b: &[u8; ipv4::HEADER_BYTES_MIN]) -> bool {
    const LENGTH_AND_ID: u64 = u64::from_ne_bytes([0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]);
    const CHECKSUM: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
    differing_8(a, b, 0) & LENGTH_AND_ID == 0
        && differing_4(a, b, 8) & CHECKSUM == 0
        && differing_8(a, b, 12) == 0
}

/// Whether two IPv6 headers differ in nothing but the length.
#[inline]
fn is_same_v6(a: &[u8; ipv6::HEADER_BYTES], b: &[u8; ipv6::HEADER_BYTES]) -> bool {
    const LENGTH: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    differing_8(a, b, 0) & LENGTH == 0
        && [8, 16, 24, 32].into_iter().all(|start| differing_8(a, b, start) == 0)
}

/// Whether two TCP headers of one length differ in nothing but sequence number, checksum and PSH.
/// Byte 12 has the reserved bits too, of which Accurate ECN (RFC 9768) uses one.
#[inline]
fn is_same_tcp(a: &[u8], b: &[u8]) -> bool {
    const PUSH: u32 = u32::from_ne_bytes([0xff, !flag::PSH, 0xff, 0xff]);
    const CHECKSUM: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    let parts = |header| <[u8]>::split_first_chunk::<{ tcp::HEADER_BYTES_MIN }>(header);
    let (Some((a, a_options)), Some((b, b_options))) = (parts(a), parts(b)) else {
        return false;
    };
    differing_4(a, b, 0) == 0
        && differing_4(a, b, 8) == 0
        && differing_4(a, b, 12) & PUSH == 0
        && differing_4(a, b, 16) & CHECKSUM == 0
        && a_options == b_options
}

/// The bits in which 8 bytes at `start` differ.
#[inline]
fn differing_8<const N: usize>(a: &[u8; N], b: &[u8; N], start: usize) -> u64 {
    let word = |bytes| u64::from_ne_bytes(field::array(bytes, start..start + 8));
    word(a) ^ word(b)
}

/// The bits in which 4 bytes at `start` differ.
#[inline]
fn differing_4<const N: usize>(a: &[u8; N], b: &[u8; N], start: usize) -> u32 {
    let word = |bytes| u32::from_ne_bytes(field::array(bytes, start..start + 4));
    word(a) ^ word(b)
}

#[cfg(test)]
mod tests;
