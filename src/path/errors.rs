//! How many errors of our own go out.

use std::time::Duration;

use crate::types::Moment;

/// Errors that one worker sends in a second, and at once: what Linux allows itself
/// (`net.ipv4.icmp_msgs_per_sec`, `icmp_msgs_burst`). RFC 4443 §2.4 (f) wants such a limit.
const PER_SECOND: u32 = 1000;
const AT_ONCE: u32 = 50;

/// What one error costs.
const EACH: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);

/// The budget of one worker: a bucket of tokens that is told by the moment at which it will be full
/// again.
#[derive(Debug, Default)]
pub(super) struct ErrorBudget {
    full_at: Moment,
}

impl ErrorBudget {
    /// Takes one error off the budget. Returns false if it is used up.
    #[must_use]
    pub(super) fn take(&mut self, now: Moment) -> bool {
        let from = self.full_at.max(now);
        if from.since(now) > EACH * (AT_ONCE - 1) {
            return false;
        }
        self.full_at = from.after(EACH);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &mut ErrorBudget, tries: u32, now: Moment) -> usize {
        (0..tries).filter(|_| budget.take(now)).count()
    }

    #[test]
    fn fifty_at_once_and_a_thousand_in_a_second() {
        let mut budget = ErrorBudget::default();
        let start = Moment::from_secs(7);
        assert_eq!(taken(&mut budget, 1000, start), 50);
        assert_eq!(taken(&mut budget, 1000, start.after(Duration::from_millis(10))), 10);
        let second: usize = (11..=1010)
            .map(|millis| taken(&mut budget, 100, start.after(Duration::from_millis(millis))))
            .sum();
        assert_eq!(second, 1000);
        assert_eq!(taken(&mut budget, 1000, start.after(Duration::from_hours(1))), 50);
    }
}
