//! The worker: one thread, one core, one ring, one UDP socket, one queue of every TUN.
//!
//! A turn takes what has completed, lets the path decide, and starts what it planned:
//!
//! ```text
//!   enter the ring ─▶ completions ─▶ path ─▶ plan ─▶ operations ─▶ buffers offered again
//!        ▲                                                                   │
//!        └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! One system call per turn. After start nothing here allocates, logs, or waits for anything but
//! the ring; messages to control go through a bounded channel.

pub mod mailbox;
mod outer_paths;
mod queues;
mod sampler;
mod senders;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use self::mailbox::Admission;
use self::mailbox::Attachment;
use self::mailbox::Command;
use self::mailbox::Event;
use self::mailbox::Mailbox;
use self::mailbox::Policy;
use self::mailbox::Sample;
use self::mailbox::Sight;
use self::outer_paths::OuterPaths;
use self::queues::Queues;
use self::sampler::Sampler;
use self::senders::Desk;
use self::senders::Outcome;
use self::senders::Senders;
use crate::flow::FlowTable;
use crate::flow::Ttl;
use crate::path;
use crate::path::Arrived;
use crate::path::Decap;
use crate::path::Endpoint;
use crate::path::Frame;
use crate::path::Path;
use crate::path::plan::BufferId;
use crate::path::plan::Buffers;
use crate::path::plan::Group;
use crate::path::plan::Job;
use crate::path::plan::Plan;
use crate::path::plan::Target;
use crate::stats::WorkerCell;
use crate::sys::Errno;
use crate::sys::Error;
use crate::sys::EventFd;
use crate::sys::clock;
use crate::sys::udp;
use crate::types::DropReason;
use crate::types::EndpointRef;
use crate::types::EndpointSlot;
use crate::types::GENEVE_PORT;
use crate::types::Moment;
use crate::types::Offload;
use crate::types::OuterPath;
use crate::types::Side;
use crate::types::WorkerId;
use crate::uring::Completion;
use crate::uring::Driver;
use crate::uring::DriverPlan;
use crate::uring::Ended;
use crate::uring::Operation;
use crate::uring::SenderId;
use crate::uring::Stream;
use crate::uring::Token;
use crate::uring::Verdict;
use crate::uring::queue_of;
use crate::uring::received;
use crate::uring::received::Received;
use crate::uring::verdict;

/// How long an idle worker sleeps: it shows its heartbeat four times a second.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// How long a worker sleeps while datagrams wait for a queue to be read.
const PRESSED_TICK: Duration = Duration::from_millis(1);

/// Time in which every flow is looked at once to see whether it is idle. A worker without traffic
/// takes longer where flows or shards are many: it turns four times a second, and a turn looks at
/// one shard and at no more than [`EXPIRY_FLOWS_MAX`] flows of it.
const EXPIRY_ROUND: Duration = Duration::from_secs(30);

/// Most flows looked at in one turn.
const EXPIRY_FLOWS_MAX: usize = 4096;

/// How long a stopping worker goes on reading its TUNs while there is something to read.
const DRAIN_MAX: Duration = Duration::from_millis(200);

/// How long a stopping worker waits for the kernel to give its operations back.
const STOP_MAX: Duration = Duration::from_secs(1);

/// Writes and sends that are planned before they are started, and the spans of all of them. There
/// are twice as many slots ([`OPERATIONS_MAX`]): what a turn has started has mostly ended when the
/// next one looks, and a send that nobody cuts for us takes a slot for each of its datagrams.
const JOBS_MAX: usize = 2048;
const SPANS_PLANNED_MAX: usize = 16_384;
const _: () = assert!(JOBS_MAX >= path::PLAN_JOBS_MIN && JOBS_MAX >= received::DATAGRAMS_MAX);

/// Datagrams between two looks at how full the queues are. Where something between the links cuts
/// super-packets apart, each of these may be a frame in a queue.
const UNSEEN_MAX: usize = 1024;
const _: () = assert!(UNSEEN_MAX >= received::DATAGRAMS_MAX);

/// Most writes and sends in flight.
pub const OPERATIONS_MAX: u32 = 4096;

/// How long datagrams that the kernel has merged may wait in a socket's queue: far longer than a
/// worker takes for a full one.
const TRAINS_WAIT_MAX: Duration = Duration::from_secs(10);

/// Completions of a turn that make it a busy one: what a multishot operation hands over in one go.
const BUSY_COMPLETIONS: usize = 32;

