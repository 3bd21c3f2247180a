//! Packets that random bytes seldom are: fragments of few packets, ICMP errors about the streams'
//! packets, segment sizes, and packets about as large as may return.

use gwlbtun::types::INNER_BYTES_MAX;

use super::input::Input;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A packet as a fuzzer wants it, between the streams' hosts.
pub(crate) fn crafted(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, which) = (input.byte(), input.byte());
    let host = Host { is_v6: kind & 1 != 0, is_back: kind & 2 != 0 };
    let protocol = if kind & 4 == 0 { UDP } else { TCP };
    match kind >> 4 {
        0..=5 => host.fragment(protocol, which),
        6..=9 => host.error(protocol, which, input),
        10..=12 => {
            let more = usize::from(input.byte());
            let payload = host.transport(protocol, which, INNER_BYTES_MAX - 100 + more);
            host.packet(protocol, None, &payload)
        }
        _ => {
            let mut segment = host.transport(TCP, which, 12);
            segment[12] = 0x80;
            segment[13] = 2;
            let [high, low] = input.half().to_be_bytes();
            let at = usize::from(which >> 4 & 7);
            segment[20..].fill(1);
            segment[20 + at..24 + at].copy_from_slice(&[2, 4, high, low]);
            host.packet(TCP, None, &segment)
        }
    }
}

/// Which host sends, or for which one a router does.
#[derive(Clone, Copy)]
struct Host {
    is_v6: bool,
    is_back: bool,
}

impl Host {
    /// A transport header and `bytes` more; of UDP eight are of a header, too.
    fn transport(self, protocol: u8, which: u8, bytes: usize) -> Vec<u8> {
        let ports = [[0, which & 3, 0, 80], [0, 80, 0, which & 3]][usize::from(self.is_back)];
        let rest = if protocol == TCP { 16 } else { 4 };
        [&ports[..], &vec![0x50; rest + bytes]].concat()
    }

    /// The first fragment of one of four packets, or a later one.
    fn fragment(self, protocol: u8, which: u8) -> Vec<u8> {
        let id = 1 + (which >> 2 & 3);
        match which >> 4 {
            0..=6 => self.packet(protocol, Some((0, id)), &self.transport(protocol, which, 12)),
            offset => self.packet(protocol, Some((offset, id)), &[offset; 16]),
        }
    }

    /// An error about a packet that this host sent.
    fn error(self, protocol: u8, which: u8, input: &mut Input<'_>) -> Vec<u8> {
        let quoted = match which & 0xc0 {
            0 => self.fragment(protocol, which),
            _ => self.packet(protocol, None, &self.transport(protocol, which, 4)),
        };
        let quoted = &quoted[..quoted.len().min(usize::from(input.byte()))];
        let kind = if self.is_v6 { 1 } else { 3 };
        let message = [&[kind, which >> 4 & 3, 0, 0, 0, 0, 0, 0][..], quoted].concat();
        let number = if self.is_v6 { ICMPV6 } else { ICMP };
        let mut packet = Self { is_back: !self.is_back, ..self }.packet(number, None, &message);
        if which & 8 != 0 {
            // A router says so.
            packet[if self.is_v6 { 23 } else { 15 }] = 99;
        }
        packet
    }

    /// A packet, or the fragment of one with this offset in units of 8 and this identification.
    fn packet(self, protocol: u8, fragment: Option<(u8, u8)>, payload: &[u8]) -> Vec<u8> {
        let bytes = u16::try_from(payload.len()).expect("below 64 KiB");
        let mut packet = vec![];
        if self.is_v6 {
            let (extension, next) = match fragment {
                Some((offset, id)) => {
                    let (field, more) = (offset << 3, u8::from(offset < 15));
                    (vec![protocol, 0, 0, field | more, 0, 0, 0, id], 44)
                }
                None => (vec![], protocol),
            };
            let bytes = bytes + 8 * u16::from(fragment.is_some());
            let [high, low] = bytes.to_be_bytes();
            packet.extend([0x60, 0, 0, 0, high, low, next, 64]);
            let hosts = [[0xfd; 16], [0xfc; 16]];
            let [from, to] = [usize::from(self.is_back), usize::from(!self.is_back)];
            packet.extend([hosts[from], hosts[to]].concat());
            packet.extend(extension);
        } else {
            let [high, low] = (20 + bytes).to_be_bytes();
            let (id, field) = match fragment {
                Some((15, id)) => (id, [0, 15]),
                Some((offset, id)) => (id, [0x20, offset]),
                None => (0, [0x40, 0]),
            };
            packet.extend([0x45, 0, high, low, 0, id, field[0], field[1], 64, protocol, 0, 0]);
            let (from, to) = if self.is_back { (2, 1) } else { (1, 2) };
            packet.extend([10, 1, 0, from, 10, 1, 0, to]);
        }
        packet.extend(payload);
        packet
    }
}
