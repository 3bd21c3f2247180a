//! The packet path in any order of events: datagrams, frames, batches, endpoints that come and go.

use std::collections::HashSet;

use gwlbtun::path::Decap;
use gwlbtun::path::WAITING_MAX;
use gwlbtun::path::plan::PACKETS_MAX;
use gwlbtun::path::plan::SEND_BYTES_MAX;
use gwlbtun::path::plan::Target;
use gwlbtun::types::DropReason;
use gwlbtun::types::EndpointId;
use gwlbtun::types::INNER_BYTES_MAX;
use gwlbtun::types::Moment;
use gwlbtun::types::Offload;
use gwlbtun::types::Side;
use gwlbtun::wire::gso::Segmenter;
use gwlbtun::wire::virtio_net;
use gwlbtun::wire::virtio_net::Gso;

use super::input::Input;
use super::rig::ENDPOINT;
use super::rig::Planned;
use super::rig::Rig;
use super::segmenter::cut;
use super::stream::Stream;
use crate::oracle;
use crate::oracle::Belongs;
use crate::oracle::Delivery;
use crate::oracle::Flow;

/// Events of one input at most.
const EVENTS_MAX: usize = 200;

/// Datagrams of one batch at most: the plan has room for that many beside a frame.
const BATCH_MAX: usize = 200;

/// Bytes of a frame, or of a datagram, that the fuzzer writes itself.
const OWN_BYTES_MAX: usize = 400;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut run = Events::new(input.byte());
    for _ in 0..EVENTS_MAX {
        if input.is_empty() {
            break;
        }
        run.event(&mut input);
    }
    run.end_batch();
    run.rig.path.drop_all_held();
    run.expect_balance();
}

/// A path, and what is known of what happened to it.
struct Events {
    rig: Rig,
    streams: [Stream; 4],
    is_served: bool,
    /// Datagrams since the batch began.
    in_batch: usize,
    /// Packets that the oracle wants delivered, since the batch began.
    expected: Vec<Vec<u8>>,
    /// Frames that were written, to be read again.
    frames: Vec<Vec<u8>>,
    /// Which header of which outer port came for which flow.
    taught: HashSet<(Flow, Vec<u8>, u16)>,
    /// The same of packets whose flow the oracle leaves open.
    taught_to_others: HashSet<(Vec<u8>, u16)>,
    /// Packets that came in by either side, and packets that were planned for either.
    arrived: u64,
    planned: u64,
}

impl Events {
    fn new(offloads: u8) -> Self {
        let bit = |number: u8| offloads & 1 << number == 0;
        let offload = Offload {
            udp_gro: true,
            udp_gso: bit(0),
            tun_tso: bit(1),
            tun_uso: bit(2),
            tcp_coalescing: bit(3),
            udp_coalescing: bit(4),
        };
        let streams = [[0x06, 1], [0x04, 2], [0x03, 3], [0x01, 4]];
        Self {
            rig: Rig::new(offload),
            streams: streams.map(|chosen| Stream::chosen(&mut Input::new(&chosen))),
            is_served: true,
            in_batch: 0,
            expected: Vec::new(),
            frames: Vec::new(),
            taught: HashSet::new(),
            taught_to_others: HashSet::new(),
            arrived: 0,
            planned: 0,
        }
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
            7 | 8 => self.end_batch(),
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
        let verdict = oracle::decide(datagram);
        if let Ok(delivery) = verdict {
            self.teach(&delivery, port);
        }
        match self.rig.arrive(datagram, port) {
            Decap::Done => {
                let delivery = verdict.ok().filter(|delivery| delivery.endpoint == ENDPOINT.0);
                if let Some(delivery) = delivery.filter(|_| self.is_served) {
                    self.expected.push(delivery.packet.to_vec());
                }
            }
            Decap::Unknown(id) => {
                let _ = self.rig.path.announced(id, datagram, Rig::outer(port));
            }
        }
    }

    fn teach(&mut self, delivery: &Delivery<'_>, port: u16) {
        let header = delivery.header.to_vec();
        match delivery.belongs {
            Belongs::To(flow) => {
                for flow in [flow, flow.reversed()] {
                    self.taught.insert((flow, header.clone(), port));
                }
            }
            Belongs::Fragment | Belongs::IcmpError => {
                self.taught_to_others.insert((header, port));
            }
        }
    }

