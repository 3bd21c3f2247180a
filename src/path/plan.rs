//! The seam between packets and I/O: what shall be written where, without saying how.
//!
//! The path fills a [`Plan`] from a batch of received bytes; an engine executes it, today with
//! io_uring. A *job* is one write to a TUN or one send to a load balancer node; it gathers one or
//! more *spans*, which are places in receive buffers. No payload is copied: who executes the job
//! leases the buffers until the kernel is done with them.

use crate::types::EndpointSlot;
use crate::types::OuterPath;

/// Most spans of one job, and so most buffers that one operation leases. The kernel segments at
/// most 64 datagrams of one send (`UDP_MAX_SEGMENTS`, include/linux/udp.h, before 6.9).
pub const SPANS_MAX: usize = 64;

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

/// Where a job's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// As one frame to this worker's queue of the endpoint's `gwi`.
    Gwi,
    /// As one datagram back to the load balancer node.
    Outer(OuterPath),
}

/// One write or one send. Its spans stand in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The endpoint that the packets belong to.
    pub endpoint: EndpointSlot,
    /// Where the bytes go.
    pub target: Target,
    /// Inner packets in the job.
    pub packets: u32,
    /// Sum of the inner packets' lengths in bytes.
    pub packet_bytes: u32,
    spans_start: u32,
    spans_len: u32,
}

/// What one turn wants written. Fixed in size: the caller executes it when it is full.
#[derive(Debug)]
pub struct Plan {
    jobs: Vec<Job>,
    spans: Vec<Span>,
    jobs_max: usize,
}

impl Plan {
    /// An empty plan that holds up to `jobs_max` jobs. This is its only allocation.
    pub fn new(jobs_max: usize) -> Self {
        Self {
            jobs: Vec::with_capacity(jobs_max),
            spans: Vec::with_capacity(jobs_max + SPANS_MAX),
            jobs_max,
        }
    }

    /// Whether one more job of [`SPANS_MAX`] spans fits.
    pub fn has_room(&self) -> bool {
        self.jobs.len() < self.jobs_max && self.spans.len() + SPANS_MAX <= self.spans.capacity()
    }

    /// Adds a job of `packets` packets that gathers `spans`.
    ///
    /// # Panics
    /// If there is no room, no span, or more than [`SPANS_MAX`] of them.
    pub fn push(
        &mut self,
        endpoint: EndpointSlot,
        target: Target,
        spans: &[Span],
        packets: u32,
        packet_bytes: u32,
    ) {
        assert!(self.has_room() && !spans.is_empty() && spans.len() <= SPANS_MAX);
        let index = |n: usize| u32::try_from(n).expect("a plan is small");
        let spans_start = index(self.spans.len());
        let spans_len = index(spans.len());
        self.spans.extend_from_slice(spans);
        self.jobs.push(Job { endpoint, target, packets, packet_bytes, spans_start, spans_len });
    }

    /// The jobs, in the order in which they shall be started, each with its spans.
    pub fn jobs(&self) -> impl Iterator<Item = (&Job, &[Span])> {
        self.jobs.iter().map(|job| {
            let start = job.spans_start as usize;
            (job, &self.spans[start..start + job.spans_len as usize])
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

#[cfg(test)]
mod tests {
    use super::*;

    fn span(index: u16) -> Span {
        Span { buffer: BufferId::new(Group::Udp, index), start: 10, len: 20 }
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
        let mut plan = Plan::new(3);
        let slot = EndpointSlot(7);
        plan.push(slot, Target::Gwi, &[span(1)], 1, 20);
        plan.push(slot, Target::Gwi, &[span(2), span(3)], 2, 40);
        let spans: Vec<_> = plan.jobs().map(|(_, spans)| spans.to_vec()).collect();
        assert_eq!(spans, [vec![span(1)], vec![span(2), span(3)]]);
        assert!(plan.has_room());
        plan.push(slot, Target::Gwi, &[span(4)], 1, 20);
        assert!(!plan.has_room());
        plan.clear();
        assert!(plan.is_empty() && plan.has_room());
    }

    #[test]
    fn a_plan_does_not_grow() {
        let mut plan = Plan::new(100);
        let full = vec![span(0); SPANS_MAX];
        while plan.has_room() {
            plan.push(EndpointSlot(0), Target::Gwi, &full, 1, 1);
        }
        assert!(!plan.is_empty());
        assert!(plan.spans.len() <= plan.spans.capacity() && plan.spans.capacity() < 300);
    }
}
