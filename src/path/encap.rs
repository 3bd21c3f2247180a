//! From a frame that was read from a TUN to datagrams for the load balancer.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::Path;
use super::clamp::clamp_mss;
use super::endpoints::Endpoint;
use super::lookup::Lookup;
use super::plan::BufferId;
use super::plan::Buffers;
use super::plan::PACKETS_MAX;
use super::plan::Plan;
use super::plan::Span;
use super::plan::length;
use super::sends::Datagram;
use super::sends::Sends;
use crate::flow::HEADER_BYTES_MAX;
use crate::flow::StoredHeader;
use crate::stats::EndpointCell;
use crate::sync::Pace;
use crate::types::DropReason;
use crate::types::EndpointSlot;
use crate::types::GENEVE_PORT;
use crate::types::INNER_BYTES_MAX;
use crate::types::Moment;
use crate::types::OuterPath;
use crate::types::Side;
use crate::types::TcpSegmentMax;
use crate::wire::Addresses;
use crate::wire::FiveTuple;
use crate::wire::checksum;
use crate::wire::gso::Segmenter;
use crate::wire::inner;
use crate::wire::inner::Inner;
use crate::wire::inner::Part;
use crate::wire::ipv6;
use crate::wire::protocol;
use crate::wire::too_big;
use crate::wire::udp;
use crate::wire::virtio_net;
use crate::wire::virtio_net::Gso;

/// Longest frame: a virtio header and the longest IPv6 packet that is no jumbogram.
pub const FRAME_BYTES_MAX: usize = virtio_net::HEADER_BYTES + ipv6::HEADER_BYTES + 65_535;

/// Most segments of a frame. 65,535 bytes make more if a segment carries less than 47 bytes, which
/// a TCP does for a peer that asks for the smallest segments there are; such frames are dropped.
const SEGMENTS_MAX: usize = 1400;

/// Jobs that one frame may need, where sends gather and where each segment is a send, and spans.
pub(super) const FRAME_JOBS: usize = SEGMENTS_MAX.div_ceil(PACKETS_MAX) + 1;
pub(super) const FRAME_JOBS_SINGLY: usize = SEGMENTS_MAX;
pub(super) const FRAME_SPANS: usize = 2 * SEGMENTS_MAX;

/// A frame in a receive buffer. There is room for a GENEVE header before the packet.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The buffer.
    pub buffer: BufferId,
    /// Where in it the frame is, its virtio header included.
    pub frame: Range<usize>,
    /// The link that it was read from.
    pub side: Side,
}

/// Why packets of a frame are not sent.
enum Unsent {
    /// Lost, so many of them.
    Dropped(DropReason, usize),
    /// Nobody's loss.
    Noise,
    /// A later fragment, known by this tuple, whose first one has not been seen.
    Early(FiveTuple),
}

/// Where the packet of a frame is: behind the virtio header. Empty if there is none.
pub fn packet_in(frame: Range<usize>) -> Range<usize> {
    (frame.start + virtio_net::HEADER_BYTES).min(frame.end)..frame.end
}

/// Bytes that [`prepend_udp_header`] puts before a payload.
pub const UDP_HEADER_BYTES: usize = udp::HEADER_BYTES;

/// Puts the UDP header of an answer on `outer` before its payload, which begins at `payload_start`
/// of `bytes` and may go on elsewhere: for a socket that leaves this header to us. Returns where
/// the datagram begins; nothing if there is no room before the payload, or too much in it.
///
/// The checksum is filled in, as the kernel does it on the ordinary way: it is what protects the
/// flow cookie, and receivers merge only datagrams that have one.
pub fn prepend_udp_header(
    bytes: &mut [u8],
    payload_start: usize,
    payload: &UdpPayload,
    outer: &OuterPath,
) -> Option<usize> {
    let start = payload_start.checked_sub(UDP_HEADER_BYTES)?;
    let datagram_bytes = u16::try_from(payload.bytes + UDP_HEADER_BYTES).ok()?;
    let addresses = Addresses::V4 { src: outer.local.octets(), dst: outer.remote.octets() };
    let pseudo_header = checksum::pseudo_header(addresses, protocol::UDP, datagram_bytes.into());
    let mut header = udp::Header::new_checked(bytes.get_mut(start..payload_start)?)?;
    header.set_ports(outer.remote_port, GENEVE_PORT);
    header.set_length_bytes(datagram_bytes);
    header.fill_checksum(pseudo_header, payload.sum);
    Some(start)
}

