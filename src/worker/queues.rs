//! The worker's TUN queues: which are read, what is in flight on them, and how full they are.
//!
//! A write to `gwi` runs the kernel's whole path at once, and what comes out waits in `gwo`'s
//! queue of `txqueuelen` frames; the kernel silently drops what is beyond. Therefore a pair that
//! was written [`FRAMES_UNREAD_MAX`] frames is *pressed*: the worker receives no more datagrams
//! until both queues were seen empty. (Without a steering program the kernel chooses the queue by
//! flow hash, so frames may also wait in another worker's queue; each worker looks at its own.)

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;

use crate::types::EndpointRef;
use crate::types::EndpointSlot;
use crate::types::Generation;
use crate::types::Side;
use crate::uring::Driver;
use crate::uring::Operation;
use crate::uring::Stream;
use crate::uring::queue_number;

/// Frames written to a pair before it must be seen empty: half of the links' `txqueuelen`, so
/// that one more turn fits.
const FRAMES_UNREAD_MAX: u32 = 2048;

/// One endpoint's queues of this worker.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) endpoint: EndpointRef,
    /// Without `gwo` where nothing is returned.
    fds: ArrayVec<Arc<OwnedFd>, 2>,
    reads: [Stream; 2],
    /// Which of the queues stand in [`Queues::readable`].
    readable: [bool; 2],
    /// Writes and sends of the endpoint that have not completed.
    pub(super) in_flight: u32,
    frames_unread: u32,
    detaching: bool,
}

impl Pair {
    /// A queue's file, for a read outside the ring. There must be that queue.
    pub(super) fn fd(&self, side: Side) -> BorrowedFd<'_> {
        self.fds[side.index()].as_fd()
    }

    /// Its queues, and their files.
    pub(super) fn fds(&self) -> impl Iterator<Item = (Side, BorrowedFd<'_>)> {
        Side::BOTH.into_iter().zip(self.fds.iter().map(AsFd::as_fd))
    }

    /// Whether no frame waits in a queue that somebody reads. The queue of a deleted link says
    /// `POLLERR` from then on; no frame will come out of it, and none must be waited for.
    fn is_empty(&self) -> bool {
        let fds = self.fds.iter().map(AsFd::as_fd);
        let mut fds: ArrayVec<_, 2> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if nix::poll::poll(&mut fds, PollTimeout::ZERO).is_err() {
            // That tells nothing: look again next turn.
            return false;
        }
        fds.iter().zip(&self.reads).all(|(fd, read)| {
            let has_frames = fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
            !has_frames || !read.is_wanted()
        })
    }

    fn is_free(&self) -> bool {
        self.in_flight == 0 && self.reads.iter().all(|read| read.is_stopped())
    }
}

/// All queues of one worker, by endpoint slot.
#[derive(Debug)]
pub(super) struct Queues {
    pairs: Vec<Option<Pair>>,
    /// Queues whose reads have to be armed, each once.
    idle: Vec<(EndpointSlot, Side)>,
    /// How often reads were armed: who is first, and so first at the buffers, changes each time.
    arms: usize,
    /// Queues that poll has named (where there is no multishot read), each once: who was read
    /// last is read again last.
    readable: VecDeque<(EndpointSlot, Side)>,
    pressed: Vec<EndpointSlot>,
    detaching: Vec<EndpointSlot>,
}

impl Queues {
    /// No queues, with room for `endpoints_max` pairs.
    pub(super) fn new(endpoints_max: usize) -> Self {
        let slots = || Vec::with_capacity(endpoints_max);
        Self {
            pairs: (0..endpoints_max).map(|_| None).collect(),
            idle: Vec::with_capacity(2 * endpoints_max),
            arms: 0,
            readable: VecDeque::with_capacity(2 * endpoints_max),
            pressed: slots(),
            detaching: slots(),
        }
    }

    /// The pair in `slot`.
    pub(super) fn at(&mut self, slot: EndpointSlot) -> Option<&mut Pair> {
        self.pairs.get_mut(slot.index())?.as_mut()
    }

    /// Takes a pair whose files are registered. Its reads start with the next
    /// [`Self::arm_idle`].
    pub(super) fn attach(&mut self, endpoint: EndpointRef, fds: ArrayVec<Arc<OwnedFd>, 2>) {
        let sides = Side::of_endpoint(fds.is_full());
        let mut pair = Pair {
            endpoint,
            fds,
            reads: [Stream::default(); 2],
            readable: [false; 2],
            in_flight: 0,
            frames_unread: 0,
            detaching: false,
        };
        for read in &mut pair.reads[sides.len()..] {
            // It is not with the kernel: there is nothing to cancel.
            let _ = read.stop();
        }
        self.pairs[endpoint.slot.index()] = Some(pair);
        self.idle.extend(sides.iter().map(|&side| (endpoint.slot, side)));
    }

