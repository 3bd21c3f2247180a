//! Send sockets: one per local address and source port in use, opened when first needed.
//!
//! A load balancer node expects answers from the port it used, so the number of sockets follows
//! the number of its source ports. It is bounded; beyond the bound the least recently used of a
//! few candidates is replaced, which costs about 10 µs.
//!
//! ```text
//!                bound            every 10 s, when nothing is under way in it
//!   (port) ───────────────▶ Own ◀─────────────────────────────────────────── Raw
//!      │ │ taken, or below 1024, and CAP_NET_RAW                              ▲
//!      │ └────────────────────────────────────────────────────────────────────┘
//!      └──▶ Refused: its packets are `send_error`, control is told; again after a second
//! ```
//!
//! A port that cannot be bound leaves through the worker's one *raw sender*, with a UDP header of
//! ours. Nothing under way there when a port moves to a socket of its own, or is forgotten, is what
//! keeps the order of its flows.
//!
//! Order: a socket that is full answers `EAGAIN`. Its sends then wait here, in order, until it has
//! room, and later ones queue behind them. Each holds a buffer that frames are read into, so their
//! number is bounded, over all sockets: one that is full must not end the reading for all. If a
//! later send of the same batch got through
//! nevertheless, the earlier ones are dropped and counted (`send_full`): late is worse than lost.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::time::Duration;

use arrayvec::ArrayVec;
use hashbrown::HashMap;

use super::mailbox::Refusal;
use crate::path;
use crate::path::plan::Job;
use crate::path::plan::Span;
use crate::sys::Errno;
use crate::sys::Error;
use crate::sys::udp;
use crate::types::DropReason;
use crate::types::GENEVE_PORT;
use crate::types::Moment;
use crate::types::OuterPath;
use crate::types::SEND_PORT_MIN;
use crate::uring::Driver;
use crate::uring::SenderId;
use crate::uring::Token;

/// Send queue of one socket, bytes: a burst of a worker's turn of the largest packets.
const QUEUE_BYTES: usize = 4 << 20;

/// How long a port that could not be bound is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// How long a port that leaves through the raw sender is not tried again.
const RAW_PAUSE: Duration = Duration::from_secs(10);

/// Refusals that control is told in [`REFUSED_PAUSE`].
const REFUSALS_MAX: usize = 16;

/// Sockets looked at to find one to replace.
const CANDIDATES: usize = 16;

/// Which way the datagrams of a port go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through a socket that is bound to it.
    Own,
    /// Through the raw sender. Try to bind it then.
    Raw(Moment),
    /// None. Try again then.
    Refused(Moment),
}

#[derive(Clone, Copy, Debug)]
struct Socket {
    local: Ipv4Addr,
    port: u16,
    used: Moment,
    /// Sends started and not completed.
    in_flight: u32,
    /// Sends that wait for room.
    waiting: u32,
    way: Way,
}

impl Socket {
    fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting == 0
    }
}

/// The send sockets of one worker.
#[derive(Debug)]
pub(super) struct Senders {
    by_source: HashMap<(Ipv4Addr, u16), SenderId, foldhash::fast::RandomState>,
    sockets: Vec<Socket>,
    sockets_max: usize,
    /// Where the search for a socket to replace goes on.
    hand: usize,
    waiting: VecDeque<Token>,
    waiting_max: usize,
    /// Sends of the receive socket, which is not in `sockets`.
    receiver: Socket,
    /// Sends of the raw sender, which is not either.
    raw: Socket,
    /// Whether there is a raw sender.
    raw_is_open: bool,
    /// What control shall be told.
    refusals: ArrayVec<Refusal, REFUSALS_MAX>,
    /// How many were entered there since when.
    refusals_told: (usize, Moment),
}

impl Senders {
    /// No sockets yet, up to `sockets_max`, and up to `waiting_max` sends that wait for room.
    pub(super) fn new(sockets_max: u16, waiting_max: u16) -> Self {
        let waiting_max = usize::from(waiting_max);
        let sockets_max = usize::from(sockets_max);
        let unused = Socket {
            local: Ipv4Addr::UNSPECIFIED,
            port: 0,
            used: Moment::ZERO,
            in_flight: 0,
            waiting: 0,
            way: Way::Own,
        };
        let hasher = foldhash::fast::RandomState::default();
        Self {
            // Sources come and go. At no more than half of its capacity the map clears the traces
            // of removals in place; fuller than that it would allocate.
            by_source: HashMap::with_capacity_and_hasher(2 * sockets_max, hasher),
            sockets: Vec::with_capacity(sockets_max),
            sockets_max,
            hand: 0,
            waiting: VecDeque::with_capacity(waiting_max),
            waiting_max,
            receiver: unused,
            raw: unused,
            raw_is_open: false,
            refusals: ArrayVec::new(),
            refusals_told: (0, Moment::ZERO),
        }
    }

