//! Merging on the way in: packets of one flow that arrive in one batch become one frame.
//!
//! ```text
//!   buffer 1   │outer│GENEVE│IP TCP│payload 1│outer│GENEVE│IP TCP│payload 2│ …
//!   buffer 2   │outer│GENEVE│IP TCP│payload 3│
//!                         ▲
//!   frame      │virtio│IP TCP│payload 1│ + │payload 2│ + │payload 3│        gathered, not copied
//! ```
//!
//! The first packet's headers become those of the frame, where they are; of the others only the
//! payload is written. Which packets merge is decided by [`gro`](crate::wire::gro), and beyond
//! that: never across GENEVE headers or outer paths that differ, and never more than one send can
//! carry back. A packet that does not merge closes its flow's open frame before it goes its own
//! way, so a flow stays in order; at the end of the batch every frame is closed, so nothing waits.
//!
//! What is remembered of a flow here serves another purpose too: its header is stored in the flow
//! table once per batch, not once per packet.

use std::hash::Hash;
use std::hash::Hasher;
use std::ops::Range;

use arrayvec::ArrayVec;

use super::Arrived;
use super::batch::Batch;
use super::plan::BufferId;
use super::plan::Buffers;
use super::plan::Group;
use super::plan::Job;
use super::plan::PACKETS_MAX;
use super::plan::Plan;
use super::plan::SEND_BYTES_MAX;
use super::plan::Span;
use super::plan::Target;
use super::plan::length;
use crate::flow::StoredHeader;
use crate::types::EndpointSlot;
use crate::types::Offload;
use crate::types::OuterPath;
use crate::wire::Addresses;
use crate::wire::FiveTuple;
use crate::wire::gro::Candidate;
use crate::wire::gro::Run;
use crate::wire::gso::Transport;
use crate::wire::gwlb;
use crate::wire::protocol;
use crate::wire::virtio_net;

/// Flows that one batch remembers. With more in one batch it is worked off in parts.
pub(super) const FLOWS_MAX: u16 = 256;

/// Whether packets like this one may be merged.
fn may_merge(offload: Offload, candidate: Candidate) -> bool {
    match candidate.transport() {
        Transport::Tcp => offload.tcp_coalescing,
        Transport::Udp => offload.udp_coalescing,
    }
}

/// Whether super-packets like this one reach us again as they are. Those of which all
/// identifications are 0 must: the kernel, where it cuts, would write others.
fn returns_whole(offload: Offload, candidate: Candidate) -> bool {
    match candidate.transport() {
        Transport::Tcp => offload.tun_tso,
        Transport::Udp => offload.tun_uso,
    }
}

/// A packet in a buffer, behind its GENEVE header.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) buffer: BufferId,
    /// Where the packet is.
    pub(super) packet: Range<usize>,
    /// Length of the GENEVE header before it.
    pub(super) header_bytes: usize,
}

impl Piece {
    fn bytes<'a>(&self, buffers: &'a mut impl Buffers) -> &'a mut [u8] {
        &mut buffers.bytes_mut(self.buffer)[self.packet.clone()]
    }
}

/// One direction of a flow, in this batch.
#[derive(Debug)]
struct Flow {
    /// What the flow table has learned of it last.
    header: StoredHeader,
    /// Whether there is a frame that may still grow. What follows is about it, and stays where it
    /// is from frame to frame.
    is_open: bool,
    first: Piece,
    run: Run,
    /// Whether the first packet's checksums were looked at, and are right.
    first_is_checked: bool,
    /// Length of the packets with their GENEVE headers: what goes back in one send.
    send_bytes: usize,
    spans: ArrayVec<Span, PACKETS_MAX>,
}

impl Flow {
    const fn new() -> Self {
        Self {
            header: StoredHeader::NONE,
            is_open: false,
            first: Piece { buffer: BufferId::new(Group::Udp, 0), packet: 0..0, header_bytes: 0 },
            run: Run::none(),
            first_is_checked: false,
            send_bytes: 0,
            spans: ArrayVec::new_const(),
        }
    }
}

