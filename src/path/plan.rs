//! The seam between packets and I/O: what shall be written where, without saying how.
//!
//! The path fills a [`Plan`] from a batch of received bytes; an engine executes it, today with
//! io_uring. A *job* is one write to a TUN or one send to a load balancer node; it gathers one or
//! more *spans*, which are places in receive buffers. No payload is copied: who executes the job
//! leases the buffers until the kernel is done with them.
//!
//! A job may hold many packets: as one super-packet for a TUN, or as datagrams of one size that the
//! kernel cuts apart (`UDP_SEGMENT`, udp(7)).

use std::ops::Range;

use crate::types::EndpointSlot;
use crate::types::OuterPath;
pub use crate::wire::gso::Transport;

/// Most packets of one job. The kernel cuts at most 64 datagrams from one send
/// (`UDP_MAX_SEGMENTS`, include/linux/udp.h, before 6.9).
pub const PACKETS_MAX: usize = 64;

/// Most spans of one job, and so most buffers that one operation leases: a header and a payload of
/// each packet.
pub const SPANS_MAX: usize = 2 * PACKETS_MAX;

/// Most bytes of one send: the longest UDP payload over IPv4, before it is cut too.
pub const SEND_BYTES_MAX: usize = 65_507;

/// Which set of receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Buffers that datagrams are received into.
    Udp,
    /// Buffers that frames are read into.
    Tun,
}

/// One receive buffer of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferId(u16);

impl BufferId {
    /// Buffers per group: the number shares 16 bits with the group.
    pub const COUNT_MAX: u16 = 1 << 15;

    /// Buffer `index` of `group`.
    ///
    /// # Panics
    /// If the index is [`Self::COUNT_MAX`] or more.
    pub const fn new(group: Group, index: u16) -> Self {
        assert!(index < Self::COUNT_MAX);
        match group {
            Group::Udp => Self(index),
            Group::Tun => Self(index | Self::COUNT_MAX),
        }
    }

    /// The group that the buffer belongs to.
    pub const fn group(self) -> Group {
        if self.0 < Self::COUNT_MAX { Group::Udp } else { Group::Tun }
    }

    /// Number of the buffer in its group.
    pub const fn index(self) -> u16 {
        self.0 & (Self::COUNT_MAX - 1)
    }
}

impl std::fmt::Debug for BufferId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}#{}", self.group(), self.index())
    }
}

/// Bytes of one receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The buffer.
    pub buffer: BufferId,
    /// Offset of the first byte in the buffer.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Span {
    /// These bytes of a buffer.
    ///
    /// # Panics
    /// If they end beyond 4 GiB, as those of no buffer do.
    #[inline]
    pub fn new(buffer: BufferId, bytes: Range<usize>) -> Self {
        Self { buffer, start: length(bytes.start), len: length(bytes.len()) }
    }
}

/// A length or a place as a job has it.
#[inline]
pub(super) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a buffer is far below 4 GiB")
}

/// Where a job's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// As one frame to this worker's queue of the endpoint's `gwi`: a packet, or a super-packet of
    /// this transport.
    Gwi(Option<Transport>),
    /// As datagrams, one per packet, back to the load balancer node.
    Outer(OuterPath),
}

/// One write or one send. Its spans stand in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The endpoint that the packets belong to.
    pub endpoint: EndpointSlot,
    /// Where the bytes go.
    pub target: Target,
    /// Inner packets in the job, at most [`PACKETS_MAX`].
    pub packets: u32,
    /// Sum of the inner packets' lengths in bytes.
    pub packet_bytes: u32,
    /// Of a send: bytes of each datagram; the last one may be shorter. Of a write: nothing.
    pub datagram_bytes: u16,
}

/// A job and where its spans are.
#[derive(Clone, Copy, Debug)]
struct Planned {
    job: Job,
    spans_start: u32,
    spans_end: u32,
}

/// What one turn wants written. Fixed in size: the caller executes it when it is full.
#[derive(Debug)]
pub struct Plan {
    jobs: Vec<Planned>,
    spans: Vec<Span>,
}

