//! Cutting a super-packet into the segments that it stands for: what the kernel calls generic
//! segmentation offload (`Documentation/networking/segmentation-offloads.rst`).
//!
//! A TUN hands over a packet of up to 64 KiB with one set of headers, and a virtio header that says
//! how much payload each segment has. The payload stays where it is; a [`Segmenter`] writes the
//! headers of each segment:
//!
//! | field | in segment i of n |
//! |---|---|
//! | IPv4 total length, IPv6 payload length, UDP length | its own |
//! | IPv4 identification | the first one + i; 0 in all if it is 0 and DF is set (RFC 6864 §4.1) |
//! | IPv4 header checksum, TCP and UDP checksum | its own, complete |
//! | TCP sequence number | the first one + i × segment size |
//! | FIN, PSH | in the last one only |
//! | CWR | in the first one only (RFC 3168 §6.1.2) |
//! | everything else, options and extension headers too | as in the super-packet |

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::types::DropReason;
use crate::wire::Family;
use crate::wire::checksum;
use crate::wire::checksum::Sum;
use crate::wire::field::be16;
use crate::wire::field::be32;
use crate::wire::ipv4;
use crate::wire::ipv6;
use crate::wire::protocol;
use crate::wire::tcp;
use crate::wire::tcp::flag;
use crate::wire::udp;
use crate::wire::virtio_net::Gso;
use crate::wire::virtio_net::Header;

/// Longest headers of a segment in bytes, from the first of the IP header to the last of the
/// transport header: TCP with all options behind IPv4 with all options, or behind IPv6 with 156
/// bytes of extension headers.
pub const HEADERS_BYTES_MAX: usize = 256;

/// Longest super-packet: what the length field of IPv4 can say.
pub const PACKET_BYTES_MAX: usize = 65_535;

/// What carries the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its protocol number.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
        }
    }

    /// Offset of the checksum in its header.
    pub const fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => tcp::field::CHECKSUM.start,
            Self::Udp => udp::field::CHECKSUM.start,
        }
    }
}

/// The headers of a super-packet, prepared for its segments.
#[derive(Clone, Debug)]
pub struct Segmenter {
    /// As they stand in the super-packet, but for what each segment has of its own: zero.
    headers: ArrayVec<u8, HEADERS_BYTES_MAX>,
    family: Family,
    transport: Transport,
    transport_at: usize,
    /// Payload bytes of each segment but the last.
    gso_bytes: usize,
    payload_bytes: usize,
    id: u16,
    ids_count: bool,
    sequence: u32,
    flags: u8,
    /// Of the IPv4 header as it stands in `headers`.
    ip_sum: Sum,
    /// Of the pseudo header but for its length, and of the transport header in `headers`.
    transport_sum: Sum,
}

impl Segmenter {
    /// Prepares the headers of `packet`, which the kernel handed over with `header`.
    ///
    /// # Errors
    /// [`TunBadFrame`](DropReason::TunBadFrame) if the packet is not what the header says, or its
    /// headers are longer than [`HEADERS_BYTES_MAX`].
    pub fn new(packet: &[u8], header: &Header) -> Result<Self, DropReason> {
        Self::prepare(packet, header).ok_or(DropReason::TunBadFrame)
    }