    /// Starts every read that is not with the kernel. Where buffers are short the first ones get
    /// them all, so each is the first one in its turn.
    pub(super) fn arm_idle(&mut self, driver: &mut Driver) {
        if self.idle.is_empty() {
            return;
        }
        let first = self.arms % self.idle.len();
        self.arms = self.arms.wrapping_add(1);
        self.idle.rotate_left(first);
        for (slot, side) in self.idle.drain(..) {
            let Some(pair) = self.pairs[slot.index()].as_mut() else {
                continue;
            };
            if pair.reads[side.index()].arm() {
                let generation = generation(pair.endpoint.generation);
                driver.arm_tun_read(pair.fd(side), slot, side, generation);
            }
        }
    }

    /// Whether a read with this token is one of the present pair in the slot.
    pub(super) fn is_current(&mut self, slot: EndpointSlot, token_generation: u8) -> bool {
        self.at(slot).is_some_and(|pair| generation(pair.endpoint.generation) == token_generation)
    }

    /// Notes a completion of a read. Returns false if it belongs to an earlier pair in the slot.
    pub(super) fn read_completed(
        &mut self,
        slot: EndpointSlot,
        side: Side,
        token_generation: u8,
        more: bool,
    ) -> bool {
        let Some(pair) = self.pairs.get_mut(slot.index()).and_then(Option::as_mut) else {
            return false;
        };
        if generation(pair.endpoint.generation) != token_generation {
            return false;
        }
        pair.reads[side.index()].completed(more);
        if !more {
            self.idle.push((slot, side));
        }
        true
    }

    /// Ends reading a queue for good: its link is gone. Returns the pair, unless that is known.
    pub(super) fn lost(
        &mut self,
        driver: &mut Driver,
        slot: EndpointSlot,
        side: Side,
    ) -> Option<EndpointRef> {
        let pair = self.at(slot)?;
        if !pair.reads[side.index()].is_wanted() {
            return None;
        }
        // A read has ended by its failure; a poll goes on and must be cancelled.
        stop_read(driver, pair, side);
        Some(pair.endpoint)
    }

    /// Notes that a queue has something to read (where there is no multishot read).
    pub(super) fn set_readable(&mut self, slot: EndpointSlot, side: Side) {
        let Some(pair) = self.pairs.get_mut(slot.index()).and_then(Option::as_mut) else {
            return;
        };
        let known = &mut pair.readable[side.index()];
        if pair.reads[side.index()].is_wanted() && !*known {
            *known = true;
            self.readable.push_back((slot, side));
        }
    }

    /// How many queues have something to read.
    pub(super) fn readable(&self) -> usize {
        self.readable.len()
    }

    /// The queue that has waited longest to be read. Whoever leaves something in it says so
    /// with [`Self::set_readable`]: poll will not.
    pub(super) fn take_readable(&mut self) -> Option<(EndpointSlot, Side)> {
        let (slot, side) = self.readable.pop_front()?;
        if let Some(pair) = self.at(slot) {
            pair.readable[side.index()] = false;
        }
        Some((slot, side))
    }

    /// Notes that a frame was written to the pair's `gwi`, which comes back as so many.
    pub(super) fn written(&mut self, slot: EndpointSlot, frames: u32) {
        let Some(pair) = self.pairs[slot.index()].as_mut() else {
            return;
        };
        pair.in_flight += 1;
        let before = pair.frames_unread;
        pair.frames_unread = before.saturating_add(frames);
        if before < FRAMES_UNREAD_MAX && pair.frames_unread >= FRAMES_UNREAD_MAX {
            self.pressed.push(slot);
        }
    }

    /// Whether some pair must be read before more is received. Looks at the pressed ones.
    pub(super) fn is_pressed(&mut self) -> bool {
        let pairs = &mut self.pairs;
        self.pressed.retain(|slot| {
            let Some(pair) = pairs[slot.index()].as_mut() else {
                return false;
            };
            let still = !pair.is_empty();
            if !still {
                pair.frames_unread = 0;
            }
            still
        });
        !self.pressed.is_empty()
    }

    /// Whether some pair was, when last looked at.
    pub(super) fn was_pressed(&self) -> bool {
        !self.pressed.is_empty()
    }

