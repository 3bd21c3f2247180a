//! Which hooks run, and how the last ones ended: for whoever looks why an endpoint does not work.

use std::collections::VecDeque;

use super::hooks::HookAction;
use super::hooks::HookOutcome;
use crate::stats::report::HookRow;
use crate::stats::report::HookState;
use crate::types::EndpointId;
use crate::types::Moment;

/// Runs that are kept, the latest.
const KEPT: usize = 64;

/// The record.
#[derive(Debug, Default)]
pub(super) struct RecentHooks {
    runs: VecDeque<Run>,
    /// How many have begun since the start; a run's number is how many had before it.
    begun: u64,
}

#[derive(Debug)]
struct Run {
    number: u64,
    action: HookAction,
    endpoint: EndpointId,
    begun: Moment,
    ended: Option<(Moment, HookOutcome)>,
}

impl RecentHooks {
    /// A hook begins. Returns its number.
    pub(super) fn begin(&mut self, action: HookAction, endpoint: EndpointId, now: Moment) -> u64 {
        if self.runs.len() == KEPT {
            // Who still runs is more than a memory, unless all do.
            let first_ended = self.runs.iter().position(|run| run.ended.is_some());
            self.runs.remove(first_ended.unwrap_or(0));
        }
        let number = self.begun;
        self.begun += 1;
        self.runs.push_back(Run { number, action, endpoint, begun: now, ended: None });
        number
    }

    /// The hook of this number has ended.
    pub(super) fn end(&mut self, number: u64, outcome: HookOutcome, now: Moment) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.number == number) {
            run.ended = Some((now, outcome));
        }
    }

    /// How many have begun since the start.
    pub(super) const fn begun(&self) -> u64 {
        self.begun
    }

    /// What is kept, the latest first.
    pub(super) fn rows(&self, now: Moment) -> Vec<HookRow> {
        let row = |run: &Run| {
            let end = run.ended.as_ref().map_or(now, |(ended, _)| *ended);
            HookRow {
                action: run.action.to_string(),
                endpoint: run.endpoint,
                begun: now.since(run.begun),
                took: end.since(run.begun),
                state: run.ended.as_ref().map_or(HookState::Running, |(_, outcome)| state(outcome)),
            }
        };
        self.runs.iter().rev().map(row).collect()
    }
}

fn state(outcome: &HookOutcome) -> HookState {
    match outcome {
        HookOutcome::Exited(0) => HookState::Succeeded,
        HookOutcome::Skipped | HookOutcome::NotWanted => HookState::Skipped,
        HookOutcome::Exited(_)
        | HookOutcome::Signalled(_)
        | HookOutcome::TimedOut
        | HookOutcome::NotStarted(_) => HookState::Failed(outcome.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_latest_are_kept_and_whoever_still_runs() {
        let mut recent = RecentHooks::default();
        let at = |second| Moment::from_secs(100 + second);
        let hanging = recent.begin(HookAction::Create, EndpointId(7), at(0));
        for second in 0..200 {
            let number = recent.begin(HookAction::Destroy, EndpointId(second), at(second));
            recent.end(number, HookOutcome::Exited(3), at(second + 2));
        }
        let rows = recent.rows(at(201));
        assert_eq!((rows.len(), recent.begun()), (KEPT, 201));
        let last = HookRow {
            action: "DESTROY".to_owned(),
            endpoint: EndpointId(199),
            begun: Duration::from_secs(2),
            took: Duration::from_secs(2),
            state: HookState::Failed("ended with exit status 3".to_owned()),
        };
        assert_eq!(rows[0], last);
        assert_eq!(rows[KEPT - 1].state, HookState::Running);
        assert_eq!(rows[KEPT - 1].took, Duration::from_secs(201));
        recent.end(hanging, HookOutcome::Exited(0), at(300));
        assert_eq!(recent.rows(at(300))[KEPT - 1].state, HookState::Succeeded);
        recent.end(hanging + 1000, HookOutcome::Exited(0), at(300));
    }

    #[test]
    fn where_all_run_the_first_is_forgotten() {
        let mut recent = RecentHooks::default();
        for id in 0..100 {
            recent.begin(HookAction::Create, EndpointId(id), Moment::from_secs(1));
        }
        let rows = recent.rows(Moment::from_secs(1));
        assert_eq!((rows.len(), rows[0].endpoint), (KEPT, EndpointId(99)));
    }
}
