//! The operations of one worker on its ring.
//!
//! Registered files, by index:
//!
//! ```text
//!   0           1 … 1+senders      then, per endpoint slot
//!   raw sender  send sockets       gwi
//! ```
//!
//! Writes and sends use these numbers. The socket that receives is not among them: when the process
//! is killed, the kernel lets go of registered files some time later, and until then that socket
//! would take its share of the next process's datagrams. Operations that stay with the kernel use
//! descriptors too: until Linux 6.13 a replaced file is let go of only when every operation has
//! ended that used any registered file before (`io_rsrc_node_ref_zero`, `io_uring/rsrc.c`: nodes
//! go in order), so one that never ends would keep every send socket and every TUN queue that was
//! ever replaced.
//!
//! Every start of an operation answers at once with a drop reason if it cannot be queued, so that
//! no packet is without an owner: plan, slot or counter.
#![expect(unsafe_code, reason = "operations hand the kernel pointers into our memory")]

use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::Fd;
use io_uring::types::Fixed;
use nix::libc;

use super::buffers::BufferGroup;
use super::buffers::GroupPlan;
use super::operations::Ended;
use super::operations::Envelope;
use super::operations::Operations;
use super::operations::Place;
use super::operations::Sending;
use super::received;
use super::ring::Features;
use super::ring::Ring;
use super::slots::SlotKey;
use super::token::Operation;
use super::token::Token;
use super::watch::Watch;
use crate::path::plan::BufferId;
use crate::path::plan::Group;
use crate::path::plan::Job;
use crate::path::plan::Span;
use crate::sys::Errno;
use crate::sys::Error;
use crate::types::DropReason;
use crate::types::EndpointSlot;
use crate::types::Moment;
use crate::types::Side;

const RAW_SENDER: u32 = 0;
const SENDERS_START: u32 = 1;

const UDP_GROUP: u16 = 0;
const TUN_GROUP: u16 = 1;

/// Offset for reads and writes of files that have no position.
const NO_OFFSET: u64 = u64::MAX;

/// Sizes of a worker's ring, fixed at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverPlan {
    /// Entries of the submission queue.
    pub submissions: u32,
    /// Most entries of the completion queue, a power of two or `u32::MAX`. What finds no place in
    /// it the kernel keeps until it is looked for.
    pub completions_max: u32,
    /// Most writes and sends in flight.
    pub operations_max: u32,
    /// Buffers for datagrams. What the kernel fills includes [`received::DATAGRAM_START`].
    pub udp: GroupPlan,
    /// Buffers for frames.
    pub tun: GroupPlan,
    /// Most send sockets.
    pub senders_max: u16,
    /// Most endpoints.
    pub endpoints_max: u16,
    /// How long a wait polls the network interface first, microseconds; 0 is not at all. Without
    /// effect where the kernel cannot.
    pub busy_poll_us: u32,
    /// What the kernel can do.
    pub features: Features,
}

/// One completion, still to be interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What was started.
    pub token: Token,
    /// The operation's result: bytes, events, or why it failed.
    pub result: Result<u32, Errno>,
    /// The buffer that was filled; the worker holds its one lease from now on. None if the
    /// operation failed.
    pub buffer: Option<BufferId>,
    /// Whether the operation goes on.
    pub more: bool,
}

/// One worker's ring, buffers and operations in flight.
#[derive(Debug)]
pub struct Driver {
    // First, so that it is dropped first: it uses all the memory below.
    ring: Ring,
    udp: BufferGroup,
    tun: BufferGroup,
    operations: Operations,
    watch: Watch,
    /// The message header that says how much of each buffer is for addresses.
    receive_header: Box<libc::msghdr>,
    plan: DriverPlan,
    /// The socket that receives, for what is sent from it.
    receiver: Fd,
    failure: Option<Error>,
    /// Every send that was started, in order.
    #[cfg(test)]
    pub(crate) sends_started: Vec<Token>,
}