/// Frames read from one queue in a row, where there is no multishot read.
const READS_IN_A_ROW: usize = 64;

/// What a worker is made of. Everything is moved into its thread.
#[derive(Debug)]
pub struct WorkerParts {
    /// Its number.
    pub id: WorkerId,
    /// How many workers there are.
    pub workers: usize,
    /// Sizes of its ring.
    pub driver: DriverPlan,
    /// Its receive socket; control has it too, to change how datagrams are spread.
    pub receiver: Arc<OwnedFd>,
    /// What may leave together.
    pub offload: Offload,
    /// Messages from control.
    pub commands: Receiver<Command>,
    /// What control notifies after leaving a message.
    pub wake: Arc<EventFd>,
    /// Messages to control.
    pub events: Mailbox<Event>,
    /// Packets for the log.
    pub samples: Mailbox<Sample>,
    /// Who may become an endpoint.
    pub admission: Arc<Admission>,
    /// All flows.
    pub flows: Arc<FlowTable>,
    /// Its counters.
    pub cell: Arc<WorkerCell>,
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Receives no more; sends what is still to be read until then.
    Draining(Moment),
    /// Waits for the kernel to give everything back until then.
    Stopping(Moment),
}

/// What the kernel has filled and nobody has looked at yet, the oldest first: where a turn is at
/// its limits, the rest waits for the next one.
#[derive(Debug)]
struct Arrivals {
    datagrams: VecDeque<(BufferId, usize)>,
    frames: VecDeque<(Token, BufferId, usize)>,
}

impl Arrivals {
    fn new(buffers: usize) -> Self {
        let (datagrams, frames) =
            (VecDeque::with_capacity(buffers), VecDeque::with_capacity(buffers));
        Self { datagrams, frames }
    }

    fn is_empty(&self) -> bool {
        self.datagrams.is_empty() && self.frames.is_empty()
    }
}

/// The buffers of this batch, for the path.
struct BatchBuffers<'a> {
    driver: &'a mut Driver,
    looked_into: &'a mut Vec<BufferId>,
}

impl Buffers for BatchBuffers<'_> {
    fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        self.driver.bytes_mut(buffer)
    }

    fn take_scratch(&mut self) -> Option<BufferId> {
        let buffer = self.driver.take_buffer(Group::Tun)?;
        self.looked_into.push(buffer);
        Some(buffer)
    }
}

/// One worker.
#[derive(Debug)]
pub struct Worker {
    id: WorkerId,
    driver: Driver,
    path: Path,
    plan: Plan,
    queues: Queues,
    senders: Senders,
    receive: Stream,
    wake_stream: Stream,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    events: Mailbox<Event>,
    /// Events that wait for room in the mailbox.
    outbox: VecDeque<Event>,
    sampler: Sampler,
    outer_paths: OuterPaths,
    admission: Arc<Admission>,
    cell: Arc<WorkerCell>,
    completions: Vec<Completion>,
    arrivals: Arrivals,
    /// Buffers that this turn has looked into: held until its plan is executed.
    looked_into: Vec<BufferId>,
    /// Endpoints whose held datagrams are being delivered.
    replaying: VecDeque<EndpointRef>,
    phase: Phase,
    /// Until then the socket may hold datagrams that were merged while that was on.
    trains_until: Moment,
    /// Whether the last turn has seen so much that there may be more.
    was_busy: bool,
    now: Moment,
    expired_at: Moment,
    flows: Arc<FlowTable>,
    workers: usize,
    // Last: the ring has let go of the file by the time that this closes it.
    receiver: Arc<OwnedFd>,
}

