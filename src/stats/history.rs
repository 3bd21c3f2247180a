//! The last ten minutes, as the live page draws them: a point every two seconds.
//!
//! Rates are what counters grew by between two points, rounded up: what happened once is no 0.
//! Counters of all endpoints together include those that have gone, so no rate is ever negative.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::DropsSnapshot;
use super::EndpointRow;
use super::Page;
use super::TrafficSnapshot;
use super::WorkerRow;
use super::report::Condition;
use super::report::HookRow;
use super::report::problems;
use crate::types::EndpointId;
use crate::types::FlowKind;
use crate::types::Moment;

/// Time between two points.
const INTERVAL: Duration = Duration::from_secs(2);

/// Points that are kept: ten minutes.
const POINTS: usize = 300;

/// How much too early a point may be: whoever takes them has a clock of whole seconds.
const EARLY_MAX: Duration = Duration::from_millis(500);

/// Endpoints that are drawn: those with most traffic in the time.
const BUSIEST: usize = 8;

/// Runs of hooks that are listed, the latest.
const HOOKS_LISTED: usize = 8;

/// What happened in the last ten minutes: 25 KB, and 2.4 KB per worker, drop reason, and endpoint
/// with a name in the metrics, which are 1,000 at most.
#[derive(Debug, Default)]
pub struct History {
    /// When the last point was taken, and what was counted by then.
    last: Option<(Moment, Totals)>,
    points: Recent<Point>,
    losses: BTreeMap<&'static str, Recent<u64>>,
    workers: Vec<Track>,
    endpoints: BTreeMap<EndpointId, Track>,
}

/// Counters of the whole program.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    received: TrafficSnapshot,
    returned: TrafficSnapshot,
    drops: DropsSnapshot,
    socket_drops: u64,
    queue_drops: u64,
    hook_failures: u64,
}

impl Totals {
    fn of(page: &Page) -> Self {
        let all = page.all_endpoints();
        Self {
            received: all.from_gwlb,
            returned: all.to_gwlb,
            drops: page.drops(),
            socket_drops: page.socket_drops,
            queue_drops: page.queue_drops(),
            hook_failures: page.hook_failures,
        }
    }

    /// Packets that were lost, by where or why.
    fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let drops = self.drops.occurred().map(|(reason, count)| (reason.name(), count));
        let by_linux =
            [("receive sockets", self.socket_drops), ("queues of gwi and gwo", self.queue_drops)];
        drops.chain(by_linux)
    }
}

/// What is drawn of the whole program.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    received: Rate,
    returned: Rate,
    endpoints: usize,
    flows: u64,
    hooks_running: u64,
    hooks_failed: u64,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    bits: u64,
    packets: u64,
}

impl Rate {
    fn between(before: TrafficSnapshot, now: TrafficSnapshot, time: Duration) -> Self {
        Self {
            bits: per_sec(before.bytes, now.bytes, time).saturating_mul(8),
            packets: per_sec(before.packets, now.packets, time),
        }
    }
}

/// By how much a counter grew per second, rounded up. One that shrank is that of an endpoint which
/// was made again.
fn per_sec(before: u64, now: u64, time: Duration) -> u64 {
    let grown = u128::from(now.saturating_sub(before)) * Duration::from_secs(1).as_nanos();
    u64::try_from(grown.div_ceil(time.as_nanos().max(1))).unwrap_or(u64::MAX)
}

/// What a worker or an endpoint had counted when the last point was taken, and its rates by then:
/// a worker's in packets, an endpoint's in bits both ways.
#[derive(Debug, Default)]
struct Track {
    received: TrafficSnapshot,
    returned: TrafficSnapshot,
    rates: Recent<u64>,
}

/// The last [`POINTS`] values, the oldest first.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
struct Recent<T>(VecDeque<T>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy> Recent<T> {
    fn push(&mut self, value: T, times: usize) {
        for _ in 0..times {
            if self.0.len() == POINTS {
                self.0.pop_front();
            }
            self.0.push_back(value);
        }
    }
}

impl Recent<u64> {
    fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, value| sum.saturating_add(*value))
    }
}

/// From one point to the next.
#[derive(Clone, Copy)]
struct Step {
    time: Duration,
    /// Points that it takes: more than one after a standstill, so that the time axis stays true.
    points: usize,
}