/// What the ring knows a send socket by.
enum SenderFile {
    Registered(Fixed),
    Plain(Fd),
}

impl Driver {
    /// A ring with everything it needs. Must be called on the thread that will use it.
    ///
    /// # Errors
    /// When the kernel refuses the ring, the memory or the registrations.
    pub fn new(plan: DriverPlan) -> Result<Self, Error> {
        let completions = plan.operations_max
            + u32::from(plan.udp.count)
            + u32::from(plan.tun.count)
            + 2 * u32::from(plan.endpoints_max);
        let completions = completions.next_power_of_two().min(plan.completions_max);
        let ring = Ring::new(plan.submissions, completions, plan.features)?;
        if plan.busy_poll_us > 0 && plan.features.busy_poll {
            ring.set_busy_poll(plan.busy_poll_us)?;
        }
        let files = SENDERS_START + u32::from(plan.senders_max) + u32::from(plan.endpoints_max);
        ring.submitter().register_files_sparse(files).map_err(|error| {
            Error::from_io("io_uring_register FILES", format!("{files} files"), &error)
        })?;
        // SAFETY: all fields of a message header may be zero.
        let mut receive_header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive_header.msg_namelen =
            libc::socklen_t::try_from(received::NAME_BYTES).expect("16 bytes");
        receive_header.msg_controllen = received::CONTROL_BYTES as _;
        Ok(Self {
            udp: BufferGroup::new(&ring, UDP_GROUP, plan.udp)?,
            tun: BufferGroup::new(&ring, TUN_GROUP, plan.tun)?,
            operations: Operations::new(plan.operations_max)?,
            watch: Watch::default(),
            receive_header,
            ring,
            plan,
            receiver: Fd(-1),
            failure: None,
            #[cfg(test)]
            sends_started: Vec::new(),
        })
    }

    /// What the kernel can do.
    pub fn features(&self) -> Features {
        self.plan.features
    }

    // ---- registered files -------------------------------------------------------------------

    /// Makes the socket that receives the sender [`SenderId::RECEIVER`]. It must outlive the
    /// driver's last send.
    pub fn set_receiver(&mut self, fd: BorrowedFd<'_>) {
        self.receiver = Fd(fd.as_raw_fd());
    }

    /// Registers a send socket as `sender`, in place of what was there.
    ///
    /// # Errors
    /// When the kernel refuses the file.
    pub fn register_sender(&self, sender: SenderId, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let SenderFile::Registered(file) = self.sender_file(sender) else {
            panic!("the receive socket is never registered");
        };
        self.register(file.0, fd.as_raw_fd())
    }

    /// Registers an endpoint's queue of `gwi`, which is written to.
    ///
    /// # Errors
    /// When the kernel refuses the file.
    pub fn register_gwi(&self, slot: EndpointSlot, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.register(self.gwi_file(slot).0, fd.as_raw_fd())
    }

