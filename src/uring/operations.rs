//! Writes and sends in flight: their slots, and the memory that the kernel reads for each.
//!
//! A slot is claimed with the leases of the job's buffers and freed, leases and all, when the
//! operation's completion has been taken. In between its message header and I/O vector keep their
//! address and their contents.

#![expect(unsafe_code, reason = "the kernel reads this memory while an operation is in flight")]

use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::ops::Range;
use std::ptr::NonNull;

use arrayvec::ArrayVec;
use nix::libc;

use super::pieces;
use super::pieces::Piece;
use super::pieces::Whole;
use super::received::NAME_BYTES;
use super::slots::SlotKey;
use super::slots::SlotTable;
use crate::path::plan::BufferId;
use crate::path::plan::Job;
use crate::path::plan::SPANS_MAX;
use crate::path::plan::Target;
use crate::path::plan::Transport;
use crate::sys::Error;
use crate::sys::Mapping;
use crate::types::EndpointSlot;

/// `AF_INET` and the length of an address, in the types that their fields have.
const FAMILY: libc::sa_family_t = 2;
const ADDRESS_BYTES: libc::socklen_t = 16;
const _: () = assert!(libc::AF_INET == 2 && NAME_BYTES == 16);

/// What an ended write or send was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The endpoint that the packets belong to.
    pub endpoint: EndpointSlot,
    /// Inner packets.
    pub packets: u32,
    /// Sum of their lengths in bytes.
    pub packet_bytes: u32,
    /// As what they were written to `gwi`, if as a super-packet.
    pub merged: Option<Transport>,
}

/// Where a send goes, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    /// The address that it leaves from, where the socket is not bound to one.
    pub(super) from: Option<Ipv4Addr>,
    /// Where to.
    pub(super) remote: SocketAddrV4,
    /// Into datagrams of how many bytes the kernel cuts it, if it does.
    pub(super) cut: Option<u16>,
}

/// What a prepared send is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The endpoint that the packets belong to.
    pub endpoint: EndpointSlot,
    /// How many datagrams the kernel makes of it.
    pub datagrams: u32,
    /// Of two sends the one that was prepared first has the smaller age. What was cut from a send
    /// has the age of that.
    pub age: u64,
    /// Buffers that are held for it alone; what was cut from a send shares its buffers.
    pub buffers: usize,
    /// It was cut from another send, and is not its last datagram, which may be shorter.
    pub is_full_part: bool,
}

/// What a slot remembers of its operation.
#[derive(Clone, Debug, Default)]
struct InFlight {
    endpoint: u16,
    queue: u16,
    packets: u32,
    packet_bytes: u32,
    merged: Option<Transport>,
    age: u64,
    is_full_part: bool,
    envelope: Option<Envelope>,
    leases: ArrayVec<BufferId, SPANS_MAX>,
}

impl InFlight {
    /// Bytes of each datagram, if the kernel shall cut.
    fn cut(&self) -> Option<u16> {
        self.envelope.and_then(|envelope| envelope.cut)
    }
}

/// What the kernel reads of one operation.
#[repr(C)]
struct OperationMemory {
    message: libc::msghdr,
    remote: libc::sockaddr_in,
    /// The I/O vector of the usual case, one span, close to the message.
    single: libc::iovec,
    // Neighbours in this order, so that both together are one list of control messages.
    source: SourceAddress,
    segment: SegmentSize,
}

/// The control message that chooses the address a datagram leaves from (ip(7), `IP_PKTINFO`).
#[repr(C)]
struct SourceAddress {
    header: libc::cmsghdr,
    info: libc::in_pktinfo,
}

/// The control message that has a send cut into datagrams (udp(7), `UDP_SEGMENT`).
#[repr(C)]
struct SegmentSize {
    header: libc::cmsghdr,
    datagram_bytes: u16,
}

