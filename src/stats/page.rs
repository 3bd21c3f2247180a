//! Everything that the health page shows, as plain values: built by control, rendered elsewhere.

use std::time::Duration;

use super::DropsSnapshot;
use super::EndpointCell;
use super::EndpointSnapshot;
use super::FlowsSnapshot;
use super::HooksRow;
use super::TrafficSnapshot;
use super::WorkerSnapshot;
use crate::types::EndpointId;
use crate::types::FlowKind;
use crate::types::LinkName;
use crate::types::Moment;
use crate::types::Offload;
use crate::types::Side;

/// The page's content at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Version of the program.
    pub version: &'static str,
    /// Whether the load balancer should send flows here.
    pub healthy: bool,
    /// Why not, one sentence each.
    pub reasons: Vec<String>,
    /// What an operator should look at although it is no reason to send flows elsewhere, one
    /// sentence each.
    pub warnings: Vec<String>,
    /// Datagrams that Linux dropped at the receive sockets since start.
    pub socket_drops: u64,
    /// Hooks that failed since start.
    pub hook_failures: u64,
    /// Lines of the log that its reader did not get, or that could not be written, since start.
    pub log_lines_lost: u64,
    /// Time after which an idle TCP flow is forgotten.
    pub tcp_idle: Duration,
    /// Time after which any other idle flow is forgotten.
    pub other_idle: Duration,
    /// Whether nothing is returned to the load balancer: there is no `gwo`, and there are no flows.
    pub no_return: bool,
    /// Which packets are handled as one.
    pub offload: Offload,
    /// By which instructions checksums are added up.
    pub checksum: String,
    /// How packets find their worker; nothing if there is only one.
    pub steering: Option<SteeringRow>,
    /// The workers, by number.
    pub workers: Vec<WorkerRow>,
    /// The endpoints, by id.
    pub endpoints: Vec<EndpointRow>,
    /// What endpoints did that have gone.
    pub gone: EndpointSnapshot,
    /// What Linux dropped at their queues.
    pub queue_drops_gone: u64,
    /// What endpoints without a name in the metrics did that have gone, if there ever was one.
    pub others_gone: Option<Others>,
    /// When the program was started, since 1970.
    pub started: Duration,
    /// What the verdict on the program's health is made of, by name, and whether it is good.
    pub checks: Vec<(&'static str, bool)>,
    /// Endpoints that may be served at a time.
    pub endpoints_max: u64,
    /// Flows that may be remembered at a time.
    pub flows_max: u64,
    /// What hooks did.
    pub hooks: HooksRow,
    /// Network interfaces that have something to tell.
    pub nics: Vec<NicRow>,
}

/// What is left of endpoints that have gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Their counters.
    pub counters: EndpointSnapshot,
    /// Their [`EndpointRow::queue_drops`].
    pub queue_drops: [u64; 2],
}

/// A network interface of an EC2 instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicRow {
    /// Its name.
    pub name: String,
    /// Packets that AWS queued or dropped because an allowance of the instance was exceeded, by the
    /// name of that.
    pub exceeded: Vec<(String, u64)>,
}

/// How packets find their worker, where there are several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringRow {
    /// What decides about datagrams: `outer` or `inner`.
    pub receive: &'static str,
    /// Different outer paths by which datagrams came of late. A worker counts no more than 64, and
    /// with `inner` this is what the one counted that had most.
    pub outer_paths: u64,
    /// Workers that get nothing to do although others have much, by number.
    pub starving: Vec<usize>,
    /// What decides about packets of the host: `program`, or `kernel` and why.
    pub queues: String,
}

/// One worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerRow {
    /// Thread id of the worker, as `ps -L` shows it.
    pub thread_id: u32,
    /// Whether its loop turns.
    pub healthy: bool,
    /// Time since it received a datagram, or since start if it never did.
    pub quiet: Duration,
    /// Its counters.
    pub counters: WorkerSnapshot,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its id.
    pub id: EndpointId,
    /// Whether all its queues work.
    pub healthy: bool,
    /// Time since a packet was written to `gwi`, or since its creation.
    pub quiet_to_gwi: Duration,
    /// Its age: time since its creation.
    pub age: Duration,
    /// Its counters, summed over the workers.
    pub counters: EndpointSnapshot,
    /// Flows removed since the page before.
    pub flows_timed_out: FlowsSnapshot,
    /// Packets that the kernel dropped because nobody read them from `gwi`, from `gwo` in time, in
    /// the order of [`Side::BOTH`]; a super-packet counts once.
    pub queue_drops: [u64; 2],
    /// Which hook failed, and how: its packets may go nowhere.
    pub failed_hook: Option<String>,
    /// Whether it has a name of its own in the metrics, which only so many have.
    pub is_named: bool,
    /// When a packet of a host last passed, since 1970, if one did.
    pub last_seen_at: Option<Duration>,
    /// What each worker read from `gwi` and from `gwo`, in the order of [`Side::BOTH`].
    pub reads: Vec<[QueueRow; 2]>,
}

