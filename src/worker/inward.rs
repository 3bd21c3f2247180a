//! From the load balancer to `gwi`: datagrams that arrive, wait for their endpoint, or are written.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use super::BatchBuffers;
use super::Worker;
use super::drop_reason;
use super::mailbox::Event;
use super::mailbox::Sight;
use crate::path;
use crate::path::Arrived;
use crate::path::Decap;
use crate::path::plan::BufferId;
use crate::path::plan::Group;
use crate::path::plan::Transport;
use crate::sys::Errno;
use crate::sys::Error;
use crate::sys::clock;
use crate::sys::udp;
use crate::types::Downgrade;
use crate::types::DropReason;
use crate::types::GENEVE_PORT;
use crate::types::OuterPath;
use crate::uring::Completion;
use crate::uring::Ended;
use crate::uring::Operation;
use crate::uring::Token;
use crate::uring::Verdict;
use crate::uring::received;
use crate::uring::received::Received;
use crate::uring::verdict;

/// Datagrams between two looks at how full the queues are. Where something between the links cuts
/// super-packets apart, each of these may be a frame in a queue.
const UNSEEN_MAX: usize = 1024;
const _: () = assert!(UNSEEN_MAX >= received::DATAGRAMS_MAX);

/// More than comes into a socket's queue beyond its limit, together with what has been received and
/// not looked at: a working set of buffers.
const QUEUE_EXCESS_BYTES: usize = 4 << 20;

/// How long merged datagrams may wait there: far longer than a worker takes for a full queue. After
/// that a datagram that looks like several is none of them, however little has come.
const TRAINS_WAIT_MAX: Duration = Duration::from_secs(10);

impl Worker {
    pub(super) fn on_receive(&mut self, completion: Completion) -> Result<(), Error> {
        match completion.result {
            Ok(filled) => {
                if let Some(buffer) = completion.buffer {
                    self.arrivals.datagrams.push_back((buffer, filled as usize));
                }
            }
            Err(errno) => match verdict(Operation::Receive, errno) {
                Verdict::Lost => {
                    return Err(Error::new("recvmsg", format!("UDP port {GENEVE_PORT}"), errno));
                }
                Verdict::Rearm | Verdict::Cancelled | Verdict::Wait | Verdict::Drop(_) => {
                    self.cell.receive_starved.add(u64::from(errno == Errno::ENOBUFS));
                }
            },
        }
        Ok(())
    }

    /// Works off the datagrams that have arrived, as far as the limits of a turn allow.
    pub(super) fn take_datagrams(&mut self) {
        while !self.arrivals.datagrams.is_empty() && !self.queues.is_pressed() {
            let mut most = UNSEEN_MAX;
            while let Some(&(buffer, filled)) = self.arrivals.datagrams.front() {
                let received = self.look_at(buffer, filled);
                let count = received.as_ref().map_or(1, Received::count);
                if !self.path.has_room(&self.plan, count) || most < count {
                    break;
                }
                most -= count;
                self.arrivals.datagrams.pop_front();
                self.looked_into.push(buffer);
                self.on_received(buffer, received);
            }
            if !self.execute() {
                return;
            }
        }
    }

    /// What has been received into a buffer.
    fn look_at(&mut self, buffer: BufferId, filled: usize) -> Option<Received> {
        let profile = self.path.profile();
        let bytes = &self.driver.bytes_mut(buffer)[..filled];
        let mut received = received::parse(bytes)?;
        if self.trains_left_bytes > 0
            && self.now < self.trains_until
            && received.count() == 1
            && let Some(first) = path::first_of_train(&bytes[received.bytes.clone()], profile)
        {
            received.datagram_bytes = first;
        }
        Some(received)
    }

    /// Has the kernel merge no more datagrams, ever.
    pub(super) fn stop_merging(&mut self) {
        self.merging.forbid();
        self.set_merging(false);
    }

    /// Has the kernel merge datagrams where that finds something.
    pub(super) fn adapt_merging(&mut self) {
        if let Some(is_on) = self.merging.decide(self.now) {
            self.set_merging(is_on);
        }
    }

    /// Has the kernel merge datagrams, or not. What it has merged before it is told not to still
    /// waits in the socket, and it does not say any more of what length those datagrams were.
    fn set_merging(&mut self, is_on: bool) {
        // It can be refused only by a kernel that has never merged any.
        let _ = udp::set_merging(&self.receiver, is_on);
        self.cell.merging_paused.set(self.merging.is_paused().into());
        self.trains_left_bytes = 0;
        if !is_on {
            let queue_bytes = udp::receive_queue_bytes(&self.receiver).unwrap_or(0);
            self.trains_left_bytes = queue_bytes + QUEUE_EXCESS_BYTES;
            self.trains_until = self.now.after(TRAINS_WAIT_MAX);
        }
    }

    fn on_received(&mut self, buffer: BufferId, received: Option<Received>) {
        let Some(received) = received else {
            // The kernel did not say where from: not a datagram that can be answered.
            self.cell.datagrams.count(0);
            self.cell.drops.count(DropReason::Short);
            return;
        };
        if !received.is_unicast || !self.allows(received.outer.remote) {
            self.refuse(buffer, &received);
            return;
        }
        if received.truncated {
            self.cell.datagrams.count(received.bytes.len());
            self.cell.drops.count(DropReason::Mtu);
            return;
        }
        self.trains_left_bytes = self.trains_left_bytes.saturating_sub(received.bytes.len());
        self.cell.receives.add(1);
        self.outer_paths.saw(received.outer);
        self.merging.saw(received.outer, received.count(), received.datagram_bytes);
        for datagram in received.datagrams() {
            self.on_datagram(buffer, datagram, received.outer);
        }
    }

