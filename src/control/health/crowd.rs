//! The connections at the gate, and which of them goes when there is no place for one more.
//!
//! Whoever holds the most places loses one first: the connection to go is the oldest one that
//! waits for its client, of the *origin* with the most connections. A flood from one host evicts
//! its own, however fast it is, and leaves a load balancer's probe alone. An origin is an IPv4
//! address, or the /64 of an IPv6 address, of which one host may have every address.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::rc::Rc;

use tokio::task::AbortHandle;

/// Connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// Bytes of answers that may wait for their clients, in all. A single answer may be longer.
const UNSENT_BYTES_MAX: usize = 4 << 20;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    V4(Ipv4Addr),
    /// The upper half of the address.
    V6(u64),
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                Self::V6(u64::try_from(address.to_bits() >> 64).expect("half of it"))
            }
        }
    }
}

/// What a connection's task tells of itself.
#[derive(Debug)]
pub(super) struct Progress {
    /// Nothing happens on it before its client sends or reads something.
    is_waiting: Cell<bool>,
    /// Bytes of an answer that its client has not taken.
    unsent_bytes: Cell<usize>,
}

impl Progress {
    /// Of a connection whose client has said nothing yet.
    pub(super) const fn new() -> Self {
        Self { is_waiting: Cell::new(true), unsent_bytes: Cell::new(0) }
    }

    /// It waits for its client, who has taken everything.
    pub(super) fn waits(&self) {
        self.is_waiting.set(true);
        self.unsent_bytes.set(0);
    }

    /// It has a request to answer.
    pub(super) fn answers(&self) {
        self.is_waiting.set(false);
    }
}

/// One connection, as the others see it.
#[derive(Debug)]
struct Connection {
    origin: Origin,
    task: AbortHandle,
    progress: Rc<Progress>,
}

/// All connections; the key is their age.
#[derive(Debug, Default)]
pub(super) struct Crowd(RefCell<BTreeMap<u64, Connection>>);

impl Crowd {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Enters a connection. `number` is above those of all others.
    pub(super) fn enter(
        &self,
        number: u64,
        origin: Origin,
        task: AbortHandle,
        progress: Rc<Progress>,
    ) {
        self.0.borrow_mut().insert(number, Connection { origin, task, progress });
    }

    /// Forgets a connection that has ended.
    pub(super) fn leave(&self, number: u64) {
        self.0.borrow_mut().remove(&number);
    }

    /// Makes sure that there is a place for one more connection. Where all are being answered,
    /// the youngest of an origin with more of them than the newcomer's goes; if there is none,
    /// the newcomer has to.
    pub(super) fn make_room(&self, newcomer: Origin) -> bool {
        self.len() < CONNECTIONS_MAX || self.evict() || self.evict_answered(newcomer)
    }

    /// Ends a connection that waits for its client, if there is one.
    pub(super) fn evict(&self) -> bool {
        self.evict_oldest(|connection| connection.progress.is_waiting.get())
    }

    /// Notes that a connection's answer is on its way, and ends others that wait with theirs
    /// where that makes too much.
    pub(super) fn send(&self, progress: &Progress, bytes: usize) {
        progress.is_waiting.set(true);
        let is_other = |connection: &Connection| {
            !std::ptr::eq(Rc::as_ptr(&connection.progress), progress)
                && connection.progress.unsent_bytes.get() > 0
        };
        while self.unsent_bytes() + bytes > UNSENT_BYTES_MAX && self.evict_oldest(is_other) {}
        progress.unsent_bytes.set(bytes);
    }

    /// Bytes of answers that wait for their clients.
    pub(super) fn unsent_bytes(&self) -> usize {
        let connections = self.0.borrow();
        connections.values().map(|connection| connection.progress.unsent_bytes.get()).sum()
    }

    /// Ends the oldest of the candidates whose origin has the most connections.
    fn evict_oldest(&self, is_candidate: impl Fn(&Connection) -> bool) -> bool {
        let counts = self.counts();
        let connections = self.0.borrow();
        // Of equals the last one is the greatest, so the oldest comes last.
        let oldest_last = connections.iter().rev().filter(|(_, it)| is_candidate(it));
        let victim =
            oldest_last.max_by_key(|(_, it)| counts[&it.origin]).map(|(number, _)| *number);
        drop(connections);
        victim.is_some_and(|number| self.end(number))
    }

    fn evict_answered(&self, newcomer: Origin) -> bool {
        let counts = self.counts();
        let own = counts.get(&newcomer).copied().unwrap_or(0);
        let connections = self.0.borrow();
        let youngest = connections.iter().max_by_key(|(_, it)| counts[&it.origin]);
        let victim =
            youngest.filter(|(_, it)| counts[&it.origin] > own + 1).map(|(&number, _)| number);
        drop(connections);
        victim.is_some_and(|number| self.end(number))
    }