/// One queue of a TUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueRow {
    /// Packets read from it.
    pub read: TrafficSnapshot,
    /// Time since one was read, or since the endpoint's creation.
    pub quiet: Duration,
}

impl EndpointRow {
    /// The row of an endpoint created at `since`, from the cells of its workers in their order.
    pub fn new(
        id: EndpointId,
        since: Moment,
        now: Moment,
        cells: &[impl AsRef<EndpointCell>],
    ) -> Self {
        let quiet = |last: Moment| now.since(last.max(since));
        let counters = EndpointSnapshot::sum(cells.iter().map(AsRef::as_ref));
        let reads = cells.iter().map(AsRef::as_ref).map(|cell: &EndpointCell| {
            [
                QueueRow { read: (&cell.from_gwi).into(), quiet: quiet(cell.last_from_gwi.get()) },
                QueueRow { read: (&cell.from_gwo).into(), quiet: quiet(cell.last_from_gwo.get()) },
            ]
        });
        Self {
            id,
            healthy: true,
            quiet_to_gwi: quiet(counters.last_to_gwi),
            age: now.since(since),
            queue_drops: [0; 2],
            failed_hook: None,
            is_named: true,
            last_seen_at: None,
            reads: reads.collect(),
            flows_timed_out: FlowsSnapshot::default(),
            counters,
        }
    }

    /// Name of one of its links.
    pub fn link(&self, side: Side) -> LinkName {
        LinkName::of(self.id, side)
    }

    /// What went out to one of its links. Nothing is ever written to `gwo`.
    pub(super) fn written(&self, side: Side) -> (TrafficSnapshot, Duration) {
        match side {
            Side::Gwi => (self.counters.to_gwi, self.quiet_to_gwi),
            Side::Gwo => (TrafficSnapshot::default(), self.age),
        }
    }
}

impl Page {
    /// Whether all workers turn and all queues of the endpoint work.
    pub(super) fn serves(&self, endpoint: &EndpointRow) -> bool {
        endpoint.healthy && self.workers.iter().all(|worker| worker.healthy)
    }

    /// The idle time after which a flow of this kind is forgotten.
    pub(super) const fn idle_of(&self, kind: FlowKind) -> Duration {
        match kind {
            FlowKind::V4Tcp | FlowKind::V6Tcp => self.tcp_idle,
            FlowKind::V4Udp | FlowKind::V4Other | FlowKind::V6Udp | FlowKind::V6Other => {
                self.other_idle
            }
        }
    }

