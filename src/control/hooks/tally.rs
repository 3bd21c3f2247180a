//! What hooks did, in numbers.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::HookAction;
use super::HookOutcome;
use crate::stats::Histogram;
use crate::stats::HookActionRow;
use crate::stats::HookResult;
use crate::stats::HooksRow;

/// The numbers, shared by those who run hooks and those who tell of it.
#[derive(Clone, Debug, Default)]
pub struct HookTally(Rc<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    running: Cell<u64>,
    actions: [OfAction; 2],
}

#[derive(Debug, Default)]
struct OfAction {
    durations: Histogram,
    results: [Cell<u64>; HookResult::COUNT],
}

impl HookTally {
    /// A hook is about to be started.
    pub(super) fn began(&self) {
        self.0.running.update(|running| running + 1);
    }

    /// It has ended like this, so long after that.
    pub(super) fn ended(&self, action: HookAction, outcome: &HookOutcome, took: Duration) {
        self.0.running.update(|running| running - 1);
        let Some(result) = result_of(outcome) else { return };
        let of_action = &self.0.actions[index_of(action)];
        of_action.durations.observe(took);
        of_action.results[result.index()].update(|count| count + 1);
    }

    /// The numbers now.
    pub fn row(&self) -> HooksRow {
        let row = |action: &OfAction| HookActionRow {
            durations: (&action.durations).into(),
            results: HookResult::ALL.map(|result| action.results[result.index()].get()),
        };
        let [create, destroy] = &self.0.actions;
        HooksRow { running: self.0.running.get(), create: row(create), destroy: row(destroy) }
    }
}

const fn index_of(action: HookAction) -> usize {
    match action {
        HookAction::Create => 0,
        HookAction::Destroy => 1,
    }
}

/// What counts as a run; what was left out is none.
const fn result_of(outcome: &HookOutcome) -> Option<HookResult> {
    match outcome {
        HookOutcome::Exited(0) => Some(HookResult::Success),
        HookOutcome::Exited(_) => Some(HookResult::ExitStatus),
        HookOutcome::Signalled(_) => Some(HookResult::Signal),
        HookOutcome::TimedOut => Some(HookResult::TimedOut),
        HookOutcome::NotStarted(_) => Some(HookResult::NotStarted),
        HookOutcome::Skipped | HookOutcome::NotWanted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_by_how_they_ended_and_what_was_left_out_is_none() {
        let tally = HookTally::default();
        for outcome in [
            HookOutcome::Exited(0),
            HookOutcome::Exited(3),
            HookOutcome::Signalled(9),
            HookOutcome::TimedOut,
            HookOutcome::NotStarted(String::new()),
            HookOutcome::Skipped,
            HookOutcome::NotWanted,
        ] {
            tally.began();
            assert_eq!(tally.row().running, 1);
            tally.ended(HookAction::Destroy, &outcome, Duration::from_secs(1));
        }
        let HooksRow { running, create, destroy } = tally.row();
        assert_eq!((running, create), (0, HookActionRow::default()));
        assert_eq!((destroy.results, destroy.durations.count()), ([1; 5], 5));
    }
}
