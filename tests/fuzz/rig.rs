//! The packet path without I/O: bytes in, planned bytes out, and the counters.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

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
use gwlbtun::path::plan::Target;
use gwlbtun::stats::EndpointCell;
use gwlbtun::stats::WorkerCell;
use gwlbtun::types::DropReason;
use gwlbtun::types::EndpointId;
use gwlbtun::types::EndpointRef;
use gwlbtun::types::EndpointSlot;
use gwlbtun::types::Generation;
use gwlbtun::types::Moment;
use gwlbtun::types::Offload;
use gwlbtun::types::OuterPath;
use gwlbtun::types::Side;

/// The endpoint that is served.
pub(crate) const ENDPOINT: EndpointId = EndpointId(0x2b8e_e1d4_db0c_51c4);

const SLOT: EndpointSlot = EndpointSlot(1);

/// Room in the flow table: for more than any input teaches.
const FLOWS_MAX: usize = 512;

/// Bytes before a datagram or a frame in its buffer: room for the longest GENEVE header.
const HEADROOM_BYTES: usize = 320;

/// Room for what is copied: a packet as long as may return, under the longest header.
const SCRATCH_BYTES: usize = 9216;

/// One write or send, its bytes gathered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) target: Target,
    pub(crate) packets: usize,
    pub(crate) packet_bytes: usize,
    pub(crate) datagram_bytes: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Planned {
    /// The datagrams of a send.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.datagram_bytes)
    }
}

/// Buffers by number: a group's buffers are put one after the other.
#[derive(Debug, Default)]
struct Memory {
    udp: Vec<Vec<u8>>,
    tun: Vec<Vec<u8>>,
    /// Buffers for copies that this batch has had, and how many each may have.
    scratch: usize,
    scratch_max: Option<usize>,
}

impl Memory {
    fn put(&mut self, group: Group, content: &[u8]) -> BufferId {
        let buffers = match group {
            Group::Udp => &mut self.udp,
            Group::Tun => &mut self.tun,
        };
        buffers.push([&[0xee; HEADROOM_BYTES][..], content].concat());
        BufferId::new(group, u16::try_from(buffers.len() - 1).expect("a small batch"))
    }
}

impl Buffers for Memory {
    fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        let index = usize::from(buffer.index());
        match buffer.group() {
            Group::Udp => &mut self.udp[index],
            Group::Tun => &mut self.tun[index],
        }
    }

    fn take_scratch(&mut self) -> Option<BufferId> {
        self.scratch += 1;
        if self.scratch_max.is_some_and(|most| self.scratch > most) {
            return None;
        }
        Some(self.put(Group::Tun, &[0xdd; SCRATCH_BYTES - HEADROOM_BYTES]))
    }
}

/// A path with its counters.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) path: Path,
    pub(crate) worker: Arc<WorkerCell>,
    pub(crate) cell: Arc<EndpointCell>,
    pub(crate) now: Moment,
    /// Which life of the endpoint this is, or was last.
    pub(crate) life: EndpointRef,
    plan: Plan,
    memory: Memory,
    flows: Arc<FlowTable>,
    /// Ids that were announced since the path was new.
    announced: Vec<EndpointId>,
    /// Drops of the worker's that were counted then.
    drops_before: u64,
}

impl Rig {
    /// A path that serves [`ENDPOINT`].
    pub(crate) fn new(offload: Offload) -> Self {
        Self::returning(offload, true)
    }

    /// The same, for a program that returns packets or (`--no-return`) does not.
    pub(crate) fn returning(offload: Offload, returns: bool) -> Self {
        // One shard: until it is full, and no test here fills it, nothing is evicted.
        let plan = TablePlan { shards: 1, endpoints_max: 8, ..TablePlan::new(FLOWS_MAX, 1) };
        let flows = Arc::new(FlowTable::new(plan, HashSeed::fixed(1)));
        let worker = Arc::new(WorkerCell::default());
        let path = Path::new(Arc::clone(&flows), Arc::clone(&worker), 8, (0, 1), offload);
        let mut rig = Self {
            path: path.with_returns(returns),
            flows,
            worker,
            cell: Arc::default(),
            now: Moment::from_secs(100),
            life: EndpointRef { slot: SLOT, generation: Generation::default() },
            plan: Plan::new(4000, 20_000),
            memory: Memory::default(),
            announced: Vec::new(),
            drops_before: 0,
        };
        rig.attach();
        rig
    }

    /// Everything ends, and the endpoint begins a new life a thousand seconds later. What is new is
    /// like a new path, for much less than one costs.
    ///
    /// # Panics
    /// If something of the old life is left.
    pub(crate) fn renew(&mut self) {
        self.path.drop_all_held();
        let _ = self.path.detach(self.life);
        for id in self.announced.drain(..) {
            self.path.forget(id, DropReason::EndpointFailed);
        }
        self.now = Moment::from_secs(self.now.secs().into()).after(Duration::from_secs(1000));
        self.expire();
        assert!(self.flows.is_empty(), "{} flows are left", self.flows.len());
        assert!(!self.path.has_waiting());
        assert_eq!(self.held(), 0);
        self.cell = Arc::default();
        self.path.set_clamp_mss(None);
        self.memory.scratch_max = None;
        self.drops_before = 0;
        self.drops_before = self.drops();
        self.attach();
    }

