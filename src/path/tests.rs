//! The path of whole packets: what is planned, held and counted for each.

mod edges;
mod round_trip;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::plan::BufferId;
use super::plan::Group;
use super::plan::Plan;
use super::plan::Span;
use super::plan::Target;
use super::*;
use crate::flow::HashSeed;
use crate::flow::Sources;
use crate::flow::TablePlan;
use crate::flow::Templates;
use crate::stats::EndpointCell;
use crate::types::FlowKind;
use crate::types::Generation;
use crate::types::Side;
use crate::wire::Family;
use crate::wire::gwlb;

const ID: EndpointId = EndpointId(0x0123_4567_89ab_cdef);
const NOW: Moment = Moment::from_secs(100);
const LIFE: EndpointRef = EndpointRef { slot: EndpointSlot(1), generation: Generation(1) };
const BUFFER: BufferId = BufferId::new(Group::Udp, 5);

/// An IPv4 packet from .1 to .2 with 8 bytes of UDP; its checksums do not matter here.
const PACKET: [u8; 28] = [
    0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
    0x12, 0x34, 0x00, 0x35, 0, 8, 0, 0, // UDP 4660 to 53
];

/// The same packet's answer.
const ANSWER: [u8; 28] = [
    0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1, // IPv4
    0x00, 0x35, 0x12, 0x34, 0, 8, 0, 0, // UDP 53 to 4660
];

fn outer(remote_port: u16) -> OuterPath {
    OuterPath { local: Ipv4Addr::new(10, 9, 0, 1), remote: Ipv4Addr::new(10, 9, 0, 2), remote_port }
}

fn header(cookie: [u8; 4]) -> [u8; 40] {
    gwlb::Repr { endpoint: ID, attachment: 0, cookie, family: Family::V4 }.emit()
}

fn datagram(cookie: [u8; 4]) -> Vec<u8> {
    [&header(cookie)[..], &PACKET].concat()
}

/// Buffers that remember what was in them.
#[derive(Default)]
struct TestBuffers {
    bytes: HashMap<BufferId, Vec<u8>>,
    has_no_scratch: bool,
}

impl TestBuffers {
    fn without_scratch() -> Self {
        Self { has_no_scratch: true, ..Self::default() }
    }

    fn put(&mut self, buffer: BufferId, bytes: Vec<u8>) {
        self.bytes.insert(buffer, bytes);
    }

    /// The bytes of a job, gathered.
    fn gather(&self, spans: &[Span]) -> Vec<u8> {
        let bytes =
            |span: &Span| &self.bytes[&span.buffer][span.start as usize..][..span.len as usize];
        spans.iter().flat_map(bytes).copied().collect()
    }
}

impl Buffers for TestBuffers {
    fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        self.bytes.get_mut(&buffer).expect("a buffer of this batch")
    }

    fn take_scratch(&mut self) -> Option<BufferId> {
        if self.has_no_scratch {
            return None;
        }
        // Clear of the numbers that tests use.
        let number = u16::try_from(20_000 + self.bytes.len()).ok()?;
        let buffer = BufferId::new(Group::Tun, number);
        self.put(buffer, vec![0xee; 4096]);
        Some(buffer)
    }
}

struct Bench {
    path: Path,
    plan: Plan,
    buffers: TestBuffers,
    worker: Arc<WorkerCell>,
    endpoint: Arc<EndpointCell>,
}

impl Bench {
    fn new() -> Self {
        Self::unattached(Offload::ALL)
    }

    /// An endpoint is served, with these offloads.
    fn with(offload: Offload) -> Self {
        let mut bench = Self::unattached(offload);
        bench.attach();
        bench
    }

    fn unattached(offload: Offload) -> Self {
        let plan = TablePlan::new(1000, 1);
        let flows = Arc::new(FlowTable::new(plan, HashSeed::fixed(1)));
        let worker = Arc::new(WorkerCell::default());
        Self {
            path: Path::new(flows, Arc::clone(&worker), 8, (0, 1), offload),
            plan: Plan::new(2000, 20_000),
            buffers: TestBuffers::default(),
            worker,
            endpoint: Arc::default(),
        }
    }

