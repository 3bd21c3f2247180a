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

use std::ops::Range;

use arrayvec::ArrayVec;

use super::batch::Batch;
use super::plan::BufferId;
use super::plan::Buffers;
use super::plan::Job;
use super::plan::PACKETS_MAX;
use super::plan::Plan;
use super::plan::SEND_BYTES_MAX;
use super::plan::Span;
use super::plan::Target;
use crate::flow::StoredHeader;
use crate::types::EndpointSlot;
use crate::types::Offload;
use crate::wire::Addresses;
use crate::wire::FiveTuple;
use crate::wire::gro::Candidate;
use crate::wire::gro::Run;
use crate::wire::gso::Transport;
use crate::wire::protocol;
use crate::wire::virtio_net;

/// Flows that one batch remembers. With more in one batch it is worked off in parts.
pub(super) const FLOWS_MAX: u16 = 256;

/// What may be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merging {
    /// TCP segments.
    pub(super) tcp: bool,
    /// UDP datagrams.
    pub(super) udp: bool,
    /// IPv4 packets that the kernel would cut into others than they were: those with identification
    /// 0 in all. It does not cut TCP (or UDP) if it hands super-packets over as they are.
    pub(super) fixed_ids: [bool; 2],
}

impl Merging {
    /// What is merged where these offloads are in use.
    pub(super) const fn of(offload: Offload) -> Self {
        Self {
            tcp: offload.tcp_coalescing,
            udp: offload.udp_coalescing,
            fixed_ids: [offload.tun_tso, offload.tun_uso],
        }
    }

    fn allows(self, candidate: Candidate) -> bool {
        match candidate.transport() {
            Transport::Tcp => self.tcp,
            Transport::Udp => self.udp,
        }
    }

    fn allows_fixed_ids(self, candidate: Candidate) -> bool {
        match candidate.transport() {
            Transport::Tcp => self.fixed_ids[0],
            Transport::Udp => self.fixed_ids[1],
        }
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
    open: Option<Open>,
    /// The frame's parts. Belongs to `open`, and stays where it is because it is long.
    spans: ArrayVec<Span, PACKETS_MAX>,
}

/// A frame that may still grow.
#[derive(Debug)]
struct Open {
    first: Piece,
    run: Run,
    /// Whether the first packet's checksums were looked at, and are right.
    first_is_checked: bool,
    /// Length of the packets with their GENEVE headers: what goes back in one send.
    send_bytes: usize,
}

/// The flows of a batch.
#[derive(Debug)]
pub(super) struct Coalescer {
    flows: Batch<(EndpointSlot, FiveTuple), Flow>,
    /// Spans of all open frames.
    spans: usize,
    merging: Merging,
}

impl Coalescer {
    /// Nothing open.
    pub(super) fn new(merging: Merging) -> Self {
        let addresses = Addresses::V4 { src: [0; 4], dst: [0; 4] };
        let tuple = FiveTuple { addresses, protocol: 0, src_port: 0, dst_port: 0 };
        let header = StoredHeader::NONE;
        let empty = || Flow { header, open: None, spans: ArrayVec::new() };
        Self { flows: Batch::new(FLOWS_MAX, (EndpointSlot(0), tuple), empty), spans: 0, merging }
    }

    /// Frames that may be open, at most, and their spans: each becomes a job.
    pub(super) const fn open(&self) -> (usize, usize) {
        (self.flows.len(), self.spans)
    }

    /// Whether the flow's header is, in this batch, known to be this one already.
    #[inline]
    pub(super) fn knows(
        &mut self,
        slot: EndpointSlot,
        tuple: &FiveTuple,
        header: &StoredHeader,
    ) -> bool {
        let place = self.flows.find(&(slot, *tuple));
        place.is_some_and(|place| self.flows.at(place).header == *header)
    }

    /// Takes a packet of a flow whose header was stored, to be merged or not.
    pub(super) fn take(
        &mut self,
        (slot, tuple): (EndpointSlot, FiveTuple),
        header: &StoredHeader,
        piece: Piece,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) {
        let place = self.place_of(slot, tuple, header, buffers, plan);
        let candidate = Candidate::new(piece.bytes(buffers))
            .filter(|&candidate| self.merging.allows(candidate));
        let Some(candidate) = candidate else {
            // The parts of a fragmented packet have no ports, and must not overtake the flow.
            if is_fragment(&tuple) {
                self.close_all(buffers, plan);
            } else {
                self.close(place, buffers, plan);
            }
            plan_alone(slot, &piece, buffers, plan);
            return;
        };
        if !self.append(place, candidate, &piece, buffers) {
            self.close(place, buffers, plan);
            self.begin(place, candidate, piece, buffers);
        }
        if self.flows.at(place).open.as_ref().is_some_and(|open| open.run.is_over()) {
            self.close(place, buffers, plan);
        }
    }

