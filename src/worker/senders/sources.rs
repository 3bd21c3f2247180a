//! From where an answer leaves: the table of ports, the raw sender, and what is refused.

use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::super::mailbox::Refusal;
use super::Senders;
use super::Socket;
use super::Way;
use crate::path;
use crate::path::UdpPayload;
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
use crate::types::SEND_QUEUE_BYTES;
use crate::uring::Driver;
use crate::uring::SenderId;
use crate::uring::pieces;
use crate::uring::pieces::Piece;
use crate::uring::pieces::Whole;

/// How long a port that could not be bound is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// How long a port that leaves through the raw sender is not tried again.
const RAW_PAUSE: Duration = Duration::from_secs(10);

/// How long a socket was not used that anybody may replace.
const UNUSED_MIN: Duration = Duration::from_secs(1);

/// From how many datagrams at once on a port gets a socket in place of another's, however lately
/// that was used: to replace one takes as long as to send about so many through the raw sender.
const PROMOTED_PACKETS_MIN: u32 = 4;

/// Sockets looked at to find one to replace.
const CANDIDATES: usize = 16;

/// Groups of ports that the raw sender tells apart.
const RAW_GROUPS: usize = 1024;

/// An address and port of ours.
type Source = (Ipv4Addr, u16);

/// Which ports may have datagrams under way in the raw sender.
///
/// The ports that leave through it without an entry in the table are not remembered one by one. A
/// group of them has nothing under way if its last send was started before the raw sender was idle
/// for the last time.
#[derive(Debug)]
pub(super) struct RawHistory {
    /// Jobs for the raw sender so far.
    jobs: u64,
    /// How many there were when it was idle.
    done: u64,
    /// The last job of each group, from 1.
    last: Box<[u64; RAW_GROUPS]>,
}

impl RawHistory {
    pub(super) fn new() -> Self {
        Self { jobs: 0, done: 0, last: Box::new([0; RAW_GROUPS]) }
    }

    /// Everything up to now is sent or dropped.
    fn is_idle_now(&mut self) {
        self.done = self.jobs;
    }

    fn sends(&mut self, source: Source) {
        self.jobs += 1;
        self.last[Self::group(source)] = self.jobs;
    }

    fn is_clear(&self, source: Source) -> bool {
        self.last[Self::group(source)] <= self.done
    }

    /// Neighbouring ports are in different groups.
    fn group((local, port): Source) -> usize {
        (usize::from(port) ^ usize::from(local.octets()[3]).wrapping_mul(97)) % RAW_GROUPS
    }
}

impl Senders {
    /// Chooses from where a job on `outer` leaves, and opens a socket if need be. All jobs of a
    /// plan are chosen for before the first is sent: what leaves through the raw sender gets its
    /// UDP headers here, while the buffers are still ours.
    pub(in super::super) fn choose(
        &mut self,
        driver: &mut Driver,
        outer: &OuterPath,
        (job, spans): (&Job, &[Span]),
        now: Moment,
    ) {
        let mut chosen = self.find(driver, outer, job.packets, now);
        if chosen == Ok(SenderId::RAW) {
            match write_udp_headers(driver, outer, job, spans) {
                Some(()) => self.count_raw((outer.local, outer.remote_port)),
                None => chosen = Err(DropReason::SendError),
            }
        }
        if let Ok(sender) = chosen {
            self.socket(sender).promised += 1;
        }
        self.chosen.push_back(chosen);
    }

    /// The socket that so many datagrams on `outer` leave from, opened if need be.
    ///
    /// # Errors
    /// [`DropReason::SendError`] if there is none and none can be had.
    pub(super) fn find(
        &mut self,
        driver: &Driver,
        outer: &OuterPath,
        packets: u32,
        now: Moment,
    ) -> Result<SenderId, DropReason> {
        if outer.remote_port == GENEVE_PORT {
            return Ok(SenderId::RECEIVER);
        }
        let source = (outer.local, outer.remote_port);
        if let Some(&id) = self.by_source.get(&source) {
            let socket = &mut self.sockets[usize::from(id.0)];
            socket.used = now;
            let way = socket.way;
            return match way {
                Way::Own => Ok(id),
                Way::Raw(until) if now < until || !self.is_clear(source) => Ok(SenderId::RAW),
                Way::Refused(until) if now < until => Err(DropReason::SendError),
                Way::Raw(_) | Way::Refused(_) => self.open(driver, id, source, now),
            };
        }
        match self.place(driver, source, packets, now).ok_or(DropReason::SendError)? {
            SenderId::RAW => Ok(SenderId::RAW),
            id => {
                self.by_source.insert(source, id);
                self.open(driver, id, source, now)
            }
        }
    }

    /// Whether nothing of a port is under way in the raw sender.
    fn is_clear(&mut self, source: Source) -> bool {
        if self.raw.is_idle() {
            self.raw_history.is_idle_now();
        }
        self.raw_history.is_clear(source)
    }

    fn count_raw(&mut self, source: Source) {
        if self.raw.is_idle() {
            self.raw_history.is_idle_now();
        }
        self.raw_history.sends(source);
    }