impl Step {
    fn of(time: Duration) -> Self {
        let intervals = (time + INTERVAL / 2).as_nanos() / INTERVAL.as_nanos();
        Self { time, points: usize::try_from(intervals).unwrap_or(POINTS).clamp(1, POINTS) }
    }
}

impl History {
    /// Whether it is time for another point.
    pub fn is_due(&self, now: Moment) -> bool {
        self.last.is_none_or(|(last, _)| now.since(last) + EARLY_MAX >= INTERVAL)
    }

    /// Takes a point. The first page gives none: it is what the first point is compared with.
    pub fn record(&mut self, page: &Page, now: Moment) {
        let totals = Totals::of(page);
        let last = self.last.replace((now, totals));
        let step = last.map(|(last, before)| (Step::of(now.since(last)), before));
        self.track_endpoints(page, step.map(|(step, _)| step));
        self.track_workers(page, step.map(|(step, _)| step));
        if let Some((step, before)) = step {
            self.add_losses(&before, &totals, step);
            self.add_point(page, &before, &totals, step);
        }
    }

    fn add_point(&mut self, page: &Page, before: &Totals, now: &Totals, step: Step) {
        let point = Point {
            received: Rate::between(before.received, now.received, step.time),
            returned: Rate::between(before.returned, now.returned, step.time),
            endpoints: page.endpoints.len(),
            flows: page.endpoints.iter().map(flows_of).sum(),
            hooks_running: page.hooks.running,
            hooks_failed: 0,
        };
        self.points.push(point, step.points - 1);
        let hooks_failed = now.hook_failures.saturating_sub(before.hook_failures);
        self.points.push(Point { hooks_failed, ..point }, 1);
    }

    /// Called before the point is added: what is lost for the first time has nothing until then.
    fn add_losses(&mut self, before: &Totals, now: &Totals, step: Step) {
        let before: BTreeMap<_, _> = before.losses().collect();
        let points = self.points.0.len();
        for (name, count) in now.losses() {
            let lost = per_sec(before.get(name).copied().unwrap_or(0), count, step.time);
            let line = self.losses.entry(name).or_insert_with(|| {
                let mut line = Recent::default();
                line.push(0, points);
                line
            });
            line.push(lost, step.points);
        }
        self.losses.retain(|_, line| line.sum() > 0);
    }

    fn track_endpoints(&mut self, page: &Page, step: Option<Step>) {
        let mut before = std::mem::take(&mut self.endpoints);
        for endpoint in page.endpoints.iter().filter(|endpoint| endpoint.is_named) {
            let mut track = before.remove(&endpoint.id).unwrap_or_default();
            let (received, returned) = (endpoint.counters.from_gwlb, endpoint.counters.to_gwlb);
            if let Some(step) = step {
                let inward = Rate::between(track.received, received, step.time);
                let outward = Rate::between(track.returned, returned, step.time);
                track.rates.push(inward.bits.saturating_add(outward.bits), step.points);
            }
            (track.received, track.returned) = (received, returned);
            self.endpoints.insert(endpoint.id, track);
        }
    }

    fn track_workers(&mut self, page: &Page, step: Option<Step>) {
        self.workers.resize_with(page.workers.len(), Track::default);
        for (track, worker) in self.workers.iter_mut().zip(&page.workers) {
            let received = worker.counters.datagrams;
            if let Some(step) = step {
                let rate = Rate::between(track.received, received, step.time);
                track.rates.push(rate.packets, step.points);
            }
            track.received = received;
        }
    }
}

fn flows_of(endpoint: &EndpointRow) -> u64 {
    endpoint.counters.flows.sum(&FlowKind::ALL)
}

/// What the live page draws. The newest values are the last of each list; the list of a newcomer is
/// shorter than others.
#[derive(Debug, Default, Serialize)]
pub struct Picture {
    version: &'static str,
    /// The first word of `gwlbtun status`.
    state: &'static str,
    problems: Vec<String>,
    uptime_secs: u64,
    interval_secs: u64,
    /// Values in a list at most.
    points: usize,
    received: Lines,
    returned: Lines,
    drops: Vec<LossLine>,
    endpoints: Vec<usize>,
    flows: Vec<u64>,
    workers: Vec<WorkerLine>,
    busiest: Vec<EndpointLine>,
    hooks: Hooks,
}

