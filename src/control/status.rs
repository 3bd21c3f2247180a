//! What control knows about the state of the program, and the page it makes of that.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::WorkerLink;
use super::answers::Answers;
use super::civil;
use super::civil::LastTime;
use super::downgrades::Downgrades;
use super::health::Board;
use super::health::verdict::Verdict;
use super::losses::Losses;
use super::losses::Sums;
use super::losses::Watched;
use super::spread::Spread;
use super::spread::Spreading;
use super::strangers;
use super::ties::Ties;
use crate::settings::Settings;
use crate::stats::EndpointCell;
use crate::stats::EndpointRow;
use crate::stats::EndpointSnapshot;
use crate::stats::FlowsSnapshot;
use crate::stats::HooksRow;
use crate::stats::NicRow;
use crate::stats::Others;
use crate::stats::Page;
use crate::stats::WorkerRow;
use crate::stats::WorkerSnapshot;
use crate::steering::sources::Refused;
use crate::steering::sources::SourceFilter;
use crate::sys::link;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::Moment;
use crate::types::Offload;
use crate::types::Side;
use crate::types::WorkerId;
use crate::wire::checksum;
use crate::worker::mailbox::Policy;

/// A worker without a turn for so long does not work. Idle workers turn four times a second.
const TURN_MAX: Duration = Duration::from_secs(2);

/// How old the published page may get before a request makes a new one.
const PAGE_AGE_MAX: Duration = Duration::from_millis(100);

/// Endpoints without links that the page lists.
const NOT_MADE_MAX: usize = 16;

/// How long it lists one that nobody has asked for again. While packets come for it, it is tried
/// every few seconds.
const NOT_MADE_AGE_MAX: Duration = Duration::from_mins(1);

/// Endpoints with a name of their own in the metrics; all others are one there.
const NAMED_MAX: usize = 1000;

/// What the page says when an endpoint was refused of late.
const REFUSED: &str = "an endpoint was refused: there were as many as --max-endpoints allows, or \
                       too many came at once";

/// How long it says that. An endpoint that is still wanted is refused again every second.
const REFUSED_AGE_MAX: Duration = Duration::from_mins(10);

/// What it says at the end.
const STOPPING: &str = "the program is stopping";

/// The state, and the board where its page is published.
#[derive(Debug)]
pub(super) struct Status {
    board: Arc<Board>,
    tcp_idle: Duration,
    started: Moment,
    published: Moment,
    /// When a page was last made that was published.
    shown: Moment,
    verdict: Verdict,
    hook_failures: u64,
    /// Why no link at all can be made, while that is so.
    no_device: Option<String>,
    /// When an endpoint was last refused, if that is worth telling.
    refused: Option<Moment>,
    /// The end was asked for.
    stopping: bool,
    /// Endpoints whose links could not be made when that was last tried, when, and why.
    not_made: BTreeMap<EndpointId, (Moment, String)>,
    /// Workers that have ended, and why.
    failed: BTreeMap<WorkerId, String>,
    endpoints: BTreeMap<EndpointId, EndpointState>,
    /// What endpoints did that have gone.
    gone: EndpointSnapshot,
    /// What Linux dropped at their queues.
    queue_drops_gone: u64,
    /// What those of them did that had no name in the metrics, if there ever was one.
    others_gone: Option<Others>,
    /// When the program was started, since 1970.
    started_at: Duration,
    /// Datagrams dropped at the receive sockets, as last shown.
    socket_drops: u64,
    endpoints_max: u64,
    flows_max: u64,
    /// What hooks did.
    pub(super) hooks: HooksRow,
    /// Lines that the log has lost.
    pub(super) log_lines_lost: u64,
    /// Network interfaces that have something to tell.
    pub(super) nics: Vec<NicRow>,
    /// From where no answer can leave.
    pub(super) answers: Answers,
    /// What workers do without since the kernel refused it.
    pub(super) downgrades: Downgrades,
    /// How datagrams are spread.
    pub(super) spread: Spread,
    losses: Losses,
    /// Where workers are tied to.
    pub(super) ties: Ties,
    offload: Offload,
    source_filter: Option<SourceFilter>,
    no_return: bool,
    /// Why nobody can ask by the control socket, if so.
    no_console: Option<String>,
}

