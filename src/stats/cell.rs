//! The live side of the counters: single-writer cells.

use super::histogram::Histogram;
use crate::sync::AtomicU64;
use crate::sync::Ordering;
use crate::sync::fence;
use crate::types::DropReason;
use crate::types::FlowKind;
use crate::types::Moment;

/// A number that only its owner increases and anybody may read.
///
/// The increase is a load and a store, not a locked read-modify-write: with one writer nothing
/// can be lost, and it costs what an ordinary addition costs.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owner of the cell may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A moment that only its owner sets and anybody may read.
#[derive(Debug, Default)]
pub struct Stamp(AtomicU64);

impl Stamp {
    /// Sets the moment. Only the owner of the cell may call this.
    pub fn set(&self, now: Moment) {
        self.0.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// The moment last set, [`Moment::ZERO`] if it never was.
    pub fn get(&self) -> Moment {
        Moment::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A number that only its owner sets and anybody may read.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value. Only the owner of the cell may call this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets and their bytes.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Number of packets.
    pub packets: Counter,
    /// Sum of their lengths in bytes.
    pub bytes: Counter,
}

impl Traffic {
    /// Counts one packet of `bytes` bytes.
    pub fn count(&self, bytes: usize) {
        self.count_many(1, bytes as u64);
    }

    /// Counts `packets` packets of `bytes` bytes in all.
    pub fn count_many(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }
}

/// One counter per drop reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts one dropped packet.
    pub fn count(&self, reason: DropReason) {
        self.0[reason.index()].add(1);
    }

    /// Counts `packets` dropped packets.
    pub fn add(&self, reason: DropReason, packets: u64) {
        self.0[reason.index()].add(packets);
    }

    /// Packets dropped for `reason` until now.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.index()].get()
    }
}

/// One counter per kind of flow.
#[derive(Debug, Default)]
pub struct FlowCounters([Counter; FlowKind::COUNT]);

impl FlowCounters {
    /// Counts one flow.
    pub fn count(&self, kind: FlowKind) {
        self.0[kind.index()].add(1);
    }

    /// Flows of this kind counted until now.
    pub fn get(&self, kind: FlowKind) -> u64 {
        self.0[kind.index()].get()
    }
}

/// What one worker did for one endpoint.
///
/// Conservation, whenever nothing is in flight:
/// `from_gwlb = to_gwi + drops of direction decap`, and
/// `from_gwi + from_gwo + too_big_sent = to_gwlb + host_noise + drops of direction encap`.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EndpointCell {
    /// Packets received from the load balancer with this endpoint's id.
    pub from_gwlb: Traffic,
    /// Packets written to `gwi`.
    pub to_gwi: Traffic,
    /// Packets read from `gwi`, host noise included.
    pub from_gwi: Traffic,
    /// Packets read from `gwo`, host noise included.
    pub from_gwo: Traffic,
    /// Packets sent back to the load balancer.
    pub to_gwlb: Traffic,
    /// Packets that the target's own kernel emits on any link: neither loss nor activity.
    pub host_noise: Counter,
    /// Answers that we made to packets above what the load balancer takes, and sent to it.
    pub too_big_sent: Counter,
    /// Packets from the load balancer that did not reach `gwi`.
    pub decap_drops: Drops,
    /// Packets from the TUN that did not reach the load balancer.
    pub encap_drops: Drops,
    /// When a packet of a host last passed, either way.
    pub last_seen: Stamp,
    /// When a packet was last written to `gwi`.
    pub last_to_gwi: Stamp,
    /// When a packet was last read from `gwi`.
    pub last_from_gwi: Stamp,
    /// When a packet was last read from `gwo`.
    pub last_from_gwo: Stamp,
    /// Flows that this worker entered into the table.
    pub flows_added: FlowCounters,
    /// Flows that this worker removed from the table.
    pub flows_removed: FlowCounters,
    /// TCP and UDP flows that the load balancer was seen to send both ways. Who makes an endpoint
    /// up sends one way, mostly.
    pub answered_flows: Counter,
}

/// What one worker did, apart from what belongs to an endpoint.
///
/// Conservation, whenever nothing is in flight: `datagrams = Σ endpoints' from_gwlb + drops +
/// held`.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCell {
    /// Datagrams received on UDP port 6081, and their UDP payload bytes.
    pub datagrams: Traffic,
    /// Receives that brought them: fewer, where the kernel merges datagrams.
    pub receives: Counter,
    /// 1 while the kernel is not asked to merge datagrams because it found none to merge.
    pub merging_paused: Gauge,
    /// Frames written to `gwi`: fewer than packets, where packets are merged.
    pub gwi_writes: Counter,
    /// Frames read from `gwi` and `gwo`.
    pub tun_reads: Counter,
    /// Sends to the load balancer: fewer than packets, where several share one.
    pub sends: Counter,
    /// Datagrams that were dropped before, or without, belonging to an endpoint.
    pub drops: Drops,
    /// The IPv4 address that the last datagram dropped as `source_denied` came from; 0 if none has.
    pub stranger: Gauge,
    /// Datagrams that wait for their endpoint's CREATE hook. A gauge, kept as two counters.
    pub held_in: Counter,
    /// Datagrams that have left the hold queue, to the TUN or into a drop counter.
    pub held_out: Counter,
    /// When a datagram was last received.
    pub last_datagram: Stamp,
    /// The last turn of the loop: the heartbeat that health looks at.
    pub last_turn: Stamp,
    /// Turns of the loop.
    pub turns: Counter,
    /// Times the receive ring ran out of buffers and had to be armed again.
    pub receive_starved: Counter,
    /// Outer paths that datagrams came by of late, as far as they are counted.
    pub outer_paths: Gauge,
    /// Times a lock of the flow table was held by somebody else.
    pub flow_lock_contended: Counter,
    /// Flows removed to make room, before they were idle.
    pub flows_evicted: Counter,
    /// Headers that a known flow's direction got from another outer source than before.
    pub flows_retaught: Counter,
    /// Completions for an operation that had already ended: always 0 unless there is a bug.
    pub stray_completions: Counter,
    /// Samples of the time from the start of a turn to the end of its first write to `gwi`.
    pub to_gwi_times: Histogram,
    /// Samples of the time from the start of a turn to the end of its first send.
    pub to_gwlb_times: Histogram,
}

impl WorkerCell {
    /// Ends a turn of the loop. Who sees anything that is counted from here on, in this cell or in
    /// another one of the worker, and then looks behind an acquiring fence, sees all that was
    /// counted before: no packet returns before it came.
    pub fn end_turn(&self, now: Moment) {
        self.turns.add(1);
        self.last_turn.set(now);
        fence(Ordering::Release);
    }
}