impl Worker {
    /// Sets everything up. Must be called on the worker's own thread.
    ///
    /// # Errors
    /// When the kernel refuses the ring, its memory, or a registration.
    pub fn new(parts: WorkerParts) -> Result<Self, Error> {
        let WorkerParts { id, workers, driver: plan, receiver, offload, wake, flows, cell, .. } =
            parts;
        let mut driver = Driver::new(plan)?;
        driver.set_receiver(receiver.as_fd());
        let endpoints_max = usize::from(plan.endpoints_max);
        let buffers = usize::from(plan.udp.count) + usize::from(plan.tun.count);
        let now = clock::now();
        let (flows_shared, cell_shared) = (Arc::clone(&flows), Arc::clone(&cell));
        Ok(Self {
            id,
            driver,
            path: Path::new(
                flows_shared,
                cell_shared,
                endpoints_max,
                (id.index(), workers),
                offload,
            ),
            plan: Plan::new(JOBS_MAX, SPANS_PLANNED_MAX),
            queues: Queues::new(endpoints_max),
            senders: Senders::new(plan.senders_max, plan.tun.count / 2, JOBS_MAX),
            receive: Stream::default(),
            wake_stream: Stream::default(),
            wake,
            commands: parts.commands,
            events: parts.events,
            outbox: VecDeque::with_capacity(2 * endpoints_max + 1),
            sampler: Sampler::new(id, parts.samples),
            outer_paths: OuterPaths::new(now),
            admission: parts.admission,
            cell,
            completions: Vec::with_capacity(2 * buffers + usize::from(plan.senders_max)),
            arrivals: Arrivals::new(buffers),
            looked_into: Vec::with_capacity(buffers),
            replaying: VecDeque::with_capacity(endpoints_max),
            phase: Phase::Running,
            trains_until: Moment::ZERO,
            was_busy: false,
            now,
            expired_at: now,
            flows,
            workers,
            receiver,
        })
    }

    /// Turns until [`Command::Stop`]. A failure of the ring or of the receive socket is reported
    /// to control and ends the worker.
    pub fn run(mut self) {
        if let Err(error) = self.run_until_stopped() {
            let _ = self.events.post(Event::Failed(self.id, error));
        }
    }

    fn run_until_stopped(&mut self) -> Result<(), Error> {
        self.start_streams();
        while !self.is_stopped() {
            self.turn()?;
        }
        // What came this far after the end had begun.
        self.path.drop_all_held();
        self.abandon_sends(None, DropReason::Shutdown);
        Ok(())
    }

    /// One turn.
    fn turn(&mut self) -> Result<(), Error> {
        let (wanted, patience) = self.wait();
        self.driver.enter(wanted, patience)?;
        self.now = clock::now();
        let strays = self.driver.take_completions(&mut self.completions);
        self.was_busy = self.completions.len() >= BUSY_COMPLETIONS;
        self.cell.stray_completions.add(strays);
        // First what control says: datagrams of an endpoint that is ready now need not wait.
        self.on_commands();
        let quiet =
            self.completions.is_empty() && self.queues.readable() == 0 && self.arrivals.is_empty();
        // What has ended first: that makes room for what has arrived.
        for place in 0..self.completions.len() {
            self.on_completion(self.completions[place])?;
        }
        self.completions.clear();
        self.take_frames();
        self.read_the_readable();
        self.replay_held();
        self.take_datagrams();
        self.execute();
        self.let_go();
        self.start_streams();
        self.expire();
        self.advance_phase(quiet);
        self.path.publish();
        self.sampler.tell_passed_over(self.now);
        self.cell.outer_paths.set(self.outer_paths.count(self.now));
        self.cell.turns.add(1);
        self.cell.last_turn.set(self.now);
        Ok(())
    }

    /// How many completions to wait for, and how long.
    fn wait(&self) -> (usize, Duration) {
        // More has come than the kernel hands over in one go: there may be more still, and the
        // more a turn sees, the more can leave together.
        if self.was_busy {
            return (self.completions.capacity(), Duration::ZERO);
        }
        (1, self.patience())
    }

    fn patience(&self) -> Duration {
        // Without a buffer to read into, only a completion can help.
        let can_read = self.queues.readable() > 0 && self.can_read();
        let Arrivals { datagrams, frames } = &self.arrivals;
        let is_pressed = self.queues.was_pressed();
        let can_take = !frames.is_empty() || !datagrams.is_empty() && !is_pressed;
        match self.phase {
            _ if can_read || can_take || !self.replaying.is_empty() => Duration::ZERO,
            // Mostly what ends that is a completion: a frame that was read.
            _ if !datagrams.is_empty() => PRESSED_TICK,
            Phase::Running => IDLE_TICK,
            Phase::Draining(_) | Phase::Stopping(_) => Duration::from_millis(10),
        }
    }

    fn on_completion(&mut self, completion: Completion) -> Result<(), Error> {
        let Completion { token, more, .. } = completion;
        match token.operation {
            Operation::Receive => {
                self.receive.completed(more);
                self.on_receive(completion)?;
            }
            Operation::TunRead => self.on_tun_read(completion),
            Operation::TunWrite => self.on_tun_written(token, completion.result),
            Operation::Send => self.on_sent(token, completion.result),
            Operation::SendReady => self.on_send_ready(SenderId(token.queue)),
            Operation::Wake => {
                self.wake_stream.completed(more);
                // Drained first, read second: what comes between is not slept over.
                self.wake.drain();
                self.on_commands();
            }
            Operation::Cancel => {}
        }
        Ok(())
    }