    /// Whether the operator lets anything come from there.
    fn allows(&self, source: Ipv4Addr) -> bool {
        self.sources.as_ref().is_none_or(|sources| sources.allows(source))
    }

    /// Drops what came from a stranger, or to everybody, without a look at it.
    #[cold]
    fn refuse(&mut self, buffer: BufferId, received: &Received) {
        let count = u64::try_from(received.count()).expect("there are few");
        let source = received.outer.remote;
        let reason = if self.allows(source) {
            DropReason::NotUnicast
        } else {
            self.cell.stranger.set(source.to_bits().into());
            DropReason::SourceDenied
        };
        self.cell.datagrams.count_many(count, received.bytes.len() as u64);
        self.cell.drops.add(reason, count);
        self.trains_left_bytes = self.trains_left_bytes.saturating_sub(received.bytes.len());
        if self.sampler.wants_drops() {
            let bytes = &self.driver.bytes_mut(buffer)[received.bytes.clone()];
            let sight = Sight::Datagram(received.outer);
            self.sampler.offer_dropped(sight, Some(reason), bytes, self.now);
        }
    }

    fn on_datagram(&mut self, buffer: BufferId, datagram: Range<usize>, outer: OuterPath) {
        let sight = Sight::Datagram(outer);
        if self.sampler.wants_packets() {
            let bytes = &self.driver.bytes_mut(buffer)[datagram.clone()];
            self.sampler.offer(sight, None, bytes, self.now);
        }
        let arrived = Arrived { buffer, datagram: datagram.clone(), outer };
        let Self { path, plan, driver, looked_into, now, .. } = self;
        let mut buffers = BatchBuffers { driver, looked_into };
        if let Decap::Unknown(id) = path.decap(arrived, *now, &mut buffers, plan) {
            let bytes = &driver.bytes_mut(buffer)[datagram.clone()];
            match self.admission.announce(id, self.now) {
                Ok(()) => {
                    if self.path.announced(id, bytes, outer) {
                        self.outbox.push_back(Event::EndpointSeen(self.id, id));
                    }
                }
                Err(reason) => self.path.refused(reason),
            }
        }
        if self.sampler.wants_drops() {
            let dropped = self.path.take_last_drop();
            let bytes = &self.driver.bytes_mut(buffer)[datagram];
            self.sampler.offer_dropped(sight, dropped, bytes, self.now);
        }
    }

    /// Delivers what was held for endpoints that are served now, as far as buffers go.
    pub(super) fn replay_held(&mut self) {
        while let Some(&endpoint) = self.replaying.front() {
            if !self.path.has_held(endpoint) {
                self.replaying.pop_front();
                continue;
            }
            if !self.make_room() {
                return;
            }
            let Some(buffer) = self.driver.take_buffer(Group::Udp) else {
                return;
            };
            self.looked_into.push(buffer);
            let bytes = self.driver.bytes_mut(buffer);
            let start = received::DATAGRAM_START;
            if let Some((len, outer)) = self.path.next_held(endpoint, &mut bytes[start..]) {
                let datagram = start..start + len;
                let arrived = Arrived { buffer, datagram: datagram.clone(), outer };
                let Self { path, plan, driver, looked_into, now, .. } = self;
                let mut buffers = BatchBuffers { driver, looked_into };
                path.decap_held(arrived, *now, &mut buffers, plan);
                if self.sampler.wants_drops() {
                    let dropped = self.path.take_last_drop();
                    let bytes = &self.driver.bytes_mut(buffer)[datagram];
                    self.sampler.offer_dropped(Sight::Datagram(outer), dropped, bytes, self.now);
                }
            }
        }
    }

    pub(super) fn on_tun_written(&mut self, token: Token, result: Result<u32, Errno>) {
        let watched_since = self.driver.watched_since(token);
        let Some(ended) = self.finish(token) else {
            return;
        };
        let Some(endpoint) = self.path.endpoint(ended.endpoint) else {
            return;
        };
        match result {
            Ok(_) => {
                self.cell.gwi_writes.add(1);
                if let Some(since) = watched_since {
                    self.cell.to_gwi_times.observe(clock::precise().since(since));
                }
                let Ended { packets, packet_bytes, .. } = ended;
                endpoint.cell.to_gwi.count_many(packets.into(), packet_bytes.into());
                endpoint.cell.last_to_gwi.set(self.now);
            }
            Err(errno) => {
                let reason = drop_reason(Operation::TunWrite, errno);
                endpoint.cell.decap_drops.add(reason, ended.packets.into());
                if errno == Errno::EINVAL
                    && let Some(transport) = ended.merged
                {
                    self.stop_coalescing(transport, errno);
                }
            }
        }
    }

    /// Makes no more super-packets of `transport`: the kernel took one at the start, and has
    /// refused one now. Others that are on their way may be refused too; it is told once.
    #[cold]
    fn stop_coalescing(&mut self, transport: Transport, errno: Errno) {
        if self.path.stop_coalescing(transport) {
            let downgrade = match transport {
                Transport::Tcp => Downgrade::TcpCoalescing,
                Transport::Udp => Downgrade::UdpCoalescing,
            };
            self.outbox.push_back(Event::Downgraded(self.id, downgrade, errno));
        }
    }
}