    /// An endpoint is served, and this is changed about the path.
    fn changed(change: impl FnOnce(Path) -> Path) -> Self {
        let Self { path, plan, buffers, worker, endpoint } = Self::new();
        let mut bench = Self { path: change(path), plan, buffers, worker, endpoint };
        bench.attach();
        bench
    }

    fn attached() -> Self {
        Self::with(Offload::ALL)
    }

    fn attach(&mut self) {
        self.path.attach(Endpoint {
            id: ID,
            endpoint: LIFE,
            templates: Arc::new(Templates::default()),
            cell: Arc::clone(&self.endpoint),
        });
    }

    /// A datagram arrives behind 96 bytes, as in a receive buffer, and is a batch of its own.
    fn arrive(&mut self, datagram: &[u8], outer: OuterPath) -> Decap {
        let bytes = [&[0; 96][..], datagram].concat();
        let range = 96..bytes.len();
        self.buffers.put(BUFFER, bytes);
        let arrived = Arrived { buffer: BUFFER, datagram: range, outer };
        let decap = self.path.decap(arrived, NOW, &mut self.buffers, &mut self.plan);
        self.path.end_batch(&mut self.buffers, &mut self.plan);
        decap
    }

    /// A frame is read behind its headroom, and is a batch of its own.
    fn read(&mut self, frame: &[u8], side: Side) {
        self.read_at(NOW, frame, side);
    }

    /// The same, at another moment.
    fn read_at(&mut self, now: Moment, frame: &[u8], side: Side) {
        let bytes = [&[0xee; 256][..], frame].concat();
        let range = 256..bytes.len();
        self.buffers.put(BUFFER, bytes);
        let frame = Frame { buffer: BUFFER, frame: range, side };
        self.path.encap(LIFE.slot, &frame, now, &mut self.buffers, &mut self.plan);
        self.path.end_batch(&mut self.buffers, &mut self.plan);
    }

    /// The only job of the plan, as target and bytes.
    fn planned(&mut self) -> (Target, Vec<u8>) {
        let mut jobs = self.plan.jobs();
        let (job, spans) = jobs.next().expect("something is planned");
        assert!(jobs.next().is_none(), "one job");
        assert_eq!((job.endpoint, job.packets), (LIFE.slot, 1));
        let planned = (job.target, self.buffers.gather(spans));
        drop(jobs);
        self.plan.clear();
        planned
    }
}

fn frame(packet: &[u8]) -> Vec<u8> {
    [&[0; 10][..], packet].concat()
}

#[test]
fn a_packet_goes_in_and_its_answer_comes_back_with_its_header() {
    let mut bench = Bench::attached();
    let decap = bench.arrive(&datagram(*b"abcd"), outer(60_000));
    assert_eq!(decap, Decap::Done);
    assert_eq!(bench.planned(), (Target::Gwi(None), frame(&PACKET)));

    for side in Side::BOTH {
        for packet in [&PACKET, &ANSWER] {
            bench.read(&frame(packet), side);
            let expected = [&header(*b"abcd")[..], packet].concat();
            assert_eq!(bench.planned(), (Target::Outer(outer(60_000)), expected));
        }
    }
    assert_eq!(bench.endpoint.from_gwlb.packets.get(), 1);
    assert_eq!(bench.endpoint.from_gwlb.bytes.get(), 28);
    assert_eq!(bench.endpoint.from_gwi.packets.get(), 2);
    assert_eq!(bench.endpoint.from_gwo.bytes.get(), 56);
    assert_eq!(bench.endpoint.flows_added.get(FlowKind::V4Udp), 1);
    assert_eq!(bench.endpoint.last_seen.get(), NOW);
}