    fn counts(&self) -> BTreeMap<Origin, usize> {
        let mut counts = BTreeMap::new();
        for connection in self.0.borrow().values() {
            *counts.entry(connection.origin).or_insert(0) += 1;
        }
        counts
    }

    fn end(&self, number: u64) -> bool {
        let ended = self.0.borrow_mut().remove(&number);
        ended.is_some_and(|connection| {
            connection.task.abort();
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        Origin::from(address.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_origin_is_what_one_host_has_for_itself() {
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("2001:db8:0:1::1"), origin("2001:db8:0:1:ffff::2"));
        assert_ne!(origin("2001:db8:0:1::1"), origin("2001:db8:0:2::1"));
        assert_ne!(origin("::"), origin("0.0.0.0"));
    }

    /// A crowd of one connection per letter, oldest first: the letter is its origin, a capital
    /// one is being answered.
    fn crowd(letters: &str) -> Crowd {
        let crowd = Crowd::default();
        for (number, letter) in (0..).zip(letters.chars()) {
            let task = tokio::task::spawn_local(std::future::pending::<()>());
            let progress = Rc::new(Progress::new());
            if letter.is_uppercase() {
                progress.answers();
            }
            crowd.enter(number, named(letter), task.abort_handle(), progress);
        }
        crowd
    }

    fn named(letter: char) -> Origin {
        Origin::V6(u64::from(letter.to_ascii_lowercase()))
    }

    /// Which one of a crowd went by `act`, counted from 0.
    fn gone(letters: &str, act: impl FnOnce(&Crowd) -> bool) -> Option<u64> {
        tokio_uring::start(async {
            let crowd = crowd(letters);
            let numbers = |crowd: &Crowd| crowd.0.borrow().keys().copied().collect::<Vec<_>>();
            let before = numbers(&crowd);
            let acted = act(&crowd);
            let after = numbers(&crowd);
            let gone: Vec<_> =
                before.into_iter().filter(|number| !after.contains(number)).collect();
            assert_eq!(gone.len(), usize::from(acted), "{letters}: {gone:?}");
            gone.first().copied()
        })
    }

    #[test]
    fn the_oldest_waiting_one_of_the_fullest_origin_goes() {
        for (letters, number) in [
            ("abc", Some(0)),
            ("abb", Some(1)),
            ("abBcc", Some(1)),
            ("abccc", Some(2)),
            ("aBb", Some(2)),
            ("aBBB", Some(0)),
            ("AB", None),
            ("", None),
        ] {
            assert_eq!(gone(letters, Crowd::evict), number, "{letters}");
        }
    }

    #[test]
    fn where_all_are_answered_the_fullest_origin_loses_its_youngest() {
        let make_room = |crowd: &Crowd| crowd.make_room(named('z'));
        let full = "B".repeat(CONNECTIONS_MAX - 1);
        assert_eq!(gone(&format!("{full}A"), make_room), Some(62));
        assert_eq!(gone(&format!("a{full}"), make_room), Some(0), "one that waits is there");
        let own = "Z".repeat(CONNECTIONS_MAX);
        assert_eq!(gone(&own, make_room), None, "its own do not go for it");
        assert_eq!(gone("B", |crowd| crowd.evict_answered(named('z'))), None, "equals");
    }

    #[test]
    fn unsent_answers_are_bounded_and_the_newest_may_be_of_any_length() {
        tokio_uring::start(async {
            let crowd = crowd("abcb");
            let progress = |number| Rc::clone(&crowd.0.borrow()[&number].progress);
            crowd.send(&progress(0), UNSENT_BYTES_MAX / 2);
            crowd.send(&progress(1), UNSENT_BYTES_MAX / 4);
            crowd.send(&progress(2), UNSENT_BYTES_MAX / 4);
            assert_eq!((crowd.len(), crowd.unsent_bytes()), (4, UNSENT_BYTES_MAX));
            let last = progress(3);
            crowd.send(&last, 1);
            assert_eq!(crowd.len(), 3);
            assert_eq!(crowd.unsent_bytes(), UNSENT_BYTES_MAX - UNSENT_BYTES_MAX / 4 + 1);
            crowd.send(&last, 2 * UNSENT_BYTES_MAX);
            assert_eq!((crowd.len(), crowd.unsent_bytes()), (1, 2 * UNSENT_BYTES_MAX));
            last.waits();
            assert_eq!(crowd.unsent_bytes(), 0);
        });
    }
}