    /// Lets go of an endpoint's queue of `gwi`. No write may be in flight on it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unregister_gwi(&self, slot: EndpointSlot) -> Result<(), Error> {
        self.register(self.gwi_file(slot).0, -1)
    }

    fn register(&self, index: u32, fd: RawFd) -> Result<(), Error> {
        let refused =
            |error| Error::from_io("io_uring_register FILES_UPDATE", format!("{index}"), &error);
        self.ring.submitter().register_files_update(index, &[fd]).map(drop).map_err(refused)
    }

    fn sender_file(&self, sender: SenderId) -> SenderFile {
        if sender.0 < self.plan.senders_max {
            return SenderFile::Registered(Fixed(SENDERS_START + u32::from(sender.0)));
        }
        match sender {
            SenderId::RECEIVER => SenderFile::Plain(self.receiver),
            SenderId::RAW => SenderFile::Registered(Fixed(RAW_SENDER)),
            SenderId(_) => panic!("{sender:?} is not planned for"),
        }
    }

    fn gwi_file(&self, slot: EndpointSlot) -> Fixed {
        assert!(slot.0 < self.plan.endpoints_max, "endpoint slot {} is not planned for", slot.0);
        Fixed(SENDERS_START + u32::from(self.plan.senders_max) + u32::from(slot.0))
    }

    // ---- long-lived operations --------------------------------------------------------------

    /// Starts multishot receive on `fd`.
    pub fn arm_receive(&mut self, fd: BorrowedFd<'_>) {
        let header = &raw const *self.receive_header;
        let entry = opcode::RecvMsgMulti::new(Fd(fd.as_raw_fd()), header, UDP_GROUP).build();
        self.start(entry, token(Operation::Receive, 0, 0, 0));
    }

    /// Starts waiting for the mailbox's eventfd.
    pub fn arm_wake(&mut self, fd: BorrowedFd<'_>) {
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events).multi(true).build();
        self.start(entry, token(Operation::Wake, 0, 0, 0));
    }

    /// Starts reading a queue: frames come by themselves, or, without multishot read, the news
    /// that there are some.
    pub fn arm_tun_read(
        &mut self,
        fd: BorrowedFd<'_>,
        slot: EndpointSlot,
        side: Side,
        generation: u8,
    ) {
        let file = Fd(fd.as_raw_fd());
        let entry = if self.plan.features.read_multishot {
            opcode::ReadMulti::new(file, 0, TUN_GROUP).offset(NO_OFFSET).build()
        } else {
            let events = u32::from(libc::POLLIN.cast_unsigned());
            opcode::PollAdd::new(file, events).multi(true).build()
        };
        self.start(entry, token(Operation::TunRead, queue_number(slot, side), generation, 0));
    }

    /// Starts waiting until a send socket takes more.
    pub fn arm_send_ready(&mut self, sender: SenderId) {
        let events = u32::from(libc::POLLOUT.cast_unsigned());
        let entry = match self.sender_file(sender) {
            SenderFile::Registered(file) => opcode::PollAdd::new(file, events).build(),
            SenderFile::Plain(file) => opcode::PollAdd::new(file, events).build(),
        };
        self.start(entry, token(Operation::SendReady, sender.0, 0, 0));
    }

    /// Asks for the end of a long-lived operation; its last completion still comes.
    pub fn cancel(&mut self, operation: Operation, queue: u16, generation: u8) {
        let target = token(operation, queue, generation, 0).into();
        let entry = opcode::AsyncCancel::new(target).build();
        self.start(entry, token(Operation::Cancel, queue, generation, 0));
    }

    fn start(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.into());
        // SAFETY: the only pointer in these operations is the one to the receive header, which
        // lives as long as `self` and is never written after `new`.
        let pushed = unsafe { self.ring.push(&entry) };
        self.record(pushed);
    }

    fn record(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }

    // ---- writes and sends -------------------------------------------------------------------

    /// Starts writing a job's spans as one frame to the endpoint's `gwi`.
    ///
    /// # Errors
    /// [`DropReason::NoBuffer`] when no slot is free.
    pub fn write_gwi(&mut self, job: &Job, spans: &[Span]) -> Result<(), DropReason> {
        let file = self.gwi_file(job.endpoint);
        let queue = queue_number(job.endpoint, Side::Gwi);
        let key = self.claim(job, spans, queue)?;
        let entry = if let [span] = spans {
            opcode::Write::new(file, self.address(span), span.len).offset(NO_OFFSET).build()
        } else {
            let (vectors, count) = self.fill_vectors(key, spans);
            opcode::Writev::new(file, vectors, count).offset(NO_OFFSET).build()
        };
        self.start_claimed(entry, token(Operation::TunWrite, queue, key.generation, key.slot));
        Ok(())
    }

    /// Prepares to send a job's spans as one datagram from `local` to `remote`, or as one datagram
    /// per packet, which the kernel cuts. [`Self::start_send`] starts it. A send socket is bound to
    /// `local`; the receive socket and the raw sender, which are not, are told. What the raw sender
    /// sends begins with a UDP header, and is never cut.
    ///
    /// # Errors
    /// [`DropReason::NoBuffer`] when no slot is free.
    ///
    /// # Panics
    /// If the raw sender shall send several datagrams at once.
    pub fn prepare_send(
        &mut self,
        sender: SenderId,
        local: Ipv4Addr,
        remote: SocketAddrV4,
        job: &Job,
        spans: &[Span],
    ) -> Result<Token, DropReason> {
        let cut = (job.packets > 1).then_some(job.datagram_bytes);
        assert!(cut.is_none() || sender != SenderId::RAW, "a raw socket does not cut");
        let key = self.claim(job, spans, sender.0)?;
        let vectors = self.fill_vectors(key, spans);
        let from = sender.is_any_address().then_some(local);
        self.operations.fill_message(key, Envelope { from, remote, cut }, vectors);
        Ok(token(Operation::Send, sender.0, key.generation, key.slot))
    }

    /// Prepares to send datagram `index` alone of a prepared send of several, from the same memory.
    ///
    /// # Errors
    /// [`DropReason::NoBuffer`] when no slot is free.
    ///
    /// # Panics
    /// If the token names no such send, or it has no such datagram.
    pub fn prepare_datagram(&mut self, whole: Token, index: u32) -> Result<Token, DropReason> {
        let Self { operations, udp, tun, .. } = self;
        let lease = |buffer: BufferId| {
            let group = if buffer.group() == Group::Udp { &mut *udp } else { &mut *tun };
            group.leases().lease(buffer.index()).expect("a slot's leases are held");
        };
        let key = operations.claim_datagram(slot_key(whole), index, lease);
        let SlotKey { slot, generation } = key.ok_or(DropReason::NoBuffer)?;
        Ok(Token { generation, slot, ..whole })
    }

    /// What a prepared send is. Nothing if the token names none.
    pub fn sending(&mut self, token: Token) -> Option<Sending> {
        self.operations.sending(slot_key(token))
    }

    /// What a prepared send will send.
    #[cfg(test)]
    pub(crate) fn bytes_of(&mut self, token: Token) -> Vec<u8> {
        self.operations.bytes_of(slot_key(token))
    }

    /// Starts a prepared send, or starts one again that found its socket full.
    ///
    /// It never blocks, and never waits inside the kernel either: a full socket answers `EAGAIN`,
    /// and the order of its datagrams stays ours to keep.
    ///
    /// # Panics
    /// If the token names no send that [`Self::prepare_send`] gave and [`Self::finish`] has not
    /// ended.
    pub fn start_send(&mut self, token: Token) {
        #[cfg(test)]
        self.sends_started.push(token);
        let message = self.operations.message(slot_key(token));
        let file = self.sender_file(SenderId(token.queue));
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let flags = flags.cast_unsigned();
        let entry = match file {
            SenderFile::Registered(file) => {
                opcode::SendMsg::new(file, message).flags(flags).build()
            }
            SenderFile::Plain(file) => opcode::SendMsg::new(file, message).flags(flags).build(),
        };
        self.start_claimed(entry, token);
    }

    fn claim(&mut self, job: &Job, spans: &[Span], queue: u16) -> Result<SlotKey, DropReason> {
        let buffers = distinct_buffers(spans);
        let key = self.operations.claim(job, queue, buffers).ok_or(DropReason::NoBuffer)?;
        for buffer in distinct_buffers(spans) {
            let leases = self.group_mut(buffer.group()).leases();
            leases.lease(buffer.index()).expect("a plan names held buffers only");
        }
        Ok(key)
    }

    fn fill_vectors(&mut self, key: SlotKey, spans: &[Span]) -> (*const libc::iovec, u32) {
        let Self { operations, udp, tun, .. } = self;
        let address = |span: &Span| {
            let group = if span.buffer.group() == Group::Udp { &*udp } else { &*tun };
            let start = group.address(span.buffer.index(), span.start, span.len);
            Place { start, len: span.len as usize }
        };
        operations.fill_vectors(key, spans.iter().map(address))
    }

    fn start_claimed(&mut self, entry: squeue::Entry, token: Token) {
        self.watch.started(token);
        let entry = entry.user_data(token.into());
        // SAFETY: the entry points into leased buffers, which are neither offered nor written
        // while leased, and into the slot's memory, which is rewritten only after the slot is
        // freed: both end in `finish`, at the operation's completion.
        let pushed = unsafe { self.ring.push(&entry) };
        self.record(pushed);
    }

    /// Ends a write or send whose completion was taken, or a send that was never started: frees
    /// its slot and its leases. Nothing if the token names none.
    pub fn finish(&mut self, token: Token) -> Option<Ended> {
        self.watch.ended(token);
        let Self { operations, udp, tun, .. } = self;
        operations.finish(slot_key(token), token.queue, |buffer| {
            let group = if buffer.group() == Group::Udp { &mut *udp } else { &mut *tun };
            group.leases().release(buffer.index()).expect("a slot's leases are held");
        })
    }

    /// A turn begins, `since` then if it is to be watched: the first write and the first send that
    /// are started in it, as far as none is watched from an earlier one.
    pub fn watch_first(&mut self, since: Option<Moment>) {
        self.watch.begin(since);
    }

    /// When the turn began in which a write or send was started, if it is watched and not ended.
    pub fn watched_since(&self, token: Token) -> Option<Moment> {
        self.watch.since(token)
    }

    /// The endpoint that a write or send belongs to. Nothing if the token names none.
    pub fn endpoint_of(&mut self, token: Token) -> Option<EndpointSlot> {
        self.operations.endpoint_of(slot_key(token))
    }

    /// How many more writes and sends can be started.
    pub fn free_slots(&self) -> usize {
        self.plan.operations_max as usize - self.operations.in_flight()
    }

    /// Writes and sends that have not ended.
    pub fn in_flight(&self) -> usize {
        self.operations.in_flight()
    }

    fn address(&self, span: &Span) -> *mut u8 {
        self.group(span.buffer.group()).address(span.buffer.index(), span.start, span.len)
    }

    // ---- buffers ----------------------------------------------------------------------------

    /// The bytes of a buffer that the worker holds and no operation uses, headroom included.
    ///
    /// # Panics
    /// If it is not held, or an operation uses it.
    pub fn bytes_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        self.group_mut(buffer.group()).bytes_mut(buffer.index())
    }

    /// Bytes before what the kernel fills in a group's buffers.
    pub fn headroom_bytes(&self, group: Group) -> usize {
        self.group(group).headroom_bytes()
    }

    /// Takes a free buffer for the worker's own use.
    pub fn take_buffer(&mut self, group: Group) -> Option<BufferId> {
        let index = self.group_mut(group).leases().take()?;
        Some(BufferId::new(group, index))
    }

    /// How many times [`Self::take_buffer`] would find one.
    pub fn free(&self, group: Group) -> usize {
        self.group(group).free()
    }

    /// Ends the worker's own lease of a buffer.
    pub fn release(&mut self, buffer: BufferId) {
        let released = self.group_mut(buffer.group()).leases().release(buffer.index());
        debug_assert_eq!(released, Ok(()), "the worker released what it did not hold");
    }

    /// Offers free buffers of a group to the kernel, up to the group's share.
    pub fn refill(&mut self, group: Group) {
        self.group_mut(group).refill();
    }

    /// Buffers of a group that the kernel has now.
    pub fn offered(&self, group: Group) -> u16 {
        self.group(group).offered()
    }

    fn group(&self, group: Group) -> &BufferGroup {
        match group {
            Group::Udp => &self.udp,
            Group::Tun => &self.tun,
        }
    }

    fn group_mut(&mut self, group: Group) -> &mut BufferGroup {
        match group {
            Group::Udp => &mut self.udp,
            Group::Tun => &mut self.tun,
        }
    }

    // ---- the turn ---------------------------------------------------------------------------

    /// Submits what is queued and waits until `wanted` operations complete, `patience` at most.
    ///
    /// The kernel looks for no more than is wanted. A multishot operation hands over 32 results
    /// and then lets others go first (`MULTISHOT_MAX_RETRY`, `io_uring/net.c`): with 1 wanted a
    /// turn ends there, with many wanted and no patience it ends when nothing is left.
    ///
    /// # Errors
    /// When the ring failed, now or when something was queued: the worker cannot go on.
    pub fn enter(&mut self, wanted: usize, patience: Duration) -> Result<(), Error> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.ring.enter(wanted, patience)
    }

    /// Moves what has completed to `completions`. Returns how many completions made no sense:
    /// always 0 unless there is a bug.
    pub fn take_completions(&mut self, completions: &mut Vec<Completion>) -> u64 {
        let mut strays = 0;
        while completions.len() < completions.capacity() {
            let Some(entry) = self.ring.complete() else {
                break;
            };
            match self.interpret(entry.user_data(), entry.result(), entry.flags()) {
                Some(completion) => completions.push(completion),
                None => strays += 1,
            }
        }
        strays
    }

    fn interpret(&mut self, user_data: u64, result: i32, flags: u32) -> Option<Completion> {
        let token = Token::try_from(user_data).ok()?;
        let result = match result {
            failed if failed < 0 => Err(Errno::from_raw(-failed)),
            done => Ok(done.cast_unsigned()),
        };
        let mut buffer = None;
        if let Some(index) = cqueue::buffer_select(flags) {
            let group = if token.operation == Operation::Receive { Group::Udp } else { Group::Tun };
            self.group_mut(group).leases().received(index).ok()?;
            if let Ok(bytes) = result {
                self.group_mut(group).filled(bytes as usize);
                buffer = Some(BufferId::new(group, index));
            } else {
                // An operation may take a buffer and then fail; there is nothing in it.
                self.group_mut(group).leases().release(index).ok()?;
            }
        }
        Some(Completion { token, result, buffer, more: cqueue::more(flags) })
    }
}