#[test]
fn the_newest_header_wins() {
    let mut bench = Bench::attached();
    for (cookie, port) in [(*b"old.", 60_000), (*b"new!", 60_001)] {
        bench.arrive(&datagram(cookie), outer(port));
        bench.plan.clear();
    }
    bench.read(&frame(&ANSWER), Side::Gwo);
    let expected = [&header(*b"new!")[..], &ANSWER].concat();
    assert_eq!(bench.planned(), (Target::Outer(outer(60_001)), expected));
}

#[test]
fn a_header_from_another_source_is_counted_or_refused() {
    let elsewhere = OuterPath { remote: Ipv4Addr::new(10, 9, 0, 3), ..outer(60_000) };
    for (sources, retaught, refused) in [(Sources::Any, 1, 0), (Sources::Pinned, 0, 1)] {
        let plan = TablePlan { sources, ..TablePlan::new(1000, 1) };
        let flows = Arc::new(FlowTable::new(plan, HashSeed::fixed(1)));
        let mut bench = Bench::changed(|path| Path { flows, ..path });
        bench.arrive(&datagram(*b"abcd"), outer(60_000));
        bench.plan.clear();
        bench.arrive(&datagram(*b"evil"), elsewhere);
        assert_eq!(bench.plan.is_empty(), refused == 1);
        bench.plan.clear();
        bench.read(&frame(&ANSWER), Side::Gwo);
        let expected = if refused == 1 { outer(60_000) } else { elsewhere };
        assert_eq!(bench.planned().0, Target::Outer(expected));
        bench.path.publish();
        assert_eq!(bench.worker.flows_retaught.get(), retaught);
        assert_eq!(bench.endpoint.decap_drops.get(DropReason::SourcePinned), refused);
    }
}

#[test]
fn where_nothing_returns_packets_go_in_and_no_flow_is_known() {
    let mut bench = Bench::changed(|path| path.with_returns(false));
    for number in 0..100 {
        // More different headers than an endpoint has templates for, which are not needed.
        let mut datagram = datagram(*b"abcd");
        datagram[7] = number;
        bench.arrive(&datagram, outer(60_000));
        assert_eq!(bench.planned(), (Target::Gwi(None), frame(&PACKET)));
    }
    bench.read(&frame(&ANSWER), Side::Gwi);
    assert!(bench.plan.is_empty());
    assert_eq!(bench.endpoint.encap_drops.get(DropReason::NoReturn), 1);
    assert_eq!(bench.endpoint.decap_drops.get(DropReason::OptionSetLimit), 0);
    assert_eq!(bench.endpoint.flows_added.get(FlowKind::V4Udp), 0);
}

#[test]
fn a_path_takes_the_options_of_its_profile() {
    let mut theirs = datagram(*b"abcd");
    for at in [8, 20, 32] {
        theirs[at..at + 2].copy_from_slice(&[0x01, 0x67]);
    }
    let mut bench = Bench::changed(|path| path.with_profile(Profile::TENCENT));
    bench.arrive(&theirs, outer(60_000));
    assert_eq!(bench.planned(), (Target::Gwi(None), frame(&PACKET)));
    bench.read(&frame(&ANSWER), Side::Gwo);
    let expected = [&theirs[..40], &ANSWER].concat();
    assert_eq!(bench.planned(), (Target::Outer(outer(60_000)), expected));
    bench.arrive(&datagram(*b"abcd"), outer(60_000));
    assert!(bench.plan.is_empty());
    assert_eq!(bench.worker.drops.get(DropReason::OptionMissing), 1);
}

#[test]
fn the_flows_of_a_detached_endpoint_make_room() {
    let flows = Arc::new(FlowTable::new(TablePlan::new(1, 1), HashSeed::fixed(1)));
    let table = Arc::clone(&flows);
    let mut bench = Bench::changed(|path| Path { flows, ..path });
    bench.arrive(&datagram(*b"abcd"), outer(60_000));
    bench.path.closing(LIFE);
    assert_eq!(bench.path.detach(LIFE), None);
    bench.path.expire(10, NOW);
    assert!(table.is_empty(), "as young as it is");
}