#[derive(Debug)]
struct EndpointState {
    since: Moment,
    cells: Vec<Arc<EndpointCell>>,
    lost: Option<String>,
    failed_hook: Option<String>,
    watched: Watched,
    /// Flows removed until the last page that was published.
    removed: FlowsSnapshot,
    /// Whether it has a name of its own in the metrics.
    is_named: bool,
    /// When its last packet passed.
    seen: LastTime,
    /// What its queues have dropped, as far as is known.
    queue_drops: [u64; 2],
}

impl Status {
    pub(super) fn new(
        settings: &Settings,
        spreading: Spreading,
        source_filter: Option<SourceFilter>,
        board: Arc<Board>,
        now: Moment,
    ) -> Self {
        Self {
            board,
            tcp_idle: settings.tcp_idle,
            started: now,
            published: Moment::ZERO,
            shown: Moment::ZERO,
            verdict: Verdict::new(now),
            hook_failures: 0,
            no_device: None,
            refused: None,
            stopping: false,
            not_made: BTreeMap::new(),
            failed: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            gone: EndpointSnapshot::default(),
            queue_drops_gone: 0,
            others_gone: None,
            started_at: civil::now(),
            socket_drops: 0,
            endpoints_max: settings.endpoints_max.into(),
            flows_max: settings.flows_max.into(),
            hooks: HooksRow::default(),
            log_lines_lost: 0,
            nics: Vec::new(),
            answers: Answers::default(),
            downgrades: Downgrades::default(),
            spread: Spread::new(spreading),
            losses: Losses::default(),
            ties: Ties::new(settings.workers.iter().map(|spec| spec.core).collect()),
            offload: settings.offload,
            source_filter,
            no_return: !settings.returns,
            no_console: None,
        }
    }

    pub(super) fn add_endpoint(
        &mut self,
        id: EndpointId,
        cells: Vec<Arc<EndpointCell>>,
        now: Moment,
    ) {
        let is_named = self.endpoints.values().filter(|other| other.is_named).count() < NAMED_MAX;
        if !is_named {
            self.others_gone.get_or_insert_default();
        }
        let state = EndpointState {
            since: now,
            cells,
            lost: None,
            failed_hook: None,
            watched: Watched::default(),
            removed: FlowsSnapshot::default(),
            is_named,
            seen: LastTime::default(),
            queue_drops: [0; 2],
        };
        self.endpoints.insert(id, state);
    }

    /// Takes an endpoint off the page. What it did stays in the sum of all.
    pub(super) fn remove_endpoint(&mut self, id: EndpointId) {
        let Some(EndpointState { cells, is_named, queue_drops, .. }) = self.endpoints.remove(&id)
        else {
            return;
        };
        self.queue_drops_gone += queue_drops.iter().sum::<u64>();
        let mut counters = EndpointSnapshot::sum(cells.iter().map(AsRef::as_ref));
        // They have gone with it.
        counters.flows = FlowsSnapshot::default();
        self.gone += counters;
        if let Some(others) = self.others_gone.as_mut().filter(|_| !is_named) {
            others.counters += counters;
            for (all, its) in others.queue_drops.iter_mut().zip(queue_drops) {
                *all += its;
            }
        }
    }

    /// Endpoints that may go for others, the longest idle first. Where nothing is returned no flow
    /// is known, and so no stranger.
    pub(super) fn idle_strangers(&self, idle: Duration, now: Moment) -> Vec<EndpointId> {
        if self.no_return {
            return Vec::new();
        }
        let since = |(&id, endpoint): (&EndpointId, &EndpointState)| {
            Some((strangers::idle_since(&endpoint.cells, endpoint.since)?, id))
        };
        let mut strangers: Vec<_> = self.endpoints.iter().filter_map(since).collect();
        strangers.retain(|&(last, _)| now.since(last) >= idle);
        strangers.sort_unstable();
        strangers.into_iter().map(|(_, id)| id).collect()
    }

    /// Who sent the last datagram that was dropped for where it came from, or one of the last.
    pub(super) fn last_stranger(&self, workers: &[WorkerLink]) -> Option<Ipv4Addr> {
        let by_kernel = self.refused_sources().into_iter().find_map(|refused| refused.last_source);
        by_kernel.or_else(|| {
            let mut by_workers = workers.iter().map(|worker| worker.cell.stranger.get());
            let bits = by_workers.find(|&bits| bits > 0)?;
            u32::try_from(bits).ok().map(Ipv4Addr::from_bits)
        })
    }

    /// What the kernel has dropped for where it came from, by worker; nothing if it drops none.
    fn refused_sources(&self) -> Vec<Refused> {
        self.source_filter.as_ref().map_or_else(Vec::new, SourceFilter::refused)
    }

