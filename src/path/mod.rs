//! The way of a packet, without I/O and without a clock: bytes come in, a [`plan`] goes out, and
//! every packet is planned, held or counted.
//!
//! ```text
//!   datagram ─▶ decap: header → endpoint → flow is learned ─▶ coalesce ─▶ job for gwi
//!                              └▶ unknown or not ready ─▶ hold
//!   frame    ─▶ encap: packet → flow is found → cut into segments ─▶ sends ─▶ job for the balancer
//!                              └▶ a fragment that is early ─▶ waiting
//! ```
//!
//! What is taken in one batch may leave together: packets of a flow as one frame, datagrams of an
//! outer path as one send. [`Path::end_batch`] plans what is still open.
//!
//! One [`Path`] belongs to one worker. What it shares with the others is the flow table and the
//! endpoints' header templates.

mod batch;
mod clamp;
mod coalesce;
mod decap;
mod encap;
mod endpoints;
mod hold;
mod lookup;
pub mod plan;
mod sends;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use coalesce::Coalescer;
pub use decap::Arrived;
pub use decap::Decap;
pub use decap::first_of_train;
pub use encap::FRAME_BYTES_MAX;
pub use encap::Frame;
pub use encap::UDP_HEADER_BYTES;
pub use encap::UdpPayload;
pub use encap::packet_in;
pub use encap::prepend_udp_header;
pub use endpoints::Endpoint;
use endpoints::Endpoints;
use hold::HoldArena;
use lookup::Answers;
use plan::Buffers;
use plan::Plan;
use sends::Sends;
use waiting::WaitingRoom;

use crate::flow::FlowTable;
use crate::flow::Removed;
use crate::flow::Tally;
use crate::flow::Ttl;
use crate::stats::WorkerCell;
use crate::sync::Pace;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::EndpointRef;
use crate::types::EndpointSlot;
use crate::types::Moment;
use crate::types::Offload;
use crate::types::OuterPath;
use crate::types::TcpSegmentMax;
use crate::wire::gso::Transport;
pub use crate::wire::gwlb::Profile;

/// Jobs that a plan must have room for, so that [`Path::has_room`] holds for an empty one: a frame
/// for every flow of the batch, and a send for every segment of a frame. (Where each segment is a
/// send, no send is open besides.)
pub const PLAN_JOBS_MIN: usize = coalesce::FLOWS_MAX as usize + encap::FRAME_JOBS_SINGLY;

/// Errors that one worker sends at once, and how long it takes until there is another: what Linux
/// allows itself (`net.ipv4.icmp_msgs_burst`, `icmp_msgs_per_sec`). RFC 4443 §2.4 (f) wants a
/// limit.
const ERRORS_AT_ONCE: u32 = 50;
const ERROR_INTERVAL: Duration = Duration::from_millis(1);

/// Most fragments that wait for their first one.
pub const WAITING_MAX: usize = waiting::FRAGMENTS_MAX;

/// One worker's knowledge of endpoints and flows.
#[derive(Debug)]
pub struct Path {
    endpoints: Endpoints,
    hold: HoldArena,
    flows: Arc<FlowTable>,
    cell: Arc<WorkerCell>,
    tally: Tally,
    ttl: Ttl,
    clamp_mss: Option<TcpSegmentMax>,
    profile: Profile,
    returns: bool,
    coalescer: Coalescer,
    sends: Sends,
    answers: Answers,
    waiting: WaitingRoom,
    /// When the next error of our own may go out.
    errors: Pace,
    /// Why a packet was last dropped, until somebody asks.
    last_drop: Option<DropReason>,
    /// The shard that [`Self::expire`] looks at, and the step to the next one of this worker.
    shard: usize,
    shard_step: usize,
}