/// What tells flows apart in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowId {
    pub(super) slot: EndpointSlot,
    pub(super) tuple: FiveTuple,
}

impl FlowId {
    /// What stands where there is none yet.
    pub(super) const NONE: Self = {
        let addresses = Addresses::V4 { src: [0; 4], dst: [0; 4] };
        let tuple = FiveTuple { addresses, protocol: 0, src_port: 0, dst_port: 0 };
        Self { slot: EndpointSlot(0), tuple }
    };
}

impl Hash for FlowId {
    /// A few whole words: that is what a hash is quick with.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let FiveTuple { addresses, protocol, src_port, dst_port } = self.tuple;
        let ends = u64::from(src_port) << 48 | u64::from(dst_port) << 32;
        state.write_u64(ends | u64::from(self.slot.0) << 16 | u64::from(protocol));
        match addresses {
            Addresses::V4 { src, dst } => {
                let words = [src, dst].map(u32::from_ne_bytes);
                state.write_u64(u64::from(words[0]) << 32 | u64::from(words[1]));
            }
            Addresses::V6 { src, dst } => {
                state.write_u128(u128::from_ne_bytes(src));
                state.write_u128(u128::from_ne_bytes(dst));
            }
        }
    }
}

/// The packet taken last: most are followed by one of the same flow under the same header, of which
/// everything is known then.
#[derive(Clone, Copy, Debug)]
struct Last {
    header: [u8; gwlb::USUAL_HEADER_BYTES],
    outer: OuterPath,
    slot: EndpointSlot,
    place: usize,
}

/// The flows of a batch.
#[derive(Debug)]
pub(super) struct Coalescer {
    flows: Batch<FlowId, Flow>,
    last: Option<Last>,
    /// Spans of all open frames.
    spans: usize,
    offload: Offload,
}

impl Coalescer {
    /// Nothing open. What `offload` allows is merged.
    pub(super) fn new(offload: Offload) -> Self {
        let flows = Batch::new(FLOWS_MAX, FlowId::NONE, Flow::new);
        Self { flows, last: None, spans: 0, offload }
    }

    /// From now on no super-packets of `transport` are made. Returns whether there were any.
    pub(super) fn stop_coalescing(&mut self, transport: Transport) -> bool {
        let merges = match transport {
            Transport::Tcp => &mut self.offload.tcp_coalescing,
            Transport::Udp => &mut self.offload.udp_coalescing,
        };
        std::mem::take(merges)
    }

    /// Frames that may be open, at most, and their spans: each becomes a job.
    pub(super) const fn open(&self) -> (usize, usize) {
        (self.flows.len(), self.spans)
    }

    /// The flow's place, if its header is known, in this batch, to be this one already.
    #[inline]
    pub(super) fn known(&mut self, flow: &FlowId, header: &StoredHeader) -> Option<usize> {
        let place = self.flows.find(flow)?;
        (self.flows.at(place).header == *header).then_some(place)
    }

    /// Takes a datagram whose packet is the next of the same frame as the one before it: nothing
    /// else about it has to be looked at. Returns its endpoint, and the length of the packet.
    #[inline]
    pub(super) fn take_next(
        &mut self,
        arrived: &Arrived,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) -> Option<(EndpointSlot, usize)> {
        let last = self.last.as_ref()?;
        let (slot, place) = (last.slot, last.place);
        let datagram = &buffers.bytes_mut(arrived.buffer)[arrived.datagram.clone()];
        let (header, packet) = datagram.split_first_chunk()?;
        if *header != last.header || arrived.outer != last.outer {
            return None;
        }
        let candidate = Candidate::new(packet)?;
        let header_bytes = header.len();
        let packet = arrived.datagram.start + header_bytes..arrived.datagram.end;
        let packet_bytes = packet.len();
        let piece = Piece { buffer: arrived.buffer, packet, header_bytes };
        if !self.append(place, candidate, &piece, buffers) {
            return None;
        }
        self.close_if_over(place, buffers, plan);
        Some((slot, packet_bytes))
    }