const SOURCE_BYTES: usize = size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>();
const SEGMENT_BYTES: usize = size_of::<libc::cmsghdr>() + size_of::<u16>();

/// A control message begins where the one before it, and what aligns it, ends.
const _: () = assert!(
    std::mem::offset_of!(OperationMemory, segment)
        == std::mem::offset_of!(OperationMemory, source) + size_of::<SourceAddress>()
        && size_of::<SourceAddress>() == SOURCE_BYTES.next_multiple_of(align_of::<usize>())
);

/// Bytes that an operation in flight, or about to be, reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: *mut u8,
    pub(super) len: usize,
}

impl Piece for Place {
    fn bytes(&self) -> usize {
        self.len
    }

    fn part(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.len);
        // SAFETY: the range is inside of these bytes, which are of one buffer.
        let start = unsafe { self.start.add(range.start) };
        Self { start, len: range.len() }
    }
}

/// The I/O vector of a job of several spans.
type Vectors = [libc::iovec; SPANS_MAX];

/// All writes and sends of a worker.
#[derive(Debug)]
pub(super) struct Operations {
    slots: SlotTable<InFlight>,
    /// How many slots were claimed so far.
    claimed: u64,
    memory: Mapping,
    vectors: Mapping,
}

impl Operations {
    /// Room for `count` operations.
    pub(super) fn new(count: u32) -> Result<Self, Error> {
        Ok(Self {
            slots: SlotTable::new(count),
            claimed: 0,
            memory: Mapping::new(count as usize * size_of::<OperationMemory>())?,
            vectors: Mapping::new(count as usize * size_of::<Vectors>())?,
        })
    }

