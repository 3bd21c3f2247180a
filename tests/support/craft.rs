//! Inner packets of which every field is the test's to choose, right or wrong.

use std::net::IpAddr;

use super::packets::Path;
use crate::sim::layout::fold;
use crate::sim::layout::sum;

/// IPv4's "don't fragment" as it stands in the header.
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
/// IPv4's "more fragments".
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
/// IPv4's reserved flag (RFC 791: must be zero).
pub(crate) const RESERVED_FLAG: u16 = 0x8000;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// TCP flags as they stand in bytes 12 and 13 (RFC 9293, and AE of RFC 9768).
pub(crate) mod flag {
    pub(crate) const FIN: u16 = 0x001;
    pub(crate) const SYN: u16 = 0x002;
    pub(crate) const RST: u16 = 0x004;
    pub(crate) const PSH: u16 = 0x008;
    pub(crate) const ACK: u16 = 0x010;
    pub(crate) const URG: u16 = 0x020;
    pub(crate) const ECE: u16 = 0x040;
    pub(crate) const CWR: u16 = 0x080;
    /// Accurate ECN; the nonce sum of RFC 3540 before.
    pub(crate) const AE: u16 = 0x100;
    /// The three bits that no document uses.
    pub(crate) const RESERVED: u16 = 0xe00;
}

/// How a checksum stands in its field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sum {
    /// As the RFC says.
    #[default]
    Right,
    /// Off by something.
    Wrong(u16),
    /// Zero, whatever it should be: of UDP, no checksum.
    Absent,
    /// The content is such that the sum comes out as zero, in the field as the RFC says.
    Null,
    /// The same, but in the other of the two forms that one's complement has for zero.
    NullOtherForm,
}

/// The fields of an IP header.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) path: Path,
    /// Type of service or traffic class, ECN included.
    pub(crate) tos: u8,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// IPv4 only.
    pub(crate) id: u16,
    /// IPv4 only: three flags and the fragment offset.
    pub(crate) fragment: u16,
    /// IPv4 only: whole words.
    pub(crate) options: Vec<u8>,
    /// IPv4 only.
    pub(crate) sum: Sum,
    /// IPv6 only: 20 bits.
    pub(crate) flow_label: u32,
    /// IPv6 only: numbers of extension headers, and what they hold behind the next header's number.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Bytes behind the packet's own end.
    pub(crate) trailer: Vec<u8>,
}

impl Ip {
    pub(crate) fn new(path: Path) -> Self {
        Self {
            path,
            tos: 0,
            ttl: 64,
            id: 0,
            fragment: DONT_FRAGMENT,
            options: Vec::new(),
            sum: Sum::Right,
            flow_label: 0,
            extensions: Vec::new(),
            trailer: Vec::new(),
        }
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.path.0.is_ipv4()
    }

    /// Bytes of the header with what belongs to it.
    pub(crate) fn header_bytes(&self) -> usize {
        if self.is_v4() {
            return 20 + self.options.len();
        }
        40 + self.extensions.iter().map(|(_, content)| 1 + content.len()).sum::<usize>()
    }

    /// The whole packet around `content`.
    pub(crate) fn packet(&self, protocol: u8, content: &[u8]) -> Vec<u8> {
        let mut packet = if self.is_v4() {
            self.ipv4(protocol, content.len())
        } else {
            self.ipv6(protocol, content.len())
        };
        packet.extend(content);
        packet.extend(&self.trailer);
        packet
    }

    fn ipv4(&self, protocol: u8, content_bytes: usize) -> Vec<u8> {
        let header_bytes = self.header_bytes();
        let words = u8::try_from(header_bytes / 4).expect("at most 40 bytes of options");
        let total = u16::try_from(header_bytes + content_bytes).expect("fits");
        let mut header = vec![0x40 | words, self.tos];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(address_bytes(self.path));
        header.extend(&self.options);
        // Of a header that must sum up to zero, the id is what is free.
        put_sum(&mut header, 10, 4, self.sum, 0, 0);
        header
    }

