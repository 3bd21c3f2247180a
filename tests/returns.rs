//! Under which header a packet returns, told by somebody else: the README's "Large packets and
//! fragments" and "what the load balancer sent last", written down once more, over the
//! [`oracle`](crate::oracle)'s reading of packets. And what else changes on the way: segment sizes
//! that are lowered, answers to what is too big.
//!
//! It shares no code with `src/`.

use std::collections::HashMap;
use std::net::IpAddr;

use etherparse::Icmpv4Slice;
use etherparse::Icmpv4Type;
use etherparse::Icmpv6Slice;
use etherparse::Icmpv6Type;
use etherparse::icmpv4::DestUnreachableHeader;

use crate::oracle;
use crate::oracle::Belongs;
use crate::oracle::Delivery;
use crate::oracle::Flow;
use crate::oracle::Name;

/// Idle seconds after which the program forgets, unless told: TCP, everything else, fragments.
const TCP_IDLE_SECS: u64 = 350;
const OTHER_IDLE_SECS: u64 = 120;
const FRAGMENT_IDLE_SECS: u64 = 30;

/// A GENEVE header that came, and the source port that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) bytes: Vec<u8>,
    pub(crate) cookie: [u8; 4],
    pub(crate) port: u16,
}

impl Header {
    pub(crate) fn of(delivery: &Delivery<'_>, port: u16) -> Self {
        Self { bytes: delivery.header.to_vec(), cookie: delivery.cookie, port }
    }
}

/// What is known of one flow, or of one packet's later fragments.
#[derive(Debug)]
struct Known {
    /// By direction. Of fragments the first is what the load balancer sent, the second what this
    /// host's first fragment said.
    sides: [Option<Header>; 2],
    seen_secs: [u64; 2],
}

impl Known {
    /// Whole seconds that have certainly passed since a side was seen: both moments are cut to
    /// whole seconds, so one of them may not have.
    fn idle_secs(&self, side: usize, now_secs: u64) -> u64 {
        (now_secs - self.seen_secs[side]).saturating_sub(1)
    }
}

/// What the load balancer has sent last, flow by flow, at one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Book {
    known: HashMap<Name, Known>,
    now_secs: u64,
    /// What came and what was asked since the batch began. Nothing that is read in a batch can be
    /// the answer to something that came in it, so either may be taken for the first.
    came: HashMap<Name, Header>,
    asked: HashMap<Name, Header>,
}

impl Book {
    /// A packet came from the load balancer.
    pub(crate) fn came(&mut self, belongs: &Belongs, header: &Header) {
        if self.came.get(&belongs.name) != Some(header) {
            let (key, side) = key(belongs.name);
            self.store(key, side, header);
            self.came.insert(belongs.name, header.clone());
        }
    }

    /// The header for a packet of this host.
    pub(crate) fn header(&mut self, belongs: &Belongs) -> Option<Header> {
        let header = match self.ask(belongs.name) {
            Some(header) => header,
            None => match belongs.quoted? {
                Name::Flow(quoted) => self.ask(Name::Flow(quoted.reversed()))?,
                fragments @ Name::Fragments { .. } => self.ask(fragments)?,
            },
        };
        if let Some(later) = belongs.later {
            self.follow(later, &header);
        }
        Some(header)
    }

    /// The header of what has this name: its own direction's, else the other one's.
    pub(crate) fn ask(&mut self, name: Name) -> Option<Header> {
        if let Some(header) = self.asked.get(&name) {
            return Some(header.clone());
        }
        let (key, side) = key(name);
        let known = self.known.get_mut(&key)?;
        known.seen_secs[side] = self.now_secs;
        let header = known.sides[side].as_ref().or(known.sides[1 - side].as_ref())?.clone();
        self.asked.insert(name, header.clone());
        Some(header)
    }

    fn known(&mut self, key: Name) -> &mut Known {
        let none = || Known { sides: [None, None], seen_secs: [0; 2] };
        self.known.entry(key).or_insert_with(none)
    }

    /// This host's first fragment says under which header the later ones go. What the load balancer
    /// sent of that name a second ago or earlier is of another packet.
    fn follow(&mut self, later: Name, header: &Header) {
        let now_secs = self.now_secs;
        let known = self.known(later);
        if known.idle_secs(0, now_secs) >= 1 {
            known.sides[0] = None;
        }
        known.seen_secs[1] = now_secs;
        known.sides[1] = Some(header.clone());
    }

    /// The newest header counts. If its cookie is another than its direction had, it is of a new
    /// flow, and the other direction's is not, unless it has the new cookie too.
    fn store(&mut self, key: Name, side: usize, header: &Header) {
        let now_secs = self.now_secs;
        let known = self.known(key);
        known.seen_secs[side] = now_secs;
        let differs = |side: &Option<Header>| {
            side.as_ref().is_some_and(|known| known.cookie != header.cookie)
        };
        if differs(&known.sides[side]) && differs(&known.sides[1 - side]) {
            known.sides[1 - side] = None;
        }
        known.sides[side] = Some(header.clone());
    }

    pub(crate) fn batch_is_over(&mut self) {
        self.came.clear();
        self.asked.clear();
    }

