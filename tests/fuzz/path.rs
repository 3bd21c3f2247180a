//! The packet path in any order of events: datagrams, frames, batches, endpoints that come and go.
//!
//! A path is expensive to make, so inputs with the same settings share one: each gets a new life of
//! the endpoint, a thousand seconds after the one before. Should an input fail only behind another,
//! then a life has left something to the next one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::VecDeque;

use gwlbtun::path::Decap;
use gwlbtun::path::plan::PACKETS_MAX;
use gwlbtun::path::plan::SEND_BYTES_MAX;
use gwlbtun::path::plan::Target;
use gwlbtun::types::DropReason;
use gwlbtun::types::EndpointId;
use gwlbtun::types::INNER_BYTES_MAX;
use gwlbtun::types::Moment;
use gwlbtun::types::Offload;
use gwlbtun::types::Side;
use gwlbtun::types::TcpSegmentMax;
use gwlbtun::wire::gso::Segmenter;
use gwlbtun::wire::virtio_net;
use gwlbtun::wire::virtio_net::Gso;

use super::craft::crafted;
use super::expected::Expected;
use super::expected::Left;
use super::input::Input;
use super::rig::ENDPOINT;
use super::rig::Planned;
use super::rig::Rig;
use super::segmenter::cut;
use super::stream::Stream;
use crate::oracle;
use crate::oracle::Delivery;
use crate::returns;
use crate::returns::Book;
use crate::returns::Header;

/// Events of one input at most.
const EVENTS_MAX: usize = 200;

/// Datagrams of one batch at most: the plan has room for that many beside a frame.
const BATCH_MAX: usize = 200;

/// Bytes of a frame, or of a datagram, that the fuzzer writes itself.
const OWN_BYTES_MAX: usize = 400;

/// Settings that a path has for life: bits of an input's first byte, which are set for off. The
/// rest are a clamp for TCP segments, and faults: one buffer for copies in each batch.
const SETTINGS_FOR_LIFE: u8 = 0x3f;
const NO_RETURN: u8 = 0x20;
const CLAMP: u8 = 0x40;
const FAULTS: u8 = 0x80;

thread_local! {
    /// The paths of this thread, by their settings.
    static RIGS: RefCell<HashMap<u8, Rig>> = RefCell::default();
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let settings = input.byte();
    let mut run = Events::new(settings);
    for _ in 0..EVENTS_MAX {
        if input.is_empty() {
            break;
        }
        run.event(&mut input);
    }
    run.end_batch();
    run.rig.path.drop_all_held();
    run.expect_balance(0);
    // Not if something was found: then the path is broken.
    RIGS.with_borrow_mut(|rigs| rigs.insert(settings & SETTINGS_FOR_LIFE, run.rig));
}

/// A path that nothing has happened to.
fn fresh_rig(settings: u8) -> Rig {
    let known = RIGS.with_borrow_mut(|rigs| rigs.remove(&(settings & SETTINGS_FOR_LIFE)));
    let bit = |number: u8| settings & 1 << number == 0;
    let offload = Offload {
        udp_gro: true,
        udp_gso: bit(0),
        tun_tso: bit(1),
        tun_uso: bit(2),
        tcp_coalescing: bit(3),
        udp_coalescing: bit(4),
    };
    let mut rig = match known {
        Some(mut rig) => {
            rig.renew();
            rig
        }
        None => Rig::returning(offload, settings & NO_RETURN == 0),
    };
    if settings & CLAMP != 0 {
        rig.path.set_clamp_mss(Some(TcpSegmentMax::new(8460)));
    }
    if settings & FAULTS != 0 {
        rig.limit_scratch(1);
    }
    rig
}

/// A path, and what is known of what happened to it.
struct Events {
    rig: Rig,
    streams: [Stream; 4],
    is_served: bool,
    clamps: bool,
    /// Datagrams since the batch began.
    in_batch: usize,
    /// Packets that the oracle wants delivered, since the batch began.
    expected: Vec<Vec<u8>>,
    /// Datagrams that are held for the endpoint.
    held: VecDeque<(Vec<u8>, u16)>,
    /// What must leave.
    leaving: Expected,
    /// Frames that were written, to be read again.
    frames: Vec<Vec<u8>>,
    /// Packets that came in by either side, and packets that were planned for either.
    arrived: u64,
    planned: u64,
}

