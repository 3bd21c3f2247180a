//! Datagrams as a load balancer sends them: 8 bytes of GENEVE header, then endpoint id, attachment
//! id and flow cookie, then an inner packet with valid checksums.
//!
//! The layout is written down here a second time, on purpose: a generator that used the program's
//! own wire code would share its mistakes.
//!
//! Flow *f* has cookie `0xc0000000 + f` and inner source port 10,000 + *f*; there are 254 networks
//! of such flows for those who need more. TCP packets of a flow look like those of one connection
//! of a Linux host: header with time stamps, DF, IP IDs that count up from 1, sequence numbers that
//! follow each other. So a program that merges what is in sequence can merge them, and cut them
//! again into the same bytes. UDP packets have IP ID 0, and begin their payload with their number.
//!
//! A generator that has come to the end of its packets advances each to what stands at its place
//! in the next lap ([`Lap::advance`]), so that the numbers never step back.

/// Bytes in front of the inner packet: 8 of GENEVE, 12 + 12 + 8 of options.
pub(crate) const GENEVE_BYTES: usize = 40;

/// Where the endpoint id stands in a datagram.
pub(crate) const ENDPOINT_AT: usize = 12;

/// Where the flow cookie stands in a datagram.
pub(crate) const COOKIE_AT: usize = 36;

/// Id of the first endpoint; further ones count up from it.
pub(crate) const ENDPOINT_FIRST: u64 = 0x2b8e_e1d4_db0c_51c4;

/// Cookie of flow 0.
pub(crate) const COOKIE_FIRST: u32 = 0xc000_0000;

/// Inner source port of flow 0.
pub(crate) const INNER_PORT_FIRST: u16 = 10_000;

/// TCP header with the time stamp option and two bytes of padding before it.
const TCP_BYTES: u16 = 32;

/// What a pure acknowledgement acknowledges: two full segments.
const ACKED_BYTES: u32 = 2 * 1400;

/// Protocols of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inner {
    /// UDP over IPv4.
    Udp,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

impl Inner {
    /// Bytes of an inner packet with so much payload.
    pub(crate) fn packet_bytes(self, payload_bytes: u16) -> u16 {
        self.ip_bytes() + self.transport_bytes() + payload_bytes
    }

    /// Bytes of the datagram that carries it.
    pub(crate) fn datagram_bytes(self, payload_bytes: u16) -> usize {
        GENEVE_BYTES + usize::from(self.packet_bytes(payload_bytes))
    }

    const fn ip_bytes(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp4 => 20,
            Self::Tcp6 => 40,
        }
    }

    const fn transport_bytes(self) -> u16 {
        match self {
            Self::Udp => 8,
            Self::Tcp4 | Self::Tcp6 => TCP_BYTES,
        }
    }
}

/// Where the inner source port stands in an inner packet that starts with this byte.
pub(crate) const fn inner_port_at(first_byte: u8) -> usize {
    if first_byte >> 4 == 6 { 40 } else { 20 }
}

/// Makes the packets of one flow, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    endpoint: u64,
    network: u8,
    number: u16,
    inner: Inner,
    packets: u16,
    sequence: u32,
    acknowledged: u32,
}

impl Flow {
    /// Flow `number` of `endpoint`.
    pub(crate) fn new(endpoint: u64, number: u16, inner: Inner) -> Self {
        Self { endpoint, network: 1, number, inner, packets: 0, sequence: 1000, acknowledged: 1 }
    }

    /// The flow of this number in another network: its source address is 10.`network`.x.y. IPv4.
    pub(crate) fn in_network(self, network: u8) -> Self {
        Self { network, ..self }
    }

    /// The datagram of the flow's next packet.
    pub(crate) fn next_datagram(&mut self, payload_bytes: u16) -> Vec<u8> {
        let transport = self.transport(payload_bytes);
        let mut out = self.geneve();
        out.extend(match self.inner {
            Inner::Udp => self.ipv4_header(transport.len(), 0),
            Inner::Tcp4 => self.ipv4_header(transport.len(), self.packets.wrapping_add(1)),
            Inner::Tcp6 => self.ipv6_header(transport.len()),
        });
        out.extend(transport);
        self.packets = self.packets.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(u32::from(payload_bytes));
        if payload_bytes == 0 {
            self.acknowledged = self.acknowledged.wrapping_add(ACKED_BYTES);
        }
        out
    }

