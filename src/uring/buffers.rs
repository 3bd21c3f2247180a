//! A group of receive buffers and the ring through which the kernel takes them.
//!
//! ```text
//!   one mapping     ┌ entries × 16 bytes ┐ ┌─────────── count × buffer_bytes ──────────────┐
//!                   │ ring, tail in it   │ │ buffer 0 │ buffer 1 │ …                      │
//!                   └────────────────────┘ └───────────────────────────────────────────────┘
//!   one buffer      ┌ headroom ┐┌ what the kernel fills ────────────────────────────────┐
//! ```
//!
//! The ring is a FIFO: every buffer offered gets its turn, so the working set is what is offered,
//! not what is used. Therefore only so many buffers are with the kernel at a time as stay in the
//! cache ([`WORKING_SET_BYTES`]) if each is filled as the last ones were: few that are filled to
//! the brim, many that hold one small packet each. The others wait on a stack.
#![expect(unsafe_code, reason = "the kernel and we share this memory by convention")]

use std::ptr::NonNull;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use io_uring::types::BufRingEntry;

use super::leases::LeaseTable;
use super::ring::Ring;
use crate::sys::Error;
use crate::sys::Mapping;

/// Alignment of buffers: an even number of cache lines, and no power of two as a stride, so that
/// the first lines of all buffers do not fall into the same few sets of the cache.
const BUFFER_ALIGN: usize = 256;

/// Bytes that the buffers with the kernel are filled with, together: what a core's own cache holds.
const WORKING_SET_BYTES: usize = 1 << 20;

/// Buffers that the kernel has at a time, at least.
const OFFERED_MIN: u16 = 16;

/// Size of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// Most buffers that the kernel has at a time, a power of two.
    pub offered: u16,
    /// All buffers; those not offered are in use or wait.
    pub count: u16,
    /// Bytes before what the kernel fills, for a header that goes in front.
    pub headroom_bytes: usize,
    /// Bytes that the kernel may fill.
    pub filled_bytes: usize,
}

impl GroupPlan {
    fn stride_bytes(&self) -> usize {
        let bytes = (self.headroom_bytes + self.filled_bytes).next_multiple_of(BUFFER_ALIGN);
        // An odd multiple of the alignment is never a power of two.
        if (bytes / BUFFER_ALIGN).is_multiple_of(2) { bytes + BUFFER_ALIGN } else { bytes }
    }

    fn ring_bytes(&self) -> usize {
        usize::from(self.offered) * size_of::<BufRingEntry>()
    }

    fn buffers_start(&self) -> usize {
        self.ring_bytes().next_multiple_of(BUFFER_ALIGN)
    }
}

/// The buffers, their states, and the kernel's ring of them.
#[derive(Debug)]
pub(super) struct BufferGroup {
    plan: GroupPlan,
    memory: Mapping,
    leases: LeaseTable,
    tail: u16,
    /// How much the kernel has put into a buffer lately, in 1/16 bytes.
    filled_16ths: usize,
}

impl BufferGroup {
    /// Maps the memory and registers its ring as group `id`.
    pub(super) fn new(ring: &Ring, id: u16, plan: GroupPlan) -> Result<Self, Error> {
        assert!(plan.offered.is_power_of_two() && plan.offered <= plan.count);
        let bytes = plan.buffers_start() + usize::from(plan.count) * plan.stride_bytes();
        let memory = Mapping::new(bytes)?;
        let address = memory.base().as_ptr().expose_provenance() as u64;
        // SAFETY: the mapping is page-aligned, has `offered` entries at its start, and outlives
        // the ring: `Driver` drops the ring first.
        let result =
            unsafe { ring.submitter().register_buf_ring_with_flags(address, plan.offered, id, 0) };
        result.map_err(|error| {
            Error::from_io("io_uring_register PBUF_RING", format!("group {id}"), &error)
        })?;
        let leases = LeaseTable::new(plan.count);
        Ok(Self { plan, memory, leases, tail: 0, filled_16ths: 0 })
    }

    /// The states of the buffers.
    pub(super) fn leases(&mut self) -> &mut LeaseTable {
        &mut self.leases
    }

    /// Number of buffers that are neither with the kernel nor in use.
    pub(super) fn free(&self) -> usize {
        self.leases.free()
    }

    /// Number of buffers that the kernel has.
    pub(super) fn offered(&self) -> u16 {
        self.leases.offered()
    }