/// What a UDP header says of its payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpPayload {
    bytes: usize,
    sum: checksum::Sum,
}

impl UdpPayload {
    /// Adds bytes to the payload's end.
    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.sum = self.sum + checksum::sum(bytes);
    }
}

impl Path {
    /// Takes a frame that was read from a queue of the endpoint in `slot`. Its datagrams may be
    /// planned only by [`Self::end_batch`], with others of their outer path.
    pub fn encap(
        &mut self,
        slot: EndpointSlot,
        frame: &Frame,
        now: Moment,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) {
        let Self { endpoints, flows, tally, sends, answers, waiting, errors, returns, .. } = self;
        let Some(endpoint) = endpoints.at(slot) else {
            // Read before the endpoint was let go, taken after.
            self.cell.drops.count(DropReason::Shutdown);
            return;
        };
        let content = open_frame(&mut buffers.bytes_mut(frame.buffer)[frame.frame.clone()]);
        let cell = &endpoint.cell;
        let packet_bytes = packet_in(frame.frame.clone()).len();
        let packets = count_read(cell, frame.side, &content, packet_bytes);
        match frame.side {
            Side::Gwi => cell.last_from_gwi.set(now),
            Side::Gwo => cell.last_from_gwo.set(now),
        }
        let lookup = Lookup { endpoint, endpoints, flows, answers, tally, now };
        let mut returning = Returning { endpoint, lookup, sends, errors, buffers, plan };
        let returned = match content {
            Ok(Some(segmenter)) => returning.segments(frame, &segmenter),
            Ok(None) => returning.packet(frame, self.clamp_mss),
            Err(reason) => Err(Unsent::Dropped(reason, packets)),
        };
        let (reason, packets) = match returned {
            Ok(()) => return cell.last_seen.set(now),
            Err(Unsent::Noise) => return cell.host_noise.add(1),
            // Nothing was remembered to return anything by.
            Err(Unsent::Early(_) | Unsent::Dropped(DropReason::FlowUnknown, _)) if !*returns => {
                (DropReason::NoReturn, packets)
            }
            Err(Unsent::Early(tuple)) => {
                let packet = &buffers.bytes_mut(frame.buffer)[packet_in(frame.frame.clone())];
                if waiting.push(endpoint.endpoint, tuple, packet, now) {
                    return;
                }
                (DropReason::FragmentUnmatched, 1)
            }
            Err(Unsent::Dropped(reason, packets)) => (reason, packets),
        };
        cell.encap_drops.add(reason, packets as u64);
        self.last_drop = Some(reason);
    }

    /// Counts a frame from a queue of the endpoint in `slot`, which is being let go: nobody returns
    /// it.
    pub fn abandon(&self, slot: EndpointSlot, side: Side, frame: &mut [u8]) {
        let Some(Endpoint { cell, .. }) = self.endpoints.at(slot) else {
            return;
        };
        let content = open_frame(frame);
        let packet = &frame[packet_in(0..frame.len())];
        let packets = count_read(cell, side, &content, packet.len());
        if matches!(content, Ok(None)) && inner::is_host_noise(packet) {
            cell.host_noise.add(1);
        } else {
            cell.encap_drops.add(DropReason::Shutdown, packets as u64);
        }
    }

    /// Whether fragments wait for their first one, so that [`Self::send_waiting`] is due.
    pub const fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends the fragments whose first one has been seen by now, and drops those that have waited
    /// too long. The plan must have room for [`WAITING_MAX`](super::WAITING_MAX) more datagrams.
    pub fn send_waiting(&mut self, now: Moment, buffers: &mut impl Buffers, plan: &mut Plan) {
        let mut place = 0;
        while place < self.waiting.len() {
            if self.send_if_matched(place, now, buffers, plan) {
                self.waiting.remove(place);
            } else {
                place += 1;
            }
        }
    }

