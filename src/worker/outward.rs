//! From the host to the load balancer: frames that are read, and sends that end.

use std::ops::Range;

use super::BatchBuffers;
use super::Worker;
use super::count_unsent;
use super::finish;
use super::mailbox::Event;
use super::mailbox::Sight;
use super::queues::Pair;
use super::senders::Desk;
use super::senders::Outcome;
use crate::path;
use crate::path::Frame;
use crate::path::plan::BufferId;
use crate::path::plan::Group;
use crate::sys::Errno;
use crate::sys::clock;
use crate::types::Downgrade;
use crate::types::DropReason;
use crate::types::EndpointSlot;
use crate::types::Side;
use crate::types::TUN_QUEUE_PACKETS;
use crate::uring::Completion;
use crate::uring::Ended;
use crate::uring::Operation;
use crate::uring::SenderId;
use crate::uring::Token;
use crate::uring::Verdict;
use crate::uring::queue_of;
use crate::uring::verdict;

/// Frames read from one queue in a row, where there is no multishot read.
const READS_IN_A_ROW: usize = 64;

impl Worker {
    pub(super) fn on_tun_read(&mut self, completion: Completion) {
        let Completion { token, result, buffer, more } = completion;
        let (slot, side) = queue_of(token.queue);
        if !self.queues.read_completed(slot, side, token.generation, more) {
            self.cell.stray_completions.add(1);
            if let Some(buffer) = buffer {
                self.driver.release(buffer);
            }
            return;
        }
        match (result, buffer) {
            (Ok(filled), Some(buffer)) => {
                self.arrivals.frames.push_back((token, buffer, filled as usize));
            }
            (Ok(_), None) => self.queues.set_readable(slot, side),
            (Err(errno), _) => {
                if verdict(Operation::TunRead, errno) == Verdict::Lost {
                    self.on_queue_lost(slot, side, errno);
                }
            }
        }
    }

    /// Works off the frames that were read, as far as the limits of a turn allow.
    pub(super) fn take_frames(&mut self) {
        while !self.arrivals.frames.is_empty() && self.make_room() {
            let Some((token, buffer, filled)) = self.arrivals.frames.pop_front() else {
                return;
            };
            let (slot, side) = queue_of(token.queue);
            if self.queues.is_current(slot, token.generation) {
                self.on_frame(slot, side, buffer, filled);
            } else {
                // Read before the endpoint was let go.
                self.cell.drops.count(DropReason::Shutdown);
                self.driver.release(buffer);
            }
        }
    }

    fn on_frame(&mut self, slot: EndpointSlot, side: Side, buffer: BufferId, filled: usize) {
        self.cell.tun_reads.add(1);
        self.looked_into.push(buffer);
        let start = self.driver.headroom_bytes(Group::Tun);
        let frame = start..start + filled;
        let arrived = Frame { buffer, frame: frame.clone(), side };
        let Self { path, plan, driver, looked_into, now, .. } = self;
        let mut buffers = BatchBuffers { driver, looked_into };
        path.encap(slot, &arrived, *now, &mut buffers, plan);
        if self.sampler.wants_packets() || self.sampler.wants_drops() {
            self.look_at_frame(slot, side, buffer, frame);
        }
    }

    /// Sends the fragments that waited and need not any more.
    pub(super) fn send_waiting(&mut self) {
        if !self.path.has_waiting() {
            return;
        }
        if self.path.has_room(&self.plan, path::WAITING_MAX) || self.execute() {
            let Self { path, plan, driver, looked_into, now, .. } = self;
            path.send_waiting(*now, &mut BatchBuffers { driver, looked_into }, plan);
        }
    }

    /// Shows the log a frame that the path has had.
    #[cold]
    fn look_at_frame(
        &mut self,
        slot: EndpointSlot,
        side: Side,
        buffer: BufferId,
        frame: Range<usize>,
    ) {
        let Some(endpoint) = self.path.endpoint(slot) else {
            return;
        };
        let sight = Sight::Packet(endpoint.id, side);
        let dropped = self.path.take_last_drop();
        let packet = &self.driver.bytes_mut(buffer)[path::packet_in(frame)];
        if self.sampler.wants_packets() {
            self.sampler.offer(sight, None, packet, self.now);
        }
        if self.sampler.wants_drops() {
            self.sampler.offer_dropped(sight, dropped, packet, self.now);
        }
    }