    fn prepare(packet: &[u8], header: &Header) -> Option<Self> {
        let (family, transport) = match (header.gso, packet.first()? >> 4) {
            (Gso::TcpV4, 4) => (Family::V4, Transport::Tcp),
            (Gso::TcpV6, 6) => (Family::V6, Transport::Tcp),
            (Gso::UdpL4, 4) => (Family::V4, Transport::Udp),
            (Gso::UdpL4, 6) => (Family::V6, Transport::Udp),
            _ => return None,
        };
        // The header's length may cover payload (the kernel's linear part), its checksum start
        // never does.
        let transport_at = usize::from(header.checksum_start);
        let transport_header = packet.get(transport_at..)?;
        let headers_bytes = transport_at
            + match transport {
                Transport::Tcp => tcp::Header::new_checked(transport_header)?.header_bytes(),
                Transport::Udp => {
                    udp::Header::new_checked(transport_header).map(|_| udp::HEADER_BYTES)?
                }
            };
        let ip_bytes = match family {
            Family::V4 => ipv4::Header::new_checked(packet).ok()?.header_bytes(),
            Family::V6 => ipv6::HEADER_BYTES,
        };
        let gso_bytes = usize::from(header.gso_bytes);
        let payload_bytes = packet.len().checked_sub(headers_bytes)?;
        let is_cut_right = match family {
            Family::V4 => transport_at == ip_bytes,
            Family::V6 => transport_at >= ip_bytes,
        };
        let has_size = gso_bytes > 0 && payload_bytes > 0 && packet.len() <= PACKET_BYTES_MAX;
        if !is_cut_right || !has_size {
            return None;
        }
        let headers = ArrayVec::try_from(packet.get(..headers_bytes)?).ok()?;
        Some(Self::take_apart(headers, family, transport, transport_at, gso_bytes, payload_bytes))
    }

    /// Takes what differs between segments out of the headers, and adds up the rest.
    fn take_apart(
        mut headers: ArrayVec<u8, HEADERS_BYTES_MAX>,
        family: Family,
        transport: Transport,
        transport_at: usize,
        gso_bytes: usize,
        payload_bytes: usize,
    ) -> Self {
        let (ip, transport_header) = headers.split_at_mut(transport_at);
        let (mut id, mut ids_count, mut ip_sum) = (0, false, Sum::default());
        let addresses = match family {
            Family::V4 => {
                id = be16(ip, ipv4::field::ID);
                ids_count = ids_count_up(ip);
                for own in [ipv4::field::TOTAL_BYTES, ipv4::field::ID, ipv4::field::CHECKSUM] {
                    ip[own].fill(0);
                }
                ip_sum = checksum::sum(ip);
                ipv4::field::SRC.start..ipv4::field::DST.end
            }
            Family::V6 => ipv6::field::SRC.start..ipv6::field::DST.end,
        };
        let (mut sequence, mut flags) = (0, 0);
        match transport {
            Transport::Tcp => {
                sequence = be32(transport_header, tcp::field::SEQUENCE);
                flags = transport_header[tcp::field::FLAGS];
                transport_header[tcp::field::SEQUENCE].fill(0);
                transport_header[tcp::field::FLAGS] = 0;
                transport_header[tcp::field::CHECKSUM].fill(0);
            }
            Transport::Udp => {
                transport_header[udp::field::LENGTH_BYTES].fill(0);
                transport_header[udp::field::CHECKSUM].fill(0);
            }
        }
        let transport_sum = checksum::sum(&ip[addresses])
            + Sum::of_word(transport.protocol().into())
            + checksum::sum(transport_header);
        Self {
            headers,
            family,
            transport,
            transport_at,
            gso_bytes,
            payload_bytes,
            id,
            ids_count,
            sequence,
            flags,
            ip_sum,
            transport_sum,
        }
    }

    /// How many segments there are: at least one.
    pub fn segments(&self) -> usize {
        self.payload_bytes.div_ceil(self.gso_bytes)
    }

    /// Length of the headers of each segment.
    pub fn headers_bytes(&self) -> usize {
        self.headers.len()
    }

    /// Length of the longest segment, headers included.
    pub fn segment_bytes_max(&self) -> usize {
        self.headers.len() + self.gso_bytes.min(self.payload_bytes)
    }

    /// Length of all segments together, headers included.
    pub fn segments_bytes(&self) -> usize {
        self.segments() * self.headers.len() + self.payload_bytes
    }