    // ---- from the load balancer -------------------------------------------------------------

    fn on_receive(&mut self, completion: Completion) -> Result<(), Error> {
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
    fn take_datagrams(&mut self) {
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
        let bytes = &self.driver.bytes_mut(buffer)[..filled];
        let mut received = received::parse(bytes)?;
        if self.now < self.trains_until
            && received.count() == 1
            && let Some(first) = path::first_of_train(&bytes[received.bytes.clone()])
        {
            received.datagram_bytes = first;
        }
        Some(received)
    }

    /// Has the kernel merge no more datagrams. What it has merged before still waits in the socket,
    /// and it does not say any more of what length the datagrams were.
    fn stop_merging(&mut self) {
        // It can be refused only by a kernel that has never merged any.
        let _ = udp::stop_merging(&self.receiver);
        self.trains_until = self.now.after(TRAINS_WAIT_MAX);
    }

    fn on_received(&mut self, buffer: BufferId, received: Option<Received>) {
        let Some(received) = received else {
            // The kernel did not say where from: not a datagram that can be answered.
            self.cell.datagrams.count(0);
            self.cell.drops.count(DropReason::Short);
            return;
        };
        if received.truncated {
            self.cell.datagrams.count(received.bytes.len());
            self.cell.drops.count(DropReason::Mtu);
            return;
        }
        self.cell.receives.add(1);
        self.outer_paths.saw(received.outer);
        for datagram in received.datagrams() {
            self.on_datagram(buffer, datagram, received.outer);
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
            match self.admission.admit(self.now) {
                Ok(()) if self.path.announced(id, bytes, outer) => {
                    self.outbox.push_back(Event::EndpointSeen(self.id, id));
                }
                Ok(()) => self.admission.release(),
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
    fn replay_held(&mut self) {
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

    fn on_tun_written(&mut self, token: Token, result: Result<u32, Errno>) {
        let Some(ended) = self.finish(token) else {
            return;
        };
        let Some(endpoint) = self.path.endpoint(ended.endpoint) else {
            return;
        };
        match result {
            Ok(_) => {
                self.cell.gwi_writes.add(1);
                let Ended { packets, packet_bytes, .. } = ended;
                endpoint.cell.to_gwi.count_many(packets.into(), packet_bytes.into());
                endpoint.cell.last_to_gwi.set(self.now);
            }
            Err(errno) => {
                let reason = drop_reason(Operation::TunWrite, errno);
                endpoint.cell.decap_drops.add(reason, ended.packets.into());
            }
        }
    }

    // ---- from the host ----------------------------------------------------------------------

    fn on_tun_read(&mut self, completion: Completion) {
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
    fn take_frames(&mut self) {
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

    fn on_queue_lost(&mut self, slot: EndpointSlot, side: Side, errno: Errno) {
        if let Some(endpoint) = self.queues.lost(&mut self.driver, slot, side) {
            self.outbox.push_back(Event::QueueLost(self.id, endpoint, side, errno));
        }
    }

    /// Reads, without the ring, the queues that poll has named, each in its turn: the substitute
    /// for multishot read before Linux 6.7.
    fn read_the_readable(&mut self) {
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
    fn can_read(&self) -> bool {
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

    fn on_sent(&mut self, token: Token, result: Result<u32, Errno>) {
        let Self { senders, driver, path, queues, cell, .. } = self;
        let lost = |ended: &Ended, reason| count_unsent(path, ended, reason);
        match senders.completed(&mut Desk { driver, queues, lost }, token, result) {
            Outcome::Sent(Ended { endpoint, packets, packet_bytes }) => {
                cell.sends.add(1);
                if let Some(endpoint) = path.endpoint(endpoint) {
                    endpoint.cell.to_gwlb.count_many(packets.into(), packet_bytes.into());
                }
            }
            Outcome::Unsent => {}
            Outcome::Stray => cell.stray_completions.add(1),
        }
        if let Some(errno) = senders.take_uncut() {
            path.stop_gathering();
            self.outbox.push_back(Event::SendsUncut(self.id, errno));
        }
    }

    fn on_send_ready(&mut self, sender: SenderId) {
        let Self { senders, driver, path, queues, .. } = self;
        let lost = |ended: &Ended, reason| count_unsent(path, ended, reason);
        senders.ready(&mut Desk { driver, queues, lost }, sender);
    }

    fn finish(&mut self, token: Token) -> Option<Ended> {
        let ended = finish(&mut self.driver, &mut self.queues, token);
        if ended.is_none() {
            self.cell.stray_completions.add(1);
        }
        ended
    }

    // ---- the end of a turn ------------------------------------------------------------------

    /// Makes sure that the plan takes one more frame, or datagram. Returns whether it does: not if
    /// more has been started than may be in flight.
    fn make_room(&mut self) -> bool {
        self.path.has_room(&self.plan, 1) || self.execute()
    }

    /// Ends the batch: starts what is planned, and lets go of the buffers that it was planned from.
    /// Returns whether as much may be started again.
    fn execute(&mut self) -> bool {
        let Self { plan, driver, path, queues, senders, looked_into, now, .. } = self;
        path.end_batch(&mut BatchBuffers { driver, looked_into }, plan);
        for (job, spans) in plan.jobs() {
            if let Target::Outer(outer) = &job.target {
                senders.choose(driver, outer, (job, spans), *now);
            }
        }
        let lost = |ended: &Ended, reason| count_unsent(path, ended, reason);
        for (job, spans) in plan.jobs() {
            match &job.target {
                Target::Gwi => match driver.write_gwi(job, spans) {
                    Ok(()) => queues.written(job.endpoint, job.packets),
                    Err(reason) => count_unwritten(path, job, reason),
                },
                Target::Outer(outer) => {
                    senders.send(&mut Desk { driver, queues, lost }, outer, job, spans);
                }
            }
        }
        plan.clear();
        for buffer in self.looked_into.drain(..) {
            self.driver.release(buffer);
        }
        self.driver.free_slots() >= JOBS_MAX
    }

    /// Hands over what waits for its end: pairs without operations, events for control.
    fn let_go(&mut self) {
        while let Some(endpoint) = self.queues.take_detached(&self.driver) {
            self.outbox.push_back(Event::Detached(self.id, endpoint));
            let Some(id) = self.path.detach(endpoint) else {
                continue;
            };
            // Datagrams came while DESTROY ran: the endpoint starts anew.
            match self.admission.admit(self.now) {
                Ok(()) => self.outbox.push_back(Event::EndpointSeen(self.id, id)),
                Err(reason) => self.path.forget(id, reason),
            }
        }
        while let Some(refusal) = self.senders.take_refusal() {
            // If the box is full: the same is told again in a second.
            let _ = self.events.post(Event::SendRefused(refusal));
        }
        while let Some(event) = self.outbox.pop_front() {
            if let Err(event) = self.events.post(event) {
                self.outbox.push_front(event);
                break;
            }
        }
    }

    /// Offers buffers and arms every stream that wants it and can have it.
    fn start_streams(&mut self) {
        if matches!(self.phase, Phase::Stopping(_)) {
            return;
        }
        let multishot = self.driver.features().read_multishot;
        if multishot {
            self.driver.refill(Group::Tun);
        }
        // A read that finds no buffer fails at once, turn after turn. A poll needs none.
        if !multishot || self.driver.offered(Group::Tun) > 0 {
            self.queues.arm_idle(&mut self.driver);
        }
        if !self.queues.is_pressed() {
            self.driver.refill(Group::Udp);
        }
        if self.driver.offered(Group::Udp) > 0 && self.receive.arm() {
            self.driver.arm_receive(self.receiver.as_fd());
        }
        if self.wake_stream.arm() {
            self.driver.arm_wake(self.wake.as_fd());
        }
    }

    /// Looks at this worker's part of the flow table at such a pace that every flow's turn comes
    /// once per [`EXPIRY_ROUND`].
    fn expire(&mut self) {
        let elapsed = self.now.since(self.expired_at);
        if elapsed.is_zero() {
            return;
        }
        self.expired_at = self.now;
        let flows = self.flows.len() / self.workers;
        let due = flows as u128 * elapsed.as_nanos() / EXPIRY_ROUND.as_nanos();
        let due = usize::try_from(due).unwrap_or(usize::MAX).clamp(16, EXPIRY_FLOWS_MAX);
        self.path.expire(due, self.now);
    }

    // ---- control ----------------------------------------------------------------------------

    fn on_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(attachment) => self.on_attach(*attachment),
                Command::Closing(endpoint) => self.path.closing(endpoint),
                Command::Detach(endpoint) => self.on_detach(endpoint),
                Command::Forget(id, reason) => self.path.forget(id, reason),
                Command::StopMerging => self.stop_merging(),
                Command::Policy(policy) => {
                    self.path.set_ttl(ttl(&policy));
                    self.sampler.set_wish(policy.samples);
                }
                Command::Stop => self.begin_to_stop(),
            }
        }
    }

    fn on_attach(&mut self, attachment: Attachment) {
        let Attachment { id, endpoint, templates, cell, queues: fds } = attachment;
        let gwi = fds[Side::Gwi.index()].as_fd();
        if let Err(error) = self.driver.register_gwi(endpoint.slot, gwi) {
            let lost = Event::QueueLost(self.id, endpoint, Side::Gwi, error.errno);
            self.outbox.push_back(lost);
        }
        self.queues.attach(endpoint, fds);
        self.path.attach(Endpoint { id, endpoint, templates, cell });
        self.replaying.push_back(endpoint);
        // At once, so that this turn's datagrams find room behind what is held.
        self.replay_held();
    }

    /// Begins to let go of an endpoint's queues. What still waits for room in a send socket would
    /// hold them for as long as the socket is full: it is dropped.
    fn on_detach(&mut self, endpoint: EndpointRef) {
        if self.queues.detach(&mut self.driver, endpoint) {
            self.abandon_sends(Some(endpoint.slot), DropReason::SendFull);
        }
    }

    /// Drops what waits for room in a send socket: of one endpoint, or of all.
    fn abandon_sends(&mut self, slot: Option<EndpointSlot>, reason: DropReason) {
        let Self { senders, driver, queues, path, .. } = self;
        senders.abandon(|token| {
            let over = slot.is_none_or(|slot| driver.endpoint_of(token) == Some(slot));
            if over && let Some(ended) = finish(driver, queues, token) {
                count_unsent(path, &ended, reason);
            }
            over
        });
    }

    fn begin_to_stop(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Draining(self.now.after(DRAIN_MAX));
            if self.receive.stop() {
                self.driver.cancel(Operation::Receive, 0, 0);
            }
        }
    }

    /// Goes on from draining to stopping when nothing more comes, or it took too long.
    fn advance_phase(&mut self, quiet: bool) {
        let Phase::Draining(until) = self.phase else {
            return;
        };
        if !quiet && self.now < until {
            return;
        }
        self.phase = Phase::Stopping(self.now.after(STOP_MAX));
        self.path.drop_all_held();
        self.queues.stop_all(&mut self.driver);
        if self.wake_stream.stop() {
            self.driver.cancel(Operation::Wake, 0, 0);
        }
        self.abandon_sends(None, DropReason::Shutdown);
    }

    fn is_stopped(&self) -> bool {
        let Phase::Stopping(until) = self.phase else {
            return false;
        };
        let returned = self.arrivals.is_empty()
            && self.receive.is_stopped()
            && self.wake_stream.is_stopped()
            && self.queues.all_stopped()
            && self.driver.in_flight() == 0;
        returned || self.now >= until
    }
}

fn ttl(policy: &Policy) -> Ttl {
    let secs = |idle: Duration| u32::try_from(idle.as_secs()).unwrap_or(u32::MAX);
    Ttl { tcp_secs: secs(policy.tcp_idle), other_secs: secs(policy.other_idle) }
}

/// Ends an operation in the ring's and in its endpoint's books.
fn finish(driver: &mut Driver, queues: &mut Queues, token: Token) -> Option<Ended> {
    let ended = driver.finish(token)?;
    if let Some(pair) = queues.at(ended.endpoint) {
        pair.in_flight -= 1;
    }
    Some(ended)
}

/// The reason that a failed write or send is counted under.
fn drop_reason(operation: Operation, errno: Errno) -> DropReason {
    match verdict(operation, errno) {
        Verdict::Drop(reason) => reason,
        Verdict::Rearm | Verdict::Cancelled | Verdict::Wait | Verdict::Lost => {
            DropReason::SendError
        }
    }
}

fn count_unsent(path: &Path, ended: &Ended, reason: DropReason) {
    if let Some(endpoint) = path.endpoint(ended.endpoint) {
        endpoint.cell.encap_drops.add(reason, ended.packets.into());
    }
}

fn count_unwritten(path: &Path, job: &Job, reason: DropReason) {
    if let Some(endpoint) = path.endpoint(job.endpoint) {
        endpoint.cell.decap_drops.add(reason, job.packets.into());
    }
}

#[cfg(test)]
mod tests;