    /// It is later, and what was idle for too long is forgotten.
    pub(crate) fn is_now(&mut self, secs: u64) {
        self.now_secs = secs;
        self.known.retain(|name, known| {
            let most = match name {
                Name::Flow(Flow { protocol: 6, .. }) => TCP_IDLE_SECS,
                Name::Flow(_) => OTHER_IDLE_SECS,
                Name::Fragments { .. } => FRAGMENT_IDLE_SECS,
            };
            [0, 1].map(|side| known.idle_secs(side, secs)).into_iter().min() < Some(most)
        });
    }
}

/// What both directions are found by, and which of them this is.
fn key(name: Name) -> (Name, usize) {
    match name {
        Name::Flow(flow) if (flow.src, flow.ports.0) > (flow.dst, flow.ports.1) => {
            (Name::Flow(flow.reversed()), 1)
        }
        name @ (Name::Flow(_) | Name::Fragments { .. }) => (name, 0),
    }
}

/// Lowers what a TCP SYN says of its largest segment (RFC 9293 §3.7.1), as `--clamp-mss` without a
/// number does: what fills a packet of 8,500 bytes. The checksum stays as right as it was.
pub(crate) fn clamp(packet: &mut [u8]) {
    let Some(start) = oracle::tcp_start(packet) else { return };
    let (packet_bytes, _) = oracle::packet(packet).expect("it has a TCP header");
    let most: u16 = if packet[0] >> 4 == 4 { 8460 } else { 8440 };
    let segment = &mut packet[start..packet_bytes];
    let header_bytes = segment.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    if header_bytes < 20 || segment.len() < header_bytes || segment[13] & 2 == 0 {
        return;
    }
    let Some(at) = mss_at(&segment[..header_bytes]) else { return };
    let old = u16::from_be_bytes([segment[at], segment[at + 1]]);
    if old <= most {
        return;
    }
    segment[at..at + 2].copy_from_slice(&most.to_be_bytes());
    // RFC 1624 (3). What stands at an odd place counts with its bytes exchanged.
    let word = |value: u16| if at % 2 == 0 { value } else { value.swap_bytes() };
    let sum = u16::from_be_bytes([segment[16], segment[17]]);
    let mut new = u32::from(!sum) + u32::from(!word(old)) + u32::from(word(most));
    while new > 0xffff {
        new = (new & 0xffff) + (new >> 16);
    }
    let new = !u16::try_from(new).expect("16 bits");
    segment[16..18].copy_from_slice(&new.to_be_bytes());
}

/// Where the value of the first such option is.
fn mss_at(header: &[u8]) -> Option<usize> {
    let mut at = 20;
    while at < header.len() {
        match (header[at], header.get(at + 1).copied()) {
            (0, _) => return None,
            (1, _) => at += 1,
            (2, Some(4)) => return (at + 4 <= header.len()).then_some(at + 2),
            (_, Some(length)) if length >= 2 => at += usize::from(length),
            _ => return None,
        }
    }
    None
}

/// What the answer to a packet above 8,500 bytes returns under: its way in the other direction.
/// Nothing if it must not be answered (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
pub(crate) fn way_of_refusal(packet: &[u8]) -> Option<Name> {
    let (_, belongs) = oracle::packet(packet).ok()?;
    let Name::Flow(flow) = belongs.name else { return None };
    let is_host = |address: IpAddr| match address {
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => !address.is_multicast() && u128::from(address) > 1,
    };
    let may = !belongs.is_error() && is_host(flow.src) && is_host(flow.dst);
    may.then_some(Name::Flow(flow.reversed()))
}

/// Requires that `answer` tells the sender of `packet` that 8,500 bytes pass.
pub(crate) fn expect_refusal(answer: &[u8], packet: &[u8]) {
    let (bytes, belongs) = oracle::packet(answer).expect("an answer of ours is a packet");
    assert_eq!(bytes, answer.len());
    let (_, refused) = oracle::packet(packet).expect("it was");
    let (Name::Flow(of_answer), Name::Flow(of_refused)) = (belongs.name, refused.name) else {
        panic!("{belongs:?} about {refused:?}");
    };
    assert_eq!((of_answer.src, of_answer.dst), (of_refused.dst, of_refused.src));
    let (quote, most) = if answer[0] >> 4 == 4 {
        let slice = Icmpv4Slice::from_slice(&answer[20..]).expect("ICMP");
        let expected = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 8500 };
        assert_eq!(slice.icmp_type(), Icmpv4Type::DestinationUnreachable(expected));
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&answer[20..]);
        assert_eq!(sum.ones_complement(), 0, "the checksum of an answer");
        (slice.payload(), 576)
    } else {
        let slice = Icmpv6Slice::from_slice(&answer[40..]).expect("ICMPv6");
        assert_eq!(slice.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 8500 });
        let addresses = |at: usize| answer[at..at + 16].try_into().expect("16 bytes");
        assert!(slice.is_checksum_valid(addresses(8), addresses(24)));
        (slice.payload(), 1280)
    };
    assert_eq!(answer.len(), most);
    assert!(packet.starts_with(quote), "another packet is quoted");
}