    /// Takes care of one that waits. Returns whether it waits no longer.
    fn send_if_matched(
        &mut self,
        place: usize,
        now: Moment,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) -> bool {
        let Self { endpoints, flows, tally, sends, answers, waiting, errors, .. } = self;
        let fragment = waiting.at(place);
        let served = endpoints.at(fragment.endpoint.slot);
        let Some(endpoint) = served.filter(|served| served.endpoint == fragment.endpoint) else {
            self.cell.drops.count(DropReason::Shutdown);
            return true;
        };
        let mut lookup = Lookup { endpoint, endpoints, flows, answers, tally, now };
        let reason = match lookup.flow(&fragment.tuple) {
            Some(header) => {
                let mut returning = Returning { endpoint, lookup, sends, errors, buffers, plan };
                if returning.copy(&header, waiting.bytes(&fragment)).is_some() {
                    endpoint.cell.last_seen.set(now);
                    return true;
                }
                DropReason::NoBuffer
            }
            None => DropReason::FragmentUnmatched,
        };
        let is_over = fragment.until <= now;
        if is_over {
            endpoint.cell.encap_drops.count(reason);
        }
        is_over
    }

    /// Fragments that wait are dropped: the program ends.
    pub(super) fn drop_waiting(&mut self) {
        for place in 0..self.waiting.len() {
            let endpoint = self.waiting.at(place).endpoint;
            match self.endpoints.at(endpoint.slot) {
                Some(served) if served.endpoint == endpoint => {
                    served.cell.encap_drops.count(DropReason::Shutdown);
                }
                _ => self.cell.drops.count(DropReason::Shutdown),
            }
        }
        self.waiting.clear();
    }
}

/// What a packet needs on its way back.
struct Returning<'a, B> {
    endpoint: &'a Endpoint,
    lookup: Lookup<'a>,
    sends: &'a mut Sends,
    errors: &'a Pace,
    buffers: &'a mut B,
    plan: &'a mut Plan,
}