    /// Notes how much the kernel has put into a buffer.
    #[inline]
    pub(super) fn filled(&mut self, bytes: usize) {
        self.filled_16ths = self.filled_16ths - self.filled_16ths / 16 + bytes;
    }

    /// How many buffers the kernel should have.
    fn share(&self) -> u16 {
        let buffers = WORKING_SET_BYTES / (self.filled_16ths / 16).max(1);
        let buffers = u16::try_from(buffers).unwrap_or(u16::MAX);
        buffers.max(OFFERED_MIN).min(self.plan.offered)
    }

    /// Offers free buffers to the kernel until it has its share or none is free.
    pub(super) fn refill(&mut self) {
        let before = self.tail;
        let share = self.share();
        while self.leases.offered() < share {
            let Some(buffer) = self.leases.offer() else {
                break;
            };
            self.write_entry(buffer);
        }
        if self.tail != before {
            self.publish_tail();
        }
    }

    fn write_entry(&mut self, buffer: u16) {
        let place = usize::from(self.tail & (self.plan.offered - 1));
        let address = self.buffer(buffer).as_ptr().addr() + self.plan.headroom_bytes;
        let len = u32::try_from(self.plan.filled_bytes).expect("buffers are far below 4 GiB");
        let entries = self.memory.base().cast::<BufRingEntry>();
        // SAFETY: place < offered, and that many entries stand at the start of the mapping.
        let entry = unsafe { entries.add(place) };
        // SAFETY: the entry is mapped, aligned, valid in any bit pattern, and the kernel reads it
        // only after the tail below has passed it; it is behind the tail, so the kernel is done
        // with what stood there. (The tail shares entry 0's last two bytes, which none of the
        // setters touches.)
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address as u64);
        entry.set_len(len);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish_tail(&self) {
        let entries = self.memory.base().cast::<BufRingEntry>().as_ptr();
        // SAFETY: the ring's base is page-aligned and has at least one entry.
        let tail = unsafe { BufRingEntry::tail(entries) };
        // SAFETY: the address is that of a mapped, aligned u16 which lives as long as `self`, and
        // both the kernel and we access it atomically only.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// First byte of a buffer, headroom included.
    fn buffer(&self, buffer: u16) -> NonNull<u8> {
        assert!(buffer < self.plan.count, "buffer {buffer} is not of this group");
        let offset = self.plan.buffers_start() + usize::from(buffer) * self.plan.stride_bytes();
        // SAFETY: buffer < count, so its whole stride lies inside the mapping made in `new`.
        unsafe { self.memory.base().add(offset) }
    }

    /// Length of a buffer, headroom included.
    pub(super) fn buffer_bytes(&self) -> usize {
        self.plan.headroom_bytes + self.plan.filled_bytes
    }

    /// Bytes before what the kernel fills.
    pub(super) fn headroom_bytes(&self) -> usize {
        self.plan.headroom_bytes
    }

    /// The bytes of a buffer that we hold and nothing else uses, headroom included.
    ///
    /// # Panics
    /// If it is not held, or an operation uses it too.
    pub(super) fn bytes_mut(&mut self, buffer: u16) -> &mut [u8] {
        assert_eq!(self.leases.users(buffer), 1, "buffer {buffer} has another user");
        let (start, len) = (self.buffer(buffer), self.buffer_bytes());
        // SAFETY: the bytes are mapped and initialised (zeroed by the kernel at first); the one
        // lease is the caller's, so neither the kernel nor an operation accesses them; the
        // borrow of `self` keeps it that way.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// Address of `len` bytes at `start` of a buffer, for an operation that leases it.
    ///
    /// # Panics
    /// If the bytes are not inside the buffer.
    pub(super) fn address(&self, buffer: u16, start: u32, len: u32) -> *mut u8 {
        let (start, len) = (start as usize, len as usize);
        assert!(start + len <= self.buffer_bytes(), "span outside of its buffer");
        // SAFETY: start lies inside the buffer, by the assertion.
        unsafe { self.buffer(buffer).add(start) }.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_aligned_and_no_power_of_two() {
        for filled_bytes in [1, 100, 8_192, 9_216, 65_535] {
            let plan = GroupPlan { offered: 8, count: 16, headroom_bytes: 256, filled_bytes };
            let stride = plan.stride_bytes();
            assert!(stride >= 256 + filled_bytes && stride.is_multiple_of(BUFFER_ALIGN));
            assert!(!stride.is_power_of_two() || stride == BUFFER_ALIGN);
        }
    }
}
