//! From frames to datagrams: a super-packet becomes packets again, and datagrams of one outer port
//! that are equally long leave in one send, which the kernel cuts (`UDP_SEGMENT`).
//!
//! Headers are written into the letter, payloads are read from where they were received.

use arrayvec::ArrayVec;
use gwlbtun::wire::checksum;
use nix::libc;

use super::headers::HEADERS_BYTES_MAX;
use super::headers::Headers;
use super::headers::u16_at;
use super::headers::u32_at;
use super::merge::PACKETS_MAX;
use super::pool::Pool;
use crate::buffers::BUFFERS_MAX;
use crate::lab::Failure;
use crate::packet::GENEVE_BYTES;
use crate::tun::VNET_BYTES;

/// Most bytes of one UDP send over IPv4.
const SEND_BYTES_MAX: usize = 65_507;

/// Sends in flight. Each frame fills up at most one letter, and two of its own.
const LETTERS_MAX: u16 = 3 * BUFFERS_MAX;

/// No letter of the sender is open.
const NONE: u16 = u16::MAX;

type HeaderBytes = [u8; GENEVE_BYTES + HEADERS_BYTES_MAX];

/// One send.
pub(super) struct Letter {
    /// Place of the socket in the ring's file table.
    pub(super) sender: u32,
    /// Bytes of all datagrams but the last, which may be shorter.
    segment_bytes: usize,
    bytes: usize,
    pub(super) segments: usize,
    headers: Box<[HeaderBytes; PACKETS_MAX]>,
    /// For each datagram: its headers, its payload.
    parts: ArrayVec<libc::iovec, { 2 * PACKETS_MAX }>,
    /// The frames in which the payloads are.
    buffers: ArrayVec<u16, PACKETS_MAX>,
    control: Control,
    pub(super) message: libc::msghdr,
}

/// A control message of one number, as `CMSG_SPACE` lays it out.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    value: u64,
}

pub(super) struct Cutter {
    pub(super) letters: Box<[Letter]>,
    idle: Vec<u16>,
    /// Letters in the order of their first datagrams.
    pub(super) batch: Vec<u16>,
    /// By sender: the letter that its next datagram may join.
    open: Box<[u16]>,
}

/// A super-packet's headers, from which those of its packets are made.
struct Template<'a> {
    headers: Headers,
    bytes: &'a [u8],
    /// Whether the IP ID stays 0.
    has_no_id: bool,
}

impl Cutter {
    /// `senders`: how many places the ring's file table has.
    pub(super) fn new(senders: usize) -> Self {
        Self {
            letters: (0..LETTERS_MAX).map(|_| Letter::blank()).collect(),
            idle: (0..LETTERS_MAX).rev().collect(),
            batch: Vec::with_capacity(usize::from(LETTERS_MAX)),
            open: vec![NONE; senders].into(),
        }
    }

    /// Adds the packets of the frame in `buffer`, which go back from `sender` behind `geneve`.
    pub(super) fn add(
        &mut self,
        pool: &mut Pool,
        (buffer, bytes): (u16, usize),
        sender: u32,
        geneve: &[u8; GENEVE_BYTES],
    ) -> Result<(), Failure> {
        let frame = &pool.bytes(buffer)[..bytes];
        let (virtio, packet) = frame.split_at(VNET_BYTES);
        let payload_bytes = usize::from(u16::from_ne_bytes([virtio[4], virtio[5]]));
        if virtio[1] == 0 {
            if virtio[0] != 0 {
                return Err("a frame with an open checksum: nobody should have made one".into());
            }
            let letter = self.letter_for(sender, GENEVE_BYTES + packet.len());
            let users = letter.add(geneve, &[], packet, buffer);
            pool.share(buffer, users);
            return Ok(());
        }
        let headers = Headers::of(packet).ok_or("a super-packet of an unknown kind")?;
        let (template, payload) = packet.split_at(headers.bytes);
        let template = Template {
            headers,
            bytes: template,
            has_no_id: headers.is_ipv4 && u16_at(packet, 4) == 0,
        };
        let mut users = 0;
        for (index, piece) in payload.chunks(payload_bytes).enumerate() {
            let rebuilt = template.rebuild(index, index * payload_bytes, piece);
            let rebuilt = &rebuilt[..headers.bytes];
            let letter = self.letter_for(sender, GENEVE_BYTES + headers.bytes + piece.len());
            users += letter.add(geneve, rebuilt, piece, buffer);
        }
        pool.share(buffer, users);
        Ok(())
    }

    /// The letter that the sender's next datagram, of `bytes` bytes, joins.
    fn letter_for(&mut self, sender: u32, bytes: usize) -> &mut Letter {
        let open = &mut self.open[usize::try_from(sender).expect("32 bits")];
        if *open == NONE || !self.letters[usize::from(*open)].has_room_for(bytes) {
            *open = self.idle.pop().expect("three for each frame buffer");
            self.letters[usize::from(*open)].begin(sender, bytes);
            self.batch.push(*open);
        }
        &mut self.letters[usize::from(*open)]
    }

