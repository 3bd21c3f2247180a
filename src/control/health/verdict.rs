//! Whether to answer 200 or 503, without flapping.
//!
//! A load balancer may be set to reset every flow of a target that answers 503, so one bad moment
//! must not become a series of changes: after the last bad moment it takes 3 good seconds.

use std::time::Duration;

use crate::types::Moment;

/// Good seconds that make it healthy again.
const GOOD: Duration = Duration::from_secs(3);

/// When judgements are further apart than this, it was control (or the whole machine) that stood
/// still; then old heartbeats prove nothing. Judgements are due every second.
const GAP_MAX: Duration = Duration::from_millis(1800);

/// How long after such a standstill nothing is held against anybody: idle workers turn four times a
/// second, but not all at once on a machine that has just woken up.
const WAKING: Duration = Duration::from_secs(1);

/// The state between judgements.
#[derive(Debug)]
pub(in crate::control) struct Verdict {
    judged: Moment,
    /// Since when judgements have come in time.
    awake: Moment,
    bad: Option<Moment>,
}

impl Verdict {
    /// Healthy, from now on.
    pub(in crate::control) const fn new(now: Moment) -> Self {
        Self { judged: now, awake: Moment::ZERO, bad: None }
    }

    /// Takes into account what is found now; call it at least every second.
    pub(in crate::control) fn judge(&mut self, now: Moment, good: bool) {
        if now.since(self.judged) > GAP_MAX {
            self.awake = now;
        }
        self.judged = now;
        if !good && now.since(self.awake) >= WAKING {
            self.bad = Some(now);
        } else if self.bad.is_some_and(|bad| now.since(bad) >= GOOD) {
            self.bad = None;
        }
    }

    /// Whether the answer is 200.
    pub(in crate::control) const fn is_healthy(&self) -> bool {
        self.bad.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges once a second; what is found, and whether the answer is 200 then.
    fn follow(found: &str) -> String {
        let mut verdict = Verdict::new(Moment::from_secs(10));
        let judge = |(second, found)| {
            verdict.judge(Moment::from_secs(second), found == '+');
            if verdict.is_healthy() { '+' } else { '-' }
        };
        (11..).zip(found.chars()).map(judge).collect()
    }

    #[test]
    fn bad_at_once_good_after_three_seconds() {
        assert_eq!(follow("+++"), "+++");
        assert_eq!(follow("+-+++++"), "+---+++");
        assert_eq!(follow("-++-+++++"), "------+++");
    }

    #[test]
    fn a_pause_of_the_machine_proves_nothing() {
        let mut verdict = Verdict::new(Moment::from_secs(10));
        verdict.judge(Moment::from_secs(60), false);
        assert!(verdict.is_healthy());
        verdict.judge(Moment::from_secs(61), false);
        assert!(!verdict.is_healthy());
    }

    #[test]
    fn nor_does_the_second_look_after_it() {
        // A probe that was waiting is answered at once, and the next one 100 ms later: the
        // workers have hardly woken up.
        let mut verdict = Verdict::new(Moment::from_secs(10));
        let resumed = Moment::from_secs(60);
        for millis in [0, 0, 100, 900] {
            verdict.judge(resumed.after(Duration::from_millis(millis)), false);
            assert!(verdict.is_healthy(), "{millis} ms after the pause");
        }
        verdict.judge(resumed.after(Duration::from_secs(1)), false);
        assert!(!verdict.is_healthy());
    }
}