    /// The socket that answers on `outer` must leave from, opened if need be. What leaves from
    /// [`SenderId::RAW`] needs a UDP header.
    ///
    /// # Errors
    /// [`DropReason::SendError`] if there is none and none can be had.
    pub(super) fn find(
        &mut self,
        driver: &Driver,
        outer: &OuterPath,
        now: Moment,
    ) -> Result<SenderId, DropReason> {
        if outer.remote_port == GENEVE_PORT {
            return Ok(SenderId::RECEIVER);
        }
        let source = (outer.local, outer.remote_port);
        if let Some(&id) = self.by_source.get(&source) {
            let socket = &mut self.sockets[usize::from(id.0)];
            socket.used = now;
            match socket.way {
                Way::Own => return Ok(id),
                Way::Raw(until) if now < until || !self.raw.is_idle() => return Ok(SenderId::RAW),
                Way::Refused(until) if now < until => return Err(DropReason::SendError),
                Way::Raw(_) | Way::Refused(_) => return self.open(driver, id, source, now),
            }
        }
        let id = self.place().ok_or(DropReason::SendError)?;
        self.by_source.insert(source, id);
        self.open(driver, id, source, now)
    }

    fn open(
        &mut self,
        driver: &Driver,
        id: SenderId,
        (local, port): (Ipv4Addr, u16),
        now: Moment,
    ) -> Result<SenderId, DropReason> {
        let (way, found) = match self.try_to_open(driver, id, local, port) {
            Ok(SenderId::RAW) => (Way::Raw(now.after(RAW_PAUSE)), Ok(SenderId::RAW)),
            Ok(own) => (Way::Own, Ok(own)),
            Err(errno) => {
                self.refused(Refusal { from: SocketAddrV4::new(local, port), errno, at: now });
                (Way::Refused(now.after(REFUSED_PAUSE)), Err(DropReason::SendError))
            }
        };
        self.sockets[usize::from(id.0)] =
            Socket { local, port, used: now, in_flight: 0, waiting: 0, way };
        found
    }

    /// A socket bound to the port, registered as `id`, else the raw sender.
    fn try_to_open(
        &mut self,
        driver: &Driver,
        id: SenderId,
        local: Ipv4Addr,
        port: u16,
    ) -> Result<SenderId, Errno> {
        let bound = if port < SEND_PORT_MIN {
            Err(Errno::EACCES)
        } else {
            udp::open_sender(local, port, QUEUE_BYTES)
                .and_then(|fd| driver.register_sender(id, fd.as_fd()))
                .map_err(|error| error.errno)
        };
        match bound {
            Ok(()) => Ok(id),
            // From there nothing leaves, whatever the socket.
            Err(Errno::EADDRNOTAVAIL) => Err(Errno::EADDRNOTAVAIL),
            Err(errno) if self.open_raw(driver).is_err() => Err(errno),
            Err(_) => Ok(SenderId::RAW),
        }
    }

    fn open_raw(&mut self, driver: &Driver) -> Result<(), Error> {
        if !self.raw_is_open {
            let fd = udp::open_raw_sender(QUEUE_BYTES)?;
            driver.register_sender(SenderId::RAW, fd.as_fd())?;
            self.raw_is_open = true;
        }
        Ok(())
    }

    /// Remembers a refusal for control, as far as there is room.
    fn refused(&mut self, refusal: Refusal) {
        let (mut count, mut since) = self.refusals_told;
        if refusal.at.since(since) >= REFUSED_PAUSE {
            (count, since) = (0, refusal.at);
        }
        if count < REFUSALS_MAX && self.refusals.try_push(refusal).is_ok() {
            self.refusals_told = (count + 1, since);
        }
    }