impl Drop for Driver {
    /// After this the kernel uses none of the memory that is about to be unmapped, and no file
    /// that was registered, however the worker came to its end.
    fn drop(&mut self) {
        self.ring.cancel_everything();
        self.ring.close_files();
    }
}

/// Number of a send socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SenderId(pub u16);

impl SenderId {
    /// The receive socket, as the sender for a load balancer that itself uses port 6081.
    pub const RECEIVER: Self = Self(u16::MAX);

    /// The socket that sends from any port.
    pub const RAW: Self = Self(u16::MAX - 1);

    /// Whether it sends from any of our addresses.
    const fn is_any_address(self) -> bool {
        self.0 >= Self::RAW.0
    }
}

/// Number of a queue: twice the slot, plus the side.
pub fn queue_number(slot: EndpointSlot, side: Side) -> u16 {
    let side = match side {
        Side::Gwi => 0,
        Side::Gwo => 1,
    };
    slot.0 * 2 + side
}

/// The endpoint and side of a queue number.
pub fn queue_of(number: u16) -> (EndpointSlot, Side) {
    let side = if number.is_multiple_of(2) { Side::Gwi } else { Side::Gwo };
    (EndpointSlot(number / 2), side)
}

/// The buffers to lease for `spans`. Headers and payloads take turns in a send of many datagrams:
/// a buffer that one of the two spans before has leased is not leased again.
fn distinct_buffers(spans: &[Span]) -> impl Iterator<Item = BufferId> {
    spans.iter().enumerate().filter_map(|(place, span)| {
        let before = &spans[place.saturating_sub(2)..place];
        (!before.iter().any(|other| other.buffer == span.buffer)).then_some(span.buffer)
    })
}

fn token(operation: Operation, queue: u16, generation: u8, slot: u32) -> Token {
    Token { operation, queue, generation, slot }
}

fn slot_key(token: Token) -> SlotKey {
    SlotKey { slot: token.slot, generation: token.generation }
}

#[cfg(test)]
mod tests;
