//! Random sequences through the packet path, without I/O, against models that are simpler than it.
//!
//! `path::tests::round_trip` in `src/` has the same for merging; here it is about headers: any that
//! RFC 8926 allows and that has AWS's three options, changing in the middle of a flow.

use std::collections::HashMap;

use gwlbtun::path::Decap;
use gwlbtun::path::plan::Target;
use gwlbtun::types::DropReason;
use gwlbtun::types::Offload;
use gwlbtun::types::Side;

use crate::cases;
use crate::fuzz::agree;
use crate::fuzz::rig::ENDPOINT;
use crate::fuzz::rig::Rig;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::random::Random;

/// A header that the load balancer may send, and its outer port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    bytes: Vec<u8>,
    cookie: u8,
    port: u16,
}

impl Header {
    /// Options in any order, unknown ones between them, any VNI, any reserved bits.
    fn random(random: &mut Random, is_v6: bool) -> Self {
        let cookie = random.byte() % 3;
        let mut options = vec![
            option(0x0108, 1, &ENDPOINT.0.to_be_bytes()),
            option(0x0108, 2, &random.pick(&[0, 1_u64]).to_be_bytes()),
            option(0x0108, 3, &[0, 0, 0, cookie]),
        ];
        for _ in 0..random.below(3) {
            let data = vec![0x5a; 4 * random.below(3)];
            options.push(option(0x0a00, 0x11, &data));
        }
        for place in (1..options.len()).rev() {
            options.swap(place, random.below(place + 1));
        }
        let options = options.concat();
        let words = u8::try_from(options.len() / 4).expect("few options");
        let ethertype = if is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        let flags = random.pick(&[0, 0x40, 0x3f]);
        let mut bytes = vec![words, flags, ethertype[0], ethertype[1]];
        bytes.extend([0, 0, random.pick(&[0, 7]), random.pick(&[0, 0xff])]);
        bytes.extend(options);
        Self { bytes, cookie, port: 60_000 + random.half() % 3 }
    }
}

fn option(class: u16, kind: u8, data: &[u8]) -> Vec<u8> {
    let words = u8::try_from(data.len() / 4).expect("at most 31 words");
    let [high, low] = class.to_be_bytes();
    [&[high, low, kind, words][..], data].concat()
}

/// What the load balancer has last said of both directions of a flow.
#[derive(Debug, Default)]
struct Model([Option<Header>; 2]);

impl Model {
    /// The newest header of a direction counts at once. A cookie that changes is a new flow, of
    /// which the other direction's header is not, unless it has the cookie too.
    fn learn(&mut self, way: usize, header: &Header) {
        let [own, other] = if way == 0 { [0, 1] } else { [1, 0] };
        let changes = self.0[own].as_ref().is_some_and(|own| own.cookie != header.cookie);
        if changes && self.0[other].as_ref().is_some_and(|other| other.cookie != header.cookie) {
            self.0[other] = None;
        }
        self.0[own] = Some(header.clone());
    }

    /// The header that a packet leaves in: of its own direction, else the other one's.
    fn header(&self, way: usize) -> Option<&Header> {
        self.0[way].as_ref().or(self.0[1 - way].as_ref())
    }
}

/// A packet of a flow, in one of its directions: over both families, with and without ports.
fn packet(flow: usize, way: usize) -> Vec<u8> {
    let path = if flow.is_multiple_of(2) { V4 } else { V6 };
    let path = if way == 0 { path } else { (path.1, path.0) };
    let ports = if way == 0 { (4000, 53) } else { (53, 4000) };
    match flow / 2 {
        0 => packets::udp(path, ports, &[1, 2, 3]),
        1 => packets::tcp(path, ports, 7, &[1, 2, 3]),
        _ => packets::ip(path, 47, &[0, 0, 8, 0]),
    }
}

const FLOWS: usize = 6;

#[test]
fn any_header_returns_as_it_came_and_the_newest_wins() {
    let mut random = Random::from_environment();
    for _ in 0..200 {
        // Each packet by itself: which ones may be merged is another test's question.
        let mut rig = Rig::new(Offload::NONE);
        let mut models: HashMap<usize, Model> = HashMap::new();
        for _ in 0..100 {
            let (flow, way) = (random.below(FLOWS), random.below(2));
            let model = models.entry(flow).or_default();
            let packet = packet(flow, way);
            if random.once_in(2) {
                let header = Header::random(&mut random, flow % 2 == 1);
                let datagram = [&header.bytes[..], &packet].concat();
                assert_eq!(rig.arrive(&datagram, header.port), Decap::Done);
                let planned = rig.end_batch();
                if rig.cell.decap_drops.get(DropReason::OptionSetLimit) > 0 {
                    break;
                }
                assert_eq!(planned[0].bytes[10..], packet);
                model.learn(way, &header);
                continue;
            }
            let dropped = rig.drops();
            rig.read(&[&[0; 10], &packet[..]].concat(), random.pick(&Side::BOTH));
            let planned = rig.end_batch();
            let Some(header) = model.header(way) else {
                assert_eq!((planned.len(), rig.drops()), (0, dropped + 1));
                continue;
            };
            assert_eq!(planned[0].target, Target::Outer(Rig::outer(header.port)));
            assert_eq!(planned[0].bytes, [&header.bytes[..], &packet].concat());
        }
    }
}

/// Up to four of the bytes that decide are others; perhaps the end is missing.
fn nearly(datagram: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = datagram.to_vec();
    for _ in 0..=random.below(4) {
        let place = random.below(bytes.len().clamp(1, 140));
        let Some(byte) = bytes.get_mut(place) else { continue };
        let one_bit = 1 << (random.byte() % 8);
        let any = random.byte();
        *byte = random.pick(&[any, *byte ^ one_bit]);
    }
    if random.once_in(4) {
        bytes.truncate(random.below(bytes.len() + 1));
    }
    bytes
}

/// The parsers agree with the oracle about what is nearly one of the cases, too.
#[test]
fn nearly_a_case_is_judged_alike() {
    let mut random = Random::from_environment();
    for case in cases::all() {
        for _ in 0..200 {
            agree(&nearly(&case.datagram, &mut random));
        }
    }
}
