//! The status for people: 24 lines of 80 columns at most, so that it fits the smallest terminal.
//! What does not fit is named, and where to read it.

use super::Report;
use super::remedies;
use super::remedies::remedy;
use super::span;

/// Columns and lines of a terminal.
const COLUMNS: usize = 80;
#[cfg(test)]
pub(super) const LINES_MAX: usize = 24;

/// Where the text behind a line's first word begins.
const INDENT: usize = 11;

/// Lines that problems may take, with the one that says that there are more.
const PROBLEM_LINES_MAX: usize = 7;

/// And each of them, of a sentence that is longer.
const ONE_PROBLEM_LINES_MAX: usize = 3;

/// Lines that features in use may take, and those that are not.
const FEATURE_LINES_MAX: usize = 3;

/// Drop reasons that are shown.
const REASONS_SHOWN: usize = 3;

/// Renders it: 1 line of state, 7 of problems, 2 of limits, 6 of features, 7 of drops, 1 of hooks.
pub(super) fn render(report: &Report<'_>) -> String {
    let Report { page, facts, .. } = report;
    let mut lines = vec![clip(format!(
        "{} gwlbtun {}, up {}, process {}",
        report.condition().word(),
        page.version,
        span(report.uptime),
        report.process_id,
    ))];
    lines.extend(problems(report));
    lines.push(labelled(
        "serves",
        &format!(
            "{} of {} endpoints with {} of {} workers",
            page.endpoints.len(),
            facts.endpoints_max,
            report.workers_healthy(),
            page.workers.len(),
        ),
    ));
    lines.push(labelled(
        "uses",
        &format!(
            "{} of {} flows, {} of {} files",
            report.flows(),
            facts.flows_max,
            report.open_files,
            report.open_files_max,
        ),
    ));
    lines.extend(features(report));
    lines.extend(drops(report));
    lines.push(labelled("hooks", &hooks(report)));
    lines.join("\n") + "\n"
}

fn problems(report: &Report<'_>) -> Vec<String> {
    let problems = report.problems();
    let mut lines = Vec::new();
    for (number, problem) in problems.iter().enumerate() {
        let wrapped = shorten(wrap("problem", problem), ONE_PROBLEM_LINES_MAX);
        let is_last = number + 1 == problems.len();
        let room = PROBLEM_LINES_MAX - lines.len() - usize::from(!is_last);
        if wrapped.len() > room {
            let more = problems.len() - number;
            lines.push(labelled("", &format!("{more} more: gwlbtun status --json")));
            return lines;
        }
        lines.extend(wrapped);
    }
    lines
}

fn features(report: &Report<'_>) -> Vec<String> {
    let features = report.features();
    let in_use = features.iter().filter(|row| row.missing.is_none()).map(|row| row.name);
    let in_use: Vec<_> = in_use.collect();
    let in_use = if in_use.is_empty() { "nothing".to_owned() } else { in_use.join(" ") };
    let mut lines = shorten(wrap("in use", &in_use), FEATURE_LINES_MAX);
    let missing = features.iter().filter_map(|row| Some((row.name, row.missing.as_ref()?)));
    let missing: Vec<_> = missing.map(|(name, why)| format!("{name}: {why}")).collect();
    if missing.len() > FEATURE_LINES_MAX {
        let shown = FEATURE_LINES_MAX - 1;
        lines.extend(missing[..shown].iter().map(|text| labelled("not", text)));
        let more = missing.len() - shown;
        lines.push(labelled("not", &format!("{more} more: gwlbtun show features")));
    } else {
        lines.extend(missing.iter().map(|text| labelled("not", text)));
    }
    lines
}

/// What is lost, most of it first, with what to do.
fn drops(report: &Report<'_>) -> Vec<String> {
    let drops = report.page.drops();
    let mut rows: Vec<_> =
        drops.occurred().map(|(reason, count)| (count, reason.name(), remedy(reason))).collect();
    let by_linux = [
        (report.page.socket_drops, "at the receive sockets", remedies::SOCKETS),
        (report.page.queue_drops(), "at the queues of gwi and gwo", remedies::QUEUES),
    ];
    rows.extend(by_linux.into_iter().filter(|(count, ..)| *count > 0));
    rows.sort_by_key(|&(count, ..)| std::cmp::Reverse(count));
    let total: u64 = rows.iter().map(|(count, ..)| count).sum();
    let more = if rows.len() > REASONS_SHOWN { "; all of them: gwlbtun show drops" } else { "" };
    let mut lines = vec![labelled("drops", &format!("{total} packets since the start{more}"))];
    for (count, name, remedy) in rows.into_iter().take(REASONS_SHOWN) {
        lines.push(clip(format!("  {count} {name}")));
        lines.push(clip(format!("    {remedy}")));
    }
    lines
}

fn hooks(report: &Report<'_>) -> String {
    let Report { hook_runs, hooks, page, .. } = report;
    let last = hooks.first().map_or_else(String::new, |last| {
        format!(", the last {} {} ago", last.state.word(), span(last.begun))
    });
    format!(
        "{hook_runs} run, {} failed, {} running{last}",
        page.hook_failures,
        report.hooks_running()
    )
}

fn labelled(label: &str, text: &str) -> String {
    clip(format!("{label:INDENT$}{text}"))
}

/// Breaks a text at blanks into lines, of which the first begins with the label.
fn wrap(label: &str, text: &str) -> Vec<String> {
    let mut lines = vec![format!("{label:INDENT$}")];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        let chars = line.chars().count();
        if chars == INDENT {
            line.push_str(word);
        } else if chars + 1 + word.chars().count() <= COLUMNS {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("{:INDENT$}{word}", ""));
        }
    }
    lines.into_iter().map(clip).collect()
}

/// The first lines, the last of which says that there were more.
fn shorten(mut lines: Vec<String>, max: usize) -> Vec<String> {
    if lines.len() > max {
        lines.truncate(max);
        let last = lines.last_mut().expect("there are some");
        let kept: String = last.chars().take(COLUMNS - 2).collect();
        *last = kept + " …";
    }
    lines
}

/// Cuts a line that is too long.
fn clip(line: String) -> String {
    if line.chars().count() <= COLUMNS {
        return line;
    }
    let kept: String = line.chars().take(COLUMNS - 1).collect();
    kept + "…"
}
