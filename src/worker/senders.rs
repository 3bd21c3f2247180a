//! Send sockets: one per local address and source port in use, opened when first needed.
//!
//! A load balancer node expects answers from the port it used, so the number of sockets follows
//! the number of its source ports. It is bounded. What finds no place leaves through the worker's
//! one *raw sender*, with a UDP header of ours, which costs less than to replace a socket:
//!
//! ```text
//!              room, or for many datagrams at once, or in place of one idle for a second
//!      ┌──────────────────────────────────────────────────────────────────────────┐
//!      │                      replaced, when nothing is under way in it           ▼
//!   (port) ◀──────────────────────────────────────────────────────────────────── Own
//!      │ │ │ else, and CAP_NET_RAW                                                ▲
//!      │ │ └──▶ (raw sender, no entry)                                            │
//!      │ │ taken, or below 1024, and CAP_NET_RAW                                  │
//!      │ └──▶ Raw ────────────────────────────────────────────────────────────────┘
//!      │                     every 10 s, when nothing of it is under way there
//!      └────▶ Refused: its packets are `send_error`, control is told; again after a second
//! ```
//!
//! Without `CAP_NET_RAW` the least recently used of a few idle sockets is replaced each time.
//! Nothing under way of a port, there where it leaves from, when it goes over to the other way is
//! what keeps the order of its flows.
//!
//! Many datagrams of one size may be one send, which the kernel cuts (`UDP_SEGMENT`). If it will
//! not, they are sent again one by one from the same memory, and the worker cuts by itself from
//! then on. The first such send of a socket goes alone, so that nothing overtakes it if it fails.
//!
//! Order: a socket that is full answers `EAGAIN`. Its sends then wait here, in order, until it has
//! room, and later ones queue behind them. Each holds buffers that frames are read into, so these
//! are bounded in number, over all sockets: one that is full must not end the reading for all. If a
//! later send of the same batch got through nevertheless, the earlier ones are dropped and counted
//! (`send_full`): late is worse than lost.

mod socket;
mod sources;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use arrayvec::ArrayVec;
use hashbrown::HashMap;

use self::socket::Gate;
use self::socket::Socket;
use self::socket::Way;
use super::mailbox::Refusal;
use super::queues::Queues;
use crate::path::UDP_HEADER_BYTES;
use crate::path::plan::Job;
use crate::path::plan::SPANS_MAX;
use crate::path::plan::Span;
use crate::sys::Errno;
use crate::types::DropReason;
use crate::types::EndpointSlot;
use crate::types::GENEVE_PORT;
use crate::types::Moment;
use crate::types::OuterPath;
use crate::uring::Driver;
use crate::uring::Ended;
use crate::uring::Operation;
use crate::uring::SenderId;
use crate::uring::Sending;
use crate::uring::Token;
use crate::uring::Verdict;
use crate::uring::may_go_singly;
use crate::uring::pieces;
use crate::uring::pieces::Whole;
use crate::uring::verdict;

/// Refusals that control is told in a second.
const REFUSALS_MAX: usize = 16;

/// A send that waits for its socket.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    token: Token,
    /// See [`Sending::age`].
    age: u64,
    /// See [`Sending::buffers`].
    buffers: usize,
    /// Why the kernel would not cut it, if it would not.
    refused: Option<Errno>,
}

impl Waiting {
    /// Why its packets are lost if it is overtaken.
    fn overtaken(&self) -> DropReason {
        let reason = |errno| super::drop_reason(Operation::Send, errno);
        self.refused.map_or(DropReason::SendFull, reason)
    }
}

/// What becomes of a completed send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its datagrams have left.
    Sent(Ended),
    /// They will be sent again, or were dropped and told.
    Unsent,
    /// There was no such send.
    Stray,
}

/// What sends are made with, and who is told of those that were lost.
pub(super) struct Desk<'a, F> {
    pub(super) driver: &'a mut Driver,
    pub(super) queues: &'a mut Queues,
    pub(super) lost: F,
}

impl<F: FnMut(&Ended, DropReason)> Desk<'_, F> {
    fn prepared(&mut self, endpoint: EndpointSlot) {
        if let Some(pair) = self.queues.at(endpoint) {
            pair.in_flight += 1;
        }
    }

    fn finish(&mut self, token: Token) -> Option<Ended> {
        super::finish(self.driver, self.queues, token)
    }

    fn drop_send(&mut self, token: Token, reason: DropReason) {
        if let Some(ended) = self.finish(token) {
            (self.lost)(&ended, reason);
        }
    }
}