impl<B: Buffers> Returning<'_, B> {
    /// The header for the packet of a frame, which may stand for `packets` packets.
    fn header(&mut self, frame: &Frame, packets: usize) -> Result<StoredHeader, Unsent> {
        let packet = &self.buffers.bytes_mut(frame.buffer)[packet_in(frame.frame.clone())];
        let inner = inner::parse_any(packet)
            .map_err(|_| Unsent::Dropped(DropReason::TunBadFrame, packets))?;
        match self.lookup.header(packet, &inner) {
            Some(header) => Ok(header),
            None => Err(why_unknown(packet, &inner, packets)),
        }
    }

    /// One packet: its flow's header goes into the room before it.
    fn packet(&mut self, frame: &Frame, segment_max: Option<TcpSegmentMax>) -> Result<(), Unsent> {
        let at = packet_in(frame.frame.clone());
        let stored = self.header(frame, 1)?;
        if let Some(most) = segment_max {
            clamp_mss(&mut self.buffers.bytes_mut(frame.buffer)[at.clone()], most);
        }
        if at.len() > INNER_BYTES_MAX {
            self.refuse_packet(frame);
            return Err(Unsent::Dropped(DropReason::Mtu, 1));
        }
        let room = &mut self.buffers.bytes_mut(frame.buffer)[..at.start];
        let templates = &self.endpoint.templates;
        let header_bytes = templates
            .write_before(stored.template, stored.cookie, room)
            .ok_or(Unsent::Dropped(DropReason::FlowUnknown, 1))?;
        let datagram = Span::new(frame.buffer, at.start - header_bytes..at.end);
        let datagram = Datagram {
            parts: ArrayVec::from_iter([datagram]),
            packet_bytes: length(at.len()),
            is_end: false,
        };
        self.sends.take(self.endpoint.endpoint.slot, stored.outer, &datagram, self.plan);
        Ok(())
    }

    /// A super-packet: each segment gets headers of its own, its payload stays where it is.
    fn segments(&mut self, frame: &Frame, segmenter: &Segmenter) -> Result<(), Unsent> {
        let count = segmenter.segments();
        let at = packet_in(frame.frame.clone());
        let stored = match self.header(frame, count) {
            // What waits is one packet, and is not cut any more.
            Err(Unsent::Early(_)) => return Err(Unsent::Dropped(DropReason::FlowUnknown, count)),
            found => found?,
        };
        if segmenter.segment_bytes_max() > INNER_BYTES_MAX {
            self.refuse_segments(frame, segmenter);
            return Err(Unsent::Dropped(DropReason::Mtu, count));
        }
        let mut room = [0; HEADER_BYTES_MAX];
        let header_bytes = self
            .endpoint
            .templates
            .write_before(stored.template, stored.cookie, &mut room)
            .ok_or(Unsent::Dropped(DropReason::FlowUnknown, count))?;
        let header = &room[HEADER_BYTES_MAX - header_bytes..];
        for number in 0..count {
            self.segment(segmenter, number, (frame.buffer, at.start), header, stored.outer)
                .ok_or(Unsent::Dropped(DropReason::NoBuffer, count - number))?;
        }
        Ok(())
    }

    /// Tells the sender of a packet that it is too big.
    #[cold]
    fn refuse_packet(&mut self, frame: &Frame) {
        let mut quote = [0; too_big::QUOTE_BYTES_MAX];
        let packet = &self.buffers.bytes_mut(frame.buffer)[packet_in(frame.frame.clone())];
        quote.copy_from_slice(&packet[..too_big::QUOTE_BYTES_MAX]);
        self.refuse(&quote);
    }

    /// Tells the sender of a super-packet that its packets are too big, by the first one.
    #[cold]
    fn refuse_segments(&mut self, frame: &Frame, segmenter: &Segmenter) {
        let mut quote = [0; too_big::QUOTE_BYTES_MAX];
        let packet = &self.buffers.bytes_mut(frame.buffer)[packet_in(frame.frame.clone())];
        let payload = &packet[segmenter.payload(0)];
        let (headers, rest) = quote.split_at_mut(segmenter.headers_bytes());
        segmenter.write(0, checksum::sum(payload), headers);
        rest.copy_from_slice(&payload[..rest.len()]);
        self.refuse(&quote);
    }

    /// Tells the sender of the packet that begins with `quote` what size passes: by the way that
    /// the packet came, in the other direction.
    fn refuse(&mut self, quote: &[u8; too_big::QUOTE_BYTES_MAX]) {
        let mut answer = [0; too_big::ANSWER_BYTES_MAX];
        let mtu_bytes = u16::try_from(INNER_BYTES_MAX).expect("8500 fits");
        let Some(answer_bytes) = too_big::emit(quote, mtu_bytes, &mut answer) else {
            return;
        };
        let answer = &answer[..answer_bytes];
        let way_back = inner::quoted(answer).map(|packet| packet.reversed());
        if let Some(header) = way_back.and_then(|tuple| self.lookup.flow(&tuple))
            && self.errors.take(self.lookup.now)
            && self.copy(&header, answer).is_some()
        {
            self.endpoint.cell.too_big_sent.add(1);
        }
    }

    /// A packet that is in no buffer of the batch. Nothing if there is none for it.
    fn copy(&mut self, stored: &StoredHeader, packet: &[u8]) -> Option<()> {
        let mut room = [0; HEADER_BYTES_MAX];
        let templates = &self.endpoint.templates;
        let header_bytes = templates.write_before(stored.template, stored.cookie, &mut room)?;
        let (scratch, at) = self.sends.scratch(header_bytes + packet.len(), self.buffers)?;
        let out = &mut self.buffers.bytes_mut(scratch)[at.clone()];
        out[..header_bytes].copy_from_slice(&room[HEADER_BYTES_MAX - header_bytes..]);
        out[header_bytes..].copy_from_slice(packet);
        let datagram = Datagram {
            parts: ArrayVec::from_iter([Span::new(scratch, at)]),
            packet_bytes: length(packet.len()),
            is_end: false,
        };
        self.sends.take(self.endpoint.endpoint.slot, stored.outer, &datagram, self.plan);
        Some(())
    }

    /// One segment of a super-packet that begins at `start` of `buffer`. Nothing if there is no
    /// buffer for its headers.
    fn segment(
        &mut self,
        segmenter: &Segmenter,
        number: usize,
        (buffer, start): (BufferId, usize),
        header: &[u8],
        outer: OuterPath,
    ) -> Option<()> {
        let payload = segmenter.payload(number);
        let payload = start + payload.start..start + payload.end;
        let sum = checksum::sum(&self.buffers.bytes_mut(buffer)[payload.clone()]);
        let headers_bytes = header.len() + segmenter.headers_bytes();
        let (scratch, room) = self.sends.scratch(headers_bytes, self.buffers)?;
        let out = &mut self.buffers.bytes_mut(scratch)[room.clone()];
        out[..header.len()].copy_from_slice(header);
        segmenter.write(number, sum, &mut out[header.len()..]);
        let datagram = Datagram {
            packet_bytes: length(segmenter.headers_bytes() + payload.len()),
            parts: ArrayVec::from([Span::new(scratch, room), Span::new(buffer, payload)]),
            is_end: number > 0 && number + 1 == segmenter.segments(),
        };
        self.sends.take(self.endpoint.endpoint.slot, outer, &datagram, self.plan);
        Some(())
    }
}