/// Per second.
#[derive(Debug, Default, Serialize)]
struct Lines {
    bits: Vec<u64>,
    packets: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct LossLine {
    reason: &'static str,
    per_sec: Recent<u64>,
}

#[derive(Debug, Serialize)]
struct WorkerLine {
    worker: usize,
    healthy: bool,
    /// Received, per second.
    packets: Recent<u64>,
}

#[derive(Debug, Serialize)]
struct EndpointLine {
    id: String,
    healthy: bool,
    flows: u64,
    /// Since it was made.
    drops: u64,
    /// Since a packet came.
    quiet_secs: u64,
    /// Both ways, per second.
    bits: Recent<u64>,
}

#[derive(Debug, Default, Serialize)]
struct Hooks {
    running: Vec<u64>,
    /// Between a point and the one before.
    failed: Vec<u64>,
    last: Vec<HookLine>,
}

#[derive(Debug, Serialize)]
struct HookLine {
    hook: String,
    endpoint: String,
    ago_secs: u64,
    took_secs: f64,
    result: String,
}

impl Picture {
    /// As the page's script reads it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("all keys are text")
    }
}

impl History {
    /// What is to be drawn, with what is known now; `hooks` has the latest run first.
    pub fn picture(&self, page: &Page, hooks: &[HookRow], uptime: Duration) -> Picture {
        let problems = problems(page);
        Picture {
            version: page.version,
            state: Condition::of(page, &problems).word(),
            problems,
            uptime_secs: uptime.as_secs(),
            interval_secs: INTERVAL.as_secs(),
            points: POINTS,
            received: self.lines(|point| point.received),
            returned: self.lines(|point| point.returned),
            drops: self.loss_lines(),
            endpoints: self.each(|point| point.endpoints),
            flows: self.each(|point| point.flows),
            workers: self.worker_lines(&page.workers),
            busiest: self.busiest(&page.endpoints),
            hooks: Hooks {
                running: self.each(|point| point.hooks_running),
                failed: self.each(|point| point.hooks_failed),
                last: hooks.iter().take(HOOKS_LISTED).map(hook_line).collect(),
            },
        }
    }

    fn each<T>(&self, value: impl Fn(&Point) -> T) -> Vec<T> {
        self.points.0.iter().map(value).collect()
    }

    fn lines(&self, rate: impl Fn(&Point) -> Rate) -> Lines {
        Lines {
            bits: self.each(|point| rate(point).bits),
            packets: self.each(|point| rate(point).packets),
        }
    }

    /// Where most is lost first.
    fn loss_lines(&self) -> Vec<LossLine> {
        let lines = self.losses.iter();
        let lines = lines.map(|(&reason, line)| LossLine { reason, per_sec: line.clone() });
        let mut lines: Vec<_> = lines.collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.per_sec.sum()));
        lines
    }

    fn worker_lines(&self, rows: &[WorkerRow]) -> Vec<WorkerLine> {
        let workers = self.workers.iter().zip(rows).enumerate();
        let line = |(worker, (track, row)): (usize, (&Track, &WorkerRow))| WorkerLine {
            worker,
            healthy: row.healthy,
            packets: track.rates.clone(),
        };
        workers.map(line).collect()
    }

    fn busiest(&self, rows: &[EndpointRow]) -> Vec<EndpointLine> {
        let tracked = rows.iter().filter_map(|row| {
            let track = self.endpoints.get(&row.id)?;
            Some((track.rates.sum(), row, track))
        });
        let mut tracked: Vec<_> = tracked.collect();
        tracked.sort_by_key(|&(sum, ..)| std::cmp::Reverse(sum));
        let line = |(_, row, track): (u64, &EndpointRow, &Track)| EndpointLine {
            id: format!("vpce-{}", row.id),
            healthy: row.healthy,
            flows: flows_of(row),
            drops: row.counters.decap_drops.total() + row.counters.encap_drops.total(),
            quiet_secs: row.quiet_to_gwi.as_secs(),
            bits: track.rates.clone(),
        };
        tracked.into_iter().take(BUSIEST).map(line).collect()
    }
}

