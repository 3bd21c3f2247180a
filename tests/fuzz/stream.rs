//! Packets that follow each other as a sender's do, and their checksums.

use gwlbtun::wire::Addresses;
use gwlbtun::wire::checksum;
use gwlbtun::wire::protocol;

use super::input::Input;

/// A sender of TCP segments or UDP datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) is_v6: bool,
    pub(crate) is_tcp: bool,
    pub(crate) source_port: u16,
    pub(crate) sequence: u32,
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    /// Words of TCP options: no-operation.
    pub(crate) option_words: u8,
}

impl Stream {
    /// What a fuzzer says of a stream.
    pub(crate) fn chosen(input: &mut Input<'_>) -> Self {
        let kind = input.byte();
        Self {
            is_v6: kind & 1 != 0,
            is_tcp: kind & 2 != 0,
            dont_fragment: kind & 4 != 0,
            option_words: (kind >> 3) % 11,
            source_port: u16::from(input.byte()),
            sequence: u32::from(input.half()) << 16 | 0xfc00,
            id: input.half(),
        }
    }

    const fn transport_at(&self) -> usize {
        if self.is_v6 { 40 } else { 20 }
    }

    /// The next packet, right in every field; `flags` beside ACK.
    pub(crate) fn next(&mut self, payload: &[u8], flags: u8) -> Vec<u8> {
        let number = if self.is_tcp { protocol::TCP } else { protocol::UDP };
        let mut transport = self.source_port.to_be_bytes().to_vec();
        transport.extend([0, 80]);
        if self.is_tcp {
            transport.extend(self.sequence.to_be_bytes());
            let words = 5 + self.option_words;
            transport.extend([0, 0, 0, 1, words << 4, 0x10 | flags, 1, 0, 0, 0, 0, 0]);
            transport.extend(vec![1; usize::from(self.option_words) * 4]);
        } else {
            let bytes = u16::try_from(8 + payload.len()).expect("a small payload");
            transport.extend(bytes.to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(payload);
        let bytes = u16::try_from(transport.len()).expect("a small payload");
        let mut packet = if self.is_v6 {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(bytes.to_be_bytes());
            packet.extend([number, 64]);
            packet.extend([0xfd; 16]);
            packet.extend([0xfc; 16]);
            packet
        } else {
            let mut packet = vec![0x45, 0];
            packet.extend((20 + bytes).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, 64, number, 0, 0]);
            packet.extend([10, 1, 0, 1, 10, 1, 0, 2]);
            packet
        };
        packet.extend(transport);
        self.sequence = self.sequence.wrapping_add(u32::from(bytes) - self.header_bytes());
        self.id = self.id.wrapping_add(1);
        self.fill_checksums(&mut packet);
        packet
    }

    fn header_bytes(&self) -> u32 {
        if self.is_tcp { 20 + 4 * u32::from(self.option_words) } else { 8 }
    }

    /// Makes the checksums right for what stands in the packet now, which is long enough.
    pub(crate) fn fill_checksums(&self, packet: &mut [u8]) {
        let (ip, transport) = packet.split_at_mut(self.transport_at());
        let addresses = if self.is_v6 {
            Addresses::V6 {
                src: ip[8..24].try_into().expect("16 bytes"),
                dst: ip[24..40].try_into().expect("16 bytes"),
            }
        } else {
            ip[10..12].fill(0);
            let sum = checksum::sum(ip).finish();
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            Addresses::V4 {
                src: ip[12..16].try_into().expect("4 bytes"),
                dst: ip[16..20].try_into().expect("4 bytes"),
            }
        };
        let (number, at) = if self.is_tcp { (protocol::TCP, 16) } else { (protocol::UDP, 6) };
        transport[at..at + 2].fill(0);
        let bytes = u16::try_from(transport.len()).expect("a small packet");
        let pseudo_header = checksum::pseudo_header(addresses, number, bytes.into());
        let sum = match (pseudo_header + checksum::sum(transport)).finish() {
            0 if !self.is_tcp => u16::MAX,
            sum => sum,
        };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// The next packet as a fuzzer wants it: a payload of its choice, some bytes changed, the
    /// checksums made right again or not.
    pub(crate) fn next_chosen(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let how = input.byte();
        let payload_bytes = match how & 3 {
            0 => 40,
            1 => 1000,
            2 => usize::from(input.byte()),
            _ => usize::from(input.half() % 1500),
        };
        let payload = vec![input.byte(); payload_bytes];
        let flags = if how & 4 != 0 { input.byte() } else { 0 };
        let mut packet = self.next(&payload, flags);
        for _ in 0..(how >> 3) & 3 {
            let at = usize::from(input.byte()) % packet.len();
            packet[at] ^= input.byte();
        }
        if how & 0x20 != 0 {
            self.fill_checksums(&mut packet);
        }
        if how & 0x40 != 0 {
            packet.truncate(packet.len() - usize::from(input.byte()).min(packet.len() - 1));
        }
        packet
    }
}