/// The send sockets of one worker.
#[derive(Debug)]
pub(super) struct Senders {
    by_source: HashMap<(Ipv4Addr, u16), SenderId, foldhash::fast::RandomState>,
    sockets: Vec<Socket>,
    sockets_max: usize,
    /// A socket that is nothing yet, for the time when the process has no descriptor left.
    spare: Option<OwnedFd>,
    /// Where the search for a socket to replace goes on.
    hand: usize,
    /// From where the jobs of the plan leave, in their order.
    chosen: VecDeque<Result<SenderId, DropReason>>,
    waiting: VecDeque<Waiting>,
    /// Buffers of all of them, and how many they may be.
    waiting_buffers: usize,
    waiting_max: usize,
    /// Sends of the receive socket, which is not in `sockets`.
    receiver: Socket,
    /// Sends of the raw sender, which is not either.
    raw: Socket,
    raw_history: sources::RawHistory,
    /// Whether there is a raw sender.
    raw_is_open: bool,
    /// When to try again to open one.
    raw_retry: Moment,
    /// Why the kernel does not cut, if it does not.
    uncut: Option<Errno>,
    /// Why a send that should be cut failed, if it may be for another reason.
    suspicion: Option<Errno>,
    /// Control has not been told yet.
    is_uncut_news: bool,
    /// What control shall be told.
    refusals: ArrayVec<Refusal, REFUSALS_MAX>,
    /// How many were entered there since when.
    refusals_told: (usize, Moment),
}

impl Senders {
    /// No sockets yet, up to `sockets_max`, sends that wait for room with up to `waiting_max`
    /// buffers, and up to `jobs_max` jobs in a plan.
    pub(super) fn new(sockets_max: u16, waiting_max: u16, jobs_max: usize) -> Self {
        let waiting_max = usize::from(waiting_max);
        let sockets_max = usize::from(sockets_max);
        let unused = Socket::new((Ipv4Addr::UNSPECIFIED, 0), Moment::ZERO, Way::Own);
        let hasher = foldhash::fast::RandomState::default();
        let mut senders = Self {
            // Sources come and go. At no more than half of its capacity the map clears the traces
            // of removals in place; fuller than that it would allocate.
            by_source: HashMap::with_capacity_and_hasher(2 * sockets_max, hasher),
            sockets: Vec::with_capacity(sockets_max),
            sockets_max,
            spare: None,
            hand: 0,
            chosen: VecDeque::with_capacity(jobs_max),
            // What waits is prepared.
            waiting: VecDeque::with_capacity(super::OPERATIONS_MAX as usize),
            waiting_buffers: 0,
            waiting_max,
            receiver: unused,
            raw: unused,
            raw_history: sources::RawHistory::new(),
            raw_is_open: false,
            raw_retry: Moment::ZERO,
            uncut: None,
            suspicion: None,
            is_uncut_news: false,
            refusals: ArrayVec::new(),
            refusals_told: (0, Moment::ZERO),
        };
        senders.keep_spare();
        senders
    }

    /// Whether the kernel cuts a send into datagrams, as far as is known.
    pub(super) fn can_segment(&self) -> bool {
        self.uncut.is_none()
    }

    /// Why the kernel does not cut sends any more, once.
    pub(super) fn take_uncut(&mut self) -> Option<Errno> {
        std::mem::take(&mut self.is_uncut_news).then_some(self.uncut).flatten()
    }

    /// Sends the next of the jobs that [`Self::choose`] has seen.
    ///
    /// # Panics
    /// If there was no such call for it.
    pub(super) fn send(
        &mut self,
        desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>,
        outer: &OuterPath,
        job: &Job,
        spans: &[Span],
    ) {
        let sender = match self.chosen.pop_front().expect("one was chosen for each job") {
            Ok(sender) => sender,
            Err(reason) => {
                (desk.lost)(&unstarted(job), reason);
                return;
            }
        };
        self.socket(sender).promised -= 1;
        let is_raw = sender == SenderId::RAW;
        if !is_raw && (job.packets == 1 || self.can_segment()) {
            self.send_one(desk, sender, outer, job, spans);
            return;
        }
        let whole = Whole::new(job, spans);
        for index in 0..job.packets {
            let mut parts: ArrayVec<Span, SPANS_MAX> =
                pieces::cut(spans.iter().copied(), whole.datagram(index)).collect();
            if is_raw {
                // The UDP header that `choose` has put before it.
                let header_bytes = u32::try_from(UDP_HEADER_BYTES).expect("8");
                parts[0].start -= header_bytes;
                parts[0].len += header_bytes;
            }
            let part = Job { packets: 1, packet_bytes: whole.packet_bytes(index), ..*job };
            self.send_one(desk, sender, outer, &part, &parts);
        }
    }