#[test]
fn an_open_checksum_is_completed() {
    let mut bench = Bench::attached();
    bench.arrive(&datagram(*b"abcd"), outer(1));
    bench.plan.clear();
    // VIRTIO_NET_HDR_F_NEEDS_CSUM, from byte 20, at offset 6 of it, over 8 bytes that add up to
    // 0x0035 + 0x1234 + 0x0008; the field holds no seed here.
    let mut open = frame(&ANSWER);
    open[0] = 1;
    open[6..8].copy_from_slice(&20_u16.to_ne_bytes());
    open[8..10].copy_from_slice(&6_u16.to_ne_bytes());
    bench.read(&open, Side::Gwo);
    let (_, sent) = bench.planned();
    assert_eq!(sent[40 + 26..], (!0x1271_u16).to_be_bytes());
}

#[test]
fn frames_that_cannot_return_are_counted_once_each() {
    let mut bench = Bench::attached();
    bench.arrive(&datagram(*b"abcd"), outer(1));
    bench.plan.clear();
    let mut stranger = ANSWER;
    stranger[19] = 99;
    let mut cut = frame(&ANSWER);
    cut.truncate(30);
    let mut segmented = frame(&ANSWER);
    segmented[1] = 1;
    // A later fragment: its sender is told by the first.
    let mut large = [&ANSWER[..], &[0; 9000]].concat();
    large[2..4].copy_from_slice(&9028_u16.to_be_bytes());
    large[7] = 1;
    bench.arrive(&[&header(*b"abcd")[..], &large].concat(), outer(1));
    bench.plan.clear();
    for (bytes, reason) in [
        (frame(&stranger), DropReason::FlowUnknown),
        (cut, DropReason::TunBadFrame),
        (segmented, DropReason::TunBadFrame),
        (vec![0; 9], DropReason::TunBadFrame),
        (vec![0; 10], DropReason::TunBadFrame),
        (frame(&large), DropReason::Mtu),
    ] {
        let before = bench.endpoint.encap_drops.get(reason);
        bench.read(&bytes, Side::Gwo);
        assert_eq!(bench.endpoint.encap_drops.get(reason), before + 1, "{reason}");
        assert!(bench.plan.is_empty());
    }
    assert_eq!(bench.endpoint.from_gwo.packets.get(), 6);
    assert_eq!(bench.endpoint.host_noise.get(), 0);
}

#[test]
fn the_kernels_own_packets_are_noise() {
    let mut bench = Bench::attached();
    let mut solicitation = [0; 48];
    solicitation[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 8, 58, 255]);
    solicitation[8..10].copy_from_slice(&[0xfe, 0x80]);
    solicitation[24..26].copy_from_slice(&[0xff, 0x02]);
    solicitation[39] = 2;
    solicitation[40] = 133;
    bench.read(&frame(&solicitation), Side::Gwi);
    assert_eq!(bench.endpoint.host_noise.get(), 1);
    assert_eq!(bench.endpoint.last_seen.get(), Moment::ZERO, "noise is no activity");
}

#[test]
fn datagrams_wait_for_their_endpoint_in_order() {
    let mut bench = Bench::new();
    let decap = bench.arrive(&datagram(*b"0000"), outer(1));
    assert_eq!(decap, Decap::Unknown(ID));
    assert!(bench.path.announced(ID, &datagram(*b"0000"), outer(1)));
    for n in 1..1030_u16 {
        let [high, low] = n.to_be_bytes();
        let cookie = [0, 0, high, low];
        assert_eq!(bench.arrive(&datagram(cookie), outer(n)), Decap::Done);
    }
    assert!(bench.plan.is_empty());
    assert_eq!(bench.worker.held_in.get(), 1024);
    assert_eq!(bench.worker.drops.get(DropReason::NotReady), 6);

    bench.attach();
    // One that arrives now must not overtake the held ones.
    assert_eq!(bench.arrive(&datagram(*b"late"), outer(1)), Decap::Done);
    assert_eq!(bench.worker.drops.get(DropReason::NotReady), 7, "its share is full");
    let mut ports = Vec::new();
    while bench.path.has_held(LIFE) {
        let mut bytes = vec![0; 200];
        let (len, outer) = bench.path.next_held(LIFE, &mut bytes[96..]).unwrap();
        bench.buffers.put(BUFFER, bytes);
        let arrived = Arrived { buffer: BUFFER, datagram: 96..96 + len, outer };
        bench.path.decap_held(arrived, NOW, &mut bench.buffers, &mut bench.plan);
        bench.path.end_batch(&mut bench.buffers, &mut bench.plan);
        assert_eq!(bench.planned(), (Target::Gwi(None), frame(&PACKET)));
        ports.push(outer.remote_port);
    }
    assert_eq!(ports, [1].into_iter().chain(1..1024).collect::<Vec<_>>());
    assert_eq!(bench.worker.held_out.get(), 1024);
    assert_eq!(bench.endpoint.from_gwlb.packets.get(), 1024);
    bench.arrive(&datagram(*b"next"), outer(1));
    assert_eq!(bench.plan.len(), 1, "nothing is held any more: no detour");
}

