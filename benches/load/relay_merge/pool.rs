//! Receive buffers that several operations may share, and of which no more are offered than what
//! they receive fits the second-level cache.
//!
//! The kernel takes offered buffers in turn, so all of them are in use: 256 that are filled with
//! super-packets would be 16 MiB. What is not offered waits on a stack, the last used on top.

use io_uring::IoUring;

use crate::buffers::BUFFERS_MAX;
use crate::buffers::BufferRing;
use crate::lab::Failure;

/// Bytes of a buffer: a super-datagram or a super-packet and what is received before it. Not a
/// power of two, so that the buffers' first lines fall into different sets of the caches.
pub(super) const BUFFER_BYTES: usize = 65_536 + 4096 + 320;

/// What offered buffers may receive in all, as far as [`OFFERED_MIN`] allows.
const WORKING_SET_BYTES: u32 = 1 << 20;

/// Fewest buffers that are offered: a turn needs work for a while.
const OFFERED_MIN: u16 = 32;

pub(super) struct Pool {
    ring: BufferRing,
    idle: Vec<u16>,
    /// How many operations and readers each taken buffer has.
    users: [u16; BUFFERS_MAX as usize],
    /// Mean bytes received into a buffer lately.
    mean_bytes: u32,
}

impl Pool {
    pub(super) fn register(ring: &IoUring, group: u16) -> Result<Self, Failure> {
        Ok(Self {
            ring: BufferRing::register(ring, group, BUFFER_BYTES)?,
            idle: (0..BUFFERS_MAX).collect(),
            users: [0; BUFFERS_MAX as usize],
            mean_bytes: WORKING_SET_BYTES,
        })
    }

    /// The number of the ring, for operations that take from it.
    pub(super) fn group(&self) -> u16 {
        self.ring.group
    }

    /// Whether the kernel has buffers to take.
    pub(super) fn is_offered(&self) -> bool {
        self.ring.free > 0
    }

    /// A completion has brought `bytes` bytes in this buffer. It has one user now.
    pub(super) fn take(&mut self, buffer: u16, bytes: u32) {
        self.ring.free -= 1;
        self.users[usize::from(buffer)] = 1;
        self.mean_bytes = self.mean_bytes - self.mean_bytes / 16 + bytes / 16;
    }

    /// More users.
    pub(super) fn share(&mut self, buffer: u16, users: u16) {
        self.users[usize::from(buffer)] += users;
    }

    /// One user less; after the last the buffer may be offered again.
    pub(super) fn release(&mut self, buffer: u16) {
        let users = &mut self.users[usize::from(buffer)];
        *users -= 1;
        if *users == 0 {
            self.idle.push(buffer);
        }
    }

    /// Offers the kernel what it should have.
    pub(super) fn offer(&mut self) {
        let fitting = WORKING_SET_BYTES / self.mean_bytes.max(1);
        let wanted = u16::try_from(fitting).unwrap_or(BUFFERS_MAX).clamp(OFFERED_MIN, BUFFERS_MAX);
        while self.ring.free < wanted
            && let Some(buffer) = self.idle.pop()
        {
            self.ring.put(buffer);
        }
        self.ring.publish();
    }

    /// The bytes of a taken buffer.
    pub(super) fn bytes(&self, buffer: u16) -> &[u8] {
        self.ring.bytes(buffer)
    }

    /// The same, to change them.
    pub(super) fn bytes_mut(&mut self, buffer: u16) -> &mut [u8] {
        self.ring.bytes_mut(buffer)
    }
}
