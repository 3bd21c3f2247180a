//! Points in civil time, for metrics and nothing else: the civil clock steps.

use std::time::Duration;

use crate::sys::wall_clock;
use crate::types::Moment;

/// The time since 1970.
pub(super) fn now() -> Duration {
    wall_clock::now().since_epoch()
}

/// When something last happened, reckoned once each time that it did: a figure that moves says that
/// it happened again, whatever the civil clock does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastTime {
    last: Moment,
    since_epoch: Duration,
}

impl LastTime {
    /// When that was which happened at `last`, since 1970; nothing if it never did.
    pub(super) fn at(&mut self, last: Moment, now_monotonic: Moment) -> Option<Duration> {
        if last > self.last {
            let since_epoch = now().saturating_sub(now_monotonic.since(last));
            *self = Self { last, since_epoch };
        }
        (self.last > Moment::ZERO).then_some(self.since_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_reckoned_once() {
        let (first, hour) = (Moment::from_secs(100), Duration::from_hours(1));
        let mut time = LastTime::default();
        assert_eq!(time.at(Moment::ZERO, first), None);
        let began = now();
        let at = time.at(first, first.after(hour)).unwrap();
        assert!(at + hour >= began && at + hour <= now(), "{at:?}");
        // Hours have passed for one clock, and none for the other.
        assert_eq!(time.at(first, first.after(3 * hour)), Some(at));
        let later = first.after(2 * hour);
        assert!(time.at(later, later) > Some(at));
    }
}