    /// A number for one more socket: a new one, or that of a socket to replace; or the raw sender.
    fn place(
        &mut self,
        driver: &Driver,
        source: Source,
        packets: u32,
        now: Moment,
    ) -> Option<SenderId> {
        if self.sockets.len() < self.sockets_max {
            let id = SenderId(u16::try_from(self.sockets.len()).expect("at most 65,535"));
            self.sockets.push(self.receiver);
            return Some(id);
        }
        let candidate = self.candidate();
        let may_replace = |socket: &Socket| {
            packets >= PROMOTED_PACKETS_MIN || now.since(socket.used) >= UNUSED_MIN
        };
        let is_worth_it = candidate.is_some_and(|place| may_replace(&self.sockets[place]));
        if !(is_worth_it && self.is_clear(source)) && self.has_raw(driver, now) {
            return Some(SenderId::RAW);
        }
        let place = candidate?;
        let old = &self.sockets[place];
        self.by_source.remove(&(old.local, old.port));
        Some(SenderId(u16::try_from(place).expect("at most 65,535")))
    }

    /// The least recently used of a few sockets in which nothing is under way.
    fn candidate(&mut self) -> Option<usize> {
        let count = self.sockets.len();
        let start = self.hand;
        self.hand = (start + CANDIDATES) % count.max(1);
        (start..start + CANDIDATES.min(count))
            .map(|n| n % count)
            .filter(|&n| self.sockets[n].is_idle())
            .min_by_key(|&n| self.sockets[n].used)
    }

    fn open(
        &mut self,
        driver: &Driver,
        id: SenderId,
        source: Source,
        now: Moment,
    ) -> Result<SenderId, DropReason> {
        let (way, found) = match self.try_to_open(driver, id, source, now) {
            Ok(SenderId::RAW) => (Way::Raw(now.after(RAW_PAUSE)), Ok(SenderId::RAW)),
            Ok(own) => (Way::Own, Ok(own)),
            Err(errno) => {
                let from = SocketAddrV4::new(source.0, source.1);
                self.refused(Refusal { from, errno, at: now });
                (Way::Refused(now.after(REFUSED_PAUSE)), Err(DropReason::SendError))
            }
        };
        self.sockets[usize::from(id.0)] = Socket::new(source, now, way);
        found
    }

    /// A socket bound to the port, registered as `id`, else the raw sender.
    fn try_to_open(
        &mut self,
        driver: &Driver,
        id: SenderId,
        (local, port): Source,
        now: Moment,
    ) -> Result<SenderId, Errno> {
        let bound = if port < SEND_PORT_MIN {
            Err(Errno::EACCES)
        } else {
            self.take_unbound()
                .and_then(|fd| udp::make_sender(fd, local, port, SEND_QUEUE_BYTES))
                .and_then(|fd| driver.register_sender(id, fd.as_fd()))
                .map_err(|error| error.errno)
        };
        self.keep_spare();
        match bound {
            Ok(()) => Ok(id),
            // From there nothing leaves, whatever the socket.
            Err(Errno::EADDRNOTAVAIL) => Err(Errno::EADDRNOTAVAIL),
            Err(_) if self.has_raw(driver, now) => Ok(SenderId::RAW),
            Err(errno) => Err(errno),
        }
    }

    /// A new socket, or where there can be none the spare one: a registered socket needs its
    /// descriptor no more, so that with one to spare any number of ports can be had.
    fn take_unbound(&mut self) -> Result<OwnedFd, Error> {
        udp::open_unbound().or_else(|error| self.spare.take().ok_or(error))
    }

    /// Opens the spare socket, if it was taken.
    pub(super) fn keep_spare(&mut self) {
        if self.spare.is_none() {
            self.spare = udp::open_unbound().ok();
        }
    }

    /// Whether there is a raw sender. Without one it is tried to open it, once a second.
    fn has_raw(&mut self, driver: &Driver, now: Moment) -> bool {
        if !self.raw_is_open && now >= self.raw_retry {
            self.raw_is_open = open_raw(driver).is_ok();
            self.raw_retry = now.after(REFUSED_PAUSE);
        }
        self.raw_is_open
    }

    /// Remembers a refusal for control, as far as there is room.
    fn refused(&mut self, refusal: Refusal) {
        let (mut count, mut since) = self.refusals_told;
        if refusal.at.since(since) >= REFUSED_PAUSE {
            (count, since) = (0, refusal.at);
        }
        if count < super::REFUSALS_MAX && self.refusals.try_push(refusal).is_ok() {
            self.refusals_told = (count + 1, since);
        }
    }

    /// Takes a refusal that control shall hear of.
    pub(in super::super) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusals.pop()
    }
}

fn open_raw(driver: &Driver) -> Result<(), Error> {
    let fd = udp::open_raw_sender(SEND_QUEUE_BYTES)?;
    driver.register_sender(SenderId::RAW, fd.as_fd())
}

/// Puts a UDP header before each datagram of a job: the raw sender leaves that to us. Nothing if
/// there is no room for one.
fn write_udp_headers(
    driver: &mut Driver,
    outer: &OuterPath,
    job: &Job,
    spans: &[Span],
) -> Option<()> {
    let whole = Whole::new(job, spans);
    for index in 0..job.packets {
        let mut payload = UdpPayload::default();
        let mut parts = pieces::cut(spans.iter().copied(), whole.datagram(index));
        let first = parts.next()?;
        for part in std::iter::once(first).chain(parts) {
            let start = part.start as usize;
            payload.append(&driver.bytes_mut(part.buffer)[start..start + part.bytes()]);
        }
        let bytes = driver.bytes_mut(first.buffer);
        path::prepend_udp_header(bytes, first.start as usize, &payload, outer)?;
    }
    Some(())
}
