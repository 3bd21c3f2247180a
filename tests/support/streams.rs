//! Streams of one inner flow each: runs of packets that a coalescer would like to merge, and among
//! them, at random, everything that it must not touch.

use super::craft::DONT_FRAGMENT;
use super::craft::Ip;
use super::craft::MORE_FRAGMENTS;
use super::craft::RESERVED_FLAG;
use super::craft::Sum;
use super::craft::TCP;
use super::craft::Tcp;
use super::craft::UDP;
use super::craft::Udp;
use super::craft::flag;
use super::packets::Path;
use super::random::Random;

/// Longest packet in bytes that the load balancer takes back.
const PACKET_BYTES_MAX: usize = 8500;

/// Room that a run leaves for what an odd packet has more: IP options and a trailer, or IPv6
/// extension headers.
const ODDITY_BYTES_MAX: usize = 80;

/// How a sender numbers its IPv4 packets.
#[derive(Clone, Copy, Debug)]
enum Numbering {
    Consecutive,
    Constant,
    Random,
}

/// What a stream carries.
#[derive(Clone, Debug)]
enum Content {
    Tcp(Tcp),
    Udp(Udp),
    /// Any protocol without ports that this project knows.
    Other(u8),
}

/// One flow in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    ip: Ip,
    numbering: Numbering,
    content: Content,
    /// Bytes that a packet of a run carries.
    run_bytes: usize,
    /// One in so many packets is odd.
    oddness: usize,
}

impl Stream {
    /// A stream between two addresses; `ports` is ignored where there are none.
    pub(crate) fn new(path: Path, ports: (u16, u16), random: &mut Random) -> Self {
        let content = match random.below(12) {
            0..7 => Content::Tcp(Tcp {
                ports,
                // Some wrap soon.
                sequence: random.pick(&[0, 0x8000_0000, 0xffff_f000, 0xfffe_0000]),
                ack: random.word(),
                flags: flag::ACK,
                window: random.half(),
                urgent: 0,
                options: tcp_options(random),
                sum: Sum::Right,
            }),
            7..11 => {
                let sum = random.pick(&[Sum::Right, Sum::Right, Sum::Right, Sum::Absent]);
                Content::Udp(Udp { ports, length_error: 0, sum })
            }
            // ICMP, GRE, ESP, ICMPv6, SCTP, UDP-Lite, experiment.
            _ => Content::Other(random.pick(&[1, 47, 50, 58, 132, 136, 253])),
        };
        let mut stream = Self {
            ip: Ip::new(path),
            numbering: Numbering::Constant,
            content,
            run_bytes: 0,
            oddness: random.pick(&[4, 12, 50, 1000]),
        };
        stream.renumber(random);
        stream.resize(random);
        stream
    }

    /// The stream of the other direction.
    pub(crate) fn reverse(&self, random: &mut Random) -> Self {
        let mut stream = self.clone();
        stream.ip.path = (self.ip.path.1, self.ip.path.0);
        match &mut stream.content {
            Content::Tcp(tcp) => tcp.ports = (tcp.ports.1, tcp.ports.0),
            Content::Udp(udp) => udp.ports = (udp.ports.1, udp.ports.0),
            Content::Other(_) => {}
        }
        stream.resize(random);
        stream
    }

    /// The next packets, usually one.
    pub(crate) fn next(&mut self, random: &mut Random) -> Vec<Vec<u8>> {
        if random.once_in(40) {
            self.drift(random);
        }
        let packets = if random.once_in(self.oddness) {
            self.clone().odd(random, self)
        } else {
            vec![self.regular(random)]
        };
        self.number(random);
        packets
    }

    /// The next packet of a run.
    fn regular(&mut self, random: &mut Random) -> Vec<u8> {
        let payload = random.bytes(self.run_bytes);
        let packet = match &mut self.content {
            Content::Tcp(tcp) => {
                let pushed = if random.once_in(12) { flag::PSH } else { 0 };
                let sent = Tcp { flags: tcp.flags | pushed, ..tcp.clone() };
                advance(tcp, payload.len());
                self.ip.packet(TCP, &sent.segment(self.ip.path, &payload))
            }
            Content::Udp(udp) => self.ip.packet(UDP, &udp.datagram(self.ip.path, &payload)),
            Content::Other(protocol) => self.ip.packet(*protocol, &payload),
        };
        assert!(packet.len() <= PACKET_BYTES_MAX, "{self:?}");
        packet
    }

    /// Gives the next packet its IPv4 id.
    fn number(&mut self, random: &mut Random) {
        match self.numbering {
            Numbering::Consecutive => self.ip.id = self.ip.id.wrapping_add(1),
            Numbering::Constant => {}
            Numbering::Random => self.ip.id = random.half(),
        }
    }

