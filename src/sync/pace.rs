//! How often something may be done, for any number of threads.

use std::time::Duration;

use super::AtomicU64;
use super::Ordering;
use crate::types::Moment;

/// So many at once, then one per interval (generic cell rate algorithm, ITU-T I.371 annex A: one
/// counter instead of a token bucket's two).
#[derive(Debug)]
pub struct Pace {
    /// Theoretical arrival time of the next one, nanoseconds.
    due: AtomicU64,
    interval_nanos: u64,
    tolerance_nanos: u64,
}

impl Pace {
    /// `burst` at once, at least 1, then one per `interval`.
    pub fn new(burst: u32, interval: Duration) -> Self {
        let interval_nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let tolerance_nanos = interval_nanos.saturating_mul(u64::from(burst.saturating_sub(1)));
        Self { due: AtomicU64::new(0), interval_nanos, tolerance_nanos }
    }

    /// Takes one, if it is time. Returns false if it is not.
    #[must_use]
    pub fn take(&self, now: Moment) -> bool {
        let now = now.as_nanos();
        let latest = now.saturating_add(self.tolerance_nanos);
        let next =
            |due: u64| (due <= latest).then(|| due.max(now).saturating_add(self.interval_nanos));
        self.due.try_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pace: &Pace, tries: u32, now: Moment) -> usize {
        (0..tries).filter(|_| pace.take(now)).count()
    }

    #[test]
    fn fifty_at_once_and_a_thousand_in_a_second() {
        let pace = Pace::new(50, Duration::from_millis(1));
        let start = Moment::from_secs(7);
        assert_eq!(taken(&pace, 1000, start), 50);
        assert_eq!(taken(&pace, 1000, start.after(Duration::from_millis(10))), 10);
        let second: usize = (11..=1010)
            .map(|millis| taken(&pace, 100, start.after(Duration::from_millis(millis))))
            .sum();
        assert_eq!(second, 1000);
        assert_eq!(taken(&pace, 1000, start.after(Duration::from_hours(1))), 50);
    }
}