    /// Where the payload of segment `number` is in the super-packet.
    pub fn payload(&self, number: usize) -> Range<usize> {
        let start = number * self.gso_bytes;
        let end = self.payload_bytes.min(start + self.gso_bytes);
        self.headers.len() + start..self.headers.len() + end
    }

    /// Writes the headers of segment `number` to the start of `out`. `payload` is the sum of its
    /// payload.
    ///
    /// # Panics
    /// If `out` is shorter than [`Self::headers_bytes`].
    pub fn write(&self, number: usize, payload: Sum, out: &mut [u8]) {
        let out = &mut out[..self.headers.len()];
        out.copy_from_slice(&self.headers);
        let (ip, transport) = out.split_at_mut(self.transport_at);
        let transport_bytes = length(transport.len() + self.payload(number).len());
        match self.family {
            Family::V4 => self.write_v4(number, length(ip.len()) + transport_bytes, ip),
            Family::V6 => {
                let payload_bytes = length(ip.len() - ipv6::HEADER_BYTES) + transport_bytes;
                ip[ipv6::field::PAYLOAD_BYTES].copy_from_slice(&payload_bytes.to_be_bytes());
            }
        }
        let sum = self.transport_sum + Sum::of_word(transport_bytes);
        match self.transport {
            Transport::Tcp => self.write_tcp(number, sum, payload, transport),
            Transport::Udp => write_udp(transport_bytes, sum, payload, transport),
        }
    }

    fn write_v4(&self, number: usize, total_bytes: u16, ip: &mut [u8]) {
        let step = if self.ids_count { number } else { 0 };
        // Identifications wrap.
        let id = self.id.wrapping_add(u16::try_from(step & 0xffff).expect("16 bits"));
        let sum = self.ip_sum + Sum::of_word(total_bytes) + Sum::of_word(id);
        ip[ipv4::field::TOTAL_BYTES].copy_from_slice(&total_bytes.to_be_bytes());
        ip[ipv4::field::ID].copy_from_slice(&id.to_be_bytes());
        ip[ipv4::field::CHECKSUM].copy_from_slice(&sum.finish().to_be_bytes());
    }

    fn write_tcp(&self, number: usize, sum: Sum, payload: Sum, header: &mut [u8]) {
        let start = u32::try_from(number * self.gso_bytes).expect("a super-packet is small");
        let sequence = self.sequence.wrapping_add(start);
        let mut flags = self.flags;
        if number > 0 {
            flags &= !flag::CWR;
        }
        if number + 1 < self.segments() {
            flags &= !(flag::FIN | flag::PSH);
        }
        // The payload comes last: what followed an odd number of bytes would count differently.
        let sum = sum + Sum::of_double_word(sequence) + Sum::of_word(flags.into()) + payload;
        header[tcp::field::SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
        header[tcp::field::FLAGS] = flags;
        header[tcp::field::CHECKSUM].copy_from_slice(&sum.finish().to_be_bytes());
    }
}

/// Whether the segments of an IPv4 super-packet have identifications that count up, rather than 0
/// in all. (A virtio header cannot say it: the kernel, where it cuts, always counts.)
pub(super) fn ids_count_up(header: &[u8]) -> bool {
    let dont_fragment = header[ipv4::field::FRAGMENT.start] & 0x40 != 0;
    !(dont_fragment && be16(header, ipv4::field::ID) == 0)
}

fn write_udp(length_bytes: u16, sum: Sum, payload: Sum, header: &mut [u8]) {
    // The length stands in the pseudo header and in the header.
    let checksum = match (sum + Sum::of_word(length_bytes) + payload).finish() {
        // 0 would mean "no checksum" (RFC 768).
        0 => u16::MAX,
        checksum => checksum,
    };
    header[udp::field::LENGTH_BYTES].copy_from_slice(&length_bytes.to_be_bytes());
    header[udp::field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a segment is no longer than its super-packet")
}

#[cfg(test)]
mod tests;