impl Plan {
    /// An empty plan that holds up to `jobs_max` jobs with `spans_max` spans in all. This is its
    /// only allocation.
    pub fn new(jobs_max: usize, spans_max: usize) -> Self {
        Self { jobs: Vec::with_capacity(jobs_max), spans: Vec::with_capacity(spans_max) }
    }

    /// Whether `jobs` more jobs with `spans` spans in all fit.
    pub fn has_room(&self, jobs: usize, spans: usize) -> bool {
        self.jobs.len() + jobs <= self.jobs.capacity()
            && self.spans.len() + spans <= self.spans.capacity()
    }

    /// Adds a job that gathers `spans`.
    ///
    /// # Panics
    /// If there is no room, no span, or more than [`SPANS_MAX`] of them.
    pub fn push(&mut self, job: Job, spans: impl IntoIterator<Item = Span>) {
        let index = |n: usize| u32::try_from(n).expect("a plan is small");
        let spans_start = self.spans.len();
        assert!(self.has_room(1, 1), "a plan does not grow");
        for span in spans {
            assert!(self.spans.len() < self.spans.capacity(), "a plan does not grow");
            self.spans.push(span);
        }
        let count = self.spans.len() - spans_start;
        assert!((1..=SPANS_MAX).contains(&count), "{count} spans");
        let (spans_start, spans_end) = (index(spans_start), index(self.spans.len()));
        self.jobs.push(Planned { job, spans_start, spans_end });
    }

    /// The jobs, in the order in which they shall be started, each with its spans.
    pub fn jobs(&self) -> impl Iterator<Item = (&Job, &[Span])> {
        self.jobs.iter().map(|Planned { job, spans_start, spans_end }| {
            (job, &self.spans[*spans_start as usize..*spans_end as usize])
        })
    }

    /// Number of jobs.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Forgets every job.
    pub fn clear(&mut self) {
        self.jobs.clear();
        self.spans.clear();
    }
}

/// The receive buffers that packets are in, for whoever plans.
pub trait Buffers {
    /// The bytes of a buffer of this batch, headroom included.
    ///
    /// # Panics
    /// If the buffer is not held, or an operation uses it: what was planned from it is executed.
    fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8];

    /// One more buffer of this batch, to write headers into. Nothing if none is free.
    fn take_scratch(&mut self) -> Option<BufferId>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(index: u16) -> Span {
        Span { buffer: BufferId::new(Group::Udp, index), start: 10, len: 20 }
    }

    fn job(packets: u32) -> Job {
        let (endpoint, target) = (EndpointSlot(7), Target::Gwi(None));
        Job { endpoint, target, packets, packet_bytes: 20 * packets, datagram_bytes: 0 }
    }

    #[test]
    fn a_buffer_keeps_its_group_and_number() {
        for index in [0, 1, BufferId::COUNT_MAX - 1] {
            for group in [Group::Udp, Group::Tun] {
                let id = BufferId::new(group, index);
                assert_eq!((id.group(), id.index()), (group, index));
            }
        }
    }

    #[test]
    fn jobs_come_back_in_order_with_their_spans() {
        let mut plan = Plan::new(3, 6);
        plan.push(job(1), [span(1)]);
        plan.push(job(2), [span(2), span(3)]);
        let planned: Vec<_> = plan.jobs().map(|(job, spans)| (*job, spans.to_vec())).collect();
        assert_eq!(planned, [(job(1), vec![span(1)]), (job(2), vec![span(2), span(3)])]);
        assert!(plan.has_room(1, 1));
        plan.push(job(1), [span(4)]);
        assert!(!plan.has_room(1, 1));
        plan.clear();
        assert!(plan.is_empty() && plan.has_room(3, 6) && !plan.has_room(4, 4));
    }

    #[test]
    fn a_plan_does_not_grow() {
        let mut plan = Plan::new(100, 300);
        let capacities = (plan.jobs.capacity(), plan.spans.capacity());
        while plan.has_room(1, SPANS_MAX) {
            plan.push(job(1), [span(0); SPANS_MAX]);
        }
        assert!(!plan.is_empty());
        assert_eq!((plan.jobs.capacity(), plan.spans.capacity()), capacities);
    }
}