    /// What all workers asked of the kernel, by name: set against the numbers of packets it says
    /// how many travelled as one. And how many of them do not ask for `udp-gro` at present.
    pub fn operations(&self) -> [(&'static str, u64); 5] {
        let sum = |count: fn(&WorkerSnapshot) -> u64| {
            self.workers.iter().map(|worker| count(&worker.counters)).sum()
        };
        [
            ("gwiWrites", sum(|counters| counters.gwi_writes)),
            ("receives", sum(|counters| counters.receives)),
            ("sends", sum(|counters| counters.sends)),
            ("tunReads", sum(|counters| counters.tun_reads)),
            ("udpGroPaused", sum(|counters| counters.merging_paused)),
        ]
    }

    /// What all workers had to do about flows, by name: those removed to make room, and headers
    /// that a known flow got from another outer source than before.
    pub fn flow_events(&self) -> [(&'static str, u64); 2] {
        let sum = |count: fn(&WorkerSnapshot) -> u64| {
            self.workers.iter().map(|worker| count(&worker.counters)).sum()
        };
        [
            ("flowsEvicted", sum(|counters| counters.flows_evicted)),
            ("flowsRetaught", sum(|counters| counters.flows_retaught)),
        ]
    }

    /// Packets that came back to another worker than their own: no fewer than this.
    pub fn foreign(&self) -> u64 {
        self.endpoints.iter().map(|endpoint| endpoint.counters.foreign).sum()
    }

    /// Drops of all workers and endpoints since start.
    pub fn drops(&self) -> DropsSnapshot {
        let [mut all, encap] = self.drops_by_direction();
        all += encap;
        all
    }

    /// The same apart: on the way to the host, and on the way back. What belongs to no endpoint is
    /// among the first, because nearly all of that comes from the load balancer.
    pub fn drops_by_direction(&self) -> [DropsSnapshot; 2] {
        let endpoints = self.all_endpoints();
        let mut decap = endpoints.decap_drops;
        for worker in &self.workers {
            decap += worker.counters.drops;
        }
        [decap, endpoints.encap_drops]
    }

    /// Packets that Linux dropped at the queues of interfaces since start.
    pub fn queue_drops(&self) -> u64 {
        let of_endpoints = self.endpoints.iter().flat_map(|endpoint| endpoint.queue_drops);
        self.queue_drops_gone + of_endpoints.sum::<u64>()
    }

    /// What all endpoints did since start, those included that have gone.
    pub fn all_endpoints(&self) -> EndpointSnapshot {
        let mut all = self.gone;
        for endpoint in &self.endpoints {
            all += endpoint.counters;
        }
        all
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::DropReason;
    use crate::types::FlowKind;
    use std::sync::Arc;

    /// A page with a figure of its own in every place.
    pub(crate) fn sample() -> Page {
        let cell = EndpointCell::default();
        cell.to_gwi.count(1500);
        cell.from_gwi.count(60);
        cell.from_gwo.count(700);
        cell.from_gwo.count(800);
        cell.last_to_gwi.set(Moment::from_secs(100));
        cell.last_from_gwo.set(Moment::from_nanos(100_250_000_000));
        for (kind, added, removed) in [
            (FlowKind::V4Tcp, 2, 0),
            (FlowKind::V4Udp, 2, 1),
            (FlowKind::V4Other, 1, 1),
            (FlowKind::V6Tcp, 13, 6),
            (FlowKind::V6Udp, 17, 6),
            (FlowKind::V6Other, 19, 6),
        ] {
            (0..added).for_each(|_| cell.flows_added.count(kind));
            (0..removed).for_each(|_| cell.flows_removed.count(kind));
        }
        cell.encap_drops.add(DropReason::FlowUnknown, 4);
        cell.decap_drops.count(DropReason::TunDown);
        cell.too_big_sent.add(5);
        let now = Moment::from_secs(101);
        let cells = [Arc::new(cell)];
        let id = EndpointId(0x0123_4567_89ab_cdef);
        let mut endpoint = EndpointRow::new(id, Moment::from_secs(41), now, &cells);
        endpoint.flows_timed_out = endpoint.counters.flows_removed;
        endpoint.queue_drops = [9, 10];
        let worker = crate::stats::WorkerCell::default();
        worker.datagrams.count(1540);
        worker.receives.add(7);
        worker.flows_evicted.add(8);
        worker.flows_retaught.add(9);
        worker.drops.add(DropReason::Short, 3);
        worker.drops.add(DropReason::TunDown, 1);
        Page {
            version: "9.8.7",
            healthy: false,
            reasons: vec!["worker 0 made no turn for 2.5 s".to_owned()],
            warnings: vec!["an endpoint was refused".to_owned()],
            socket_drops: 8,
            hook_failures: 6,
            log_lines_lost: 2,
            tcp_idle: Duration::from_secs(350),
            other_idle: Duration::from_mins(2),
            offload: Offload { tun_uso: false, ..Offload::ALL },
            no_return: false,
            checksum: "avx2".to_owned(),
            steering: Some(SteeringRow {
                receive: "outer",
                outer_paths: 3,
                starving: vec![1, 2],
                queues: "program".to_owned(),
            }),
            workers: vec![WorkerRow {
                thread_id: 4711,
                healthy: false,
                quiet: Duration::from_millis(529),
                counters: (&worker).into(),
            }],
            endpoints: vec![endpoint],
            ..Page::default()
        }
    }

    #[test]
    fn drops_of_everybody_add_up() {
        let drops = sample().drops();
        assert_eq!(drops.get(DropReason::Short), 3);
        assert_eq!(drops.get(DropReason::TunDown), 2);
        assert_eq!(drops.total(), 9);
    }
}
