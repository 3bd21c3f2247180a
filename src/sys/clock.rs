//! The clock: `CLOCK_MONOTONIC_COARSE`, 1–4 ms of resolution, read in the vDSO.
//!
//! Loops read it once per turn and pass the [`Moment`] down; nothing else reads a clock. For
//! samples of how long something takes there is [`precise`].

use nix::time::ClockId;
use nix::time::clock_gettime;

use crate::types::Moment;

/// The time now.
///
/// # Panics
/// Never on Linux: the clock exists since 2.6.32 and its values are positive.
pub fn now() -> Moment {
    read(ClockId::CLOCK_MONOTONIC_COARSE)
}

/// The time now by `CLOCK_MONOTONIC`, to the nanosecond: some ten times as dear as [`now`], and
/// ahead of it by up to its resolution.
///
/// # Panics
/// Never, as [`now`].
pub fn precise() -> Moment {
    read(ClockId::CLOCK_MONOTONIC)
}

fn read(clock: ClockId) -> Moment {
    let time = clock_gettime(clock).expect("the clock exists");
    let secs = u64::try_from(time.tv_sec()).expect("a monotonic clock is positive");
    let nanos = u64::try_from(time.tv_nsec()).expect("a monotonic clock is positive");
    Moment::from_nanos(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_back() {
        let earlier = now();
        assert!(earlier > Moment::ZERO);
        assert!(now() >= earlier);
        assert!(precise() >= earlier);
    }
}