    /// Everything that has been idle for too long is forgotten. A round may pass over flows that
    /// move while it removes others; one that removes nothing has seen them all.
    pub(crate) fn expire(&mut self) {
        let mut before = None;
        while before.replace(self.flows.len()) != Some(self.flows.len()) {
            self.path.expire(FLOWS_MAX, self.now);
        }
    }

    /// Only so many buffers for copies from now on, batch by batch.
    pub(crate) fn limit_scratch(&mut self, buffers: usize) {
        self.memory.scratch_max = Some(buffers);
    }

    /// An id that is new was admitted, and its datagram is held if there is room.
    pub(crate) fn announce(&mut self, id: EndpointId, datagram: &[u8], port: u16) {
        if self.path.announced(id, datagram, Self::outer(port)) {
            self.announced.push(id);
        }
    }

    /// The endpoint is served, for the first time or anew.
    pub(crate) fn attach(&mut self) {
        self.life.generation = self.life.generation.next();
        self.path.attach(Endpoint {
            id: ENDPOINT,
            endpoint: self.life,
            templates: Arc::new(Templates::default()),
            cell: Arc::clone(&self.cell),
        });
    }

    /// The outer path that uses this port.
    pub(crate) fn outer(remote_port: u16) -> OuterPath {
        let (local, remote) = (Ipv4Addr::new(10, 99, 0, 100), Ipv4Addr::new(10, 99, 0, 11));
        OuterPath { local, remote, remote_port }
    }

    /// A datagram arrives. What is planned, [`Self::end_batch`] tells.
    pub(crate) fn arrive(&mut self, datagram: &[u8], port: u16) -> Decap {
        let buffer = self.memory.put(Group::Udp, datagram);
        let range = HEADROOM_BYTES..HEADROOM_BYTES + datagram.len();
        let arrived = Arrived { buffer, datagram: range, outer: Self::outer(port) };
        self.path.decap(arrived, self.now, &mut self.memory, &mut self.plan)
    }

    /// Everything that was held for the endpoint arrives.
    pub(crate) fn arrive_held(&mut self) {
        let mut room = vec![0; 70_000];
        while let Some((bytes, outer)) = self.path.next_held(self.life, &mut room) {
            let buffer = self.memory.put(Group::Udp, &room[..bytes]);
            let range = HEADROOM_BYTES..HEADROOM_BYTES + bytes;
            let arrived = Arrived { buffer, datagram: range, outer };
            self.path.decap_held(arrived, self.now, &mut self.memory, &mut self.plan);
        }
    }

    /// A frame is read.
    pub(crate) fn read(&mut self, frame: &[u8], side: Side) {
        let buffer = self.memory.put(Group::Tun, frame);
        let range = HEADROOM_BYTES..HEADROOM_BYTES + frame.len();
        let frame = Frame { buffer, frame: range, side };
        self.path.encap(SLOT, &frame, self.now, &mut self.memory, &mut self.plan);
    }

    /// Fragments that wait for their first one leave if they can.
    pub(crate) fn send_waiting(&mut self) {
        self.path.send_waiting(self.now, &mut self.memory, &mut self.plan);
    }

    /// Whether a frame more, or a datagram, fits the plan.
    pub(crate) fn has_room(&self) -> bool {
        self.path.has_room(&self.plan, 1)
    }

    /// The batch is over: what it came to.
    pub(crate) fn end_batch(&mut self) -> Vec<Planned> {
        let Self { path, plan, memory, .. } = self;
        path.end_batch(memory, plan);
        let mut planned = Vec::new();
        for (job, spans) in plan.jobs() {
            let mut bytes = Vec::new();
            for span in spans {
                let (start, len) = (span.start as usize, span.len as usize);
                bytes.extend_from_slice(&memory.bytes_mut(span.buffer)[start..start + len]);
            }
            planned.push(Planned {
                target: job.target,
                packets: job.packets as usize,
                packet_bytes: job.packet_bytes as usize,
                datagram_bytes: job.datagram_bytes.into(),
                bytes,
            });
        }
        plan.clear();
        memory.udp.clear();
        memory.tun.clear();
        memory.scratch = 0;
        planned
    }

    /// All drops of the worker and its endpoint, of both ways.
    pub(crate) fn drops(&self) -> u64 {
        let of = |reason: &DropReason| {
            self.worker.drops.get(*reason)
                + self.cell.decap_drops.get(*reason)
                + self.cell.encap_drops.get(*reason)
        };
        DropReason::ALL.iter().map(of).sum::<u64>() - self.drops_before
    }

    /// Datagrams that wait for their endpoint.
    pub(crate) fn held(&self) -> u64 {
        self.worker.held_in.get() - self.worker.held_out.get()
    }
}
