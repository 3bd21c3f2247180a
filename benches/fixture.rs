//! The packet path without I/O, for the benches that look at it alone: batches of datagrams as the
//! load balancer sends them, and the path with one endpoint that knows their flows.
//!
//! The datagrams are those of the load bench, which shares no code with the program.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;

use gwlbtun::flow::FlowTable;
use gwlbtun::flow::HashSeed;
use gwlbtun::flow::TablePlan;
use gwlbtun::flow::Templates;
use gwlbtun::path::Arrived;
use gwlbtun::path::Decap;
use gwlbtun::path::Endpoint;
use gwlbtun::path::Frame;
use gwlbtun::path::Path;
use gwlbtun::path::plan::BufferId;
use gwlbtun::path::plan::Buffers;
use gwlbtun::path::plan::Group;
use gwlbtun::path::plan::Plan;
use gwlbtun::path::plan::Span;
use gwlbtun::types::EndpointId;
use gwlbtun::types::EndpointRef;
use gwlbtun::types::EndpointSlot;
use gwlbtun::types::Generation;
use gwlbtun::types::Moment;
use gwlbtun::types::Offload;
use gwlbtun::types::OuterPath;
use gwlbtun::types::Side;
use gwlbtun::wire::checksum;
use gwlbtun::wire::gro::Candidate;
use gwlbtun::wire::gro::Run;
use gwlbtun::wire::gso::HEADERS_BYTES_MAX;
use gwlbtun::wire::gso::Segmenter;
use gwlbtun::wire::virtio_net;

use crate::packet::ENDPOINT_FIRST;
use crate::packet::Flow;
use crate::packet::GENEVE_BYTES;
use crate::packet::Inner;

/// What stands before a datagram in a receive buffer, and before a frame.
const HEADROOM_BYTES: usize = 256;

/// What the path may write over: the headers of a datagram, the virtio header of a frame.
const HEADERS_BYTES: usize = GENEVE_BYTES + 20 + 32;
const VIRTIO_BYTES: usize = 10;

/// Scratch buffers, their size, and their first number, which is behind those of all frames.
const SCRATCH: u16 = 64;
const SCRATCH_BYTES: usize = 9216;
const SCRATCH_FIRST: u16 = 1000;

const SLOT: EndpointSlot = EndpointSlot(0);

const NOW: Moment = Moment::from_secs(100);

/// What one batch consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Batch {
    /// 43 packets of one TCP download, 1,400 bytes of payload each: what one super-datagram holds.
    Bulk,
    /// 64 UDP packets of 18 bytes, each of another flow.
    Small,
}

impl Batch {
    pub(crate) const ALL: [Self; 2] = [Self::Bulk, Self::Small];

    /// Frames that the batch becomes.
    const fn frames(self) -> usize {
        match self {
            Self::Bulk => 1,
            // Of each flow one packet: nothing to merge.
            Self::Small => 64,
        }
    }

    /// For tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bulk => "tcp 1400, 1 flow",
            Self::Small => "udp 18, 64 flows",
        }
    }

    /// Packets of the batch.
    pub(crate) fn packets(self) -> u64 {
        u64::try_from(self.datagrams().len()).expect("a small batch")
    }

    /// The datagrams, each a packet.
    pub(crate) fn datagrams(self) -> Vec<Vec<u8>> {
        match self {
            Self::Bulk => {
                let mut flow = Flow::new(ENDPOINT_FIRST, 0, Inner::Tcp4);
                (0..43).map(|_| flow.next_datagram(1400)).collect()
            }
            Self::Small => (0..64)
                .map(|number| Flow::new(ENDPOINT_FIRST, number, Inner::Udp).next_datagram(18))
                .collect(),
        }
    }
}

/// The path, and a batch in receive buffers on both its sides.
pub(crate) struct Fixture {
    path: Path,
    plan: Plan,
    buffers: Memory,
    /// What stands at the start of each datagram, and of each frame.
    datagram_starts: Vec<Vec<u8>>,
    frame_starts: Vec<Vec<u8>>,
}

/// Datagrams and frames behind their headroom, then scratch.
struct Memory {
    datagrams: Vec<Vec<u8>>,
    frames: Vec<Vec<u8>>,
    scratch: Vec<Vec<u8>>,
    scratch_taken: u16,
}

impl Buffers for Memory {
    fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        let index = usize::from(buffer.index());
        match (buffer.group(), index.checked_sub(usize::from(SCRATCH_FIRST))) {
            (Group::Udp, _) => &mut self.datagrams[index],
            (Group::Tun, None) => &mut self.frames[index],
            (Group::Tun, Some(index)) => &mut self.scratch[index],
        }
    }

    fn take_scratch(&mut self) -> Option<BufferId> {
        self.scratch_taken += 1;
        assert!(self.scratch_taken <= SCRATCH, "a small batch");
        Some(BufferId::new(Group::Tun, SCRATCH_FIRST + self.scratch_taken - 1))
    }
}

