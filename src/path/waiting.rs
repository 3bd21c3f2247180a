//! Later fragments that came out of the host before their first one.
//!
//! The kernel emits the fragments of a packet in order, but several workers may read them, and what
//! sits between the links may exchange them. Such a fragment waits, copied, until its first one has
//! been seen by any worker, [`WAIT_MAX`] at most.

use std::time::Duration;

use arrayvec::ArrayVec;

use crate::types::EndpointRef;
use crate::types::INNER_BYTES_MAX;
use crate::types::Moment;
use crate::wire::FiveTuple;

/// How long a fragment waits: some scheduling delays of another worker, and far less than a
/// receiver waits for it (RFC 1122 §3.3.2: 60 seconds).
pub(super) const WAIT_MAX: Duration = Duration::from_millis(250);

/// Fragments that wait at a time, of all endpoints: half a megabyte.
pub(super) const FRAGMENTS_MAX: usize = 64;

/// A fragment that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) endpoint: EndpointRef,
    /// What its packet is known by.
    pub(super) tuple: FiveTuple,
    /// Until when.
    pub(super) until: Moment,
    /// Its room, and how much of that it fills.
    room: usize,
    len: usize,
}

/// The fragments of one worker that wait, the oldest first.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    bytes: Box<[u8]>,
    waiting: ArrayVec<Waiting, FRAGMENTS_MAX>,
    free: ArrayVec<usize, FRAGMENTS_MAX>,
}

impl WaitingRoom {
    /// Nobody waits.
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; FRAGMENTS_MAX * INNER_BYTES_MAX].into_boxed_slice(),
            waiting: ArrayVec::new(),
            free: (0..FRAGMENTS_MAX).collect(),
        }
    }

    /// Whether nobody waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    pub(super) const fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Copies a fragment. Returns false if it is too long or everything is taken.
    #[must_use]
    pub(super) fn push(
        &mut self,
        endpoint: EndpointRef,
        tuple: FiveTuple,
        packet: &[u8],
        now: Moment,
    ) -> bool {
        if packet.len() > INNER_BYTES_MAX {
            return false;
        }
        let Some(room) = self.free.pop() else {
            return false;
        };
        let waiting =
            Waiting { endpoint, tuple, until: now.after(WAIT_MAX), room, len: packet.len() };
        self.bytes[room * INNER_BYTES_MAX..][..packet.len()].copy_from_slice(packet);
        self.waiting.push(waiting);
        true
    }

    /// The one in this place, below [`Self::len`].
    pub(super) fn at(&self, place: usize) -> Waiting {
        self.waiting[place]
    }

    /// The bytes of one that waits.
    pub(super) fn bytes(&self, waiting: &Waiting) -> &[u8] {
        &self.bytes[waiting.room * INNER_BYTES_MAX..][..waiting.len]
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        while !self.is_empty() {
            self.remove(0);
        }
    }

    /// Lets go of the one in this place; the younger ones move up.
    pub(super) fn remove(&mut self, place: usize) {
        self.free.push(self.waiting.remove(place).room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EndpointSlot;
    use crate::types::Generation;
    use crate::wire::Addresses;

    const LIFE: EndpointRef = EndpointRef { slot: EndpointSlot(1), generation: Generation(1) };
    const NOW: Moment = Moment::from_secs(5);

    fn tuple(id: u16) -> FiveTuple {
        let addresses = Addresses::V4 { src: [10, 0, 0, 1], dst: [10, 0, 0, 2] };
        FiveTuple { addresses, protocol: 44, src_port: 17, dst_port: id }
    }

    #[test]
    fn as_many_wait_as_there_is_room_and_no_longer_ones() {
        let mut room = WaitingRoom::new();
        assert!(!room.push(LIFE, tuple(0), &[0; INNER_BYTES_MAX + 1], NOW));
        for id in 0..64 {
            let packet = vec![u8::try_from(id).unwrap(); INNER_BYTES_MAX - usize::from(id)];
            assert!(room.push(LIFE, tuple(id), &packet, NOW));
        }
        assert!(!room.push(LIFE, tuple(64), &[0], NOW));
        room.remove(10);
        assert!(room.push(LIFE, tuple(64), &[64; 7], NOW.after(WAIT_MAX)));
        assert!(!room.push(LIFE, tuple(65), &[0], NOW));
        let ids: Vec<_> = (0..room.len()).map(|place| room.at(place).tuple.dst_port).collect();
        let expected: Vec<_> = (0..65).filter(|&id| id != 10).collect();
        assert_eq!(ids, expected, "the oldest first");
        for place in 0..room.len() {
            let waiting = room.at(place);
            let id = u8::try_from(waiting.tuple.dst_port).unwrap();
            let bytes = room.bytes(&waiting);
            assert!(bytes.iter().all(|&byte| byte == id));
            assert_eq!(bytes.len(), if id == 64 { 7 } else { INNER_BYTES_MAX - usize::from(id) });
        }
    }
}
