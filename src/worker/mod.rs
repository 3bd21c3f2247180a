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
//! What happens with a completion stands in [`inward`] (from the load balancer to the host),
//! [`outward`] (back), and [`orders`] (what control asks for, and the end).
//!
//! One system call per turn. After start nothing here allocates, logs, or waits for anything but
//! the ring; messages to control go through a bounded channel.

mod admission;
mod inward;
pub mod mailbox;
mod merging;
mod orders;
mod outer_paths;
mod outward;
mod queues;
mod sampler;
mod senders;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use self::mailbox::Admission;
use self::mailbox::Command;
use self::mailbox::Event;
use self::mailbox::Mailbox;
use self::mailbox::Sample;
use self::merging::Merging;
use self::outer_paths::OuterPaths;
use self::queues::Queues;
use self::sampler::Sampler;
use self::senders::Desk;
use self::senders::Senders;
use crate::flow::FlowTable;
use crate::path;
use crate::path::Path;
use crate::path::plan::BufferId;
use crate::path::plan::Buffers;
use crate::path::plan::Group;
use crate::path::plan::Job;
use crate::path::plan::Plan;
use crate::path::plan::Target;
use crate::stats::WorkerCell;
use crate::sync::Receiver;
use crate::sys::Errno;
use crate::sys::Error;
use crate::sys::EventFd;
use crate::sys::clock;
use crate::types::DropReason;
use crate::types::EndpointRef;
use crate::types::Moment;
use crate::types::Offload;
use crate::types::SourceList;
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
use crate::uring::received;
use crate::uring::verdict;

/// How long an idle worker sleeps: it shows its heartbeat four times a second.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// How long a worker sleeps while datagrams wait for a queue to be read.
const PRESSED_TICK: Duration = Duration::from_millis(1);

/// How long a worker sleeps while fragments wait for their first one.
const WAITING_TICK: Duration = Duration::from_millis(5);

/// Time in which every flow is looked at once to see whether it is idle. A worker without traffic
/// takes longer where flows or shards are many: it turns four times a second, and a turn looks at
/// one shard and at no more than [`EXPIRY_FLOWS_MAX`] flows of it.
const EXPIRY_ROUND: Duration = Duration::from_secs(30);

/// Most flows looked at in one turn.
const EXPIRY_FLOWS_MAX: usize = 4096;

/// Writes and sends that are planned before they are started, and the spans of all of them. There
/// are twice as many slots ([`OPERATIONS_MAX`]): what a turn has started has mostly ended when the
/// next one looks, and a send that nobody cuts for us takes a slot for each of its datagrams.
const JOBS_MAX: usize = 2048;
const SPANS_PLANNED_MAX: usize = 16_384;
const _: () = assert!(JOBS_MAX >= path::PLAN_JOBS_MIN && JOBS_MAX >= received::DATAGRAMS_MAX);

/// Most writes and sends in flight.
pub const OPERATIONS_MAX: u32 = 4096;

/// Events that a worker sends once in its life at most: three downgrades, and that it failed.
const EVENTS_ONCE: usize = 4;

/// Turns of which the precise clock is read, in 1–4 ms.
const WATCHES_PER_TICK: u8 = 4;

/// Completions of a turn that make it a busy one: what a multishot operation hands over in one go.
const BUSY_COMPLETIONS: usize = 32;

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
    /// Whose load balancer sends.
    pub profile: path::Profile,
    /// Whether packets of the host go back to it.
    pub returns: bool,
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
    /// Who may send; nothing if anybody may.
    pub sources: Option<Arc<SourceList>>,
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
    merging: Merging,
    admission: Arc<Admission>,
    sources: Option<Arc<SourceList>>,
    cell: Arc<WorkerCell>,
    completions: Vec<Completion>,
    arrivals: Arrivals,
    /// Buffers that this turn has looked into: held until its plan is executed.
    looked_into: Vec<BufferId>,
    /// Endpoints whose held datagrams are being delivered.
    replaying: VecDeque<EndpointRef>,
    phase: Phase,
    /// Until then, and within so many bytes, there may be datagrams that were merged while that was
    /// on, and of which the kernel does not say so.
    trains_left_bytes: usize,
    trains_until: Moment,
    /// Whether the last turn has seen so much that there may be more.
    was_busy: bool,
    now: Moment,
    /// What [`Self::now`] was when turns were last watched, and how many more are until it changes.
    watched_at: Moment,
    watches_left: u8,
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
            )
            .with_profile(parts.profile)
            .with_returns(parts.returns),
            plan: Plan::new(JOBS_MAX, SPANS_PLANNED_MAX),
            queues: Queues::new(endpoints_max),
            senders: Senders::new(plan.senders_max, plan.tun.count / 2, JOBS_MAX),
            receive: Stream::default(),
            wake_stream: Stream::default(),
            wake,
            commands: parts.commands,
            events: parts.events,
            outbox: VecDeque::with_capacity(2 * endpoints_max + EVENTS_ONCE),
            sampler: Sampler::new(id, parts.samples),
            outer_paths: OuterPaths::new(now),
            merging: Merging::new(offload.udp_gro),
            admission: parts.admission,
            sources: parts.sources,
            cell,
            completions: Vec::with_capacity(2 * buffers + usize::from(plan.senders_max)),
            arrivals: Arrivals::new(buffers),
            looked_into: Vec::with_capacity(buffers),
            replaying: VecDeque::with_capacity(endpoints_max),
            phase: Phase::Running,
            trains_left_bytes: 0,
            trains_until: Moment::ZERO,
            was_busy: false,
            now,
            watched_at: now,
            watches_left: 0,
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
        self.watch_turn();
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
        self.send_waiting();
        self.replay_held();
        self.take_datagrams();
        self.adapt_merging();
        self.execute();
        self.let_go();
        self.start_streams();
        self.expire();
        self.advance_phase(quiet);
        self.path.publish();
        self.sampler.tell_passed_over(self.now);
        self.cell.outer_paths.set(self.outer_paths.count(self.now));
        self.cell.end_turn(self.now);
        Ok(())
    }

    /// Watches how long the way of packets takes, in a few turns of each tick of the coarse clock.
    /// A packet's way takes two turns and more: one writes it, another one sends it.
    fn watch_turn(&mut self) {
        if self.watched_at != self.now {
            self.watched_at = self.now;
            self.watches_left = WATCHES_PER_TICK;
        }
        let is_due = self.watches_left > 0 && !self.completions.is_empty();
        self.watches_left -= u8::from(is_due);
        self.driver.watch_first(is_due.then(clock::precise));
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
            // Another worker may have what they wait for.
            Phase::Running if self.path.has_waiting() => WAITING_TICK,
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
                Target::Gwi(_) => match driver.write_gwi(job, spans) {
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
        while let Some(pair) = self.queues.take_detached(&self.driver) {
            let endpoint = pair.endpoint;
            self.abandon_unread(&pair);
            self.outbox.push_back(Event::Detached(self.id, endpoint));
            let Some(id) = self.path.detach(endpoint) else {
                continue;
            };
            // Datagrams came while DESTROY ran: the endpoint starts anew.
            match self.admission.announce(id, self.now) {
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