    fn renumber(&mut self, random: &mut Random) {
        use Numbering::Consecutive;
        use Numbering::Constant;
        (self.numbering, self.ip.id) = random.pick(&[
            (Consecutive, 0),
            (Consecutive, 1),
            (Consecutive, 7000),
            (Consecutive, 65_520),
            (Constant, 0),
            (Constant, 0),
            (Constant, 0x1234),
            (Numbering::Random, 99),
        ]);
        // Most hosts of today forbid fragments.
        self.ip.fragment = if random.once_in(3) { 0 } else { DONT_FRAGMENT };
    }

    fn resize(&mut self, random: &mut Random) {
        let header_bytes = self.ip.header_bytes()
            + match &self.content {
                Content::Tcp(tcp) => 20 + tcp.options.len(),
                Content::Udp(_) => 8,
                Content::Other(_) => 0,
            };
        let room = PACKET_BYTES_MAX - header_bytes - ODDITY_BYTES_MAX;
        self.run_bytes = match random.below(10) {
            0 => room,
            1 => random.between(1, 40),
            2 => random.between(1, room),
            3 => random.pick(&[1, 2, 18, 160, 536]),
            _ => random.pick(&[1200, 1350, 1400, 1448, 1460]),
        };
    }

    /// Changes for good what belongs to a flow only for a while.
    fn drift(&mut self, random: &mut Random) {
        match (random.below(9), &mut self.content) {
            (0, _) => self.ip.tos = random.pick(&[0, 1, 2, 3, 0xb8, random.clone().byte()]),
            (1, _) => self.ip.ttl = random.pick(&[1, 63, 64, 255]),
            (2, _) => self.ip.flow_label = random.word(),
            (3, _) => self.renumber(random),
            (4, Content::Tcp(tcp)) => tcp.window = random.half(),
            (5, Content::Tcp(tcp)) => tcp.ack = tcp.ack.wrapping_add(random.word() >> 16),
            (6, Content::Tcp(tcp)) => {
                tcp.options = tcp_options(random);
                self.resize(random);
            }
            (7, Content::Tcp(tcp)) => tcp.urgent = random.pick(&[0, 0, 1]),
            _ => self.resize(random),
        }
    }

    /// Packets that differ from their run in something. `self` is a copy for them; `stream` goes
    /// on with the run.
    fn odd(mut self, random: &mut Random, stream: &mut Self) -> Vec<Vec<u8>> {
        match random.below(12) {
            0 => self.ip.sum = odd_sum(random),
            1 => self.ip.trailer = vec![0xee; random.between(1, 30)],
            2 if self.ip.is_v4() => self.ip.options = vec![1; 4 * random.between(1, 10)],
            2 => self.ip.extensions = extensions(random),
            3 if self.ip.is_v4() => self.ip.fragment = odd_flags(random),
            3 => self.ip.extensions = vec![(44, fragment_header(random))],
            4 => self.ip.ttl = 0,
            5 => self.ip.tos ^= 3,
            6 if self.ip.is_v4() => self.ip.id = random.half(),
            7 => {
                let packet = stream.regular(random);
                return vec![packet.clone(), packet];
            }
            8 => {
                // Out of order: the second packet first.
                let first = stream.regular(random);
                stream.number(random);
                return vec![stream.regular(random), first];
            }
            _ => return self.odd_transport(random, stream),
        }
        vec![stream.followed_by(self, random)]
    }

    /// A packet of the changed copy, behind which the stream goes on.
    fn followed_by(&mut self, mut changed: Self, random: &mut Random) -> Vec<u8> {
        let packet = changed.regular(random);
        self.content.follow(&changed.content);
        packet
    }

    fn odd_transport(mut self, random: &mut Random, stream: &mut Self) -> Vec<Vec<u8>> {
        let run_bytes = self.run_bytes;
        match &mut self.content {
            Content::Tcp(tcp) => match random.below(10) {
                0 => tcp.flags = odd_tcp_flags(random),
                1 => tcp.sum = odd_sum(random),
                // Bytes that were lost before they came here.
                2 => advance(tcp, random.between(1, 3) * run_bytes),
                // A keep-alive, or an overlap.
                3 => tcp.sequence = tcp.sequence.wrapping_sub(1),
                4 => (tcp.flags, tcp.urgent) = (flag::ACK | flag::URG, random.half()),
                5 => return stream.acks(random),
                6 => return vec![self.malformed(random)],
                7 => tcp.ack = tcp.ack.wrapping_add(1),
                8 => tcp.window ^= 1,
                _ => self.run_bytes = random.below(run_bytes + 1),
            },
            Content::Udp(udp) => match random.below(5) {
                0 => udp.sum = odd_sum(random),
                1 => udp.length_error = random.pick(&[1, 2, 0xfff8, 0xffff]),
                2 => return vec![self.malformed(random)],
                3 => udp.sum = Sum::Absent,
                _ => self.run_bytes = random.below(run_bytes + 1),
            },
            Content::Other(_) => self.run_bytes = random.below(run_bytes + 1),
        }
        vec![stream.followed_by(self, random)]
    }

