//! What `gwlbtun status` and `gwlbtun show` tell: the page, what was settled at the start, and the
//! hooks of late, as plain values. The control socket's answers are rendered from this alone.

mod features;
mod json;
pub mod remedies;
mod status;
mod tables;

use std::fmt;
use std::time::Duration;

use super::Page;
use crate::types::EndpointId;
use crate::types::Offload;
use crate::types::request::About;
use crate::types::request::Answer;
use crate::types::request::Request;

/// Endpoints whose hooks failed that are named.
const FAILED_HOOKS_NAMED: usize = 16;

/// What is wrong where nothing is any more.
const RECOVERS: &str = "something was wrong until a moment ago: the health page says 503 for \
                        up to 3 seconds more";

/// What was settled at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Endpoints to serve at most.
    pub endpoints_max: u64,
    /// Flows to remember at most; 0 where nothing is returned.
    pub flows_max: u64,
    /// Ways of handling many packets as one that were asked for, and those of them that the kernel
    /// had at the start.
    pub offload_asked: Offload,
    /// See [`Self::offload_asked`].
    pub offload_found: Offload,
    /// Whether queues of interfaces were to be chosen by a program.
    pub steering_asked: bool,
    /// Whether checksums were to be added up with vector instructions.
    pub vectors_asked: bool,
    /// What else the kernel may have, or not.
    pub features: Vec<FeatureRow>,
    /// The settings, in the order of the help.
    pub config: Vec<ConfigRow>,
    /// What the log said about them, one line each.
    pub notes: Vec<String>,
}

/// Something that makes the program faster or safer, where it can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureRow {
    /// Its name: lower case with dashes.
    pub name: &'static str,
    /// Why it is not in use; nothing if it is.
    pub missing: Option<String>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRow {
    /// The long name of its flag, without dashes.
    pub flag: &'static str,
    /// What is in force.
    pub value: String,
    /// Whether a flag said so, and not the default.
    pub given: bool,
}

/// One run of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRow {
    /// `CREATE` or `DESTROY`.
    pub action: String,
    /// Whose.
    pub endpoint: EndpointId,
    /// Time since it began.
    pub begun: Duration,
    /// How long it ran, or has been running.
    pub took: Duration,
    /// How it ended.
    pub state: HookState,
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookState {
    /// It has not.
    Running,
    /// With exit status 0.
    Succeeded,
    /// Cut short, because the program is stopping.
    Skipped,
    /// Otherwise, in words: `ended with exit status 3`.
    Failed(String),
}

impl fmt::Display for HookState {
    /// The state for people: how it failed, or else a word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(how) => f.write_str(how),
            Self::Running | Self::Succeeded | Self::Skipped => f.write_str(self.word()),
        }
    }
}

/// Everything that can be asked about.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The health page, as last published.
    pub page: &'a Page,
    /// What was settled at the start.
    pub facts: &'a Facts,
    /// Runs of hooks, the latest first; no more than are kept.
    pub hooks: &'a [HookRow],
    /// Runs of hooks since the start.
    pub hook_runs: u64,
    /// Time since the start.
    pub uptime: Duration,
    /// The program's process.
    pub process_id: u32,
    /// Descriptors that are open, and how many may be; 0 where that is not known.
    pub open_files: u64,
    /// See [`Self::open_files`].
    pub open_files_max: u64,
}

/// The state of the program in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is known to be wrong.
    Ok,
    /// It serves, and something should be looked at.
    Degraded,
    /// The load balancer is told to send flows elsewhere.
    Failed,
}

impl Condition {
    /// The word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::Failed => "FAILED",
        }
    }

    /// Exit status of whoever asked for it.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Degraded => 1,
            Self::Failed => 2,
        }
    }

    /// That of a program with this page, and these of [`problems`].
    pub const fn of(page: &Page, problems: &[String]) -> Self {
        if !page.healthy {
            Self::Failed
        } else if problems.is_empty() {
            Self::Ok
        } else {
            Self::Degraded
        }
    }
}

impl Report<'_> {
    /// The answer to a request.
    pub fn answer(&self, request: Request) -> Answer {
        match request.about {
            About::Status => {
                let text = if request.json { json::status(self) } else { status::render(self) };
                Answer { exit_status: self.condition().exit_status(), text }
            }
            About::Topic(topic) => {
                let table = tables::table(self, topic);
                let text = if request.json { table.to_json(topic) } else { table.to_text() };
                Answer { exit_status: 0, text }
            }
        }
    }

    /// How it is.
    pub fn condition(&self) -> Condition {
        Condition::of(self.page, &self.problems())
    }

    fn problems(&self) -> Vec<String> {
        problems(self.page)
    }

    fn workers_healthy(&self) -> usize {
        self.page.workers.iter().filter(|worker| worker.healthy).count()
    }

    fn flows(&self) -> u64 {
        let flows = self.page.endpoints.iter().map(|endpoint| &endpoint.counters.flows);
        flows.map(|flows| flows.sum(&crate::types::FlowKind::ALL)).sum()
    }

    fn hooks_running(&self) -> usize {
        self.hooks.iter().filter(|hook| hook.state == HookState::Running).count()
    }
}

/// What is wrong, or should be looked at, one sentence each without its full stop.
pub fn problems(page: &Page) -> Vec<String> {
    let failed: Vec<_> = page.endpoints.iter().filter_map(|row| row.failed_hook.as_ref()).collect();
    let (named, others) = failed.split_at(failed.len().min(FAILED_HOOKS_NAMED));
    let named = named.iter().map(|problem| format!("{problem}; the log has its output"));
    let others = (!others.is_empty())
        .then(|| format!("hooks for {} more endpoints failed; see the log", others.len()));
    let recovers = (!page.healthy && page.reasons.is_empty()).then(|| RECOVERS.to_owned());
    let told = page.reasons.iter().chain(&page.warnings).cloned();
    recovers.into_iter().chain(told).chain(named).chain(others).collect()
}

/// Seconds to the millisecond.
fn seconds(span: Duration) -> f64 {
    Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)).as_secs_f64()
}

/// A time in two units at most: `3 d 4 h`, `5 min 3 s`, `0.2 s`.
fn span(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0..10 => format!("{:.1} s", span.as_secs_f64()),
        10..60 => format!("{secs} s"),
        60..3600 => format!("{} min {} s", secs / 60, secs % 60),
        3600..86400 => format!("{} h {} min", secs / 3600, secs / 60 % 60),
        _ => format!("{} d {} h", secs / 86400, secs / 3600 % 24),
    }
}

#[cfg(test)]
mod tests;
