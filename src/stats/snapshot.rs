//! The read side of the counters: ordinary numbers, summed over workers.

use std::ops::AddAssign;

use super::cell::Drops;
use super::cell::EndpointCell;
use super::cell::FlowCounters;
use super::cell::Traffic;
use super::cell::WorkerCell;
use super::histogram::HistogramSnapshot;
use crate::sync::Ordering;
use crate::sync::fence;
use crate::types::DropReason;
use crate::types::FlowKind;
use crate::types::Moment;

/// Packets and bytes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficSnapshot {
    /// Number of packets.
    pub packets: u64,
    /// Sum of their lengths in bytes.
    pub bytes: u64,
}

impl From<&Traffic> for TrafficSnapshot {
    fn from(live: &Traffic) -> Self {
        Self { packets: live.packets.get(), bytes: live.bytes.get() }
    }
}

impl AddAssign for TrafficSnapshot {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Drops by reason at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropsSnapshot([u64; DropReason::COUNT]);

impl Default for DropsSnapshot {
    fn default() -> Self {
        Self([0; DropReason::COUNT])
    }
}

impl DropsSnapshot {
    /// Packets dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.index()]
    }

    /// Packets dropped for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn occurred(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.get(reason))).filter(|&(_, n)| n > 0)
    }
}

impl From<&Drops> for DropsSnapshot {
    fn from(live: &Drops) -> Self {
        let mut counts = [0; DropReason::COUNT];
        for &reason in DropReason::ALL {
            counts[reason.index()] = live.get(reason);
        }
        Self(counts)
    }
}