#[test]
fn an_endpoint_that_fails_loses_nothing_silently() {
    let mut bench = Bench::new();
    assert!(bench.path.announced(ID, &datagram(*b"abcd"), outer(1)));
    bench.path.forget(ID, DropReason::EndpointFailed);
    assert_eq!(bench.worker.drops.get(DropReason::EndpointFailed), 1);
    assert_eq!((bench.worker.held_in.get(), bench.worker.held_out.get()), (1, 1));
    assert_eq!(bench.arrive(&datagram(*b"abcd"), outer(1)), Decap::Unknown(ID));
}

#[test]
fn what_arrives_while_an_endpoint_closes_brings_it_back() {
    let mut bench = Bench::attached();
    bench.path.closing(LIFE);
    bench.arrive(&datagram(*b"abcd"), outer(1));
    assert!(bench.plan.is_empty());
    assert_eq!(bench.path.detach(LIFE), Some(ID));
    assert_eq!(bench.worker.held_in.get() - bench.worker.held_out.get(), 1);
    bench.path.drop_all_held();
    assert_eq!(bench.worker.drops.get(DropReason::Shutdown), 1);
}

#[test]
fn every_datagram_is_delivered_held_or_counted() {
    let mut bench = Bench::attached();
    let good = datagram(*b"abcd");
    for len in 0..=good.len() {
        bench.arrive(&good[..len], outer(1));
        bench.plan.clear();
    }
    let mut option_sets = 0;
    for extra in 0..70_u8 {
        let mut unknown = good.clone();
        unknown[0] += 2;
        unknown.splice(40..40, [0x00, 0x99, 1, 1, 0, 0, 0, extra]);
        bench.arrive(&unknown, outer(1));
        option_sets += usize::from(!bench.plan.is_empty());
        bench.plan.clear();
    }
    assert_eq!(option_sets, Templates::CAPACITY - 1, "one template is the usual one");
    assert_eq!(bench.endpoint.decap_drops.get(DropReason::OptionSetLimit), 7);
    let received = bench.worker.datagrams.packets.get();
    let dropped: u64 = DropReason::ALL.iter().map(|&reason| bench.worker.drops.get(reason)).sum();
    assert_eq!(received, bench.endpoint.from_gwlb.packets.get() + dropped);
}

#[test]
fn idle_flows_are_counted_out_again() {
    let mut bench = Bench::attached();
    bench.arrive(&datagram(*b"abcd"), outer(1));
    for _ in 0..200 {
        bench.path.expire(100, Moment::from_secs(100 + 119));
    }
    assert_eq!(bench.endpoint.flows_removed.get(FlowKind::V4Udp), 0);
    for _ in 0..200 {
        bench.path.expire(100, Moment::from_secs(100 + 122));
    }
    assert_eq!(bench.endpoint.flows_removed.get(FlowKind::V4Udp), 1);
    bench.plan.clear();
    bench.read(&frame(&ANSWER), Side::Gwo);
    assert_eq!(bench.endpoint.encap_drops.get(DropReason::FlowUnknown), 1);
}
