//! What `gwlbtun show` shows: aligned columns for people, rows of objects for programs.

use serde_json::Value;

use super::Report;
use super::json;
use super::remedies;
use super::remedies::remedy;
use super::seconds;
use super::span;
use crate::stats::EndpointRow;
use crate::types::FlowKind;
use crate::types::Side;
use crate::types::request::Topic;

/// Rows of cells under their names.
pub(super) struct Table {
    keys: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
    /// What people read where there are no rows.
    none: &'static str,
}

/// One cell: what programs read, and people, where that is not the same.
struct Cell {
    value: Value,
    shown: Option<String>,
}

impl<T: Into<Value>> From<T> for Cell {
    fn from(value: T) -> Self {
        Self { value: value.into(), shown: None }
    }
}

impl Cell {
    fn shown(value: impl Into<Value>, shown: impl Into<String>) -> Self {
        Self { value: value.into(), shown: Some(shown.into()) }
    }

    fn seconds(time: std::time::Duration) -> Self {
        Self::shown(seconds(time), span(time))
    }

    fn yes_or_no(value: bool) -> Self {
        Self::shown(value, if value { "yes" } else { "no" })
    }

    fn text(&self) -> String {
        match (&self.shown, &self.value) {
            (Some(shown), _) => shown.clone(),
            (None, Value::String(text)) => text.clone(),
            (None, Value::Null) => "-".to_owned(),
            (None, value) => value.to_string(),
        }
    }
}

impl Table {
    pub(super) fn to_json(&self, topic: Topic) -> String {
        let rows = self.rows.iter();
        let values = rows.map(|row| row.iter().map(|cell| cell.value.clone()).collect());
        json::rows(topic.name(), self.keys, values.collect())
    }

    /// Numbers to the right, words to the left, two blanks between columns.
    pub(super) fn to_text(&self) -> String {
        if self.rows.is_empty() {
            return format!("{}\n", self.none);
        }
        let head = self.keys.iter().map(|key| key.to_uppercase()).collect();
        let cells = self.rows.iter().map(|row| row.iter().map(Cell::text).collect());
        let lines: Vec<Vec<String>> = std::iter::once(head).chain(cells).collect();
        let is_number: Vec<bool> = self.rows[0].iter().map(|cell| cell.value.is_number()).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> = (0..self.keys.len()).filter_map(width).collect();
        let mut text = String::new();
        for line in lines {
            let columns = line.iter().zip(&widths).zip(&is_number);
            let columns = columns.map(|((cell, &width), &right)| {
                if right { format!("{cell:>width$}") } else { format!("{cell:width$}") }
            });
            text.push_str(columns.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// The table about a topic.
pub(super) fn table(report: &Report<'_>, topic: Topic) -> Table {
    match topic {
        Topic::Endpoints => endpoints(report),
        Topic::Workers => workers(report),
        Topic::Drops => drops(report),
        Topic::Hooks => hooks(report),
        Topic::Features => features(report),
        Topic::Config => config(report),
    }
}

fn endpoints(report: &Report<'_>) -> Table {
    let row = |endpoint: &EndpointRow| {
        let counters = &endpoint.counters;
        let drops = counters.decap_drops.total() + counters.encap_drops.total();
        vec![
            format!("vpce-{}", endpoint.id).into(),
            endpoint.link(Side::Gwi).as_str().into(),
            Cell::yes_or_no(report.page.serves(endpoint)),
            Cell::seconds(endpoint.age),
            counters.from_gwlb.packets.into(),
            counters.to_gwlb.packets.into(),
            drops.into(),
            endpoint.queue_drops.iter().sum::<u64>().into(),
            counters.flows.sum(&FlowKind::ALL).into(),
        ]
    };
    Table {
        keys: &["endpoint", "gwi", "well", "age", "in", "out", "drops", "queue_drops", "flows"],
        rows: report.page.endpoints.iter().map(row).collect(),
        none: "no endpoint: none has sent a packet yet, or all were idle for -t seconds",
    }
}

fn workers(report: &Report<'_>) -> Table {
    let starving = report.page.steering.as_ref().map_or(&[][..], |row| &row.starving);
    let row = |(number, worker): (usize, &crate::stats::WorkerRow)| {
        let counters = &worker.counters;
        vec![
            number.into(),
            worker.thread_id.into(),
            Cell::yes_or_no(worker.healthy),
            Cell::yes_or_no(starving.contains(&number)),
            Cell::seconds(worker.quiet),
            counters.datagrams.packets.into(),
            counters.receives.into(),
            counters.gwi_writes.into(),
            counters.tun_reads.into(),
            counters.sends.into(),
            counters.drops.total().into(),
        ]
    };
    Table {
        keys: &[
            "worker",
            "thread",
            "well",
            "starves",
            "quiet",
            "datagrams",
            "receives",
            "writes",
            "reads",
            "sends",
            "drops",
        ],
        rows: report.page.workers.iter().enumerate().map(row).collect(),
        none: "no worker yet",
    }
}

fn drops(report: &Report<'_>) -> Table {
    let drops = report.page.drops();
    let mut rows: Vec<_> =
        drops.occurred().map(|(reason, count)| (reason.name(), count, remedy(reason))).collect();
    let by_linux = [
        ("receive sockets", report.page.socket_drops, remedies::SOCKETS),
        ("queues of gwi and gwo", report.page.queue_drops(), remedies::QUEUES),
    ];
    rows.extend(by_linux.into_iter().filter(|(_, count, _)| *count > 0));
    rows.sort_by_key(|&(_, count, _)| std::cmp::Reverse(count));
    let row =
        |(name, count, remedy): (&str, u64, &str)| vec![name.into(), count.into(), remedy.into()];
    Table {
        keys: &["reason", "packets", "remedy"],
        rows: rows.into_iter().map(row).collect(),
        none: "nothing was dropped since the start",
    }
}

fn hooks(report: &Report<'_>) -> Table {
    let row = |hook: &super::HookRow| {
        vec![
            hook.action.as_str().into(),
            format!("vpce-{}", hook.endpoint).into(),
            Cell::seconds(hook.begun),
            Cell::seconds(hook.took),
            Cell::shown(hook.state.word(), hook.state.to_string()),
        ]
    };
    Table {
        keys: &["hook", "endpoint", "ago", "took", "state"],
        rows: report.hooks.iter().map(row).collect(),
        none: "no hook has run: no endpoint has come or gone, or -c and -r were not given",
    }
}

fn features(report: &Report<'_>) -> Table {
    let rows = report.features();
    let row = |row: super::FeatureRow| {
        let in_use = row.missing.is_none();
        let reason = row.missing.map_or_else(|| Cell::shown(Value::Null, ""), Cell::from);
        vec![row.name.into(), Cell::yes_or_no(in_use), reason]
    };
    Table {
        keys: &["feature", "in_use", "reason"],
        rows: rows.into_iter().map(row).collect(),
        none: "",
    }
}

fn config(report: &Report<'_>) -> Table {
    let row = |row: &super::ConfigRow| {
        let origin = if row.given { "command line" } else { "default" };
        vec![row.flag.into(), row.value.as_str().into(), origin.into()]
    };
    Table {
        keys: &["flag", "value", "origin"],
        rows: report.facts.config.iter().map(row).collect(),
        none: "",
    }
}
