//! What hooks did until a moment.

use super::HistogramSnapshot;

/// How a run of a hook ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookResult {
    /// With exit status 0.
    Success,
    /// With another exit status.
    ExitStatus,
    /// By a signal that was not ours.
    Signal,
    /// It ran too long and was killed.
    TimedOut,
    /// It could not be started.
    NotStarted,
}

impl HookResult {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Success, Self::ExitStatus, Self::Signal, Self::TimedOut, Self::NotStarted];

    /// Its place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name: lower case with underscores.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::ExitStatus => "exit_status",
            Self::Signal => "signal",
            Self::TimedOut => "timed_out",
            Self::NotStarted => "not_started",
        }
    }
}

/// The hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HooksRow {
    /// Hooks that run now.
    pub running: u64,
    /// Those for new endpoints.
    pub create: HookActionRow,
    /// Those for endpoints that go.
    pub destroy: HookActionRow,
}

/// The hooks for one event of an endpoint's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookActionRow {
    /// How long they took, from their start to their end.
    pub durations: HistogramSnapshot,
    /// How they ended, in the order of [`HookResult::ALL`].
    pub results: [u64; HookResult::COUNT],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_has_its_place() {
        for (place, result) in HookResult::ALL.into_iter().enumerate() {
            assert_eq!(result.index(), place);
        }
    }
}