    /// The flow's place, with `header` as what was learned last.
    fn place_of(
        &mut self,
        slot: EndpointSlot,
        tuple: FiveTuple,
        header: &StoredHeader,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) -> usize {
        let place = match self.flows.find(&(slot, tuple)) {
            Some(place) if self.flows.at(place).header == *header => return place,
            Some(place) => {
                self.close(place, buffers, plan);
                place
            }
            None => {
                if self.flows.is_full() {
                    self.flush(buffers, plan);
                }
                self.flows.enter((slot, tuple))
            }
        };
        let flow = self.flows.at(place);
        flow.header = *header;
        flow.open = None;
        place
    }

    /// Adds the packet to its flow's open frame, if it is what follows there.
    fn append(
        &mut self,
        place: usize,
        candidate: Candidate,
        piece: &Piece,
        buffers: &mut impl Buffers,
    ) -> bool {
        let merging = self.merging;
        let Flow { open: Some(open), spans, .. } = self.flows.at(place) else {
            return false;
        };
        let datagram_bytes = piece.header_bytes + piece.packet.len();
        let packet = piece.bytes(buffers);
        let follows = !spans.is_full()
            && open.send_bytes + datagram_bytes <= SEND_BYTES_MAX
            && open.run.is_continued_by(&candidate, packet)
            && (open.run.is_cut_alike_by_the_kernel() || merging.allows_fixed_ids(candidate))
            && candidate.has_sender_checksums(packet);
        if !follows || !open.first_is_right(buffers) {
            return false;
        }
        open.run.append(candidate, piece.bytes(buffers));
        open.send_bytes += datagram_bytes;
        let start = piece.packet.start + candidate.headers_bytes();
        spans.push(span(piece.buffer, start..piece.packet.end));
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
        let run = Run::new(candidate, piece.bytes(buffers));
        let flow = self.flows.at(place);
        flow.spans.clear();
        flow.spans.push(frame_span(&piece));
        self.spans += 1;
        let send_bytes = piece.header_bytes + piece.packet.len();
        flow.open = Some(Open { first: piece, run, first_is_checked: false, send_bytes });
    }

    /// Plans a flow's open frame, if there is one.
    fn close(&mut self, place: usize, buffers: &mut impl Buffers, plan: &mut Plan) {
        let (&(endpoint, _), flow) = self.flows.entry(place);
        let Some(Open { first, run, .. }) = flow.open.take() else {
            return;
        };
        self.spans -= flow.spans.len();
        if run.packets() == 1 {
            plan_alone(endpoint, &first, buffers, plan);
            return;
        }
        let header = run.finish(first.bytes(buffers));
        write_header(&header, &first, buffers);
        let headers_bytes = u32::from(header.header_bytes);
        let packet_bytes = length(run.packet_bytes()) + (run.packets() - 1) * headers_bytes;
        let target = Target::Gwi;
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
    }
}

impl Open {
    /// Whether the first packet's checksums are right: looked at when a second packet follows,
    /// because most first ones stay alone.
    fn first_is_right(&mut self, buffers: &mut impl Buffers) -> bool {
        if !self.first_is_checked {
            let packet = self.first.bytes(buffers);
            self.first_is_checked = Candidate::new(packet)
                .is_some_and(|candidate| candidate.has_sender_checksums(packet));
        }
        self.first_is_checked
    }
}

/// Whether the packet is a part of a larger one, or too short to say.
fn is_fragment(tuple: &FiveTuple) -> bool {
    let has_ports = matches!(tuple.protocol, protocol::TCP | protocol::UDP);
    has_ports && (tuple.src_port, tuple.dst_port) == (0, 0)
}

/// Plans a packet as a frame of its own, as it came.
fn plan_alone(endpoint: EndpointSlot, piece: &Piece, buffers: &mut impl Buffers, plan: &mut Plan) {
    write_header(&virtio_net::Header::PLAIN, piece, buffers);
    let packet_bytes = length(piece.packet.len());
    let target = Target::Gwi;
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
    span(piece.buffer, piece.packet.start - virtio_net::HEADER_BYTES..piece.packet.end)
}

fn span(buffer: BufferId, bytes: Range<usize>) -> Span {
    Span { buffer, start: length(bytes.start), len: length(bytes.len()) }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a buffer is far below 4 GiB")
}
