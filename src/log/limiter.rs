//! Ten lines a second of one event, and a number for the rest.
//!
//! Events are named by the program, not by what it reads, so the table of windows is as small
//! as the number of call sites.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use super::LogEvent;
use crate::types::Moment;

/// Lines of one event that pass in one window.
const LINES_PER_WINDOW: u32 = 10;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(1);

/// What becomes of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written.
    Pass,
    /// It is written, after a line that tells what was held back before.
    PassAfter(HeldBack),
    /// It is not written, only counted.
    HoldBack,
}

/// Lines of one event that were not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldBack {
    pub(super) event: LogEvent,
    pub(super) lines: u64,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "suppressed {} more lines of {}", self.lines, self.event.plural())
    }
}

#[derive(Debug)]
struct Window {
    start: Moment,
    passed: u32,
    held_back: u64,
}

/// The windows of all events.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    windows: HashMap<LogEvent, Window>,
}

impl Limiter {
    /// Decides about one line of `event`.
    pub(super) fn judge(&mut self, event: LogEvent, now: Moment) -> Verdict {
        let fresh = Window { start: now, passed: 0, held_back: 0 };
        let window = self.windows.entry(event).or_insert(fresh);
        let mut verdict = Verdict::Pass;
        if now.since(window.start) >= WINDOW {
            if let Some(held_back) = window.take(event) {
                verdict = Verdict::PassAfter(held_back);
            }
            window.start = now;
            window.passed = 0;
        }
        if window.passed == LINES_PER_WINDOW {
            window.held_back += 1;
            return Verdict::HoldBack;
        }
        window.passed += 1;
        verdict
    }

    /// Counts lines of `event` that somebody else has left out.
    pub(super) fn held_back(&mut self, event: LogEvent, lines: u64, now: Moment) {
        let fresh = Window { start: now, passed: 0, held_back: 0 };
        self.windows.entry(event).or_insert(fresh).held_back += lines;
    }

    /// What was held back in windows that are over, or in `all` of them.
    pub(super) fn overdue(&mut self, now: Moment, all: bool) -> Vec<HeldBack> {
        self.windows
            .iter_mut()
            .filter(|(_, window)| all || now.since(window.start) >= WINDOW)
            .filter_map(|(event, window)| window.take(*event))
            .collect()
    }
}

impl Window {
    /// The number of lines held back, which starts again from nothing.
    fn take(&mut self, event: LogEvent) -> Option<HeldBack> {
        let lines = std::mem::take(&mut self.held_back);
        (lines > 0).then_some(HeldBack { event, lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LogEvent = LogEvent::Downgraded;
    const B: LogEvent = LogEvent::QueueLost;

    #[test]
    fn ten_a_second_then_a_number() {
        let mut limiter = Limiter::default();
        let start = Moment::from_secs(7);
        for _ in 0..10 {
            assert_eq!(limiter.judge(A, start), Verdict::Pass);
        }
        for _ in 0..5 {
            assert_eq!(limiter.judge(A, start), Verdict::HoldBack);
        }
        assert_eq!(limiter.judge(B, start), Verdict::Pass, "events do not share");
        let later = Moment::from_secs(8);
        let Verdict::PassAfter(held_back) = limiter.judge(A, later) else {
            panic!("the number is due");
        };
        assert_eq!(held_back.to_string(), "suppressed 5 more lines of downgraded");
        assert_eq!(limiter.judge(A, later), Verdict::Pass, "told once");
    }

    #[test]
    fn silence_after_a_flood_still_gives_the_number() {
        let mut limiter = Limiter::default();
        let start = Moment::from_secs(7);
        for _ in 0..12 {
            limiter.judge(A, start);
        }
        assert_eq!(limiter.overdue(start, false), []);
        let told = HeldBack { event: A, lines: 2 };
        assert_eq!(limiter.overdue(Moment::from_secs(8), false), [told]);
        assert_eq!(limiter.overdue(Moment::from_secs(9), true), []);
        limiter.held_back(A, 7, Moment::from_secs(9));
        limiter.held_back(B, 1, Moment::from_secs(9));
        let mut told = limiter.overdue(Moment::from_secs(10), false);
        told.sort_by_key(|held_back| held_back.event.id());
        assert_eq!(told, [HeldBack { event: A, lines: 7 }, HeldBack { event: B, lines: 1 }]);
    }
}