impl Events {
    fn new(settings: u8) -> Self {
        let streams = [[0x06, 1], [0x04, 2], [0x03, 3], [0x01, 4]];
        let clamps = settings & CLAMP != 0;
        let mut events = Self {
            rig: fresh_rig(settings),
            streams: streams.map(|chosen| Stream::chosen(&mut Input::new(&chosen))),
            is_served: true,
            clamps,
            in_batch: 0,
            expected: Vec::new(),
            held: VecDeque::new(),
            leaving: Expected::default(),
            frames: Vec::new(),
            arrived: 0,
            planned: 0,
        };
        events.leaving.clamps = clamps;
        events.leaving.returns = settings & NO_RETURN == 0;
        events.leaving.has_faults = settings & FAULTS != 0;
        events.leaving.book.is_now(events.rig.now.secs().into());
        events
    }

    fn event(&mut self, input: &mut Input<'_>) {
        let event = input.byte();
        if self.in_batch >= BATCH_MAX || !self.rig.has_room() {
            self.end_batch();
        }
        match event & 15 {
            0..=4 => {
                let packet = self.streams[usize::from(event >> 4 & 3)].next_chosen(input);
                let header = usual_header(&packet, event >> 6);
                self.arrive(&[&header[..], &packet].concat(), event >> 6);
            }
            5 => {
                let bytes = input.byte();
                let packet = input.take(bytes.into());
                self.arrive(&[&usual_header(packet, 0)[..], packet].concat(), 0);
            }
            6 => {
                let bytes = usize::from(input.half()) % OWN_BYTES_MAX;
                self.arrive(input.take(bytes), event >> 6);
            }
            7 => self.end_batch(),
            8 => {
                let packet = crafted(input);
                if event & 0x10 != 0 {
                    self.read(&[&[0; 10], &packet[..]].concat(), event);
                } else {
                    let header = usual_header(&packet, event >> 6);
                    self.arrive(&[&header[..], &packet].concat(), event >> 6);
                }
            }
            9 | 10 => {
                let number = usize::from(input.byte());
                if let Some(frame) = self.frames.get(number % self.frames.len().max(1)).cloned() {
                    self.read(&frame, event);
                }
            }
            11 => {
                let bytes = usize::from(input.half()) % OWN_BYTES_MAX;
                self.read(input.take(bytes), event);
            }
            12 => {
                let packet = self.streams[usize::from(event >> 4 & 3)].next_chosen(input);
                self.read(&[&[0; 10], &packet[..]].concat(), event);
            }
            13 => self.time_passes(input.half()),
            _ => self.endpoint_changes(event >> 4),
        }
    }

    fn arrive(&mut self, datagram: &[u8], port: u8) {
        self.in_batch += 1;
        self.arrived += 1;
        let port = 60_000 + u16::from(port);
        let held_before = self.rig.held();
        if let Decap::Unknown(id) = self.rig.arrive(datagram, port) {
            self.rig.announce(id, datagram, port);
        }
        let verdict = oracle::decide(datagram).ok();
        let Some(delivery) = verdict.filter(|delivery| delivery.endpoint == ENDPOINT.0) else {
            return;
        };
        if self.is_served {
            self.deliver(&delivery, port);
        } else if self.rig.held() > held_before {
            self.held.push_back((datagram.to_vec(), port));
        }
    }

    /// A packet must be delivered, and its header is known from now on.
    fn deliver(&mut self, delivery: &Delivery<'_>, port: u16) {
        self.leaving.book.came(&delivery.belongs, &Header::of(delivery, port));
        let mut packet = delivery.packet.to_vec();
        if self.clamps {
            returns::clamp(&mut packet);
        }
        self.expected.push(packet);
    }

    fn read(&mut self, frame: &[u8], event: u8) {
        let before = self.packets_read();
        let side = if event & 0x80 != 0 { Side::Gwi } else { Side::Gwo };
        self.rig.read(frame, side);
        // What is read for nobody counts as one.
        self.arrived += if self.is_attached() { self.packets_read() - before } else { 1 };
        if self.is_attached() {
            self.leaving.read(frame, self.rig.now);
        }
    }

    fn is_attached(&self) -> bool {
        self.rig.path.endpoint(self.rig.life.slot).is_some()
    }

    fn packets_read(&self) -> u64 {
        self.rig.cell.from_gwi.packets.get() + self.rig.cell.from_gwo.packets.get()
    }

    fn time_passes(&mut self, millis: u16) {
        self.end_batch();
        let nanos = self.rig.now.as_nanos() + u64::from(millis) * 10_000_000;
        self.rig.now = Moment::from_nanos(nanos);
        self.rig.expire();
        self.leaving.book.is_now(self.rig.now.secs().into());
    }

