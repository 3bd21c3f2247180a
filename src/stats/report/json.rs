//! The status as JSON for programs. README.md documents it; a key that changes its meaning, or
//! goes, raises [`SCHEMA_VERSION`].

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::FeatureRow;
use super::HookRow;
use super::HookState;
use super::Report;
use super::remedies;
use super::remedies::remedy;
use super::seconds;

/// Version of the documents of `status --json` and `show … --json`.
pub(super) const SCHEMA_VERSION: u32 = 1;

/// One line.
pub(super) fn status(report: &Report<'_>) -> String {
    let Report { page, facts, .. } = report;
    let drops = page.drops();
    let drops: Vec<Value> = drops
        .occurred()
        .map(|(reason, packets)| {
            json!({ "reason": reason.name(), "packets": packets, "remedy": remedy(reason) })
        })
        .collect();
    let document = json!({
        "schema_version": SCHEMA_VERSION,
        "condition": report.condition().word(),
        "healthy": page.healthy,
        "reasons": page.reasons,
        "warnings": page.warnings,
        "problems": report.problems(),
        "notes": facts.notes,
        "version": page.version,
        "process_id": report.process_id,
        "uptime_seconds": report.uptime.as_secs(),
        "workers": { "count": page.workers.len(), "healthy": report.workers_healthy() },
        "endpoints": { "count": page.endpoints.len(), "max": facts.endpoints_max },
        "flows": { "count": report.flows(), "max": facts.flows_max },
        "open_files": { "count": report.open_files, "max": report.open_files_max },
        "drops": drops,
        "socket_drops": { "packets": page.socket_drops, "remedy": remedies::SOCKETS },
        "queue_drops": { "packets": report.page.queue_drops(), "remedy": remedies::QUEUES },
        "log_lines_lost": page.log_lines_lost,
        "hooks": {
            "runs": report.hook_runs,
            "failures": page.hook_failures,
            "running": report.hooks_running(),
            "last": report.hooks.first().map(hook),
        },
        "features": report.features().iter().map(feature).collect::<Vec<_>>(),
    });
    format!("{document}\n")
}

fn hook(row: &HookRow) -> Value {
    let HookRow { action, endpoint, begun, took, state } = row;
    json!({
        "action": action,
        "endpoint": format!("vpce-{endpoint}"),
        "begun_seconds_ago": seconds(*begun),
        "seconds": seconds(*took),
        "state": state.word(),
        "how": match state {
            HookState::Failed(how) => Some(how),
            HookState::Running | HookState::Succeeded | HookState::Skipped => None,
        },
    })
}

fn feature(row: &FeatureRow) -> Value {
    json!({ "name": row.name, "in_use": row.missing.is_none(), "reason": row.missing })
}

impl HookState {
    /// The state in one word.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Skipped => "skipped",
            Self::Failed(_) => "failed",
        }
    }
}

/// A document of rows, each an object of these keys.
pub(super) fn rows(name: &str, keys: &[&'static str], rows: Vec<Vec<Value>>) -> String {
    let object = |row: Vec<Value>| {
        let pairs = keys.iter().map(|&key| key.to_owned()).zip(row);
        Value::from(pairs.collect::<Map<_, _>>())
    };
    let rows: Vec<Value> = rows.into_iter().map(object).collect();
    let mut document = json!({ "schema_version": SCHEMA_VERSION });
    document[name] = rows.into();
    format!("{document}\n")
}