    fn send_one(
        &mut self,
        desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>,
        sender: SenderId,
        outer: &OuterPath,
        job: &Job,
        spans: &[Span],
    ) {
        let remote = SocketAddrV4::new(outer.remote, GENEVE_PORT);
        match desk.driver.prepare_send(sender, outer.local, remote, job, spans) {
            Ok(token) => {
                desk.prepared(job.endpoint);
                self.start(desk, token);
            }
            Err(reason) => (desk.lost)(&unstarted(job), reason),
        }
    }

    /// Starts a prepared send, or lets it wait behind those that wait already.
    fn start(&mut self, desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>, token: Token) {
        let id = SenderId(token.queue);
        let buffers = desk.driver.sending(token).expect("it is prepared").buffers;
        if self.socket(id).gate == Gate::Proving && !self.may_wait(buffers) {
            // Nothing says that it fails, so nothing is dropped for it.
            self.socket(id).is_proven = true;
            self.release(desk, id);
        }
        if self.socket(id).gate == Gate::Open {
            self.launch(desk.driver, token);
        } else {
            self.enqueue(desk, token, None);
        }
    }

    fn launch(&mut self, driver: &mut Driver, token: Token) {
        let is_whole = driver.sending(token).is_some_and(|sending| sending.datagrams > 1);
        let socket = self.socket(SenderId(token.queue));
        if is_whole && !socket.is_proven {
            socket.gate = Gate::Proving;
        }
        socket.in_flight += 1;
        driver.start_send(token);
    }

    /// Whether a send that holds so many buffers may wait. One may in any case.
    fn may_wait(&self, buffers: usize) -> bool {
        self.waiting.is_empty() || self.waiting_buffers + buffers <= self.waiting_max
    }

    /// Puts a send among those that wait, by its age. One that was refused has been under way, so
    /// it may wait in any case, and not for long.
    fn enqueue(
        &mut self,
        desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>,
        token: Token,
        refused: Option<Errno>,
    ) {
        let Sending { age, buffers, .. } = desk.driver.sending(token).expect("it is prepared");
        if refused.is_none() && !self.may_wait(buffers) {
            desk.drop_send(token, DropReason::SendFull);
            return;
        }
        let before = self.waiting.iter().rposition(|other| other.age <= age);
        let place = before.map_or(0, |before| before + 1);
        self.waiting.insert(place, Waiting { token, age, buffers, refused });
        self.waiting_buffers += buffers;
        self.socket(SenderId(token.queue)).waiting += 1;
    }

    /// A send has completed.
    pub(super) fn completed(
        &mut self,
        desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>,
        token: Token,
        result: Result<u32, Errno>,
    ) -> Outcome {
        let Some(sending) = desk.driver.sending(token) else {
            return Outcome::Stray;
        };
        let Err(errno) = result else {
            self.ended(desk, token, &sending, true);
            return desk.finish(token).map_or(Outcome::Stray, Outcome::Sent);
        };
        let is_refused = sending.datagrams > 1 && may_go_singly(errno);
        if is_refused || verdict(Operation::Send, errno) == Verdict::Wait {
            // Otherwise the socket is full, or datagrams are too long, perhaps not the last one.
            if errno == Errno::EIO {
                self.set_uncut(errno);
            } else if errno == Errno::EINVAL {
                self.suspicion = Some(errno);
            }
            self.hold_back(desk, token, is_refused.then_some(errno));
        } else {
            self.ended(desk, token, &sending, false);
            desk.drop_send(token, super::drop_reason(Operation::Send, errno));
        }
        Outcome::Unsent
    }

    /// A send waits until its socket has room. One that was refused waits for those that are under
    /// way: that way it hears whether a later one has overtaken it.
    fn hold_back(
        &mut self,
        desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>,
        token: Token,
        refused: Option<Errno>,
    ) {
        let id = SenderId(token.queue);
        let socket = self.socket(id);
        socket.in_flight -= 1;
        let is_last = socket.in_flight == 0;
        if socket.gate != Gate::Full && !(refused.is_some() && is_last) {
            socket.gate = Gate::Full;
            desk.driver.arm_send_ready(id);
        }
        self.enqueue(desk, token, refused);
        if refused.is_some() && is_last {
            // There is room, as far as is known.
            self.release(desk, id);
        }
    }