impl Path {
    /// The path of worker `worker` of `workers`, for up to `endpoints_max` endpoints. Until
    /// [`Self::set_ttl`] flows live as long as the load balancer's own do by default. What
    /// `offload` allows is merged and gathered.
    pub fn new(
        flows: Arc<FlowTable>,
        cell: Arc<WorkerCell>,
        endpoints_max: usize,
        (worker, workers): (usize, usize),
        offload: Offload,
    ) -> Self {
        Self {
            coalescer: Coalescer::new(offload),
            sends: Sends::new(offload.udp_gso),
            answers: lookup::no_answers(),
            waiting: WaitingRoom::new(),
            errors: Pace::new(ERRORS_AT_ONCE, ERROR_INTERVAL),
            endpoints: Endpoints::new(endpoints_max),
            hold: HoldArena::new(),
            shard: worker % flows.shards(),
            shard_step: workers,
            flows,
            cell,
            tally: Tally::default(),
            ttl: Ttl { tcp_secs: 350, other_secs: 120 },
            clamp_mss: None,
            profile: Profile::AWS,
            returns: true,
            last_drop: None,
        }
    }

    /// The path for the datagrams of another load balancer than AWS's.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// Whose load balancer sends.
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// A path that returns nothing, and so remembers no flow; unless `returns`.
    #[must_use]
    pub fn with_returns(self, returns: bool) -> Self {
        Self { returns, ..self }
    }

    /// Whether so many more datagrams, or one more frame, find room in a plan beside what is open.
    pub fn has_room(&self, plan: &Plan, datagrams: usize) -> bool {
        let [(frames, frame_spans), (sends, send_spans)] =
            [self.coalescer.open(), self.sends.open()];
        let jobs_max =
            if self.sends.gathers() { encap::FRAME_JOBS } else { encap::FRAME_JOBS_SINGLY };
        plan.has_room(
            frames + sends + jobs_max.max(datagrams),
            frame_spans + send_spans + encap::FRAME_SPANS.max(datagrams),
        )
    }

    /// Plans what is open: frames that wait for more packets of their flow, and sends that wait for
    /// more datagrams of their path. From now on the batch's buffers may be given to the plan's
    /// executor.
    pub fn end_batch(&mut self, buffers: &mut impl Buffers, plan: &mut Plan) {
        self.coalescer.flush(buffers, plan);
        self.sends.end_batch(plan);
        self.answers.clear();
    }

    /// From now on no send holds more than one datagram.
    pub fn stop_gathering(&mut self) {
        self.sends.stop_gathering();
    }

    /// From now on no packets of `transport` are merged into super-packets. Returns whether some
    /// could have been until now.
    pub fn stop_coalescing(&mut self, transport: Transport) -> bool {
        self.coalescer.stop_coalescing(transport)
    }

    /// New idle times for flows.
    pub fn set_ttl(&mut self, ttl: Ttl) {
        self.ttl = ttl;
    }

    /// From now on TCP connections agree on no larger segments than this, if anything.
    pub const fn set_clamp_mss(&mut self, most: Option<TcpSegmentMax>) {
        self.clamp_mss = most;
    }

    /// Why the last packet was dropped, if one was since this was asked.
    pub const fn take_last_drop(&mut self) -> Option<DropReason> {
        self.last_drop.take()
    }

    /// The endpoint in `slot`, if this worker serves it.
    pub fn endpoint(&self, slot: EndpointSlot) -> Option<&Endpoint> {
        self.endpoints.at(slot)
    }

    /// Remembers that `id` was admitted, and holds the datagram that showed it. Returns false,
    /// and has counted the datagram as dropped, if there is no room for another id.
    #[must_use]
    pub fn announced(&mut self, id: EndpointId, datagram: &[u8], outer: OuterPath) -> bool {
        let entered = self.endpoints.announced(id);
        if entered {
            self.keep(id, datagram, outer);
        } else {
            self.refused(DropReason::EndpointLimit);
        }
        entered
    }

    /// Counts a datagram that can neither be delivered nor held.
    pub fn refused(&mut self, reason: DropReason) {
        self.cell.drops.count(reason);
        self.last_drop = Some(reason);
    }