fn hook_line(row: &HookRow) -> HookLine {
    HookLine {
        hook: row.action.clone(),
        endpoint: format!("vpce-{}", row.endpoint),
        ago_secs: row.begun.as_secs(),
        took_secs: row.took.as_secs_f64(),
        result: row.state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::EndpointCell;
    use crate::stats::WorkerCell;
    use crate::stats::WorkerSnapshot;
    use crate::stats::report::HookState;
    use crate::types::DropReason;
    use serde_json::Value;
    use serde_json::json;
    use std::sync::Arc;

    const START: Moment = Moment::from_secs(100);

    fn at(secs: u64) -> Moment {
        START.after(Duration::from_secs(secs))
    }

    fn row(id: u64, cell: &Arc<EndpointCell>) -> EndpointRow {
        EndpointRow::new(EndpointId(id), START, START, std::slice::from_ref(cell))
    }

    fn page(endpoints: Vec<EndpointRow>) -> Page {
        Page { healthy: true, endpoints, ..Page::default() }
    }

    fn drawn(history: &History, page: &Page) -> Value {
        let text = history.picture(page, &[], Duration::from_secs(7)).to_json();
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn rates_are_what_counters_grew_by_and_the_first_page_gives_no_point() {
        let (mut history, cell) = (History::default(), Arc::<EndpointCell>::default());
        cell.from_gwlb.count_many(1000, 1_000_000);
        history.record(&page(vec![row(1, &cell)]), START);
        let first = drawn(&history, &page(vec![row(1, &cell)]));
        assert_eq!(first["received"], json!({ "bits": [], "packets": [] }));
        assert_eq!((&first["state"], &first["busiest"][0]["bits"]), (&json!("OK"), &json!([])));
        cell.from_gwlb.count_many(3, 300);
        cell.to_gwlb.count_many(2, 200);
        history.record(&page(vec![row(1, &cell)]), at(2));
        history.record(&page(vec![row(1, &cell)]), at(4));
        let drawn = drawn(&history, &page(vec![row(1, &cell)]));
        assert_eq!(drawn["received"], json!({ "bits": [1200, 0], "packets": [2, 0] }));
        assert_eq!(drawn["returned"], json!({ "bits": [800, 0], "packets": [1, 0] }));
        assert_eq!(drawn["busiest"][0]["bits"], json!([2000, 0]));
        assert_eq!((&drawn["endpoints"], &drawn["drops"]), (&json!([1, 1]), &json!([])));
    }

    #[test]
    fn endpoints_that_go_or_are_made_again_make_no_rate_negative() {
        let (mut history, cell) = (History::default(), Arc::<EndpointCell>::default());
        cell.from_gwlb.count_many(1000, 1_000_000);
        let mut queued = row(1, &cell);
        queued.queue_drops = [8, 9];
        history.record(&page(vec![queued]), START);
        // It sent 4 packets more before it went.
        cell.from_gwlb.count_many(4, 400);
        let gone = row(1, &cell).counters;
        let without = Page { gone, ..page(Vec::new()) };
        history.record(&without, at(2));
        assert_eq!(drawn(&history, &without)["busiest"], json!([]));
        let again = Arc::<EndpointCell>::default();
        again.from_gwlb.count_many(6, 600);
        let with = Page { gone, ..page(vec![row(1, &again)]) };
        history.record(&with, at(4));
        let drawn = drawn(&history, &with);
        assert_eq!(drawn["received"]["packets"], json!([2, 3]));
        assert_eq!(drawn["busiest"][0]["bits"], json!([2400]));
        assert_eq!((&drawn["endpoints"], &drawn["drops"]), (&json!([0, 1]), &json!([])));
    }

    #[test]
    fn a_loss_is_drawn_from_before_its_first_packet_until_all_of_it_is_old() {
        let (mut history, cell) = (History::default(), Arc::<EndpointCell>::default());
        cell.decap_drops.add(DropReason::TunDown, 7);
        for point in 0..=2 {
            history.record(&page(vec![row(1, &cell)]), at(2 * point));
        }
        assert_eq!(drawn(&history, &page(Vec::new()))["drops"], json!([]), "it was before");
        cell.decap_drops.add(DropReason::TunDown, 1);
        let last = Page { socket_drops: 5, ..page(vec![row(1, &cell)]) };
        history.record(&last, at(6));
        let lines = json!([
            { "reason": "receive sockets", "per_sec": [0, 0, 3] },
            { "reason": "tun_down", "per_sec": [0, 0, 1] },
        ]);
        assert_eq!(drawn(&history, &last)["drops"], lines, "a single packet is seen");
        for point in 4..=u64::try_from(3 + POINTS).unwrap() {
            assert_ne!(drawn(&history, &last)["drops"], json!([]), "point {point}");
            history.record(&last, at(2 * point));
        }
        assert_eq!(drawn(&history, &last)["drops"], json!([]));
    }

    #[test]
    fn ten_minutes_are_kept_and_a_standstill_takes_its_place() {
        let mut history = History::default();
        let worker = |datagrams| {
            let cell = WorkerCell::default();
            cell.datagrams.count_many(datagrams, 100 * datagrams);
            let counters = WorkerSnapshot::from(&cell);
            Page { workers: vec![WorkerRow { counters, ..WorkerRow::default() }], ..page(vec![]) }
        };
        assert!(history.is_due(START));
        history.record(&worker(0), START);
        assert!(!history.is_due(at(1)) && history.is_due(at(2)));
        // Whoever looks once a second may be a little early.
        assert!(history.is_due(START.after(Duration::from_millis(1999))));
        history.record(&worker(80), at(8));
        let values = drawn(&history, &worker(80))["workers"][0]["packets"].clone();
        assert_eq!(values, json!([10, 10, 10, 10]));
        history.record(&Page { hook_failures: 2, ..worker(80) }, at(18));
        let values = drawn(&history, &worker(80))["hooks"]["failed"].clone();
        assert_eq!(values, json!([0, 0, 0, 0, 0, 0, 0, 0, 2]));
        for point in 0..1000 {
            history.record(&worker(100 + point), at(20 + 2 * point));
        }
        history.record(&worker(2000), at(100_000));
        let drawn = drawn(&history, &worker(2000));
        for list in [&drawn["workers"][0]["packets"], &drawn["flows"], &drawn["hooks"]["failed"]] {
            assert_eq!(list.as_array().map(Vec::len), Some(POINTS));
        }
    }

    #[test]
    fn those_with_most_traffic_are_drawn_and_who_has_no_name_is_not_tracked() {
        let mut history = History::default();
        let rows = |packets: u64| {
            let cells = (0..20).map(|id| {
                let cell = Arc::<EndpointCell>::default();
                cell.to_gwlb.count_many(id * packets, id * packets * 100);
                let mut row = row(id, &cell);
                row.is_named = id != 19;
                row
            });
            page(cells.collect())
        };
        history.record(&rows(0), START);
        history.record(&rows(10), at(2));
        let drawn = drawn(&history, &rows(10));
        let ids = drawn["busiest"].as_array().expect("a list").iter().map(|row| &row["id"]);
        let expected: Vec<_> = (11..=18).rev().map(|id| format!("vpce-{id:017x}")).collect();
        assert!(ids.eq(&expected), "{drawn}");
        assert_eq!(history.endpoints.len(), 19);
        assert_eq!(drawn["returned"]["packets"], json!([190 * 10 / 2]), "of all");
    }

    #[test]
    fn the_state_is_that_of_the_status() {
        let history = History::default();
        let hook = HookRow {
            action: "CREATE".to_owned(),
            endpoint: EndpointId(1),
            begun: Duration::from_secs(9),
            took: Duration::from_millis(1500),
            state: HookState::Failed("ended with exit status 3".to_owned()),
        };
        let mut failed = row(1, &Arc::default());
        failed.failed_hook = Some("the CREATE hook failed".to_owned());
        let page = page(vec![failed]);
        let picture = history.picture(&page, &vec![hook; 20], Duration::from_secs(7));
        let drawn: Value = serde_json::from_str(&picture.to_json()).expect("JSON");
        assert_eq!((&drawn["state"], &drawn["uptime_secs"]), (&json!("DEGRADED"), &json!(7)));
        assert!(drawn["problems"][0].as_str().is_some_and(|text| text.contains("CREATE hook")));
        let listed = drawn["hooks"]["last"].as_array().expect("a list");
        let line = json!({
            "hook": "CREATE",
            "endpoint": "vpce-00000000000000001",
            "ago_secs": 9,
            "took_secs": 1.5,
            "result": "ended with exit status 3",
        });
        assert_eq!((listed.len(), &listed[0]), (HOOKS_LISTED, &line));
    }
}