    /// A send is over, and its datagrams have left if `sent`. If others of its socket wait although
    /// they are older, they are overtaken, and dropped.
    fn ended(
        &mut self,
        desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>,
        token: Token,
        sending: &Sending,
        sent: bool,
    ) {
        let id = SenderId(token.queue);
        let is_whole = sending.datagrams > 1;
        let socket = self.socket(id);
        socket.in_flight -= 1;
        socket.is_proven |= sent && is_whole;
        if sent
            && sending.is_full_part
            && let Some(errno) = self.suspicion
        {
            // Its like was not too long: it is the cutting that does not work.
            self.set_uncut(errno);
        }
        if sent && self.socket(id).waiting > 0 {
            let overtaken = |other: &Waiting| other.token.queue == id.0 && other.age <= sending.age;
            self.take_back(|other| {
                let over = overtaken(other);
                if over {
                    desk.drop_send(other.token, other.overtaken());
                }
                over
            });
        }
        let socket = self.socket(id);
        match socket.gate {
            Gate::Proving if is_whole => self.release(desk, id),
            Gate::Full if socket.waiting == 0 => socket.gate = Gate::Open,
            Gate::Open | Gate::Proving | Gate::Full => {}
        }
    }

    fn set_uncut(&mut self, errno: Errno) {
        self.is_uncut_news |= self.uncut.is_none();
        self.uncut.get_or_insert(errno);
    }

    /// A socket has room: what waits for it is started in order.
    pub(super) fn ready(
        &mut self,
        desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>,
        id: SenderId,
    ) {
        if self.socket(id).gate == Gate::Full {
            self.release(desk, id);
        }
    }

    /// Opens a socket's gate and starts what waits for it, until the gate closes again.
    fn release(&mut self, desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>, id: SenderId) {
        self.socket(id).gate = Gate::Open;
        let mut place = 0;
        while self.socket(id).waiting > 0 && self.socket(id).gate == Gate::Open {
            let Some(&Waiting { token, buffers, refused, .. }) = self.waiting.get(place) else {
                break;
            };
            if token.queue != id.0 {
                place += 1;
                continue;
            }
            self.waiting.remove(place);
            self.waiting_buffers -= buffers;
            self.socket(id).waiting -= 1;
            if refused.is_some() || !self.can_segment() {
                self.launch_singly(desk, token);
            } else {
                self.launch(desk.driver, token);
            }
        }
    }

    /// Starts each datagram of a prepared send by itself, from the same memory.
    fn launch_singly(&mut self, desk: &mut Desk<'_, impl FnMut(&Ended, DropReason)>, token: Token) {
        let Sending { endpoint, datagrams, .. } =
            desk.driver.sending(token).expect("what waits is prepared");
        if datagrams == 1 {
            self.launch(desk.driver, token);
            return;
        }
        for index in 0..datagrams {
            match desk.driver.prepare_datagram(token, index) {
                Ok(part) => {
                    desk.prepared(endpoint);
                    self.launch(desk.driver, part);
                }
                Err(reason) => {
                    (desk.lost)(
                        &Ended { endpoint, packets: 1, packet_bytes: 0, merged: None },
                        reason,
                    );
                }
            }
        }
        desk.finish(token);
    }

    /// Takes back what waits: each send that `is_over` says so of has been dropped by it.
    pub(super) fn abandon(&mut self, mut is_over: impl FnMut(Token) -> bool) {
        self.take_back(|waiting| is_over(waiting.token));
    }

    fn take_back(&mut self, mut is_over: impl FnMut(&Waiting) -> bool) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|other| {
            let over = is_over(other);
            if over {
                self.waiting_buffers -= other.buffers;
                self.socket(SenderId(other.token.queue)).waiting -= 1;
            }
            !over
        });
        self.waiting = waiting;
    }

    fn socket(&mut self, id: SenderId) -> &mut Socket {
        let place = usize::from(id.0);
        if place < self.sockets.len() {
            return &mut self.sockets[place];
        }
        match id {
            SenderId::RECEIVER => &mut self.receiver,
            SenderId::RAW => &mut self.raw,
            SenderId(_) => panic!("{id:?} was not opened"),
        }
    }
}

/// A job that came to its end before it began.
fn unstarted(job: &Job) -> Ended {
    let Job { endpoint, packets, packet_bytes, .. } = *job;
    Ended { endpoint, packets, packet_bytes, merged: None }
}

#[cfg(test)]
mod tests;
