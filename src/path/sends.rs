//! Gathering on the way out: datagrams of one size for one outer path share a send.
//!
//! The segments of a super-packet, the acknowledgments of a download, the packets of a call: the
//! kernel takes up to 64 of them at once and cuts them apart (`UDP_SEGMENT`). The last one may be
//! shorter, if it is the end of a super-packet whose other segments are in the send: where the
//! link refuses those for their length, nobody else's packet is refused with them. Any other
//! length begins the next send; at the end of the batch every send is closed. Datagrams of one path
//! stay in order.
//!
//! ```text
//!   frame from gwo   │virtio│IP TCP│ payload 1 │ payload 2 │ payload 3 │
//!   scratch          │GENEVE│IP TCP│ 1   │GENEVE│IP TCP│ 2   │GENEVE│IP TCP│ 3
//!   send             header 1 + payload 1 + header 2 + payload 2 + …        gathered, not copied
//! ```

use std::ops::Range;

use arrayvec::ArrayVec;

use super::batch::Batch;
use super::plan::BufferId;
use super::plan::Buffers;
use super::plan::Job;
use super::plan::PACKETS_MAX;
use super::plan::Plan;
use super::plan::SEND_BYTES_MAX;
use super::plan::SPANS_MAX;
use super::plan::Span;
use super::plan::Target;
use crate::types::EndpointSlot;
use crate::types::OuterPath;
use crate::wire::udp;

/// Sends that one batch keeps open. With more in one batch it is worked off in parts.
pub(super) const OPEN_MAX: u16 = 256;

/// One datagram.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    /// Its spans: all of it, or its headers and its payload.
    pub(super) parts: ArrayVec<Span, 2>,
    /// Length of its inner packet.
    pub(super) packet_bytes: u32,
    /// Whether it is the end of the super-packet that the datagram before it is of.
    pub(super) is_end: bool,
}

/// A send that may still grow.
#[derive(Debug, Default)]
struct Open {
    packets: u32,
    packet_bytes: u32,
    /// Length of each datagram but perhaps the last.
    datagram_bytes: usize,
    send_bytes: usize,
    /// Nothing may follow the last datagram.
    is_over: bool,
    spans: ArrayVec<Span, SPANS_MAX>,
}

/// The sends of a batch.
#[derive(Debug)]
pub(super) struct Sends {
    open: Batch<(EndpointSlot, OuterPath), Open>,
    /// Spans in all open sends.
    spans: usize,
    /// Whether a send may hold more than one datagram.
    gathers: bool,
    /// A buffer for headers, and how much of it is used.
    scratch: Option<(BufferId, usize)>,
}

impl Sends {
    /// Nothing open.
    pub(super) fn new(gathers: bool) -> Self {
        let open = Batch::new(OPEN_MAX, (EndpointSlot(0), OuterPath::NONE), Open::default);
        Self { open, spans: 0, gathers, scratch: None }
    }

    /// From now on every datagram is a send of its own.
    pub(super) fn stop_gathering(&mut self) {
        self.gathers = false;
    }

    /// Whether a send may hold more than one datagram.
    pub(super) const fn gathers(&self) -> bool {
        self.gathers
    }

    /// Sends that are open, and their spans: each becomes a job.
    pub(super) const fn open(&self) -> (usize, usize) {
        (self.open.len(), self.spans)
    }

    /// Takes a datagram.
    #[inline]
    pub(super) fn take(
        &mut self,
        slot: EndpointSlot,
        outer: OuterPath,
        datagram: &Datagram,
        plan: &mut Plan,
    ) {
        let Datagram { parts, packet_bytes, is_end } = datagram;
        let bytes: usize = parts.iter().map(|span| span.len as usize).sum();
        if !self.gathers {
            plan.push(job(slot, outer, 1, *packet_bytes, bytes), parts.iter().copied());
            return;
        }
        let place = match self.open.find(&(slot, outer)) {
            Some(place) => place,
            None => self.enter(slot, outer, plan),
        };
        if !self.open.at(place).takes(bytes, *is_end) {
            self.close(place, plan);
        }
        let open = self.open.at(place);
        if open.packets == 0 {
            open.datagram_bytes = bytes;
        }
        open.packets += 1;
        open.packet_bytes += packet_bytes;
        open.send_bytes += bytes;
        open.is_over = bytes < open.datagram_bytes;
        open.spans.extend(parts.iter().copied());
        self.spans += parts.len();
    }

    fn enter(&mut self, slot: EndpointSlot, outer: OuterPath, plan: &mut Plan) -> usize {
        if self.open.is_full() {
            self.flush(plan);
        }
        let place = self.open.enter((slot, outer));
        self.open.at(place).reset();
        place
    }

    /// Plans an open send, which begins anew.
    fn close(&mut self, place: usize, plan: &mut Plan) {
        let (&(slot, outer), open) = self.open.entry(place);
        if open.packets == 0 {
            return;
        }
        let job = job(slot, outer, open.packets, open.packet_bytes, open.datagram_bytes);
        plan.push(job, open.spans.iter().copied());
        self.spans -= open.spans.len();
        open.reset();
    }

    /// Plans everything that is open.
    fn flush(&mut self, plan: &mut Plan) {
        for place in 0..self.open.len() {
            self.close(place, plan);
        }
        self.open.clear();
    }

    /// Plans everything that is open: the batch is over, and its buffers are no longer ours.
    pub(super) fn end_batch(&mut self, plan: &mut Plan) {
        self.flush(plan);
        self.scratch = None;
    }

    /// Room for `bytes` bytes of headers, with a UDP header's room before it that stays free.
    /// Nothing if no buffer is free.
    pub(super) fn scratch(
        &mut self,
        bytes: usize,
        buffers: &mut impl Buffers,
    ) -> Option<(BufferId, Range<usize>)> {
        let end = |used: usize| used + udp::HEADER_BYTES + bytes;
        if let Some((buffer, used)) = self.scratch
            && end(used) <= buffers.bytes_mut(buffer).len()
        {
            self.scratch = Some((buffer, end(used)));
            return Some((buffer, end(used) - bytes..end(used)));
        }
        let buffer = buffers.take_scratch()?;
        self.scratch = Some((buffer, end(0)));
        (end(0) <= buffers.bytes_mut(buffer).len()).then(|| (buffer, end(0) - bytes..end(0)))
    }
}

impl Open {
    /// Whether a datagram of this length may follow.
    fn takes(&self, bytes: usize, is_end: bool) -> bool {
        !self.is_over
            && (bytes == self.datagram_bytes || is_end && bytes < self.datagram_bytes)
            && (self.packets as usize) < PACKETS_MAX
            && self.send_bytes + bytes <= SEND_BYTES_MAX
    }

    fn reset(&mut self) {
        self.packets = 0;
        self.packet_bytes = 0;
        self.datagram_bytes = 0;
        self.send_bytes = 0;
        self.is_over = false;
        self.spans.clear();
    }
}

fn job(
    endpoint: EndpointSlot,
    outer: OuterPath,
    packets: u32,
    packet_bytes: u32,
    datagram_bytes: usize,
) -> Job {
    let datagram_bytes = u16::try_from(datagram_bytes).expect("an inner packet is below 9 KiB");
    Job { endpoint, target: Target::Outer(outer), packets, packet_bytes, datagram_bytes }
}