    /// From now on this worker serves the endpoint. What is held for it waits for
    /// [`Self::next_held`].
    pub fn attach(&mut self, endpoint: Endpoint) {
        self.coalescer.forget_last();
        self.endpoints.attach(endpoint);
    }

    /// From now on datagrams of the endpoint are held again.
    pub fn closing(&mut self, endpoint: EndpointRef) {
        self.coalescer.forget_last();
        self.endpoints.closing(endpoint);
    }

    /// This worker no longer serves the endpoint. Returns its id if datagrams are held for it,
    /// so that it must be announced anew.
    pub fn detach(&mut self, endpoint: EndpointRef) -> Option<EndpointId> {
        self.coalescer.forget_last();
        self.flows.end(endpoint);
        self.endpoints.detach(endpoint)
    }

    /// The endpoint could not be set up: what is held for it is dropped as `reason`. Its next
    /// datagram announces it again.
    pub fn forget(&mut self, id: EndpointId, reason: DropReason) {
        if let Some(held) = self.endpoints.fail(id) {
            self.drop_held(held, reason);
        }
    }

    /// Copies the oldest datagram held for a served endpoint to the start of `out`; returns its
    /// length and path. Nothing when none is held any more.
    ///
    /// # Panics
    /// If `out` is shorter than the datagram: what was received fits a receive buffer.
    pub fn next_held(
        &mut self,
        endpoint: EndpointRef,
        out: &mut [u8],
    ) -> Option<(usize, OuterPath)> {
        let held = self.endpoints.held_mut(endpoint)?;
        let next = self.hold.pop(held, out);
        if next.is_some() {
            self.cell.held_out.add(1);
        }
        next
    }

    /// Whether datagrams are held for a served endpoint.
    pub fn has_held(&mut self, endpoint: EndpointRef) -> bool {
        self.endpoints.held_mut(endpoint).is_some_and(|held| !held.is_empty())
    }

    /// Everything that is still held, or waits, is dropped: the program ends.
    pub fn drop_all_held(&mut self) {
        self.drop_waiting();
        while let Some(held) = self.endpoints.take_any_held() {
            self.drop_held(held, DropReason::Shutdown);
        }
    }

    fn drop_held(&mut self, mut held: hold::HoldList, reason: DropReason) {
        let dropped = self.hold.discard(&mut held);
        self.cell.held_out.add(dropped);
        self.cell.drops.add(reason, dropped);
    }

    fn keep(&mut self, id: EndpointId, datagram: &[u8], outer: OuterPath) {
        let Some(held) = self.endpoints.held_of(id) else {
            return;
        };
        if self.hold.push(held, datagram, outer) {
            self.cell.held_in.add(1);
        } else {
            self.refused(DropReason::NotReady);
        }
    }

    /// Looks at up to `flows` flows and forgets the idle ones: a little every turn.
    pub fn expire(&mut self, flows: usize, now: Moment) {
        let Self { endpoints, tally, .. } = self;
        self.flows.expire(self.shard, flows, &self.ttl, now, tally, |removed| {
            count_removed(endpoints, removed);
        });
        self.shard = (self.shard + self.shard_step) % self.flows.shards();
    }

    /// Moves what the turn has tallied into the worker's counters.
    pub fn publish(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        if tally != Tally::default() {
            self.cell.flow_lock_contended.add(tally.contended);
            self.cell.flows_evicted.add(tally.evicted);
            self.cell.flows_retaught.add(tally.retaught);
        }
    }
}

/// Counts a removed flow for its endpoint, unless that life of the endpoint is over.
fn count_removed(endpoints: &Endpoints, removed: Removed) {
    let Some(endpoint) = endpoints.at(removed.endpoint.slot) else {
        return;
    };
    if endpoint.endpoint != removed.endpoint {
        return;
    }
    endpoint.cell.flows_removed.count(removed.kind);
}

#[cfg(test)]
mod tests;