    /// Number of operations in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.in_use()
    }

    /// Takes a slot for a job on `queue` that leases `buffers`, at most [`SPANS_MAX`].
    pub(super) fn claim(
        &mut self,
        job: &Job,
        queue: u16,
        buffers: impl Iterator<Item = BufferId>,
    ) -> Option<SlotKey> {
        let (key, slot) = self.slots.claim()?;
        slot.endpoint = job.endpoint.0;
        slot.queue = queue;
        slot.packets = job.packets;
        slot.packet_bytes = job.packet_bytes;
        slot.merged = match job.target {
            Target::Gwi(merged) => merged,
            Target::Outer(_) => None,
        };
        slot.age = self.claimed;
        slot.is_full_part = false;
        slot.envelope = None;
        self.claimed += 1;
        slot.leases.clear();
        slot.leases.extend(buffers);
        Some(key)
    }

    /// Takes a slot for datagram `index` alone of a prepared send, which leases the same buffers:
    /// each of them goes to `lease` too. Nothing if no slot is free.
    ///
    /// # Panics
    /// If the send has no such datagram.
    pub(super) fn claim_datagram(
        &mut self,
        whole_key: SlotKey,
        index: u32,
        lease: impl FnMut(BufferId),
    ) -> Option<SlotKey> {
        let whole = self.slots.get_mut(whole_key).expect("it is prepared").clone();
        let envelope = whole.envelope.expect("it is a send");
        let cut = envelope.cut.filter(|_| index < whole.packets).expect("it has this datagram");
        let all = self.places(whole_key);
        let all_datagrams = Whole {
            packets: whole.packets,
            packet_bytes: whole.packet_bytes,
            datagram_bytes: cut,
            total_bytes: all.iter().map(Piece::bytes).sum(),
        };
        let places: ArrayVec<Place, SPANS_MAX> =
            pieces::cut(all, all_datagrams.datagram(index)).collect();
        let (key, slot) = self.slots.claim()?;
        let envelope = Envelope { cut: None, ..envelope };
        *slot = InFlight {
            packets: 1,
            packet_bytes: all_datagrams.packet_bytes(index),
            is_full_part: index + 1 < whole.packets,
            envelope: Some(envelope),
            ..whole
        };
        slot.leases.iter().copied().for_each(lease);
        let vectors = self.fill_vectors(key, places.into_iter());
        self.fill_message(key, envelope, vectors);
        Some(key)
    }

    /// Frees a slot; each of its leases goes to `release`. Nothing if the key is not of its
    /// present use on `queue`.
    pub(super) fn finish(
        &mut self,
        key: SlotKey,
        queue: u16,
        mut release: impl FnMut(BufferId),
    ) -> Option<Ended> {
        let slot = self.slots.get_mut(key).filter(|slot| slot.queue == queue)?;
        slot.leases.drain(..).for_each(&mut release);
        let ended = Ended {
            endpoint: EndpointSlot(slot.endpoint),
            packets: slot.packets,
            packet_bytes: slot.packet_bytes,
            merged: slot.merged,
        };
        self.slots.free(key);
        Some(ended)
    }

    /// Writes the I/O vector of a claimed slot. Returns its address and length.
    ///
    /// # Panics
    /// If there are more than [`SPANS_MAX`] places or the slot is not in use.
    pub(super) fn fill_vectors(
        &mut self,
        key: SlotKey,
        places: impl ExactSizeIterator<Item = Place>,
    ) -> (*const libc::iovec, u32) {
        assert!(self.slots.get_mut(key).is_some() && places.len() <= SPANS_MAX);
        let count = u32::try_from(places.len()).expect("at most SPANS_MAX");
        let vectors: *mut libc::iovec = if count == 1 {
            // SAFETY: the slot is in use, so its memory is inside the mapping; only the field's
            // address is taken.
            unsafe { &raw mut (*self.memory_of(key).as_ptr()).single }
        } else {
            let all = self.vectors.base().cast::<Vectors>();
            // SAFETY: slots are numbered below the count that the mapping was made for.
            unsafe { all.add(key.slot as usize) }.as_ptr().cast()
        };
        for (number, Place { start, len }) in places.enumerate() {
            // SAFETY: number < SPANS_MAX, by the assertion, or 0 for the single vector: inside the
            // mapping either way.
            let at = unsafe { vectors.add(number) };
            let vector = libc::iovec { iov_base: start.cast(), iov_len: len };
            // SAFETY: mapped and aligned; the slot is claimed but not started, so the kernel does
            // not read it yet.
            unsafe { at.write(vector) };
        }
        (vectors, count)
    }

    /// Writes the message header of a claimed slot.
    pub(super) fn fill_message(
        &mut self,
        key: SlotKey,
        envelope: Envelope,
        (vectors, count): (*const libc::iovec, u32),
    ) {
        let Envelope { from, remote, cut } = envelope;
        self.slots.get_mut(key).expect("it is claimed").envelope = Some(envelope);
        let memory = self.memory_of(key).as_ptr();
        let address = libc::sockaddr_in {
            sin_family: FAMILY,
            sin_port: remote.port().to_be(),
            sin_addr: in_addr(*remote.ip()),
            sin_zero: [0; 8],
        };
        // SAFETY: all fields of a message header may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // SAFETY: the slot is in use, so its memory is inside the mapping; only the field's
        // address is taken.
        message.msg_name = unsafe { &raw mut (*memory).remote }.cast();
        message.msg_namelen = ADDRESS_BYTES;
        message.msg_iov = vectors.cast_mut();
        message.msg_iovlen = count as _;
        if let Some(from) = from {
            // SAFETY: as for the name.
            let source = unsafe { &raw mut (*memory).source };
            // SAFETY: mapped and aligned; the slot is claimed but not started, so the kernel does
            // not read it yet.
            unsafe { source.write(source_address(from)) };
            message.msg_control = source.cast();
            message.msg_controllen = SOURCE_BYTES as _;
        }
        if let Some(datagram_bytes) = cut {
            // SAFETY: as for the name.
            let segment = unsafe { &raw mut (*memory).segment };
            // SAFETY: as for the source.
            unsafe { segment.write(segment_size(datagram_bytes)) };
            if from.is_none() {
                message.msg_control = segment.cast();
                message.msg_controllen = SEGMENT_BYTES as _;
            } else {
                message.msg_controllen = (size_of::<SourceAddress>() + SEGMENT_BYTES) as _;
            }
        }
        // SAFETY: mapped and aligned; the slot is claimed but not started, so the kernel does not
        // read it yet.
        unsafe { (*memory).remote = address };
        // SAFETY: as above.
        unsafe { (*memory).message = message };
    }

    /// The endpoint that a slot's operation belongs to.
    pub(super) fn endpoint_of(&mut self, key: SlotKey) -> Option<EndpointSlot> {
        self.slots.get_mut(key).map(|slot| EndpointSlot(slot.endpoint))
    }

    /// What a slot's send is.
    pub(super) fn sending(&mut self, key: SlotKey) -> Option<Sending> {
        let slot = self.slots.get_mut(key)?;
        Some(Sending {
            endpoint: EndpointSlot(slot.endpoint),
            datagrams: if slot.cut().is_some() { slot.packets } else { 1 },
            buffers: if slot.cut().is_some() { slot.leases.len() } else { 1 },
            age: slot.age,
            is_full_part: slot.is_full_part,
        })
    }

    /// The I/O vector of a prepared send.
    fn places(&mut self, key: SlotKey) -> ArrayVec<Place, SPANS_MAX> {
        let message = self.message(key);
        // SAFETY: the slot is in use, and its message was written when it was prepared; the kernel
        // only reads it.
        let message = unsafe { &*message };
        let place = |number| {
            // SAFETY: `fill_message` was given as many vectors as it wrote down, all mapped.
            let at = unsafe { message.msg_iov.add(number) };
            // SAFETY: as above; `fill_vectors` has written it.
            let vector = unsafe { at.read() };
            Place { start: vector.iov_base.cast(), len: vector.iov_len }
        };
        // The length's type differs between C libraries.
        #[expect(clippy::unnecessary_cast, reason = "the length is an int in musl")]
        let count = message.msg_iovlen as usize;
        (0..count).map(place).collect()
    }

    /// What a prepared send will send.
    #[cfg(test)]
    pub(super) fn bytes_of(&mut self, key: SlotKey) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Place { start, len } in self.places(key) {
            // SAFETY: the place is inside a buffer that the slot leases, so nobody writes it.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(start, len) });
        }
        bytes
    }

    /// Address of the message header of a slot.
    ///
    /// # Panics
    /// If the slot is not in use.
    pub(super) fn message(&mut self, key: SlotKey) -> *const libc::msghdr {
        assert!(self.slots.get_mut(key).is_some(), "{key:?} is not in use");
        // SAFETY: the slot is in use, so its memory is inside the mapping; only the field's
        // address is taken.
        unsafe { &raw const (*self.memory_of(key).as_ptr()).message }
    }

    fn memory_of(&self, key: SlotKey) -> NonNull<OperationMemory> {
        let all = self.memory.base().cast::<OperationMemory>();
        // SAFETY: slots are numbered below the count that the mapping was made for.
        unsafe { all.add(key.slot as usize) }
    }
}

fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) }
}

fn source_address(from: Ipv4Addr) -> SourceAddress {
    SourceAddress {
        header: libc::cmsghdr {
            cmsg_len: SOURCE_BYTES as _,
            cmsg_level: libc::IPPROTO_IP,
            cmsg_type: libc::IP_PKTINFO,
        },
        info: libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr(from),
            ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
        },
    }
}

fn segment_size(datagram_bytes: u16) -> SegmentSize {
    SegmentSize {
        header: libc::cmsghdr {
            cmsg_len: SEGMENT_BYTES as _,
            cmsg_level: libc::SOL_UDP,
            cmsg_type: libc::UDP_SEGMENT,
        },
        datagram_bytes,
    }
}