    pub(super) fn on_queue_lost(&mut self, slot: EndpointSlot, side: Side, errno: Errno) {
        if let Some(endpoint) = self.queues.lost(&mut self.driver, slot, side) {
            self.outbox.push_back(Event::QueueLost(self.id, endpoint, side, errno));
        }
    }

    /// Reads, without the ring, the queues that poll has named, each in its turn: the substitute
    /// for multishot read before Linux 6.7.
    pub(super) fn read_the_readable(&mut self) {
        for _ in 0..self.queues.readable() {
            // Who finds no buffer keeps its turn.
            if !self.can_read() || !self.make_room() {
                return;
            }
            let Some((slot, side)) = self.queues.take_readable() else {
                return;
            };
            match self.read_queue(slot, side) {
                // Empty: poll will name it again.
                Err(Errno::EAGAIN) => {}
                Err(errno) if verdict(Operation::TunRead, errno) == Verdict::Lost => {
                    self.on_queue_lost(slot, side, errno);
                }
                Ok(()) | Err(_) => self.queues.set_readable(slot, side),
            }
        }
    }

    /// Whether there is a buffer for a frame, and one for the headers of its segments.
    pub(super) fn can_read(&self) -> bool {
        self.driver.free(Group::Tun) >= 2
    }

    /// Reads from one queue until it had its share or buffers ran out: there may be more in it.
    fn read_queue(&mut self, slot: EndpointSlot, side: Side) -> Result<(), Errno> {
        for _ in 0..READS_IN_A_ROW {
            if !self.can_read() {
                break;
            }
            let Some(pair) = self.queues.at(slot) else {
                break;
            };
            let Some(buffer) = self.driver.take_buffer(Group::Tun) else {
                break;
            };
            let start = self.driver.headroom_bytes(Group::Tun);
            match nix::unistd::read(pair.fd(side), &mut self.driver.bytes_mut(buffer)[start..]) {
                Ok(filled) => {
                    self.on_frame(slot, side, buffer, filled);
                    if !self.make_room() {
                        break;
                    }
                }
                Err(errno) => {
                    self.driver.release(buffer);
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    pub(super) fn on_sent(&mut self, token: Token, result: Result<u32, Errno>) {
        let watched_since = self.driver.watched_since(token);
        let Self { senders, driver, path, queues, cell, .. } = self;
        let lost = |ended: &Ended, reason| count_unsent(path, ended, reason);
        match senders.completed(&mut Desk { driver, queues, lost }, token, result) {
            Outcome::Sent(Ended { endpoint, packets, packet_bytes, .. }) => {
                cell.sends.add(1);
                if let Some(since) = watched_since {
                    cell.to_gwlb_times.observe(clock::precise().since(since));
                }
                if let Some(endpoint) = path.endpoint(endpoint) {
                    endpoint.cell.to_gwlb.count_many(packets.into(), packet_bytes.into());
                }
            }
            Outcome::Unsent => {}
            Outcome::Stray => cell.stray_completions.add(1),
        }
        if let Some(errno) = senders.take_uncut() {
            path.stop_gathering();
            self.outbox.push_back(Event::Downgraded(self.id, Downgrade::UdpGso, errno));
        }
    }

    pub(super) fn on_send_ready(&mut self, sender: SenderId) {
        let Self { senders, driver, path, queues, .. } = self;
        let lost = |ended: &Ended, reason| count_unsent(path, ended, reason);
        senders.ready(&mut Desk { driver, queues, lost }, sender);
    }

    pub(super) fn finish(&mut self, token: Token) -> Option<Ended> {
        let ended = finish(&mut self.driver, &mut self.queues, token);
        if ended.is_none() {
            self.cell.stray_completions.add(1);
        }
        ended
    }

    /// Counts what nobody has read from queues that are let go. There is much of it only where this
    /// worker stood still: frames came before their endpoint was idle, and the order to let go of
    /// it is read with them.
    pub(super) fn abandon_unread(&mut self, pair: &Pair) {
        let mut frame = vec![0; path::FRAME_BYTES_MAX];
        for (side, queue) in pair.fds() {
            // Whoever still sends there does so for ever.
            for _ in 0..TUN_QUEUE_PACKETS {
                match nix::unistd::read(queue, &mut frame) {
                    Ok(bytes) if bytes > 0 => {
                        self.path.abandon(pair.endpoint.slot, side, &mut frame[..bytes]);
                    }
                    // Empty, or the queue of a link that somebody deleted.
                    Ok(_) | Err(_) => break,
                }
            }
        }
    }
}
