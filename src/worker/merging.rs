//! Whether the kernel shall merge the datagrams that arrive (`UDP_GRO`, udp(7)).
//!
//! To look for company costs the kernel something with every datagram: 4 % of all CPU time per
//! packet where 64 flows of small packets come by 64 ports and none is found (benches/README.md).
//! So it is switched off where it finds nothing. While it is off, neighbours that it might have
//! merged show that the traffic has changed: datagrams of one outer path and one length, one right
//! after the other. Then it gets a new trial; where those fail, as with outer checksums of 0, the
//! next one waits twice as long.

use std::time::Duration;

use crate::types::Moment;
use crate::types::OuterPath;

/// Receives after which a decision is made.
const WINDOW: u32 = 1024;

/// Merging pays if it saves one receive in so many.
const SAVED_MIN_ONE_IN: u32 = 10;

/// A trial is worth it if one receive in so many has a neighbour.
const NEIGHBOURS_MIN_ONE_IN: u32 = 4;

/// How long after a trial that failed the next one may begin.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
const PATIENCE_MAX: Duration = Duration::from_mins(1);

/// What is known about the datagrams of one worker.
#[derive(Debug)]
pub(super) struct Merging {
    is_allowed: bool,
    is_on: bool,
    /// In this window: receives, the datagrams in them, and neighbours.
    receives: u32,
    datagrams: u32,
    neighbours: u32,
    /// Outer path and length of the last receive.
    last: (OuterPath, usize),
    patience: Duration,
    next_trial: Moment,
}

impl Merging {
    /// On, if it may ever be.
    pub(super) const fn new(is_allowed: bool) -> Self {
        Self {
            is_allowed,
            is_on: is_allowed,
            receives: 0,
            datagrams: 0,
            neighbours: 0,
            last: (OuterPath::NONE, 0),
            patience: PATIENCE_MIN,
            next_trial: Moment::ZERO,
        }
    }

    /// From now on it is off for good.
    pub(super) const fn forbid(&mut self) {
        self.is_allowed = false;
        self.is_on = false;
    }

    /// Whether it is off only because it finds nothing.
    pub(super) const fn is_paused(&self) -> bool {
        self.is_allowed && !self.is_on
    }

    /// A receive brought so many datagrams by `path`, the first of them so long.
    #[inline]
    pub(super) fn saw(&mut self, path: OuterPath, datagrams: usize, datagram_bytes: usize) {
        self.receives += 1;
        self.datagrams =
            self.datagrams.saturating_add(u32::try_from(datagrams).unwrap_or(u32::MAX));
        let this = (path, datagram_bytes);
        self.neighbours += u32::from(this == self.last);
        self.last = this;
    }

    /// What is to be changed, if anything: on or off.
    pub(super) fn decide(&mut self, now: Moment) -> Option<bool> {
        if self.receives < WINDOW {
            return None;
        }
        let (receives, saved) = (self.receives, self.datagrams - self.receives);
        let neighbours = self.neighbours;
        (self.receives, self.datagrams, self.neighbours) = (0, 0, 0);
        if !self.is_allowed {
            return None;
        }
        let is_wanted = if self.is_on {
            saved >= receives / SAVED_MIN_ONE_IN
        } else {
            neighbours >= receives / NEIGHBOURS_MIN_ONE_IN && now >= self.next_trial
        };
        match (self.is_on, is_wanted) {
            (true, true) => self.patience = PATIENCE_MIN,
            (true, false) => {
                self.next_trial = now.after(self.patience);
                self.patience = PATIENCE_MAX.min(self.patience * 2);
            }
            (false, _) => {}
        }
        let is_news = is_wanted != self.is_on;
        self.is_on = is_wanted;
        is_news.then_some(is_wanted)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const START: Moment = Moment::from_secs(100);

    fn path(remote_port: u16) -> OuterPath {
        OuterPath { local: Ipv4Addr::LOCALHOST, remote: Ipv4Addr::LOCALHOST, remote_port }
    }

    /// A window of receives with so many datagrams each, over so many paths in turn.
    fn window(merging: &mut Merging, paths: u16, datagrams: usize, now: Moment) -> Option<bool> {
        for receive in 1..WINDOW {
            let port = u16::try_from(receive).unwrap() % paths;
            merging.saw(path(port), datagrams, 58);
            assert_eq!(merging.decide(now), None, "the window is not over");
        }
        merging.saw(path(0), datagrams, 58);
        merging.decide(now)
    }

    #[test]
    fn it_is_off_where_it_finds_nothing_and_on_where_neighbours_come() {
        let mut merging = Merging::new(true);
        assert_eq!(window(&mut merging, 64, 2, START), None, "it merges");
        assert_eq!(window(&mut merging, 64, 1, START), Some(false));
        assert!(merging.is_paused());
        let later = START.after(PATIENCE_MIN);
        assert_eq!(window(&mut merging, 64, 1, later), None, "no neighbours");
        assert_eq!(window(&mut merging, 1, 1, later), Some(true));
        assert!(!merging.is_paused());
        assert_eq!(window(&mut merging, 1, 40, later), None);
    }

    #[test]
    fn neighbours_of_other_lengths_are_none() {
        let mut merging = Merging::new(true);
        window(&mut merging, 64, 1, START);
        for bytes in 0..usize::try_from(WINDOW).unwrap() {
            merging.saw(path(1), 1, bytes);
        }
        assert_eq!(merging.decide(START.after(PATIENCE_MAX)), None);
    }

    #[test]
    fn trials_that_fail_become_rare() {
        let mut merging = Merging::new(true);
        let mut now = START;
        assert_eq!(window(&mut merging, 1, 1, now), Some(false));
        for secs in [1, 2, 4, 8, 16, 32, 60, 60] {
            now = now.after(Duration::from_millis(secs * 1000 - 1));
            assert_eq!(window(&mut merging, 1, 1, now), None, "{secs} s are not over");
            now = now.after(Duration::from_millis(1));
            assert_eq!(window(&mut merging, 1, 1, now), Some(true));
            assert_eq!(window(&mut merging, 1, 1, now), Some(false));
        }
        now = now.after(PATIENCE_MAX);
        assert_eq!(window(&mut merging, 1, 1, now), Some(true));
        assert_eq!(window(&mut merging, 1, 40, now), None, "a success");
        assert_eq!(window(&mut merging, 1, 1, now), Some(false));
        assert_eq!(window(&mut merging, 1, 1, now.after(PATIENCE_MIN)), Some(true));
    }

    #[test]
    fn what_is_forbidden_stays_off() {
        let mut merging = Merging::new(true);
        merging.forbid();
        let mut never = Merging::new(false);
        for merging in [&mut merging, &mut never] {
            assert_eq!(window(merging, 1, 40, START), None);
            assert!(!merging.is_paused());
        }
    }
}
