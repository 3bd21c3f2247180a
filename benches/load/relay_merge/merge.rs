//! From datagrams to frames for gwi: packets of a flow that follow each other become one
//! super-packet, across the datagrams of a super-datagram and across receive buffers.
//!
//! A packet joins the open item of its flow if cutting ([`super::cut`]) would rebuild it byte for
//! byte: same headers but for what counts up, equal payload (a shorter one is the last), a valid
//! checksum. No payload is copied: the first packet's headers are changed in place, and the frame
//! gathers the payloads from where they were received.

use arrayvec::ArrayVec;
use gwlbtun::wire::checksum;
use nix::libc;

use super::headers::Headers;
use super::headers::u16_at;
use super::headers::u32_at;
use super::pool::Pool;
use crate::packet::GENEVE_BYTES;
use crate::tun::VNET_BYTES;

/// Most packets of a frame: as many as one send can hold again (`UDP_MAX_SEGMENTS` before 6.9).
pub(super) const PACKETS_MAX: usize = 64;

/// Most bytes of an inner packet (RFC 791 §3.1).
const PACKET_BYTES_MAX: usize = 65_535;

/// Frames that are being written at a time. The relay stops receiving at half of a TUN's queue,
/// but not within a super-datagram, which holds up to 64 packets.
pub(super) const ITEMS_MAX: u16 = 4096;

/// No item of the flow is open.
const NONE: u16 = u16::MAX;

/// A datagram in a receive buffer.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) buffer: u16,
    pub(super) at: usize,
    pub(super) bytes: usize,
}

impl Span {
    fn packet(self, pool: &Pool) -> &[u8] {
        &pool.bytes(self.buffer)[self.at + GENEVE_BYTES..self.at + self.bytes]
    }
}

/// One frame: a packet, or several that were merged.
pub(super) struct Item {
    flow: u16,
    headers: Option<Headers>,
    /// Payload of the first packet in bytes, and so of all but the last.
    payload_bytes: usize,
    /// Bytes of the merged packet.
    bytes: usize,
    /// Whether the first packet's checksum was looked at.
    is_verified: bool,
    pub(super) spans: ArrayVec<Span, PACKETS_MAX>,
    /// What the kernel reads: virtio header, headers and first payload; then a payload each.
    pub(super) parts: ArrayVec<libc::iovec, PACKETS_MAX>,
}

pub(super) struct Merger {
    pub(super) items: Box<[Item]>,
    idle: Vec<u16>,
    /// Items in the order of their first packets.
    pub(super) batch: Vec<u16>,
    /// By flow: the item that its next packet may join.
    open: Box<[u16]>,
}

impl Merger {
    pub(super) fn new() -> Self {
        Self {
            items: (0..ITEMS_MAX).map(|_| Item::blank()).collect(),
            idle: (0..ITEMS_MAX).rev().collect(),
            batch: Vec::with_capacity(usize::from(ITEMS_MAX)),
            open: vec![NONE; 1 << 16].into(),
        }
    }

    /// Adds a flow's next packet, which becomes a user of its buffer.
    pub(super) fn add(&mut self, pool: &mut Pool, flow: u16, span: Span) {
        pool.share(span.buffer, 1);
        let packet = span.packet(pool);
        let open = &mut self.open[usize::from(flow)];
        if *open != NONE {
            let item = &mut self.items[usize::from(*open)];
            if item.takes(pool, packet) {
                item.bytes += packet.len() - item.payload_at();
                item.spans.push(span);
                if packet.len() - item.payload_at() < item.payload_bytes {
                    *open = NONE;
                }
                return;
            }
        }
        let number = self.idle.pop().expect("the relay stops in time");
        let item = &mut self.items[usize::from(number)];
        item.begin(flow, packet, span);
        *open = if item.headers.is_some() { number } else { NONE };
        self.batch.push(number);
    }

    /// The flow's next packet comes with another outer header: it begins anew.
    pub(super) fn close(&mut self, flow: u16) {
        self.open[usize::from(flow)] = NONE;
    }

    /// Completes an item of the batch: its headers and its parts.
    pub(super) fn finish(&mut self, pool: &mut Pool, number: u16) -> &Item {
        let item = &mut self.items[usize::from(number)];
        self.open[usize::from(item.flow)] = NONE;
        item.finish(pool);
        item
    }

    /// The kernel is done with an item.
    pub(super) fn written(&mut self, pool: &mut Pool, number: u16) {
        for span in self.items[usize::from(number)].spans.drain(..) {
            pool.release(span.buffer);
        }
        self.idle.push(number);
    }
}

impl Item {
    fn blank() -> Self {
        Self {
            flow: 0,
            headers: None,
            payload_bytes: 0,
            bytes: 0,
            is_verified: false,
            spans: ArrayVec::new(),
            parts: ArrayVec::new(),
        }
    }

    fn begin(&mut self, flow: u16, packet: &[u8], span: Span) {
        let headers = Headers::of(packet).filter(|headers| may_merge(*headers, packet));
        self.flow = flow;
        self.payload_bytes = headers.map_or(0, |headers| packet.len() - headers.bytes);
        self.headers = headers;
        self.bytes = packet.len();
        self.is_verified = false;
        self.spans.push(span);
    }

    /// Where the payload begins in each of the packets.
    fn payload_at(&self) -> usize {
        self.headers.map_or(0, |headers| headers.bytes)
    }