    /// A link of an endpoint is lost, until the endpoint is made again.
    pub(super) fn queue_lost(&mut self, id: EndpointId, problem: String) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.lost = Some(problem);
        }
    }

    pub(super) fn worker_failed(&mut self, worker: WorkerId, reason: String) {
        self.failed.insert(worker, reason);
    }

    /// A hook of an endpoint did not succeed, which is worth knowing as long as the endpoint is
    /// there.
    pub(super) fn hook_failed(&mut self, id: EndpointId, problem: String) {
        self.hook_failures += 1;
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.failed_hook = Some(problem);
        }
    }

    /// An endpoint's links could not be made.
    pub(super) fn set_not_made(&mut self, id: EndpointId, problem: String, now: Moment) {
        if self.not_made.len() < NOT_MADE_MAX || self.not_made.contains_key(&id) {
            self.not_made.insert(id, (now, problem));
        }
    }

    /// An endpoint's links have been made.
    pub(super) fn set_made(&mut self, id: EndpointId) {
        self.not_made.remove(&id);
    }

    /// Whether links can be made at all: nothing, or the reason why not.
    pub(super) fn set_no_device(&mut self, reason: Option<String>) {
        self.no_device = reason;
    }

    pub(super) const fn has_no_device(&self) -> bool {
        self.no_device.is_some()
    }

    /// Whether somebody can ask by the control socket: nothing, or the reason why not. Returns
    /// whether there was one before.
    pub(super) fn set_no_console(&mut self, reason: Option<String>) -> bool {
        std::mem::replace(&mut self.no_console, reason).is_some()
    }

    /// An endpoint was refused.
    pub(super) const fn set_refused(&mut self, now: Moment) {
        self.refused = Some(now);
    }

    /// Whether one was of late.
    pub(super) const fn has_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// From now on it is 503: new flows must not come here any more. There is no way back, so
    /// nothing could flap.
    pub(super) const fn set_stopping(&mut self) {
        self.stopping = true;
        // A page from before says the opposite, however young it is.
        self.published = Moment::ZERO;
    }

    /// Looks at everything that the verdict depends on. Due every second.
    pub(super) fn judge(&mut self, workers: &[WorkerLink], now: Moment) {
        // The sum is over the cells of all workers: only if it is of interest.
        if self.answers.is_any_refused() {
            let cells = self.endpoints.values().flat_map(|endpoint| &endpoint.cells);
            let sent = cells.map(|cell| cell.to_gwlb.packets.get()).sum();
            self.answers.sent(sent, now);
        }
        self.refused = self.refused.filter(|&at| now.since(at) < REFUSED_AGE_MAX);
        self.not_made.retain(|_, (tried, _)| now.since(*tried) < NOT_MADE_AGE_MAX);
        let reasons = self.reasons(workers, now);
        self.verdict.judge(now, reasons.is_empty());
    }

    /// Publishes a new page if the last one is old.
    pub(super) fn refresh(&mut self, workers: &[WorkerLink], now: Moment) {
        if now.since(self.published) < PAGE_AGE_MAX {
            return;
        }
        self.published = now;
        self.judge(workers, now);
        let page = self.page(workers, self.shown, now);
        self.shown = now;
        for (row, endpoint) in page.endpoints.iter().zip(self.endpoints.values_mut()) {
            endpoint.removed = row.counters.flows_removed;
        }
        self.board.publish(page);
    }

    /// A page for whoever draws what changes. What pages say of the time since the page before is
    /// not about this one.
    pub(super) fn look(&mut self, workers: &[WorkerLink], now: Moment) -> Page {
        self.page(workers, now, now)
    }

    /// Everything that is wrong.
    fn reasons(&self, workers: &[WorkerLink], now: Moment) -> Vec<String> {
        let stopping = self.stopping.then(|| STOPPING.to_owned());
        let told =
            self.failed.values().chain(&self.no_device).cloned().chain(self.answers.reason());
        stopping.into_iter().chain(told).chain(self.stalls(workers, now)).collect()
    }

    /// The workers that do not turn any more and have not said why.
    fn stalls<'a>(
        &'a self,
        workers: &'a [WorkerLink],
        now: Moment,
    ) -> impl Iterator<Item = String> + 'a {
        workers.iter().filter_map(move |worker| {
            let turn = worker.cell.last_turn.get().max(self.started);
            let stall = now.since(turn);
            let id = worker.id;
            (stall > TURN_MAX && !self.failed.contains_key(&id))
                .then(|| format!("worker {id} made no turn for {:.1} s", stall.as_secs_f64()))
        })
    }

    /// The same, by what is looked at.
    fn checks(&self, workers: &[WorkerLink], now: Moment) -> Vec<(&'static str, bool)> {
        let turning = self.failed.is_empty() && self.stalls(workers, now).next().is_none();
        vec![
            ("running", !self.stopping),
            ("workers", turning),
            ("links", self.no_device.is_none()),
            ("answers", self.answers.reason().is_none()),
        ]
    }

    /// The verdict in a few words, with the first reason.
    pub(super) fn headline(&self, workers: &[WorkerLink], now: Moment) -> String {
        if self.verdict.is_healthy() {
            return "Healthy".to_owned();
        }
        let reason = self.reasons(workers, now).into_iter().next();
        reason.map_or_else(
            || "Unhealthy until a moment ago".to_owned(),
            |reason| format!("Unhealthy: {reason}"),
        )
    }

    pub(super) fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    /// What an operator should look at.
    fn warnings(&self, workers: &[WorkerLink]) -> Vec<String> {
        let refused = self.refused.map(|_| REFUSED.to_owned());
        let not_made = self.not_made.values().map(|(_, problem)| problem.clone());
        let lost = self.endpoints.values().filter_map(|endpoint| endpoint.lost.clone());
        let spread = self.spread.warning(workers);
        let sends = self.answers.warnings().chain(self.downgrades.warnings());
        let sends = sends.chain(self.losses.warnings());
        let told = refused.into_iter().chain(not_made).chain(lost).chain(sends).chain(spread);
        told.chain(self.ties.warning(workers)).chain(self.no_console.clone()).collect()
    }

    /// The page of this moment, which tells of losses since `shown`.
    fn page(&mut self, workers: &[WorkerLink], shown: Moment, now: Moment) -> Page {
        let refused = self.refused_sources();
        let refused_drops: u64 = refused.iter().map(|refused| refused.socket_drops).sum();
        let refused = refused.into_iter().chain(std::iter::repeat(Refused::default()));
        let rows = workers.iter().zip(refused).map(|(worker, refused)| {
            let mut counters = WorkerSnapshot::from(worker.cell.as_ref());
            counters.add_dropped(DropReason::SourceDenied, refused.datagrams, refused.bytes);
            let turn = worker.cell.last_turn.get().max(self.started);
            let last = worker.cell.last_datagram.get().max(self.started);
            WorkerRow {
                thread_id: worker.thread_id,
                healthy: now.since(turn) <= TURN_MAX && !self.failed.contains_key(&worker.id),
                quiet: now.since(last),
                counters,
            }
        });
        let queue_drops = link::dropped().unwrap_or_default();
        let endpoints = self.endpoints.iter_mut();
        let endpoints: Vec<_> =
            endpoints.map(|(&id, endpoint)| endpoint.row(id, now, &queue_drops)).collect();
        // What was read later may have grown; and what counts never shrinks.
        let socket_drops = self.spread.dropped().saturating_sub(refused_drops);
        self.socket_drops = self.socket_drops.max(socket_drops);
        let mut page = Page {
            version: env!("CARGO_PKG_VERSION"),
            healthy: self.verdict.is_healthy() && !self.stopping,
            reasons: self.reasons(workers, now),
            // When all that is lost has been looked at.
            warnings: Vec::new(),
            offload: self.downgrades.left_of(Offload {
                // Changes with how datagrams are spread.
                udp_gro: self.offload.udp_gro && !self.spread.is_by_flow(),
                ..self.offload
            }),
            no_return: self.no_return,
            checksum: checksum::Implementation::in_use().to_string(),
            steering: self.spread.row(workers),
            socket_drops: self.socket_drops,
            hook_failures: self.hook_failures,
            log_lines_lost: self.log_lines_lost,
            tcp_idle: self.tcp_idle,
            other_idle: Policy::OTHER_IDLE,
            workers: rows.collect(),
            endpoints,
            gone: self.gone,
            queue_drops_gone: self.queue_drops_gone,
            others_gone: self.others_gone,
            started: self.started_at,
            checks: self.checks(workers, now),
            endpoints_max: self.endpoints_max,
            flows_max: self.flows_max,
            hooks: self.hooks,
            nics: self.nics.clone(),
        };
        self.look_at_losses(&page, shown, now);
        page.warnings = self.warnings(workers);
        page
    }

    fn look_at_losses(&mut self, page: &Page, shown: Moment, now: Moment) {
        let sums = Sums {
            drops: page.drops(),
            socket_drops: page.socket_drops,
            log_lines: page.log_lines_lost,
        };
        let watched = self.endpoints.values_mut().map(|endpoint| &mut endpoint.watched);
        let refusals = self.answers.is_any_refused();
        self.losses.look(page.endpoints.iter().zip(watched), &sums, refusals, shown, now);
    }
}