    /// Completes a letter of the batch: what the kernel reads to send it.
    pub(super) fn finish(&mut self, number: u16, remote: *mut libc::sockaddr_in) -> &Letter {
        let letter = &mut self.letters[usize::from(number)];
        self.open[usize::try_from(letter.sender).expect("32 bits")] = NONE;
        letter.finish(remote);
        letter
    }

    /// The kernel is done with a letter. Returns how many datagrams it held.
    pub(super) fn sent(&mut self, pool: &mut Pool, number: u16) -> usize {
        let letter = &mut self.letters[usize::from(number)];
        for buffer in letter.buffers.drain(..) {
            pool.release(buffer);
        }
        self.idle.push(number);
        letter.segments
    }
}

impl Letter {
    fn blank() -> Self {
        Self {
            sender: 0,
            segment_bytes: 0,
            bytes: 0,
            segments: 0,
            headers: Box::new([[0; GENEVE_BYTES + HEADERS_BYTES_MAX]; PACKETS_MAX]),
            parts: ArrayVec::new(),
            buffers: ArrayVec::new(),
            control: Control::of_segment_size(),
            message: super::blank_message(),
        }
    }

    fn begin(&mut self, sender: u32, segment_bytes: usize) {
        self.sender = sender;
        self.segment_bytes = segment_bytes;
        self.bytes = 0;
        self.segments = 0;
        self.parts.clear();
    }

    /// All so far are equally long, and one that is not longer fits.
    fn has_room_for(&self, bytes: usize) -> bool {
        self.segments < PACKETS_MAX
            && self.bytes == self.segments * self.segment_bytes
            && bytes <= self.segment_bytes
            && self.bytes + bytes <= SEND_BYTES_MAX
    }

    /// Adds a datagram. Returns 1 if this made the letter a user of `buffer`, else 0.
    fn add(&mut self, geneve: &[u8], headers: &[u8], payload: &[u8], buffer: u16) -> u16 {
        let place = &mut self.headers[self.segments];
        let header_bytes = GENEVE_BYTES + headers.len();
        place[..GENEVE_BYTES].copy_from_slice(geneve);
        place[GENEVE_BYTES..header_bytes].copy_from_slice(headers);
        self.parts.push(libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: header_bytes });
        self.parts.push(libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast(),
            iov_len: payload.len(),
        });
        self.segments += 1;
        self.bytes += header_bytes + payload.len();
        if self.buffers.last() == Some(&buffer) {
            return 0;
        }
        self.buffers.push(buffer);
        1
    }

    fn finish(&mut self, remote: *mut libc::sockaddr_in) {
        self.message.msg_name = remote.cast();
        self.message.msg_namelen = super::NAME_BYTES.try_into().expect("a small constant");
        self.message.msg_iov = self.parts.as_mut_ptr();
        self.message.msg_iovlen = self.parts.len();
        let segment_bytes = u16::try_from(self.segment_bytes).expect("below 64 KiB");
        // A 16-bit number at the first bytes of the value.
        self.control.value = u64::from_ne_bytes(
            [segment_bytes.to_ne_bytes(), [0; 2], [0; 2], [0; 2]]
                .concat()
                .try_into()
                .expect("eight bytes"),
        );
        self.message.msg_control = (&raw mut self.control).cast();
        self.message.msg_controllen = if self.segments > 1 { size_of::<Control>() } else { 0 };
    }
}

impl Control {
    /// `UDP_SEGMENT` (udp(7)), its value still to be set.
    fn of_segment_size() -> Self {
        const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
        Self {
            header: libc::cmsghdr {
                cmsg_len: HEADER_BYTES + size_of::<u16>(),
                cmsg_level: libc::SOL_UDP,
                cmsg_type: libc::UDP_SEGMENT,
            },
            value: 0,
        }
    }
}

impl Template<'_> {
    /// Headers of packet `index`, which carries `payload` from `offset` of the whole.
    fn rebuild(&self, index: usize, offset: usize, payload: &[u8]) -> [u8; HEADERS_BYTES_MAX] {
        let Self { headers, bytes, has_no_id } = self;
        let mut out = [0; HEADERS_BYTES_MAX];
        out[..headers.bytes].copy_from_slice(bytes);
        if headers.is_ipv4 && !has_no_id {
            let step = u16::try_from(index).expect("at most 64");
            let id = u16_at(bytes, 4).wrapping_add(step);
            out[4..6].copy_from_slice(&id.to_be_bytes());
        }
        let packet_bytes = headers.bytes + payload.len();
        headers.set_length(&mut out, packet_bytes);
        let transport = &mut out[headers.ip_bytes..headers.bytes];
        if headers.is_tcp {
            let step = u32::try_from(offset).expect("below 64 KiB");
            let sequence = u32_at(transport, 4).wrapping_add(step);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
        }
        let at = headers.checksum_offset();
        transport[at..at + 2].fill(0);
        let pseudo_header = headers.pseudo_header(bytes, packet_bytes - headers.ip_bytes);
        let sum = pseudo_header + checksum::sum(transport) + checksum::sum(payload);
        // Zero would mean "no checksum" to UDP; its other form means the same sum.
        let sum = match sum.finish() {
            0 if !headers.is_tcp => 0xffff,
            sum => sum,
        };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        out
    }
}