    /// A datagram that leaves has a header that came for its flow.
    fn expect_taught(&self, delivery: &Delivery<'_>, port: u16) {
        let header = delivery.header.to_vec();
        // Without ports a packet may share its flow with fragments.
        if let Belongs::To(flow) = delivery.belongs
            && flow.ports != (0, 0)
            && !self.taught_to_others.contains(&(header.clone(), port))
        {
            let used = (flow, header, port);
            assert!(self.taught.contains(&used), "nobody sent {used:02x?}");
        }
    }

    fn read(&mut self, frame: &[u8], event: u8) {
        let before = self.packets_read();
        let side = if event & 0x80 != 0 { Side::Gwi } else { Side::Gwo };
        self.rig.read(frame, side);
        // What is read for nobody counts as one.
        self.arrived += if self.is_attached() { self.packets_read() - before } else { 1 };
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
        self.rig.path.expire(100, self.rig.now);
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
                self.rig.arrive_held();
                self.end_batch_unchecked();
                self.is_served = true;
            }
            3 => self.rig.path.forget(EndpointId(u64::from(how)), DropReason::EndpointFailed),
            _ => {}
        }
    }

    /// What is planned, is looked at; what was held until now came without a prediction.
    fn end_batch_unchecked(&mut self) {
        self.in_batch = 0;
        self.expected.clear();
        for planned in self.rig.end_batch() {
            self.look_at(&planned);
        }
    }

    fn end_batch(&mut self) {
        self.in_batch = 0;
        let mut delivered = Vec::new();
        for planned in self.rig.end_batch() {
            delivered.extend(self.look_at(&planned));
        }
        self.rig.send_waiting();
        for planned in self.rig.end_batch() {
            self.look_at(&planned);
        }
        let mut expected = std::mem::take(&mut self.expected);
        expected.sort();
        delivered.sort();
        let limits = [DropReason::OptionSetLimit, DropReason::FlowLimit];
        if limits.iter().all(|reason| self.rig.cell.decap_drops.get(*reason) == 0) {
            assert!(delivered == expected, "{delivered:02x?} are not {expected:02x?}");
        }
        self.expect_balance();
    }

    /// Looks at a write or send. Returns the packets that are written to gwi.
    fn look_at(&mut self, planned: &Planned) -> Vec<Vec<u8>> {
        self.planned += planned.packets as u64;
        assert!(planned.packets <= PACKETS_MAX);
        match planned.target {
            Target::Gwi(_) => {
                let packets = packets_of(&planned.bytes);
                assert_eq!(packets.len(), planned.packets);
                self.frames.push(planned.bytes.clone());
                packets
            }
            Target::Outer(outer) => {
                assert!(planned.bytes.len() <= SEND_BYTES_MAX);
                assert_eq!(planned.datagrams().count(), planned.packets);
                let mut inner = 0;
                for datagram in planned.datagrams() {
                    let delivery = oracle::decide(datagram).expect("what we send can be read");
                    assert_eq!(delivery.endpoint, ENDPOINT.0);
                    assert!(delivery.packet.len() <= INNER_BYTES_MAX);
                    self.expect_taught(&delivery, outer.remote_port);
                    inner += delivery.packet.len();
                }
                assert_eq!(inner, planned.packet_bytes);
                Vec::new()
            }
        }
    }

    /// Requires that every packet was planned, is held, waits or was counted, and only once.
    fn expect_balance(&self) {
        let cell = &self.rig.cell;
        let arrived = self.arrived + cell.too_big_sent.get();
        let gone = self.planned + self.rig.drops() + cell.host_noise.get() + self.rig.held();
        let waiting = arrived.checked_sub(gone);
        let waiting = waiting.unwrap_or_else(|| panic!("{arrived} came, {gone} are gone"));
        assert_eq!(
            waiting > 0,
            self.rig.path.has_waiting(),
            "{waiting} are neither here nor there"
        );
        assert!(waiting <= WAITING_MAX as u64);
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