    /// Takes a refusal that control shall hear of.
    pub(super) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusals.pop()
    }

    /// A number for one more socket: a new one, or that of a socket to replace.
    fn place(&mut self) -> Option<SenderId> {
        if self.sockets.len() < self.sockets_max {
            let id = SenderId(u16::try_from(self.sockets.len()).expect("at most 65,535"));
            self.sockets.push(self.receiver);
            return Some(id);
        }
        let count = self.sockets.len();
        let start = self.hand;
        self.hand = (start + CANDIDATES) % count.max(1);
        let raw_is_idle = self.raw.is_idle();
        let is_idle = |socket: &Socket| {
            socket.is_idle() && (raw_is_idle || !matches!(socket.way, Way::Raw(_)))
        };
        let place = (start..start + CANDIDATES.min(count))
            .map(|n| n % count)
            .filter(|&n| is_idle(&self.sockets[n]))
            .min_by_key(|&n| self.sockets[n].used)?;
        let old = &self.sockets[place];
        self.by_source.remove(&(old.local, old.port));
        Some(SenderId(u16::try_from(place).expect("at most 65,535")))
    }

    /// Starts a prepared send, or lets it wait behind those that wait already.
    ///
    /// # Errors
    /// [`DropReason::SendFull`] if it can neither start nor wait; the send is still the
    /// caller's to end.
    pub(super) fn start(&mut self, driver: &mut Driver, token: Token) -> Result<(), DropReason> {
        let socket = self.socket(SenderId(token.queue));
        if socket.waiting == 0 {
            socket.in_flight += 1;
            driver.start_send(token);
            return Ok(());
        }
        self.enqueue(token)
    }

    fn enqueue(&mut self, token: Token) -> Result<(), DropReason> {
        if self.waiting.len() >= self.waiting_max {
            return Err(DropReason::SendFull);
        }
        self.waiting.push_back(token);
        self.socket(SenderId(token.queue)).waiting += 1;
        Ok(())
    }

    /// A send found its socket full: it waits until there is room.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub(super) fn full(&mut self, driver: &mut Driver, token: Token) -> Result<(), DropReason> {
        let id = SenderId(token.queue);
        let socket = self.socket(id);
        socket.in_flight -= 1;
        if socket.waiting == 0 {
            driver.arm_send_ready(id);
        }
        self.enqueue(token)
    }

    /// A send has ended, and its datagram has left if `sent`. If others of its socket wait
    /// although they were started earlier, they are overtaken: each is given to `overtaken` to be
    /// dropped.
    pub(super) fn ended(&mut self, token: Token, sent: bool, overtaken: impl FnMut(Token)) {
        let socket = self.socket(SenderId(token.queue));
        socket.in_flight -= 1;
        if sent && socket.waiting > 0 {
            self.take_waiting(SenderId(token.queue), overtaken);
        }
    }

    /// A socket has room: what waits for it is started in order.
    pub(super) fn ready(&mut self, driver: &mut Driver, id: SenderId) {
        let mut started = 0;
        self.take_waiting(id, |token| {
            driver.start_send(token);
            started += 1;
        });
        self.socket(id).in_flight += started;
    }

    /// Takes back what waits: each send that `is_over` says so of has been dropped by it.
    pub(super) fn abandon(&mut self, mut is_over: impl FnMut(Token) -> bool) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|&token| {
            let over = is_over(token);
            if over {
                self.socket(SenderId(token.queue)).waiting -= 1;
            }
            !over
        });
        self.waiting = waiting;
    }

    fn take_waiting(&mut self, id: SenderId, mut take: impl FnMut(Token)) {
        self.waiting.retain(|&token| {
            let other = token.queue != id.0;
            if !other {
                take(token);
            }
            other
        });
        self.socket(id).waiting = 0;
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

/// Prepares the send of a job from `sender`, which [`Senders::find`] has named.
///
/// # Errors
/// [`DropReason::NoBuffer`] when no slot is free.
pub(super) fn prepare(
    driver: &mut Driver,
    sender: SenderId,
    outer: &OuterPath,
    job: &Job,
    spans: &[Span],
) -> Result<Token, DropReason> {
    if sender == SenderId::RAW {
        return prepare_raw_send(driver, outer, job, spans);
    }
    let remote = SocketAddrV4::new(outer.remote, GENEVE_PORT);
    driver.prepare_send(sender, outer.local, remote, job, spans)
}

/// The same through the raw sender, which leaves the UDP header to us. An answer is one span.
#[cold]
fn prepare_raw_send(
    driver: &mut Driver,
    outer: &OuterPath,
    job: &Job,
    spans: &[Span],
) -> Result<Token, DropReason> {
    let &[Span { buffer, start, len }] = spans else {
        return Err(DropReason::SendError);
    };
    let payload = start as usize..(start + len) as usize;
    let bytes = driver.bytes_mut(buffer);
    let start = path::prepend_udp_header(bytes, payload.clone(), outer)
        .and_then(|start| u32::try_from(start).ok())
        .ok_or(DropReason::SendError)?;
    let len = u32::try_from(payload.end).expect("it was one") - start;
    let span = Span { buffer, start, len };
    let remote = SocketAddrV4::new(outer.remote, GENEVE_PORT);
    driver.prepare_send(SenderId::RAW, outer.local, remote, job, &[span])
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::path::plan::Group;
    use crate::path::plan::Plan;
    use crate::path::plan::SPANS_MAX;
    use crate::path::plan::Target;
    use crate::types::EndpointSlot;
    use crate::uring::DriverPlan;
    use crate::uring::Features;
    use crate::uring::GroupPlan;

    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, GENEVE_PORT);

    /// A driver that is never entered: what it starts stays in its submission queue.
    fn driver() -> Driver {
        let group = GroupPlan { offered: 4, count: 8, headroom_bytes: 0, filled_bytes: 100 };
        let features = Features::probe().expect("the tests need io_uring");
        Driver::new(DriverPlan {
            submissions: 64,
            completions_max: u32::MAX,
            operations_max: 16,
            udp: group,
            tun: group,
            senders_max: 4,
            busy_poll_us: 0,
            endpoints_max: 4,
            features,
        })
        .unwrap()
    }

    /// Prepares a send for an endpoint from the receive socket.
    fn send(driver: &mut Driver, slot: u16) -> Token {
        let buffer = driver.take_buffer(Group::Tun).unwrap();
        let mut plan = Plan::new(1, SPANS_MAX);
        let span = Span { buffer, start: 0, len: 1 };
        let endpoint = EndpointSlot(slot);
        let target = Target::Gwi;
        plan.push(Job { endpoint, target, packets: 1, packet_bytes: 1, datagram_bytes: 0 }, [span]);
        let (job, spans) = plan.jobs().next().unwrap();
        driver.prepare_send(SenderId::RECEIVER, *TO.ip(), TO, job, spans).unwrap()
    }

    fn waiting(senders: &Senders) -> Vec<Token> {
        senders.waiting.iter().copied().collect()
    }

    /// The first of three sends of endpoints 0, 1 and 0 has found its socket full.
    fn three_waiting(driver: &mut Driver) -> (Senders, [Token; 3]) {
        let mut senders = Senders::new(4, 3);
        let tokens = [0, 1, 0].map(|slot| send(driver, slot));
        senders.start(driver, tokens[0]).unwrap();
        assert_eq!(waiting(&senders), []);
        senders.full(driver, tokens[0]).unwrap();
        senders.start(driver, tokens[1]).unwrap();
        senders.start(driver, tokens[2]).unwrap();
        assert_eq!(waiting(&senders), tokens, "later ones queue behind the first");
        (senders, tokens)
    }

    #[test]
    fn a_full_socket_keeps_a_bounded_number_waiting_in_order() {
        let mut driver = driver();
        let (mut senders, _) = three_waiting(&mut driver);
        let fourth = send(&mut driver, 0);
        assert_eq!(senders.start(&mut driver, fourth), Err(DropReason::SendFull));
        senders.ready(&mut driver, SenderId::RECEIVER);
        assert_eq!(waiting(&senders), []);
        assert_eq!(senders.receiver.in_flight, 3);
    }

    #[test]
    fn one_that_got_through_drops_those_that_it_overtook() {
        let mut driver = driver();
        let (mut senders, tokens) = three_waiting(&mut driver);
        senders.receiver.in_flight += 1;
        let mut overtaken = Vec::new();
        senders.ended(send(&mut driver, 0), true, |token| overtaken.push(token));
        assert_eq!(overtaken, tokens);
        assert!(senders.receiver.is_idle());
    }

    /// A loopback address of these tests alone.
    const LOCAL: Ipv4Addr = Ipv4Addr::new(127, 60, 81, 7);

    fn outer(remote_port: u16) -> OuterPath {
        OuterPath { local: LOCAL, remote: *TO.ip(), remote_port }
    }

    fn at(millis: u64) -> Moment {
        Moment::from_secs(100).after(Duration::from_millis(millis))
    }

    #[test]
    fn a_port_leaves_the_raw_sender_only_when_nothing_is_under_way_there() {
        let mut driver = driver();
        let mut senders = Senders::new(1, 3);
        let taken = UdpSocket::bind((LOCAL, 60_003)).unwrap();
        let find = |senders: &mut Senders, driver: &Driver, port, millis| {
            senders.find(driver, &outer(port), at(millis))
        };
        assert_eq!(find(&mut senders, &driver, 60_003, 0), Ok(SenderId::RAW));
        drop(taken);
        assert_eq!(find(&mut senders, &driver, 60_003, 9_999), Ok(SenderId::RAW));
        let buffer = driver.take_buffer(Group::Tun).unwrap();
        let mut plan = Plan::new(1, SPANS_MAX);
        let span = Span { buffer, start: 8, len: 92 };
        let (endpoint, target) = (EndpointSlot(0), Target::Outer(outer(60_003)));
        let job = Job { endpoint, target, packets: 1, packet_bytes: 92, datagram_bytes: 92 };
        plan.push(job, [span]);
        let (job, spans) = plan.jobs().next().unwrap();
        let sent = prepare(&mut driver, SenderId::RAW, &outer(60_003), job, spans).unwrap();
        senders.start(&mut driver, sent).unwrap();
        assert_eq!(find(&mut senders, &driver, 60_003, 10_000), Ok(SenderId::RAW));
        let other = find(&mut senders, &driver, 60_004, 10_000);
        assert_eq!(other, Err(DropReason::SendError), "the one place is not free before that");
        senders.full(&mut driver, sent).unwrap();
        assert_eq!(find(&mut senders, &driver, 60_003, 10_000), Ok(SenderId::RAW));
        senders.ready(&mut driver, SenderId::RAW);
        senders.ended(sent, true, |_| panic!("nothing waits"));
        assert_eq!(find(&mut senders, &driver, 60_003, 10_000), Ok(SenderId(0)));
        assert_eq!(find(&mut senders, &driver, 60_004, 10_000), Ok(SenderId(0)));
        assert_eq!(find(&mut senders, &driver, 80, 10_000), Ok(SenderId::RAW), "never bound");
        assert_eq!(find(&mut senders, &driver, 80, 60_000), Ok(SenderId::RAW));
        assert_eq!(senders.take_refusal(), None);
    }

    #[test]
    fn refusals_are_told_once_a_second_and_their_number_is_bounded() {
        let driver = driver();
        let mut senders = Senders::new(100, 3);
        // Not an address of this host: a raw socket would not help.
        let nowhere = OuterPath { local: Ipv4Addr::new(192, 0, 2, 1), ..outer(60_005) };
        for (millis, told) in [(0, 1), (999, 0), (1000, 1)] {
            let found = senders.find(&driver, &nowhere, at(millis));
            assert_eq!(found, Err(DropReason::SendError));
            let refusals = std::iter::from_fn(|| senders.take_refusal());
            let errnos: Vec<_> = refusals.map(|refusal| refusal.errno).collect();
            assert_eq!(errnos, vec![Errno::EADDRNOTAVAIL; told], "at {millis} ms");
        }
        for port in 2000..2050 {
            let path = OuterPath { remote_port: port, ..nowhere };
            senders.find(&driver, &path, at(2000)).unwrap_err();
            if port < 2010 {
                senders.take_refusal();
            }
        }
        let left = std::iter::from_fn(|| senders.take_refusal()).count();
        assert_eq!(left, REFUSALS_MAX - 10);
    }

    #[test]
    fn an_endpoint_that_goes_takes_its_own_sends_along() {
        let mut driver = driver();
        let (mut senders, tokens) = three_waiting(&mut driver);
        let mut dropped = Vec::new();
        senders.abandon(|token| {
            let over = driver.endpoint_of(token) == Some(EndpointSlot(0));
            if over {
                dropped.push(token);
            }
            over
        });
        assert_eq!(dropped, [tokens[0], tokens[2]]);
        assert_eq!((waiting(&senders), senders.receiver.waiting), (vec![tokens[1]], 1));
        senders.abandon(|_| true);
        assert!(senders.receiver.is_idle() && waiting(&senders).is_empty());
    }
}