    /// From now on nothing is known about the packet taken last: endpoints come or go.
    pub(super) fn forget_last(&mut self) {
        self.last = None;
    }

    /// Takes a packet of a flow whose header was stored, to be merged or not. `known` is what
    /// [`Self::known`] said.
    pub(super) fn take(
        &mut self,
        flow: FlowId,
        known: Option<usize>,
        header: &StoredHeader,
        piece: Piece,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) {
        let place = match known {
            Some(place) => place,
            None => self.enter(flow, header, buffers, plan),
        };
        let candidate = Candidate::new(piece.bytes(buffers))
            .filter(|&candidate| may_merge(self.offload, candidate));
        let Some(candidate) = candidate else {
            // They do not say which flow they belong to, and must not overtake it.
            if has_no_ports(&flow.tuple) {
                self.close_all(buffers, plan);
            } else {
                self.close(place, buffers, plan);
            }
            plan_alone(flow.slot, &piece, buffers, plan);
            return;
        };
        self.note_last(flow.slot, place, header.outer, &piece, buffers);
        if !self.append(place, candidate, &piece, buffers) {
            self.close(place, buffers, plan);
            self.begin(place, candidate, piece, buffers);
        }
        self.close_if_over(place, buffers, plan);
    }

    fn note_last(
        &mut self,
        slot: EndpointSlot,
        place: usize,
        outer: OuterPath,
        piece: &Piece,
        buffers: &mut impl Buffers,
    ) {
        let start = piece.packet.start - piece.header_bytes;
        let header = &buffers.bytes_mut(piece.buffer)[start..piece.packet.start];
        self.last = <&[u8; gwlb::USUAL_HEADER_BYTES]>::try_from(header).ok().map(|&header| Last {
            header,
            outer,
            slot,
            place,
        });
    }

    /// The place of a flow that is not known, or under another header.
    fn enter(
        &mut self,
        flow: FlowId,
        header: &StoredHeader,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) -> usize {
        let place = if let Some(place) = self.flows.find(&flow) {
            self.close(place, buffers, plan);
            place
        } else {
            if self.flows.is_full() {
                self.flush(buffers, plan);
            }
            self.flows.enter(flow)
        };
        let flow = self.flows.at(place);
        flow.header = *header;
        flow.is_open = false;
        place
    }

    /// Adds the packet to its flow's open frame, if it is what follows there.
    #[inline]
    fn append(
        &mut self,
        place: usize,
        candidate: Candidate,
        piece: &Piece,
        buffers: &mut impl Buffers,
    ) -> bool {
        let offload = self.offload;
        let flow = self.flows.at(place);
        let datagram_bytes = piece.header_bytes + piece.packet.len();
        let has_room = flow.is_open
            && !flow.spans.is_full()
            && flow.send_bytes + datagram_bytes <= SEND_BYTES_MAX;
        if !has_room || !flow.first_is_right(buffers) {
            return false;
        }
        let packet = piece.bytes(buffers);
        let follows = flow.run.is_continued_by(&candidate, packet)
            && (flow.run.is_cut_alike_by_the_kernel() || returns_whole(offload, candidate))
            && candidate.has_sender_checksums(packet);
        if !follows {
            return false;
        }
        flow.run.append(candidate, packet);
        flow.send_bytes += datagram_bytes;
        let start = piece.packet.start + candidate.headers_bytes();
        flow.spans.push(Span::new(piece.buffer, start..piece.packet.end));
        self.spans += 1;
        true
    }