    /// What the packets made so far add to the numbers of the next ones.
    pub(crate) fn lap(&self) -> Lap {
        let first = Self::new(self.endpoint, self.number, self.inner);
        Lap {
            inner: self.inner,
            packets: self.packets,
            sequence: self.sequence.wrapping_sub(first.sequence),
            acknowledged: self.acknowledged.wrapping_sub(first.acknowledged),
        }
    }

    /// 8 words of options, the inner protocol, VNI 0. Then AWS's class 0x0108, types 1 to 3, each
    /// with its length in words.
    fn geneve(&self) -> Vec<u8> {
        let ethertype: u16 = match self.inner {
            Inner::Udp | Inner::Tcp4 => 0x0800,
            Inner::Tcp6 => 0x86dd,
        };
        let mut out = vec![8, 0];
        out.extend(ethertype.to_be_bytes());
        out.extend([0; 4]);
        out.extend([0x01, 0x08, 1, 2]);
        out.extend(self.endpoint.to_be_bytes());
        out.extend([0x01, 0x08, 2, 2]);
        out.extend(0_u64.to_be_bytes());
        out.extend([0x01, 0x08, 3, 1]);
        out.extend((COOKIE_FIRST | u32::from(self.number)).to_be_bytes());
        out
    }

    fn ipv4_header(&self, transport_bytes: usize, id: u16) -> Vec<u8> {
        let mut ip = vec![0x45, 0];
        ip.extend(short(20 + transport_bytes).to_be_bytes());
        ip.extend(id.to_be_bytes());
        ip.extend([0x40, 0, 64, self.protocol(), 0, 0]);
        ip.extend(self.addresses());
        let sum = internet_checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    }

    fn ipv6_header(&self, transport_bytes: usize) -> Vec<u8> {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(short(transport_bytes).to_be_bytes());
        ip.extend([self.protocol(), 64]);
        ip.extend(self.addresses());
        ip
    }

    /// Header with a valid checksum, and payload.
    fn transport(&self, payload_bytes: u16) -> Vec<u8> {
        let length = self.inner.transport_bytes() + payload_bytes;
        let mut out = Vec::with_capacity(usize::from(length));
        out.extend((INNER_PORT_FIRST + self.number).to_be_bytes());
        out.extend(5201_u16.to_be_bytes());
        let checksum_at = if self.inner == Inner::Udp {
            out.extend(length.to_be_bytes());
            out.extend([0, 0]);
            6
        } else {
            out.extend(self.sequence.to_be_bytes());
            out.extend(self.acknowledged.to_be_bytes());
            // 8 words, ACK, the whole window, checksum, no urgent pointer; NOP NOP time stamps.
            out.extend([0x80, 0x10, 0xff, 0xff, 0, 0, 0, 0, 1, 1, 8, 10]);
            out.extend([0, 0, 0, 1, 0, 0, 0, 1]);
            16
        };
        let payload_at = out.len();
        out.extend((0..payload_bytes).map(|at| at.to_be_bytes()[1]));
        if self.inner == Inner::Udp
            && let Some(number) = out[payload_at..].first_chunk_mut()
        {
            *number = u32::from(self.packets).to_be_bytes();
        }
        // The pseudo headers of RFC 768 and RFC 8200 §8.1 have the same sum: addresses, protocol,
        // length.
        let mut summed = self.addresses();
        summed.extend([0, self.protocol()]);
        summed.extend(length.to_be_bytes());
        summed.extend(&out);
        // Zero would mean "no checksum" to UDP; its other form means the same sum.
        let sum = match internet_checksum(&summed) {
            0 if self.inner == Inner::Udp => 0xffff,
            sum => sum,
        };
        out[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        out
    }

    const fn protocol(&self) -> u8 {
        match self.inner {
            Inner::Udp => 17,
            Inner::Tcp4 | Inner::Tcp6 => 6,
        }
    }

    /// Source and destination.
    fn addresses(&self) -> Vec<u8> {
        let [high, low] = self.number.to_be_bytes();
        match self.inner {
            Inner::Udp | Inner::Tcp4 => vec![10, self.network, high, low, 10, 2, 0, 1],
            Inner::Tcp6 => {
                let host =
                    |net, high, low| [0xfd, 0, 0, 0, 0, 0, 0, net, 0, 0, 0, 0, 0, 0, high, low];
                [host(1, high, low), host(2, 0, 1)].concat()
            }
        }
    }
}

/// The numbers of a flow that change from one lap of its packets to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    inner: Inner,
    packets: u16,
    sequence: u32,
    acknowledged: u32,
}