    /// Pure acknowledgements, each further than the one before, some of them doubled.
    fn acks(&mut self, random: &mut Random) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for _ in 0..random.between(1, 20) {
            let Content::Tcp(tcp) = &mut self.content else {
                break;
            };
            packets.push(self.ip.packet(TCP, &tcp.segment(self.ip.path, b"")));
            if !random.once_in(4) {
                tcp.ack = tcp.ack.wrapping_add(random.pick(&[1448, 2896]));
            }
            self.number(random);
        }
        packets
    }

    /// A packet that ends within its transport header, or says that this header is too short or
    /// longer than the packet.
    fn malformed(&self, random: &mut Random) -> Vec<u8> {
        let (protocol, mut bytes) = match &self.content {
            Content::Tcp(tcp) => (TCP, tcp.segment(self.ip.path, b"short")),
            Content::Udp(udp) => (UDP, udp.datagram(self.ip.path, b"")),
            Content::Other(protocol) => (*protocol, Vec::new()),
        };
        if protocol == TCP && random.once_in(2) {
            bytes[12] = random.pick(&[0x00, 0x40, 0xf0]) | bytes[12] & 15;
        } else {
            bytes.truncate(random.below(bytes.len()));
        }
        self.ip.packet(protocol, &bytes)
    }
}

impl Content {
    /// Goes on behind what another stream of the flow sent.
    fn follow(&mut self, other: &Self) {
        if let (Self::Tcp(tcp), Self::Tcp(sent)) = (self, other) {
            tcp.sequence = sent.sequence;
        }
    }
}

fn advance(tcp: &mut Tcp, bytes: usize) {
    tcp.sequence = tcp.sequence.wrapping_add(u32::try_from(bytes).expect("a few packets"));
}

/// None, time stamps, selective acknowledgements, padding, or all forty bytes.
fn tcp_options(random: &mut Random) -> Vec<u8> {
    let mut time_stamps = vec![1, 1, 8, 10];
    time_stamps.extend(random.bytes(8));
    match random.below(6) {
        0..3 => time_stamps,
        3 => Vec::new(),
        4 => {
            let blocks = random.between(1, 4);
            let mut sack = vec![1, 1, 5, u8::try_from(2 + 8 * blocks).expect("at most 34")];
            sack.extend(random.bytes(8 * blocks));
            sack
        }
        _ => [vec![1; random.pick(&[3, 39])], vec![0]].concat(),
    }
}

fn odd_tcp_flags(random: &mut Random) -> u16 {
    use flag::ACK;
    use flag::AE;
    use flag::CWR;
    use flag::ECE;
    use flag::FIN;
    use flag::PSH;
    use flag::RESERVED;
    use flag::RST;
    use flag::SYN;
    use flag::URG;
    random.pick(&[
        0,
        PSH,
        SYN,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN | ACK,
        FIN | ACK | PSH,
        FIN | SYN,
        ACK | URG,
        ACK | ECE,
        ACK | CWR,
        ACK | ECE | CWR,
        ACK | AE,
        ACK | AE | CWR | ECE,
        ACK | RESERVED,
        ACK | 0x200,
        0xfff,
    ])
}

fn odd_sum(random: &mut Random) -> Sum {
    let wrong = [Sum::Wrong(1), Sum::Wrong(0xffff), Sum::Wrong(0x8000), Sum::Absent];
    let null = [Sum::Null, Sum::Null, Sum::NullOtherForm, Sum::NullOtherForm];
    random.pick(&[wrong, null].concat())
}

/// Flags of IPv4 as only a part of a packet or a mistake has them.
fn odd_flags(random: &mut Random) -> u16 {
    let offset = random.half() & 0x3ff;
    random.pick(&[
        MORE_FRAGMENTS,
        MORE_FRAGMENTS | offset,
        MORE_FRAGMENTS | DONT_FRAGMENT,
        offset,
        RESERVED_FLAG,
        RESERVED_FLAG | DONT_FRAGMENT,
        0,
        DONT_FRAGMENT,
    ])
}

/// Hop-by-hop or destination options, or both in this order; each holds padding.
fn extensions(random: &mut Random) -> Vec<(u8, Vec<u8>)> {
    let padding = |words: u8| {
        let mut content = vec![words - 1, 1, words * 8 - 4];
        content.resize(usize::from(words) * 8 - 1, 0);
        content
    };
    let words = random.pick(&[1, 2, 4]);
    let (hop_by_hop, destination) = ((0, padding(words)), (60, padding(1)));
    random.pick(&[
        vec![hop_by_hop.clone()],
        vec![destination.clone()],
        vec![hop_by_hop, destination],
    ])
}

/// RFC 8200 §4.5 behind the next header's number; an atomic fragment among others.
fn fragment_header(random: &mut Random) -> Vec<u8> {
    let place = random.pick(&[0, 1, random.clone().half() & 0x3fff]);
    let mut content = vec![0];
    content.extend(place.to_be_bytes());
    content.extend([0, 0, 0x56, random.byte()]);
    content
}