    fn endpoint_changes(&mut self, how: u8) {
        self.end_batch();
        match how & 3 {
            0 if self.is_served => {
                self.rig.path.closing(self.rig.life);
                self.is_served = false;
            }
            1 if !self.is_served && self.is_attached() => {
                if let Some(id) = self.rig.path.detach(self.rig.life) {
                    assert_eq!(id, ENDPOINT, "it is announced anew");
                }
            }
            2 if !self.is_attached() => {
                self.rig.attach();
                self.is_served = true;
                self.leaving.book = Book::default();
                self.leaving.book.is_now(self.rig.now.secs().into());
                self.rig.arrive_held();
                for (datagram, port) in std::mem::take(&mut self.held) {
                    let delivery = oracle::decide(&datagram).expect("it was decided before");
                    self.deliver(&delivery, port);
                }
                self.end_batch();
            }
            3 => self.rig.path.forget(EndpointId(u64::from(how)), DropReason::EndpointFailed),
            _ => {}
        }
    }

    fn end_batch(&mut self) {
        self.in_batch = 0;
        let (mut delivered, mut left) = (Vec::new(), Vec::new());
        for planned in self.rig.end_batch() {
            self.look_at(&planned, &mut delivered, &mut left);
        }
        self.leaving.book.batch_is_over();
        self.rig.send_waiting();
        for planned in self.rig.end_batch() {
            self.look_at(&planned, &mut delivered, &mut left);
        }
        let is_attached = self.is_attached();
        self.leaving.waiting_leave(&left, self.rig.now, is_attached);
        self.leaving.book.batch_is_over();
        let mut expected = std::mem::take(&mut self.expected);
        expected.sort();
        delivered.sort();
        assert!(delivered == expected, "{delivered:02x?} are not {expected:02x?}");
        self.leaving.expect(left);
        self.expect_balance(self.leaving.waiting());
    }

    /// Looks at a write or send: which packets are written to gwi, which datagrams leave.
    fn look_at(&mut self, planned: &Planned, delivered: &mut Vec<Vec<u8>>, left: &mut Vec<Left>) {
        self.planned += planned.packets as u64;
        assert!(planned.packets <= PACKETS_MAX);
        match planned.target {
            Target::Gwi(_) => {
                let packets = packets_of(&planned.bytes);
                assert_eq!(packets.len(), planned.packets);
                self.frames.push(planned.bytes.clone());
                delivered.extend(packets);
            }
            Target::Outer(outer) => {
                assert!(planned.bytes.len() <= SEND_BYTES_MAX);
                assert_eq!(planned.datagrams().count(), planned.packets);
                let mut inner = 0;
                for datagram in planned.datagrams() {
                    let delivery = oracle::decide(datagram).expect("what we send can be read");
                    assert_eq!(delivery.endpoint, ENDPOINT.0);
                    assert!(delivery.packet.len() <= INNER_BYTES_MAX);
                    inner += delivery.packet.len();
                    left.push((outer.remote_port, datagram.to_vec()));
                }
                assert_eq!(inner, planned.packet_bytes);
            }
        }
    }

    /// Requires that every packet was planned, is held, waits or was counted, and only once.
    fn expect_balance(&self, waiting: usize) {
        let cell = &self.rig.cell;
        let came = self.arrived + cell.too_big_sent.get();
        let gone = self.planned + self.rig.drops() + cell.host_noise.get() + self.rig.held();
        assert_eq!(came, gone + waiting as u64, "came, and gone with {waiting} that wait");
        assert_eq!(waiting > 0, self.rig.path.has_waiting());
    }
}

/// The packets of a frame that was written.
fn packets_of(frame: &[u8]) -> Vec<Vec<u8>> {
    let header = virtio_net::Header::parse(frame).expect("a frame of ours");
    let packet = &frame[virtio_net::HEADER_BYTES..];
    if header.gso == Gso::None {
        assert!(!header.needs_checksum);
        return vec![packet.to_vec()];
    }
    let segmenter = Segmenter::new(packet, &header).expect("a super-packet of ours");
    (0..segmenter.segments()).map(|number| cut(&segmenter, packet, number)).collect()
}

/// The header as the load balancer sends it, with one of several cookies.
fn usual_header(packet: &[u8], cookie: u8) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = 8;
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    header[2..4].copy_from_slice(if is_v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    header[8..12].copy_from_slice(&[1, 8, 1, 2]);
    header[12..20].copy_from_slice(&ENDPOINT.0.to_be_bytes());
    header[20..24].copy_from_slice(&[1, 8, 2, 2]);
    header[32..36].copy_from_slice(&[1, 8, 3, 1]);
    header[39] = cookie;
    header
}