impl Fixture {
    /// A path that has seen each packet of the batch once. The frames that are read are those that
    /// it wrote.
    pub(crate) fn new(batch: Batch) -> Self {
        let flows = Arc::new(FlowTable::new(TablePlan::new(1000, 1), HashSeed::fixed(1)));
        let mut path = Path::new(flows, Arc::default(), 8, (0, 1), Offload::ALL);
        path.attach(Endpoint {
            id: EndpointId(ENDPOINT_FIRST),
            endpoint: EndpointRef { slot: SLOT, generation: Generation::default() },
            templates: Arc::new(Templates::default()),
            cell: Arc::default(),
        });
        let datagrams = batch.datagrams();
        let mut fixture = Self {
            path,
            plan: Plan::new(2000, 20_000),
            datagram_starts: datagrams.iter().map(|bytes| start(bytes, HEADERS_BYTES)).collect(),
            frame_starts: Vec::new(),
            buffers: Memory {
                datagrams: datagrams.iter().map(|bytes| behind_headroom(bytes)).collect(),
                frames: Vec::new(),
                scratch: vec![vec![0; SCRATCH_BYTES]; usize::from(SCRATCH)],
                scratch_taken: 0,
            },
        };
        assert_eq!(fixture.decap(), batch.frames(), "as many frames as can be");
        let frames = fixture.planned();
        fixture.frame_starts = frames.iter().map(|bytes| start(bytes, VIRTIO_BYTES)).collect();
        fixture.buffers.frames = frames.iter().map(|bytes| behind_headroom(bytes)).collect();
        assert_eq!(fixture.encap(), 1, "all datagrams are equally long and of one outer port");
        fixture
    }

    /// The bytes of the planned jobs.
    fn planned(&mut self) -> Vec<Vec<u8>> {
        let Self { plan, buffers, .. } = self;
        let gather = |spans: &[Span]| {
            let mut bytes = Vec::new();
            for span in spans {
                let start = usize::try_from(span.start).expect("32 bits");
                let end = start + usize::try_from(span.len).expect("32 bits");
                bytes.extend_from_slice(&buffers.bytes_mut(span.buffer)[start..end]);
            }
            bytes
        };
        plan.jobs().map(|(_, spans)| spans).map(gather).collect()
    }

    /// The first frame, which is a super-packet, is cut: the headers of all segments are written;
    /// payloads stay where they are.
    pub(crate) fn cut_first_frame(&self) {
        cut(black_box(&self.buffers.frames[0][HEADROOM_BYTES..]));
    }

    /// The batch has been received. Returns how many writes are planned.
    pub(crate) fn decap(&mut self) -> usize {
        self.plan.clear();
        for (number, start) in (0..).zip(&self.datagram_starts) {
            let buffer = BufferId::new(Group::Udp, number);
            let bytes = self.buffers.bytes_mut(buffer);
            bytes[HEADROOM_BYTES..HEADROOM_BYTES + start.len()].copy_from_slice(start);
            let arrived = Arrived {
                buffer,
                datagram: HEADROOM_BYTES..bytes.len(),
                outer: OuterPath {
                    local: Ipv4Addr::new(10, 9, 0, 2),
                    remote: Ipv4Addr::new(10, 9, 0, 1),
                    remote_port: 60_000,
                },
            };
            let decap = self.path.decap(arrived, NOW, &mut self.buffers, &mut self.plan);
            assert_eq!(decap, Decap::Done, "the endpoint is known");
        }
        self.end_batch()
    }

    /// The batch has been read from gwo. Returns how many sends are planned.
    pub(crate) fn encap(&mut self) -> usize {
        self.plan.clear();
        for (number, start) in (0..).zip(&self.frame_starts) {
            let buffer = BufferId::new(Group::Tun, number);
            let bytes = self.buffers.bytes_mut(buffer);
            bytes[HEADROOM_BYTES..HEADROOM_BYTES + start.len()].copy_from_slice(start);
            let frame = Frame { buffer, frame: HEADROOM_BYTES..bytes.len(), side: Side::Gwo };
            self.path.encap(SLOT, &frame, NOW, &mut self.buffers, &mut self.plan);
        }
        self.end_batch()
    }

    fn end_batch(&mut self) -> usize {
        self.path.end_batch(&mut self.buffers, &mut self.plan);
        self.buffers.scratch_taken = 0;
        self.plan.len()
    }
}

fn start(bytes: &[u8], most: usize) -> Vec<u8> {
    bytes[..bytes.len().min(most)].to_vec()
}

fn behind_headroom(bytes: &[u8]) -> Vec<u8> {
    [&[0; HEADROOM_BYTES], bytes].concat()
}

/// Merges the packets of one download, checksums included. The first packet gets the headers of the
/// super-packet, then its own back.
pub(crate) fn merge(datagrams: &mut [Vec<u8>]) {
    let (first, others) = datagrams.split_first_mut().expect("a batch");
    let first = &mut first[GENEVE_BYTES..];
    let mut run = Run::none();
    run.begin(candidate(first), first);
    for datagram in others {
        let packet = black_box(&datagram[GENEVE_BYTES..]);
        let next = candidate(packet);
        assert!(run.is_continued_by(&next, packet), "they follow each other");
        run.append(next, packet);
    }
    black_box(run.finish(first));
    run.restore(first);
}

/// A packet that may be merged, its checksums looked at.
fn candidate(packet: &[u8]) -> Candidate {
    let candidate = Candidate::new(packet).expect("a packet of a download");
    assert!(candidate.has_sender_checksums(packet), "they are right");
    candidate
}

fn cut(frame: &[u8]) {
    let header = virtio_net::Header::parse(frame).expect("a frame");
    let packet = black_box(&frame[virtio_net::HEADER_BYTES..]);
    let segmenter = Segmenter::new(packet, &header).expect("a super-packet");
    let mut out = [0; HEADERS_BYTES_MAX];
    for segment in 0..segmenter.segments() {
        let payload = checksum::sum(&packet[segmenter.payload(segment)]);
        segmenter.write(segment, payload, black_box(&mut out));
    }
}