impl Lap {
    /// Makes of a datagram the one at its place in the next lap, checksums included.
    pub(crate) fn advance(&self, datagram: &mut [u8]) {
        let packet = &mut datagram[GENEVE_BYTES..];
        let transport = usize::from(self.inner.ip_bytes());
        if self.inner == Inner::Udp {
            let payload = transport + 8;
            if packet.len() >= payload + 4 {
                add(packet, payload, self.packets.into(), transport + 6);
            }
            return;
        }
        if self.inner == Inner::Tcp4 {
            let id = u16_at(packet, 4);
            replace(packet, 4, id.wrapping_add(self.packets), 10);
        }
        add(packet, transport + 4, self.sequence, transport + 16);
        if self.acknowledged != 0 {
            add(packet, transport + 8, self.acknowledged, transport + 16);
        }
    }
}

/// Adds to the 32-bit number at `at`, and mends the checksum at `checksum_at`.
fn add(packet: &mut [u8], at: usize, step: u32, checksum_at: usize) {
    let number = u32::from(u16_at(packet, at)) << 16 | u32::from(u16_at(packet, at + 2));
    let [a, b, c, d] = number.wrapping_add(step).to_be_bytes();
    replace(packet, at, u16::from_be_bytes([a, b]), checksum_at);
    replace(packet, at + 2, u16::from_be_bytes([c, d]), checksum_at);
}

/// Writes a word, and mends the checksum that covers it (RFC 1624 §3, equation 3). Zero is written
/// in its other form: right for UDP, and for TCP it comes only of a packet that is all zeroes.
fn replace(packet: &mut [u8], at: usize, new: u16, checksum_at: usize) {
    let old = u16_at(packet, at);
    let sum = [!u16_at(packet, checksum_at), !old, new].map(u32::from).iter().sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(sum).expect("folded into 16 bits");
    packet[at..at + 2].copy_from_slice(&new.to_be_bytes());
    packet[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether the checksums of an inner packet of this generator are right.
pub(crate) fn has_valid_checksums(packet: &[u8]) -> bool {
    let is_ipv4 = packet[0] >> 4 == 4;
    let (ip_bytes, protocol, addresses) =
        if is_ipv4 { (20, packet[9], 12..20) } else { (40, packet[6], 8..40) };
    let transport = &packet[ip_bytes..];
    let mut summed = packet[addresses].to_vec();
    summed.extend([0, protocol]);
    summed.extend(short(transport.len()).to_be_bytes());
    summed.extend(transport);
    (!is_ipv4 || internet_checksum(&packet[..20]) == 0) && internet_checksum(&summed) == 0
}

/// What tells an inner packet from all others of some seconds: its flow's port, and its number or
/// its sequence number and what it acknowledges.
pub(crate) fn identity(packet: &[u8]) -> (u16, u64) {
    let (transport, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    let at = if protocol == 17 { transport + 8 } else { transport + 4 };
    let number =
        |at: usize| u64::from(u16_at(packet, at)) << 16 | u64::from(u16_at(packet, at + 2));
    let identity = if protocol == 17 { number(at) } else { number(at) << 32 | number(at + 4) };
    (u16_at(packet, transport), identity)
}

/// A number of 16 bits, in the network's byte order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// RFC 1071, word by word: this runs before a load is sent, and when packets are looked at.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum = words.fold(0_u32, |sum, word| {
        let low = word.get(1).copied().unwrap_or(0);
        let sum = sum + u32::from(u16::from_be_bytes([word[0], low]));
        (sum & 0xffff) + (sum >> 16)
    });
    !u16::try_from(sum).expect("folded into 16 bits")
}

fn short(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a packet has at most 8,500 bytes")
}