    /// Whether `packet` follows.
    fn takes(&mut self, pool: &Pool, packet: &[u8]) -> bool {
        let Some(headers) = self.headers.filter(|headers| Headers::of(packet) == Some(*headers))
        else {
            return false;
        };
        let payload_bytes = packet.len() - headers.bytes;
        let first = self.spans[0].packet(pool);
        let follows = may_merge(headers, packet)
            && !self.spans.is_full()
            && payload_bytes <= self.payload_bytes
            && self.bytes + payload_bytes <= PACKET_BYTES_MAX
            && self.counts_up(headers, first, packet)
            && has_equal_headers(headers, first, packet);
        if !follows || !is_valid(headers, packet) {
            return false;
        }
        self.is_verified = self.is_verified || is_valid(headers, first);
        self.is_verified
    }

    /// Whether IP ID and sequence number are what cutting would write.
    fn counts_up(&self, headers: Headers, first: &[u8], packet: &[u8]) -> bool {
        if headers.is_ipv4 {
            let step = u16::try_from(self.spans.len()).expect("at most 64");
            let id = match u16_at(first, 4) {
                0 => 0,
                id => id.wrapping_add(step),
            };
            if u16_at(packet, 4) != id {
                return false;
            }
        }
        let merged = u32::try_from(self.bytes - headers.bytes).expect("below 64 KiB");
        let at = headers.ip_bytes + 4;
        !headers.is_tcp || u32_at(packet, at) == u32_at(first, at).wrapping_add(merged)
    }

    fn finish(&mut self, pool: &mut Pool) {
        let packets = self.spans.len();
        let first = self.spans[0];
        let frame_at = first.at + GENEVE_BYTES - VNET_BYTES;
        let frame = &mut pool.bytes_mut(first.buffer)[frame_at..first.at + first.bytes];
        let (virtio, packet) = frame.split_at_mut(VNET_BYTES);
        virtio.fill(0);
        if let Some(headers) = self.headers.filter(|_| packets > 1) {
            headers.set_length(packet, self.bytes);
            let transport_bytes = self.bytes - headers.ip_bytes;
            // The kernel completes a checksum from the sum of the pseudo header.
            let sum = headers.pseudo_header(packet, transport_bytes).fold();
            let at = headers.ip_bytes + headers.checksum_offset();
            packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            describe(virtio, headers, self.payload_bytes);
        }
        self.parts.clear();
        self.parts.push(part(frame));
        let payload_at = GENEVE_BYTES + self.payload_at();
        for span in &self.spans[1..] {
            let bytes = pool.bytes(span.buffer);
            self.parts.push(part(&bytes[span.at + payload_at..span.at + span.bytes]));
        }
    }
}

/// A packet that may be first or next in an item: TCP with a payload and no flag but ACK, or UDP
/// with a payload and a checksum; no fragment.
fn may_merge(headers: Headers, packet: &[u8]) -> bool {
    const ACK: u8 = 0x10;
    let transport = &packet[headers.ip_bytes..];
    let is_plain = if headers.is_tcp { transport[13] == ACK } else { transport[6..8] != [0, 0] };
    // DF, and nothing else: what is not fragmented may keep its ID at 0.
    let is_whole = !headers.is_ipv4 || packet[6..8] == [0x40, 0];
    packet.len() > headers.bytes && is_plain && is_whole
}

/// Whether two packets have the same headers but for lengths, IP ID, sequence number, checksums.
fn has_equal_headers(headers: Headers, first: &[u8], packet: &[u8]) -> bool {
    let equal = |from: usize, to: usize| first[from..to] == packet[from..to];
    let ip = headers.ip_bytes;
    let has_equal_ip = if headers.is_ipv4 {
        equal(0, 2) && equal(6, 10) && equal(12, 20)
    } else {
        equal(0, 4) && equal(6, 40)
    };
    // Ports; acknowledgement to window; options.
    let has_equal_transport = equal(ip, ip + 4)
        && (!headers.is_tcp || equal(ip + 8, ip + 16) && equal(ip + 18, headers.bytes));
    has_equal_ip && has_equal_transport
}

/// Whether the transport checksum is right. Merging would mend a wrong one.
fn is_valid(headers: Headers, packet: &[u8]) -> bool {
    let transport = &packet[headers.ip_bytes..];
    let pseudo_header = headers.pseudo_header(packet, transport.len());
    (pseudo_header + checksum::sum(transport)).is_valid()
}

/// The virtio header of a super-packet (virtio 1.2 §5.1.6): `NEEDS_CSUM`; GSO of TCP over IPv4
/// (1), over IPv6 (4) or of UDP (5); its fields in the machine's byte order.
fn describe(virtio: &mut [u8], headers: Headers, payload_bytes: usize) {
    virtio[0] = 1;
    virtio[1] = match headers {
        Headers { is_tcp: false, .. } => 5,
        Headers { is_ipv4: true, .. } => 1,
        Headers { .. } => 4,
    };
    let fields = [headers.bytes, payload_bytes, headers.ip_bytes, headers.checksum_offset()];
    for (place, value) in virtio[2..].as_chunks_mut::<2>().0.iter_mut().zip(fields) {
        *place = u16::try_from(value).expect("a packet is below 64 KiB").to_ne_bytes();
    }
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}
