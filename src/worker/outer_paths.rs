//! How many outer paths (addresses and source port) a worker's datagrams come by.
//!
//! Where the kernel gives every outer path to one worker, fewer paths than workers leave some
//! without work; control looks at this number to find that out. It is of the last seconds, so
//! that a load balancer that changes its mind is noticed, and exact up to [`COUNTED_MAX`], beyond
//! which it is of no interest.

use std::time::Duration;

use crate::types::Moment;
use crate::types::OuterPath;

/// Paths that are told apart: enough for any worker to have work.
const COUNTED_MAX: usize = 64;

/// Places in the table: a power of two, and twice as many, so that a search is short and ends.
const PLACES: usize = 2 * COUNTED_MAX;

/// After so long it is counted anew.
const WINDOW: Duration = Duration::from_secs(10);

/// The paths of one worker.
#[derive(Debug)]
pub(super) struct OuterPaths {
    places: [Option<OuterPath>; PLACES],
    count: usize,
    /// What the last datagram came by: mostly the same as the next one.
    newest: Option<OuterPath>,
    /// The count of the window before.
    before: usize,
    since: Moment,
}

impl OuterPaths {
    pub(super) const fn new(now: Moment) -> Self {
        Self { places: [None; PLACES], count: 0, newest: None, before: 0, since: now }
    }

    /// A datagram came by `path`.
    pub(super) fn saw(&mut self, path: OuterPath) {
        if self.newest == Some(path) || self.count == COUNTED_MAX {
            return;
        }
        self.newest = Some(path);
        let mut place = first_place(path);
        while let Some(there) = self.places[place] {
            if there == path {
                return;
            }
            place = (place + 1) % PLACES;
        }
        self.places[place] = Some(path);
        self.count += 1;
    }

    /// The number of paths in this window or in the one before, whichever is more.
    pub(super) fn count(&mut self, now: Moment) -> u64 {
        if now.since(self.since) >= WINDOW {
            *self = Self { before: self.count, ..Self::new(now) };
        }
        self.count.max(self.before) as u64
    }
}

/// Where the search for a path begins: bits of a product that depend on every bit below them.
fn first_place(path: OuterPath) -> usize {
    let OuterPath { local, remote, remote_port } = path;
    let remote = u64::from(remote.to_bits()) << 16 | u64::from(remote_port);
    let mixed = (remote ^ u64::from(local.to_bits()) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 48) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn path(last: u8, remote_port: u16) -> OuterPath {
        let local = Ipv4Addr::new(10, 0, 0, 1);
        OuterPath { local, remote: Ipv4Addr::new(10, 0, 1, last), remote_port }
    }

    #[test]
    fn every_path_counts_once_and_no_more_than_is_of_interest() {
        let now = Moment::from_secs(5);
        let mut paths = OuterPaths::new(now);
        assert_eq!(paths.count(now), 0);
        for round in 0..3 {
            for last in 0..20 {
                paths.saw(path(last, 60_000));
                paths.saw(path(last, 60_001));
            }
            assert_eq!(paths.count(now), 40, "round {round}");
        }
        let elsewhere = OuterPath { local: Ipv4Addr::new(10, 0, 0, 2), ..path(0, 60_000) };
        paths.saw(elsewhere);
        assert_eq!(paths.count(now), 41);
        for port in 0..1000 {
            paths.saw(path(7, port));
        }
        assert_eq!(paths.count(now), 64);
    }

    #[test]
    fn what_comes_no_more_is_forgotten_after_two_windows() {
        let start = Moment::from_secs(5);
        let mut paths = OuterPaths::new(start);
        (0..9).for_each(|port| paths.saw(path(1, port)));
        let second = start.after(WINDOW);
        assert_eq!(paths.count(second), 9);
        paths.saw(path(1, 8));
        assert_eq!(paths.count(second), 9);
        let third = second.after(WINDOW);
        assert_eq!(paths.count(third), 1);
        assert_eq!(paths.count(third.after(WINDOW)), 0);
    }
}
