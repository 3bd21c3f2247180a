//! Waiting with a deadline: the only place of the tests that looks at a clock or sleeps.

#![expect(
    clippy::disallowed_methods,
    reason = "tests wait for other processes, which no ring of ours can announce"
)]

use std::time::Duration;
use std::time::Instant;

/// How long a condition may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A point in time after which something has taken too long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// The point `after` from now.
    pub(crate) fn after(after: Duration) -> Self {
        Self(Instant::now() + after)
    }

    /// What is left of the time, zero if it is over.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the time is over.
    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }
}

/// What a reader of the output may want to know and no test may require.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Polls `condition` until it gives a value.
///
/// # Panics
/// If it has not after [`PATIENCE`]; `what` names it.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::after(PATIENCE);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(!deadline.is_over(), "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Lets time pass, where the program promises something for then and cannot be asked.
pub(crate) fn pass(span: Duration) {
    std::thread::sleep(span);
}

/// Polls `condition` until it is true.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}