    /// Begins to let go of a pair: its reads are cancelled. Returns whether it is there.
    pub(super) fn detach(&mut self, driver: &mut Driver, endpoint: EndpointRef) -> bool {
        let slot = endpoint.slot;
        let Some(pair) = self.pairs.get_mut(slot.index()).and_then(Option::as_mut) else {
            return false;
        };
        if pair.endpoint != endpoint || pair.detaching {
            return false;
        }
        pair.detaching = true;
        stop_reads(driver, pair);
        self.readable.retain(|&(readable, _)| readable != slot);
        self.detaching.push(slot);
        true
    }

    /// Cancels every read: the program ends.
    pub(super) fn stop_all(&mut self, driver: &mut Driver) {
        self.readable.clear();
        for pair in self.pairs.iter_mut().flatten() {
            stop_reads(driver, pair);
        }
    }

    /// Whether no read is with the kernel any more.
    pub(super) fn all_stopped(&self) -> bool {
        self.pairs.iter().flatten().all(Pair::is_free)
    }

    /// Lets go of a pair that is detaching and has nothing in flight any more.
    pub(super) fn take_detached(&mut self, driver: &Driver) -> Option<Pair> {
        let pairs = &mut self.pairs;
        let free = |slot: &EndpointSlot| pairs[slot.index()].as_ref().is_none_or(Pair::is_free);
        let place = self.detaching.iter().position(free)?;
        let slot = self.detaching.swap_remove(place);
        let pair = pairs[slot.index()].take()?;
        // The number was registered, so the kernel takes it back; if not, the ring's own end will.
        let _ = driver.unregister_gwi(slot);
        self.pressed.retain(|&pressed| pressed != slot);
        self.idle.retain(|&(idle, _)| idle != slot);
        Some(pair)
    }
}

fn stop_reads(driver: &mut Driver, pair: &mut Pair) {
    for side in Side::BOTH {
        stop_read(driver, pair, side);
    }
}

fn stop_read(driver: &mut Driver, pair: &mut Pair, side: Side) {
    if pair.reads[side.index()].stop() {
        let queue = queue_number(pair.endpoint.slot, side);
        driver.cancel(Operation::TunRead, queue, generation(pair.endpoint.generation));
    }
}

/// The part of a generation that a token has room for.
fn generation(generation: Generation) -> u8 {
    let [.., low] = generation.0.to_be_bytes();
    low
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const LIFE: EndpointRef = EndpointRef { slot: EndpointSlot(1), generation: Generation(1) };

    /// A queue that says `POLLERR`, as that of a deleted link does: a pipe that nobody reads.
    fn dead_queue() -> Arc<OwnedFd> {
        let (_, writer) = std::io::pipe().unwrap();
        Arc::new(writer.into())
    }

    fn queue() -> (UnixDatagram, Arc<OwnedFd>) {
        let (host, ours) = UnixDatagram::pair().unwrap();
        (host, Arc::new(ours.into()))
    }

    fn press(queues: &mut Queues) {
        for _ in 0..FRAMES_UNREAD_MAX {
            queues.written(LIFE.slot, 1);
        }
    }

    #[test]
    fn a_pair_is_pressed_until_both_queues_were_seen_empty() {
        let [(gwi_host, gwi), (gwo_host, gwo)] = [queue(), queue()];
        let mut queues = Queues::new(4);
        queues.attach(LIFE, [Arc::clone(&gwi), Arc::clone(&gwo)].into());
        for (host, ours) in [(&gwi_host, &gwi), (&gwo_host, &gwo)] {
            press(&mut queues);
            host.send(b"frame").unwrap();
            assert!(queues.is_pressed() && queues.is_pressed());
            nix::unistd::read(ours, &mut [0; 8]).unwrap();
            assert!(!queues.is_pressed());
        }
    }

    #[test]
    fn a_pair_may_lack_the_queue_of_packets_that_return() {
        let (host, gwi) = queue();
        let mut queues = Queues::new(4);
        queues.attach(LIFE, [Arc::clone(&gwi)].into_iter().collect());
        press(&mut queues);
        host.send(b"frame").unwrap();
        assert!(queues.is_pressed());
        nix::unistd::read(&gwi, &mut [0; 8]).unwrap();
        assert!(!queues.is_pressed());
        assert_eq!(queues.idle, [(LIFE.slot, Side::Gwi)]);
        let pair = queues.at(LIFE.slot).unwrap();
        assert!(pair.reads[Side::Gwo.index()].is_stopped(), "nothing to wait for at the end");
    }

    #[test]
    fn a_queue_whose_link_is_gone_presses_nobody() {
        let (_host, gwi) = queue();
        let mut queues = Queues::new(4);
        queues.attach(LIFE, [gwi, dead_queue()].into());
        press(&mut queues);
        assert!(!queues.is_pressed(), "the worker would never receive again");
    }
}