/// What to do with a packet without a header, which may stand for `packets` packets.
#[cold]
fn why_unknown(packet: &[u8], inner: &Inner, packets: usize) -> Unsent {
    if inner.part == Part::LaterFragment {
        Unsent::Early(inner.tuple)
    } else if packets == 1 && inner::is_host_noise(packet) {
        Unsent::Noise
    } else {
        Unsent::Dropped(DropReason::FlowUnknown, packets)
    }
}

/// Counts what was read: a frame with a packet of so many bytes, or with a super-packet. Returns
/// how many packets that is.
fn count_read(
    cell: &EndpointCell,
    side: Side,
    content: &Result<Option<Segmenter>, DropReason>,
    packet_bytes: usize,
) -> usize {
    let (packets, packet_bytes) = match content {
        Ok(Some(segmenter)) => (segmenter.segments(), segmenter.segments_bytes()),
        Ok(None) | Err(_) => (1, packet_bytes),
    };
    let traffic = match side {
        Side::Gwi => &cell.from_gwi,
        Side::Gwo => &cell.from_gwo,
    };
    traffic.count_many(packets as u64, packet_bytes as u64);
    packets
}

/// Reads a frame's header and completes the packet's checksum, if that is open. Nothing if the
/// frame is one packet.
fn open_frame(frame: &mut [u8]) -> Result<Option<Segmenter>, DropReason> {
    let header = virtio_net::Header::parse(frame)?;
    let packet = &mut frame[virtio_net::HEADER_BYTES..];
    if header.gso == Gso::None {
        virtio_net::complete_checksum(packet, &header)?;
        return Ok(None);
    }
    let segmenter = Segmenter::new(packet, &header)?;
    if segmenter.segments() > SEGMENTS_MAX {
        return Err(DropReason::TunBadFrame);
    }
    Ok(Some(segmenter))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn payload(pieces: [&[u8]; 2]) -> UdpPayload {
        let mut payload = UdpPayload::default();
        for piece in pieces {
            payload.append(piece);
        }
        payload
    }

    #[test]
    fn a_datagram_of_ours_is_whole() {
        let (local, remote) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 1));
        let outer = OuterPath { local, remote, remote_port: 60_000 };
        for (here, elsewhere) in [(0, 0), (1, 0), (68, 0), (8501, 0), (67, 1400), (94, 3)] {
            let mut bytes = vec![0xee; 12 + here];
            let elsewhere = vec![0xdd; elsewhere];
            let payload = payload([&bytes[12..], &elsewhere]);
            assert_eq!(prepend_udp_header(&mut bytes, 12, &payload, &outer), Some(4));
            assert_eq!(bytes[..4], [0xee; 4]);
            let (header, here) = bytes[4..].split_at(8);
            assert!(here.iter().all(|&byte| byte == 0xee));
            let header = udp::Header::new_checked(header).unwrap();
            assert_eq!((header.src_port(), header.dst_port()), (60_000, GENEVE_PORT));
            let whole = [here, &elsewhere].concat();
            assert_eq!(usize::from(header.length_bytes()), 8 + whole.len());
            let addresses = Addresses::V4 { src: local.octets(), dst: remote.octets() };
            let length = header.length_bytes().into();
            let pseudo_header = checksum::pseudo_header(addresses, protocol::UDP, length);
            assert!(header.checksum_is_valid(pseudo_header, checksum::sum(&whole)));
        }
    }

    #[test]
    fn what_has_no_room_or_is_too_long_is_no_datagram() {
        let local = Ipv4Addr::LOCALHOST;
        let outer = OuterPath { local, remote: local, remote_port: 60_000 };
        let mut bytes = vec![0; 100];
        let long = vec![0; 65_500];
        let most = payload([&long, &[0; 27]]);
        let more = payload([&long, &[0; 28]]);
        assert_eq!(prepend_udp_header(&mut bytes, 7, &most, &outer), None);
        assert_eq!(prepend_udp_header(&mut bytes, 8, &most, &outer), Some(0));
        assert_eq!(prepend_udp_header(&mut bytes, 8, &more, &outer), None);
        assert_eq!(prepend_udp_header(&mut bytes, 101, &most, &outer), None);
    }
}