impl EndpointState {
    fn row(
        &mut self,
        id: EndpointId,
        now: Moment,
        queue_drops: &HashMap<String, u64>,
    ) -> EndpointRow {
        let mut row = EndpointRow::new(id, self.since, now, &self.cells);
        // A link that was renamed is not found, and none is where files have run out; and what
        // counts never shrinks.
        for (side, known) in Side::BOTH.into_iter().zip(&mut self.queue_drops) {
            let found = queue_drops.get(row.link(side).as_str()).copied();
            *known = found.unwrap_or(0).max(*known);
        }
        row.queue_drops = self.queue_drops;
        row.failed_hook.clone_from(&self.failed_hook);
        row.is_named = self.is_named;
        row.last_seen_at = self.seen.at(row.counters.last_seen, now);
        let removed = row.counters.flows_removed;
        row.flows_timed_out = removed.less(&self.removed);
        row.healthy = self.lost.is_none();
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Host;
    use crate::types::Downgrade;
    use crate::types::DropReason;
    use crate::types::FlowKind;

    const START: Moment = Moment::from_secs(100);

    /// That of a program with these flags which has just started.
    fn status(flags: &[&str]) -> Status {
        let words = [&["gwlbtun"], flags].concat();
        let args = crate::cli::parse(words.into_iter().map(Into::into)).unwrap();
        let settings = Settings::new(&args, &Host { cpus: vec![0], ram_bytes: 1 << 30 }).unwrap();
        Status::new(&settings, Spreading::of_one_worker(), None, Arc::default(), START)
    }

    #[test]
    fn endpoints_without_links_are_listed_while_somebody_wants_them() {
        let mut status = status(&[]);
        for id in 0..20 {
            status.set_not_made(EndpointId(id), format!("endpoint {id}"), START);
        }
        assert_eq!(status.warnings(&[]).len(), NOT_MADE_MAX, "a flood of ids is bounded");
        status.set_made(EndpointId(0));
        let later = START.after(NOT_MADE_AGE_MAX);
        status.set_not_made(EndpointId(1), "endpoint 1 again".to_owned(), later);
        status.judge(&[], later);
        assert_eq!(status.warnings(&[]), ["endpoint 1 again"]);
        assert_eq!(status.reasons(&[], later), [""; 0], "no reason to send flows elsewhere");
    }

    #[test]
    fn drops_of_an_endpoint_that_has_gone_stay_in_the_sum() {
        let mut status = status(&[]);
        for (number, drops) in (0..).zip([3, 4]) {
            let cells = [Arc::new(EndpointCell::default()), Arc::new(EndpointCell::default())];
            cells[0].decap_drops.add(DropReason::TunDown, drops);
            cells[1].encap_drops.add(DropReason::FlowUnknown, drops);
            status.add_endpoint(EndpointId(number), cells.to_vec(), START);
        }
        for _ in 0..2 {
            let drops = status.look(&[], START).drops();
            assert_eq!(drops.get(DropReason::TunDown), 7);
            assert_eq!(drops.get(DropReason::FlowUnknown), 7);
            status.remove_endpoint(EndpointId(0));
        }
    }

    #[test]
    fn a_hook_s_failure_is_known_as_long_as_its_endpoint_is_there() {
        let mut status = status(&[]);
        let failed = |status: &mut Status| status.look(&[], START).endpoints[0].failed_hook.clone();
        status.add_endpoint(EndpointId(1), vec![Arc::default()], START);
        status.hook_failed(EndpointId(1), "it failed".to_owned());
        for other in 2..200 {
            status.add_endpoint(EndpointId(other), vec![Arc::default()], START);
        }
        assert_eq!(failed(&mut status).as_deref(), Some("it failed"));
        status.remove_endpoint(EndpointId(1));
        status.add_endpoint(EndpointId(1), vec![Arc::default()], START);
        assert_eq!(failed(&mut status), None, "it was made again");
    }

    #[test]
    fn a_refusal_is_a_warning_for_ten_minutes_after_the_last_one() {
        let mut status = status(&[]);
        let warns = |status: &mut Status, mins| {
            status.judge(&[], START.after(Duration::from_mins(mins)));
            status.warnings(&[]).len() == 1
        };
        assert!(!warns(&mut status, 0));
        status.set_refused(START);
        assert!(warns(&mut status, 9));
        status.set_refused(START.after(Duration::from_mins(9)));
        assert!(warns(&mut status, 18) && status.has_refused());
        assert!(!warns(&mut status, 19) && !status.has_refused());
    }

    #[test]
    fn drops_at_queues_never_shrink_and_stay_in_the_sum() {
        let mut status = status(&[]);
        status.add_endpoint(EndpointId(1), vec![Arc::default()], START);
        let endpoint = status.endpoints.get_mut(&EndpointId(1)).unwrap();
        let mut look = |found: &[(&str, u64)]| {
            let found = found.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
            endpoint.row(EndpointId(1), START, &found).queue_drops
        };
        assert_eq!(look(&[("gwi-1", 3), ("gwo-1", 4), ("lo", 9)]), [3, 4]);
        assert_eq!(look(&[]), [3, 4], "no file is left to read them by");
        assert_eq!(look(&[("gwi-1", 5)]), [5, 4], "one was renamed");
        for _ in 0..2 {
            assert_eq!(status.look(&[], START).queue_drops(), 9);
            status.remove_endpoint(EndpointId(1));
        }
    }

    #[test]
    fn names_in_the_metrics_are_so_many_and_nobody_loses_one() {
        let mut status = status(&[]);
        let count = u64::try_from(NAMED_MAX).unwrap();
        let add = |status: &mut Status, id| {
            let cell = EndpointCell::default();
            cell.to_gwi.count(100);
            status.add_endpoint(EndpointId(id), vec![Arc::new(cell)], START);
        };
        (1..=count).for_each(|id| add(&mut status, id));
        assert_eq!(status.look(&[], START).others_gone, None);
        add(&mut status, 0);
        let named = |status: &mut Status| {
            let page = status.look(&[], START);
            let rows = page.endpoints.iter();
            let unnamed: Vec<_> = rows.filter(|row| !row.is_named).map(|row| row.id.0).collect();
            (unnamed, page.others_gone.unwrap().counters.to_gwi.packets)
        };
        assert_eq!(named(&mut status), (vec![0], 0));
        // A name is free, and is for the next one: who has none counts among the others for life.
        status.remove_endpoint(EndpointId(7));
        add(&mut status, count + 1);
        assert_eq!(named(&mut status), (vec![0], 0));
        status.remove_endpoint(EndpointId(0));
        assert_eq!(named(&mut status), (vec![], 1));
    }

    #[test]
    fn what_a_worker_does_without_is_a_warning() {
        let mut status = status(&[]);
        status.downgrades.add(WorkerId(3), Downgrade::UdpGso, crate::sys::Errno::EIO);
        assert!(!status.look(&[], START).offload.udp_gso && status.offload.udp_gso);
        status.judge(&[], START);
        assert_eq!(status.warnings(&[]).len(), 1);
        assert_eq!(status.reasons(&[], START), [""; 0]);
    }

    #[test]
    fn a_look_leaves_what_the_next_page_tells_of_the_time_since_the_last() {
        let mut status = status(&[]);
        let cell = Arc::new(EndpointCell::default());
        status.add_endpoint(EndpointId(1), vec![Arc::clone(&cell)], START);
        let removed = |page: &Page| page.endpoints[0].flows_timed_out.sum(&FlowKind::ALL);
        cell.flows_removed.count(FlowKind::V4Udp);
        for _ in 0..2 {
            assert_eq!(removed(&status.look(&[], START)), 1);
        }
        status.refresh(&[], START);
        assert_eq!(removed(&status.board.page()), 1);
        let later = START.after(PAGE_AGE_MAX);
        status.refresh(&[], later);
        assert_eq!(removed(&status.board.page()), 0);
    }

    #[test]
    fn where_nothing_is_returned_nobody_is_a_stranger() {
        let later = START.after(Duration::from_hours(1));
        for (flags, strangers) in [(&[][..], 1), (&["--no-return"], 0)] {
            let mut status = status(flags);
            status.add_endpoint(EndpointId(1), vec![Arc::default()], START);
            let idle = status.idle_strangers(Duration::from_mins(1), later);
            assert_eq!(idle.len(), strangers, "{flags:?}");
        }
    }
}
