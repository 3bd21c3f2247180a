//! Headers of an inner packet at fixed offsets: what merging and cutting must know of them.

use gwlbtun::wire::Addresses;
use gwlbtun::wire::checksum;
use gwlbtun::wire::checksum::Sum;

/// Most bytes of IP and transport header: IPv6 and a TCP header full of options.
pub(super) const HEADERS_BYTES_MAX: usize = 40 + 60;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Which headers an inner packet has, and their lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) is_ipv4: bool,
    pub(super) is_tcp: bool,
    /// Of IP, without options.
    pub(super) ip_bytes: usize,
    /// Of IP and transport.
    pub(super) bytes: usize,
}

impl Headers {
    /// Of a whole TCP or UDP packet without IP options or extension headers; none of any other.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let (is_ipv4, ip_bytes, protocol) = match packet.first()? {
            0x45 => (true, 20, *packet.get(9)?),
            first if first >> 4 == 6 => (false, 40, *packet.get(6)?),
            _ => return None,
        };
        let transport_bytes = match protocol {
            TCP => usize::from(packet.get(ip_bytes + 12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let bytes = ip_bytes + transport_bytes;
        let is_whole = packet.len() >= bytes && transport_bytes >= 8;
        is_whole.then_some(Self { is_ipv4, is_tcp: protocol == TCP, ip_bytes, bytes })
    }

    /// Where the transport header has its checksum, from its first byte.
    pub(super) const fn checksum_offset(self) -> usize {
        if self.is_tcp { 16 } else { 6 }
    }

    /// The sum of the pseudo header of a packet whose transport part has so many bytes.
    pub(super) fn pseudo_header(self, packet: &[u8], transport_bytes: usize) -> Sum {
        let protocol = if self.is_tcp { TCP } else { UDP };
        let addresses = if self.is_ipv4 {
            Addresses::V4 { src: array(&packet[12..]), dst: array(&packet[16..]) }
        } else {
            Addresses::V6 { src: array(&packet[8..]), dst: array(&packet[24..]) }
        };
        let length = u32::try_from(transport_bytes).expect("below 64 KiB");
        checksum::pseudo_header(addresses, protocol, length)
    }

    /// Writes the lengths of a packet of `packet_bytes` bytes into its IP and UDP headers, and the
    /// IPv4 checksum.
    pub(super) fn set_length(self, headers: &mut [u8], packet_bytes: usize) {
        if self.is_ipv4 {
            set_u16(headers, 2, packet_bytes);
            headers[10..12].fill(0);
            let sum = checksum::sum(&headers[..20]).finish();
            headers[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            set_u16(headers, 4, packet_bytes - 40);
        }
        if !self.is_tcp {
            set_u16(headers, self.ip_bytes + 4, packet_bytes - self.ip_bytes);
        }
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(&bytes[at..]))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(&bytes[at..]))
}

/// Writes a length, which is below 64 KiB.
fn set_u16(bytes: &mut [u8], at: usize, value: usize) {
    let value = u16::try_from(value).expect("a packet is below 64 KiB");
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("the headers are whole")
}