impl AddAssign for DropsSnapshot {
    fn add_assign(&mut self, other: Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// Flows by kind at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowsSnapshot([u64; FlowKind::COUNT]);

impl FlowsSnapshot {
    /// Flows of this kind.
    pub fn get(&self, kind: FlowKind) -> u64 {
        self.0[kind.index()]
    }

    /// Flows of all these kinds.
    pub fn sum(&self, kinds: &[FlowKind]) -> u64 {
        kinds.iter().map(|&kind| self.get(kind)).sum()
    }

    /// What is left of each kind without `other`'s, never less than nothing.
    #[must_use]
    pub fn less(&self, other: &Self) -> Self {
        Self(FlowKind::ALL.map(|kind| self.get(kind).saturating_sub(other.get(kind))))
    }
}

impl From<&FlowCounters> for FlowsSnapshot {
    fn from(live: &FlowCounters) -> Self {
        Self(FlowKind::ALL.map(|kind| live.get(kind)))
    }
}

impl AddAssign for FlowsSnapshot {
    fn add_assign(&mut self, other: Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// One endpoint's counters at one moment, of one worker or summed over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointSnapshot {
    /// See [`EndpointCell::from_gwlb`].
    pub from_gwlb: TrafficSnapshot,
    /// See [`EndpointCell::to_gwi`].
    pub to_gwi: TrafficSnapshot,
    /// See [`EndpointCell::from_gwi`].
    pub from_gwi: TrafficSnapshot,
    /// See [`EndpointCell::from_gwo`].
    pub from_gwo: TrafficSnapshot,
    /// See [`EndpointCell::to_gwlb`].
    pub to_gwlb: TrafficSnapshot,
    /// Packets that came back to another worker than the one that received them, or that this
    /// host made: no fewer than this.
    pub foreign: u64,
    /// See [`EndpointCell::host_noise`].
    pub host_noise: u64,
    /// See [`EndpointCell::too_big_sent`].
    pub too_big_sent: u64,
    /// See [`EndpointCell::decap_drops`].
    pub decap_drops: DropsSnapshot,
    /// See [`EndpointCell::encap_drops`].
    pub encap_drops: DropsSnapshot,
    /// See [`EndpointCell::last_seen`]; the latest of the workers.
    pub last_seen: Moment,
    /// See [`EndpointCell::last_to_gwi`].
    pub last_to_gwi: Moment,
    /// See [`EndpointCell::last_from_gwi`].
    pub last_from_gwi: Moment,
    /// See [`EndpointCell::last_from_gwo`].
    pub last_from_gwo: Moment,
    /// Flows entered and not yet removed.
    pub flows: FlowsSnapshot,
    /// Flows removed.
    pub flows_removed: FlowsSnapshot,
}

impl EndpointSnapshot {
    /// Sums the cells that the workers keep for one endpoint.
    ///
    /// Flows may be entered by one worker and removed by another, so only the sum over all
    /// workers is meaningful; while numbers move it may be off by what moved meanwhile.
    pub fn sum<'a>(cells: impl IntoIterator<Item = &'a EndpointCell>) -> Self {
        let mut all = Self::default();
        let mut added = FlowsSnapshot::default();
        for cell in cells {
            // What came back before what came in, which is more by then, if anything.
            all.foreign += foreign(cell);
            all.from_gwlb += (&cell.from_gwlb).into();
            all.to_gwi += (&cell.to_gwi).into();
            all.from_gwi += (&cell.from_gwi).into();
            all.from_gwo += (&cell.from_gwo).into();
            all.to_gwlb += (&cell.to_gwlb).into();
            all.host_noise += cell.host_noise.get();
            all.too_big_sent += cell.too_big_sent.get();
            all.decap_drops += (&cell.decap_drops).into();
            all.encap_drops += (&cell.encap_drops).into();
            all.last_seen = all.last_seen.max(cell.last_seen.get());
            all.last_to_gwi = all.last_to_gwi.max(cell.last_to_gwi.get());
            all.last_from_gwi = all.last_from_gwi.max(cell.last_from_gwi.get());
            all.last_from_gwo = all.last_from_gwo.max(cell.last_from_gwo.get());
            added += (&cell.flows_added).into();
            all.flows_removed += (&cell.flows_removed).into();
        }
        all.flows = added.less(&all.flows_removed);
        all
    }
}

impl AddAssign for EndpointSnapshot {
    /// Adds another endpoint's.
    fn add_assign(&mut self, other: Self) {
        self.from_gwlb += other.from_gwlb;
        self.to_gwi += other.to_gwi;
        self.from_gwi += other.from_gwi;
        self.from_gwo += other.from_gwo;
        self.to_gwlb += other.to_gwlb;
        self.foreign += other.foreign;
        self.host_noise += other.host_noise;
        self.too_big_sent += other.too_big_sent;
        self.decap_drops += other.decap_drops;
        self.encap_drops += other.encap_drops;
        self.last_seen = self.last_seen.max(other.last_seen);
        self.last_to_gwi = self.last_to_gwi.max(other.last_to_gwi);
        self.last_from_gwi = self.last_from_gwi.max(other.last_from_gwi);
        self.last_from_gwo = self.last_from_gwo.max(other.last_from_gwo);
        self.flows += other.flows;
        self.flows_removed += other.flows_removed;
    }
}

/// Packets of hosts that a worker read beyond those that it received: that many, at least, belong
/// to other workers or to this host.
fn foreign(cell: &EndpointCell) -> u64 {
    let noise = cell.host_noise.get();
    let read = cell.from_gwi.packets.get() + cell.from_gwo.packets.get();
    // See `WorkerCell::end_turn`.
    fence(Ordering::Acquire);
    read.saturating_sub(noise).saturating_sub(cell.from_gwlb.packets.get())
}

/// One worker's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerSnapshot {
    /// See [`WorkerCell::datagrams`].
    pub datagrams: TrafficSnapshot,
    /// See [`WorkerCell::receives`].
    pub receives: u64,
    /// See [`WorkerCell::merging_paused`].
    pub merging_paused: u64,
    /// See [`WorkerCell::gwi_writes`].
    pub gwi_writes: u64,
    /// See [`WorkerCell::tun_reads`].
    pub tun_reads: u64,
    /// See [`WorkerCell::sends`].
    pub sends: u64,
    /// See [`WorkerCell::drops`].
    pub drops: DropsSnapshot,
    /// Datagrams in the hold queue now.
    pub held: u64,
    /// See [`WorkerCell::last_datagram`].
    pub last_datagram: Moment,
    /// See [`WorkerCell::last_turn`].
    pub last_turn: Moment,
    /// See [`WorkerCell::turns`].
    pub turns: u64,
    /// See [`WorkerCell::receive_starved`].
    pub receive_starved: u64,
    /// See [`WorkerCell::outer_paths`].
    pub outer_paths: u64,
    /// See [`WorkerCell::flow_lock_contended`].
    pub flow_lock_contended: u64,
    /// See [`WorkerCell::flows_evicted`].
    pub flows_evicted: u64,
    /// See [`WorkerCell::flows_retaught`].
    pub flows_retaught: u64,
    /// See [`WorkerCell::stray_completions`].
    pub stray_completions: u64,
    /// See [`WorkerCell::to_gwi_times`].
    pub to_gwi_times: HistogramSnapshot,
    /// See [`WorkerCell::to_gwlb_times`].
    pub to_gwlb_times: HistogramSnapshot,
}

impl WorkerSnapshot {
    /// Adds datagrams that were dropped for `reason` before they came to the worker.
    pub fn add_dropped(&mut self, reason: DropReason, datagrams: u64, bytes: u64) {
        self.datagrams += TrafficSnapshot { packets: datagrams, bytes };
        self.drops.0[reason.index()] += datagrams;
    }
}

impl From<&WorkerCell> for WorkerSnapshot {
    fn from(live: &WorkerCell) -> Self {
        // Out before in: a datagram that moves between the two reads is then counted as held,
        // never as less than nothing.
        let held_out = live.held_out.get();
        Self {
            datagrams: (&live.datagrams).into(),
            receives: live.receives.get(),
            merging_paused: live.merging_paused.get(),
            gwi_writes: live.gwi_writes.get(),
            tun_reads: live.tun_reads.get(),
            sends: live.sends.get(),
            drops: (&live.drops).into(),
            held: live.held_in.get().saturating_sub(held_out),
            last_datagram: live.last_datagram.get(),
            last_turn: live.last_turn.get(),
            turns: live.turns.get(),
            receive_starved: live.receive_starved.get(),
            outer_paths: live.outer_paths.get(),
            flow_lock_contended: live.flow_lock_contended.get(),
            flows_evicted: live.flows_evicted.get(),
            flows_retaught: live.flows_retaught.get(),
            stray_completions: live.stray_completions.get(),
            to_gwi_times: (&live.to_gwi_times).into(),
            to_gwlb_times: (&live.to_gwlb_times).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_several_workers_add_up() {
        let cells = [EndpointCell::default(), EndpointCell::default()];
        cells[0].from_gwlb.count(100);
        cells[1].from_gwlb.count(50);
        for _ in 0..3 {
            cells[0].flows_added.count(FlowKind::V4Udp);
        }
        cells[0].flows_added.count(FlowKind::V6Tcp);
        cells[1].flows_removed.count(FlowKind::V4Udp);
        cells[1].flows_removed.count(FlowKind::V4Udp);
        cells[1].last_seen.set(Moment::from_secs(9));
        cells[0].encap_drops.count(DropReason::FlowUnknown);
        cells[1].encap_drops.add(DropReason::FlowUnknown, 2);
        let all = EndpointSnapshot::sum(&cells);
        assert_eq!(all.from_gwlb, TrafficSnapshot { packets: 2, bytes: 150 });
        assert_eq!((all.flows.get(FlowKind::V4Udp), all.flows.sum(&FlowKind::V6)), (1, 1));
        assert_eq!(all.flows_removed.sum(&FlowKind::ALL), 2);
        assert_eq!(all.last_seen, Moment::from_secs(9));
        assert_eq!(all.encap_drops.total(), 3);
        let occurred: Vec<_> = all.encap_drops.occurred().collect();
        assert_eq!(occurred, [(DropReason::FlowUnknown, 3)]);
    }

    #[test]
    fn what_one_worker_reads_and_did_not_receive_is_another_s() {
        let cells = [EndpointCell::default(), EndpointCell::default()];
        cells[0].from_gwlb.count_many(10, 1000);
        cells[1].from_gwlb.count_many(2, 200);
        cells[0].from_gwo.count_many(7, 700);
        cells[1].from_gwo.count_many(3, 300);
        cells[1].from_gwi.count_many(4, 400);
        assert_eq!(EndpointSnapshot::sum(&cells).foreign, 5);
        cells[1].host_noise.add(3);
        assert_eq!(EndpointSnapshot::sum(&cells).foreign, 2);
    }
}