    fn begin(
        &mut self,
        place: usize,
        candidate: Candidate,
        piece: Piece,
        buffers: &mut impl Buffers,
    ) {
        let flow = self.flows.at(place);
        flow.run.begin(candidate, piece.bytes(buffers));
        flow.spans.clear();
        flow.spans.push(frame_span(&piece));
        flow.send_bytes = piece.header_bytes + piece.packet.len();
        flow.first = piece;
        flow.first_is_checked = false;
        flow.is_open = true;
        self.spans += 1;
    }

    #[inline]
    fn close_if_over(&mut self, place: usize, buffers: &mut impl Buffers, plan: &mut Plan) {
        let flow = self.flows.at(place);
        if flow.is_open && flow.run.is_over() {
            self.close(place, buffers, plan);
        }
    }

    /// Plans a flow's open frame, if there is one.
    fn close(&mut self, place: usize, buffers: &mut impl Buffers, plan: &mut Plan) {
        let (&FlowId { slot: endpoint, .. }, flow) = self.flows.entry(place);
        if !flow.is_open {
            return;
        }
        flow.is_open = false;
        self.spans -= flow.spans.len();
        let Flow { first, run, .. } = flow;
        if run.packets() == 1 {
            plan_alone(endpoint, first, buffers, plan);
            return;
        }
        let header = run.finish(first.bytes(buffers));
        write_header(&header, first, buffers);
        let headers_bytes = u32::from(header.header_bytes);
        let packet_bytes = length(run.packet_bytes()) + (run.packets() - 1) * headers_bytes;
        let target = Target::Gwi(run.transport());
        let job = Job { endpoint, target, packets: run.packets(), packet_bytes, datagram_bytes: 0 };
        plan.push(job, flow.spans.iter().copied());
    }

    fn close_all(&mut self, buffers: &mut impl Buffers, plan: &mut Plan) {
        for place in 0..self.flows.len() {
            self.close(place, buffers, plan);
        }
    }

    /// Plans everything that is open, and forgets the flows: the batch is over.
    pub(super) fn flush(&mut self, buffers: &mut impl Buffers, plan: &mut Plan) {
        self.close_all(buffers, plan);
        self.flows.clear();
        self.last = None;
    }
}

impl Flow {
    /// Whether the first packet's checksums are right: looked at when a second packet comes,
    /// because most first ones stay alone.
    #[inline]
    fn first_is_right(&mut self, buffers: &mut impl Buffers) -> bool {
        if !self.first_is_checked {
            let packet = self.first.bytes(buffers);
            self.first_is_checked = Candidate::new(packet)
                .is_some_and(|candidate| candidate.has_sender_checksums(packet));
        }
        self.first_is_checked
    }
}

/// Whether the packet is a later fragment, or too short to have ports.
fn has_no_ports(tuple: &FiveTuple) -> bool {
    match tuple.protocol {
        protocol::FRAGMENT => true,
        protocol::TCP | protocol::UDP => (tuple.src_port, tuple.dst_port) == (0, 0),
        _ => false,
    }
}

/// Plans a packet as a frame of its own, as it came.
fn plan_alone(endpoint: EndpointSlot, piece: &Piece, buffers: &mut impl Buffers, plan: &mut Plan) {
    write_header(&virtio_net::Header::PLAIN, piece, buffers);
    let packet_bytes = length(piece.packet.len());
    let target = Target::Gwi(None);
    let job = Job { endpoint, target, packets: 1, packet_bytes, datagram_bytes: 0 };
    plan.push(job, [frame_span(piece)]);
}

/// Writes the frame's header before the packet: in place of the end of the GENEVE header, which is
/// longer and stored by now.
fn write_header(header: &virtio_net::Header, piece: &Piece, buffers: &mut impl Buffers) {
    let start = piece.packet.start - virtio_net::HEADER_BYTES;
    let room = &mut buffers.bytes_mut(piece.buffer)[start..piece.packet.start];
    room.copy_from_slice(&header.emit());
}

/// The packet with its virtio header.
fn frame_span(piece: &Piece) -> Span {
    Span::new(piece.buffer, piece.packet.start - virtio_net::HEADER_BYTES..piece.packet.end)
}