    fn ipv6(&self, protocol: u8, content_bytes: usize) -> Vec<u8> {
        let payload_bytes = self.header_bytes() - 40 + content_bytes;
        let first = 0x6000_0000 | u32::from(self.tos) << 20 | self.flow_label & 0xf_ffff;
        let mut header = first.to_be_bytes().to_vec();
        header.extend(u16::try_from(payload_bytes).expect("fits").to_be_bytes());
        header.extend([0, self.ttl]);
        header.extend(address_bytes(self.path));
        let mut next_at = 6;
        for (number, content) in &self.extensions {
            header[next_at] = *number;
            next_at = header.len();
            header.push(0);
            header.extend(content);
        }
        header[next_at] = protocol;
        header
    }
}

/// The fields of a TCP header.
#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) ports: (u16, u16),
    pub(crate) sequence: u32,
    pub(crate) ack: u32,
    /// Twelve bits: see [`flag`].
    pub(crate) flags: u16,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    /// Whole words, at most ten.
    pub(crate) options: Vec<u8>,
    pub(crate) sum: Sum,
}

impl Tcp {
    /// The segment that goes between these addresses.
    pub(crate) fn segment(&self, path: Path, payload: &[u8]) -> Vec<u8> {
        let words = u16::try_from(5 + self.options.len() / 4).expect("at most 40 bytes of options");
        let mut segment = Vec::new();
        segment.extend(self.ports.0.to_be_bytes());
        segment.extend(self.ports.1.to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend((words << 12 | self.flags).to_be_bytes());
        segment.extend(self.window.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(self.urgent.to_be_bytes());
        segment.extend(&self.options);
        let payload_at = segment.len();
        segment.extend(payload);
        // Without two bytes of payload the acknowledgement is what is free.
        let free_at = if payload.len() < 2 { 8 } else { payload_at };
        let start = pseudo_sum(path, TCP, segment.len());
        put_sum(&mut segment, 16, free_at, self.sum, start, 0);
        segment
    }
}

/// The fields of a UDP header.
#[derive(Clone, Debug)]
pub(crate) struct Udp {
    pub(crate) ports: (u16, u16),
    /// What the length field says more than it should.
    pub(crate) length_error: u16,
    pub(crate) sum: Sum,
}

impl Udp {
    /// The datagram that goes between these addresses.
    pub(crate) fn datagram(&self, path: Path, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).expect("fits");
        let mut datagram = Vec::new();
        datagram.extend(self.ports.0.to_be_bytes());
        datagram.extend(self.ports.1.to_be_bytes());
        datagram.extend(length.wrapping_add(self.length_error).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        // Without two bytes of payload the source port is what is free.
        let free_at = if payload.len() < 2 { 0 } else { 8 };
        let start = pseudo_sum(path, UDP, datagram.len());
        put_sum(&mut datagram, 6, free_at, self.sum, start, 0xffff);
        datagram
    }
}

/// Fills in a checksum at `at`, whose bytes are zero until now. Where the sum must be zero, the two
/// bytes at `free_at`, an even place, make it so; `null` is how the RFC writes zero.
fn put_sum(bytes: &mut [u8], at: usize, free_at: usize, kind: Sum, start: u64, null: u16) {
    if matches!(kind, Sum::Null | Sum::NullOtherForm) {
        bytes[free_at..free_at + 2].fill(0);
        let rest = 0xffff - fold(sum(bytes, start));
        bytes[free_at..free_at + 2].copy_from_slice(&rest.to_be_bytes());
    }
    let right = match !fold(sum(bytes, start)) {
        0 => null,
        other => other,
    };
    let field = match kind {
        Sum::Right | Sum::Null => right,
        Sum::Wrong(by) => right ^ by,
        Sum::Absent => 0,
        Sum::NullOtherForm => !right,
    };
    bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

/// Sum over the pseudo header of a transport protocol (RFC 9293 §3.1, RFC 8200 §8.1).
fn pseudo_sum(path: Path, protocol: u8, segment_bytes: usize) -> u64 {
    let length = u64::try_from(segment_bytes).expect("fits");
    sum(&address_bytes(path), u64::from(protocol) + length)
}

fn address_bytes(path: Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [path.0, path.1] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes
}
