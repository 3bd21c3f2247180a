//! Times, counted by how long they were.

use std::ops::AddAssign;
use std::time::Duration;

use super::cell::Counter;

/// Upper bounds of the buckets, in microseconds: from a packet's way to a hook's 30 seconds.
const BOUNDS_MICROS: [u64; 20] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// One for each bound, and one for what is longer.
const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// A histogram that only its owner adds to and anybody may read.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    nanos: Counter,
}

impl Histogram {
    /// Counts a time. Only the owner of the cell may call this.
    pub fn observe(&self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| bound * 1000 < nanos);
        self.buckets[bucket].add(1);
        self.nanos.add(nanos);
    }
}

/// A histogram at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    buckets: [u64; BUCKETS],
    nanos: u64,
}

impl HistogramSnapshot {
    /// Times counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all times.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// Upper bound in seconds of each bucket, the last of which is infinite, and what is in that
    /// bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = BOUNDS_MICROS.iter().map(|&bound| Duration::from_micros(bound).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.buckets)
    }
}

impl From<&Histogram> for HistogramSnapshot {
    fn from(live: &Histogram) -> Self {
        Self {
            buckets: std::array::from_fn(|bucket| live.buckets[bucket].get()),
            nanos: live.nanos.get(),
        }
    }
}

impl AddAssign for HistogramSnapshot {
    fn add_assign(&mut self, other: Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.nanos += other.nanos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_not_below_it() {
        let live = Histogram::default();
        let times = [0, 10, 11, 30_000_000, 30_000_001];
        for micros in times {
            live.observe(Duration::from_micros(micros));
        }
        let mut snapshot = HistogramSnapshot::from(&live);
        let filled: Vec<_> = snapshot.buckets().filter(|&(_, count)| count > 0).collect();
        assert_eq!(filled, [(0.000_01, 2), (0.000_025, 1), (30.0, 1), (f64::INFINITY, 1)]);
        assert_eq!((snapshot.count(), snapshot.sum()), (5, Duration::from_micros(60_000_022)));
        snapshot += snapshot;
        assert_eq!((snapshot.count(), snapshot.sum().as_secs()), (10, 120));
    }

    #[test]
    fn bounds_ascend() {
        assert!(BOUNDS_MICROS.is_sorted_by(|a, b| a < b));
    }
}
