//! A relay's receive buffers: memory that is offered to the kernel through a ring, from which
//! multishot operations take.
//!
//! A buffer is *free* while the kernel may take it and *taken* from the completion that names it
//! until [`BufferRing::put`] offers it again. Only a taken buffer is looked at.
#![expect(unsafe_code, reason = "the buffers are shared with the kernel by address")]

use std::ptr::NonNull;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::lab::Failure;

/// Places of a ring, a power of two, and so the most buffers that one can have.
pub(crate) const BUFFERS_MAX: u16 = 256;

/// A ring of buffers, and the buffers. Never freed: both are the kernel's until the process ends.
pub(crate) struct BufferRing {
    /// The number by which operations name the ring.
    pub(crate) group: u16,
    /// Buffers that the kernel may take.
    pub(crate) free: u16,
    entries: NonNull<BufRingEntry>,
    buffers: NonNull<u8>,
    buffer_bytes: usize,
    tail: u16,
}

/// The kernel wants the ring on a page of its own.
#[repr(C, align(4096))]
struct RingMemory([[u64; 2]; BUFFERS_MAX as usize]);

impl BufferRing {
    /// Makes [`BUFFERS_MAX`] buffers of `buffer_bytes` bytes and registers their ring. None is
    /// free yet.
    pub(crate) fn register(
        ring: &IoUring,
        group: u16,
        buffer_bytes: usize,
    ) -> Result<Self, Failure> {
        let entries: &'static mut RingMemory =
            Box::leak(Box::new(RingMemory([[0; 2]; BUFFERS_MAX as usize])));
        let buffers = vec![0_u8; buffer_bytes * usize::from(BUFFERS_MAX)].leak();
        let this = Self {
            group,
            free: 0,
            entries: NonNull::from(entries).cast(),
            buffers: NonNull::from(buffers).cast(),
            buffer_bytes,
            tail: 0,
        };
        let address = u64::try_from(this.entries.addr().get())?;
        let submitter = ring.submitter();
        // SAFETY: the memory is page-aligned, as large as BUFFERS_MAX entries, and leaked.
        unsafe { submitter.register_buf_ring_with_flags(address, BUFFERS_MAX, group, 0) }?;
        Ok(this)
    }

    /// Offers a buffer to the kernel, from the next [`Self::publish`] on.
    pub(crate) fn put(&mut self, buffer: u16) {
        let place = self.place(buffer);
        let slot = usize::from(self.tail % BUFFERS_MAX);
        // SAFETY: the index is below BUFFERS_MAX, so the entry is inside the leaked ring.
        let mut entry = unsafe { self.entries.add(slot) };
        // SAFETY: the kernel reads entries below the published tail only; this one is above it.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(u64::try_from(place.addr().get()).expect("addresses have 64 bits"));
        entry.set_len(u32::try_from(self.buffer_bytes).expect("a small constant"));
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.free += 1;
    }

    /// Shows the kernel what was put.
    pub(crate) fn publish(&self) {
        // SAFETY: `entries` is the first entry of the ring, whose spare field is the tail.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the field is aligned, lives for ever, and is accessed by us in no other way.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// The bytes of a taken buffer.
    pub(crate) fn bytes(&self, buffer: u16) -> &[u8] {
        let place = self.place(buffer);
        // SAFETY: the bytes are one buffer's, and initialised (to zero, if not received). The
        // kernel has completed its write into it and does not take it again before put(), which
        // the borrow of self keeps away.
        unsafe { std::slice::from_raw_parts(place.as_ptr(), self.buffer_bytes) }
    }

    /// The same, to change them.
    pub(crate) fn bytes_mut(&mut self, buffer: u16) -> &mut [u8] {
        let place = self.place(buffer);
        // SAFETY: as above; the borrow of self keeps a second reference away.
        unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), self.buffer_bytes) }
    }

    fn place(&self, buffer: u16) -> NonNull<u8> {
        assert!(buffer < BUFFERS_MAX, "the kernel gives back what it was given");
        // SAFETY: the number is below BUFFERS_MAX, so the offset is inside the leaked array.
        unsafe { self.buffers.add(usize::from(buffer) * self.buffer_bytes) }
    }
}
