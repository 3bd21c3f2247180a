//! How many flows each endpoint has in the table, and which flow has to go for a new one.
//!
//! The table has no parts: while it has room, any endpoint may use all of it. When it is full, an
//! endpoint's *share* is the table divided by the endpoints that have flows, and room for a new
//! flow comes from an endpoint that has more than its share and more flows than the new one's, or
//! else from the new one's own ([`Rank`] is the order). So an endpoint within its share loses no
//! flow to others, whatever they send; what it has beyond is only lent.
//!
//! The counts are touched when a flow comes or goes, never by a packet of a known flow, and not
//! when a flow makes room for one of its own endpoint, as in a flood through one endpoint.
//!
//! ```text
//!  a slot's word    63          32  31  30          0
//!                  ┌──────────────┬───┬──────────────┐
//!                  │  generation  │end│    flows     │   end: this life of the slot is over
//!                  └──────────────┴───┴──────────────┘
//! ```

use super::entry::FlowState;
use crate::sync::AtomicU64;
use crate::sync::AtomicUsize;
use crate::sync::Ordering;
use crate::types::EndpointRef;

/// Idle seconds after which a two-way flow may be evicted for one of its own endpoint: when a load
/// balancer forgets a flow that is not TCP (AWS guide, "Gateway Load Balancers", *Idle timeout*).
pub(super) const TWO_WAY_IDLE_SECS: u32 = 120;

const OVER: u64 = 1 << 31;
const FLOWS: u64 = OVER - 1;

/// What a slot's word says.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Count {
    generation: u32,
    is_over: bool,
    flows: u32,
}

impl Count {
    fn unpack(word: u64) -> Self {
        let half = |half: u64| u32::try_from(half).expect("32 bits");
        Self { generation: half(word >> 32), is_over: word & OVER != 0, flows: half(word & FLOWS) }
    }

    fn pack(self) -> u64 {
        u64::from(self.generation) << 32
            | if self.is_over { OVER } else { 0 }
            | u64::from(self.flows)
    }

    /// Whether a life of the slot comes after the one that is counted.
    const fn is_before(self, life: EndpointRef) -> bool {
        life.generation.0.wrapping_sub(self.generation).cast_signed() > 0
    }

    const fn is_of(self, life: EndpointRef) -> bool {
        self.generation == life.generation.0 && !self.is_over
    }

    const fn has_flows(self) -> bool {
        self.flows > 0 && !self.is_over
    }
}

/// The flows of every endpoint, counted.
pub(super) struct Shares {
    flows_max: usize,
    counts: Box<[AtomicU64]>,
    /// Endpoints that have flows.
    holders: AtomicUsize,
}

impl Shares {
    /// No flows, in a table of `flows_max`, of endpoints in so many slots.
    pub(super) fn new(flows_max: usize, endpoints_max: usize) -> Self {
        Self {
            flows_max,
            counts: (0..endpoints_max).map(|_| AtomicU64::new(0)).collect(),
            holders: AtomicUsize::new(0),
        }
    }

    /// Counts a flow that is about to be entered. The first one of a life begins that life's count.
    /// A life that is over has no count any more.
    pub(super) fn entered(&self, endpoint: EndpointRef) {
        self.update(endpoint, |count| {
            if count.is_of(endpoint) {
                return Some(Count { flows: count.flows + 1, ..count });
            }
            let first = Count { generation: endpoint.generation.0, is_over: false, flows: 1 };
            count.is_before(endpoint).then_some(first)
        });
    }

    /// Takes a flow that was removed off the count of its life, if that goes on.
    pub(super) fn left(&self, endpoint: EndpointRef) {
        self.update(endpoint, |count| {
            let flows = count.flows.checked_sub(1)?;
            count.is_of(endpoint).then_some(Count { flows, ..count })
        });
    }

    /// This life of the endpoint is over: its flows count no more, and go first.
    pub(super) fn end(&self, endpoint: EndpointRef) {
        self.update(endpoint, |count| {
            let over = Count { generation: endpoint.generation.0, is_over: true, flows: 0 };
            (count.is_of(endpoint) || count.is_before(endpoint)).then_some(over)
        });
    }

    /// Flows of this life of an endpoint; nothing if it is over.
    pub(super) fn flows_of(&self, endpoint: EndpointRef) -> Option<usize> {
        let word = self.counts[endpoint.slot.index()].load(Ordering::Relaxed);
        let count = Count::unpack(word);
        if count.is_before(endpoint) {
            return Some(0);
        }
        count.is_of(endpoint).then(|| usize::try_from(count.flows).expect("31 bits"))
    }

    /// The flows that are each endpoint's own when the table is full, with so many endpoints to
    /// come besides those that have flows.
    fn share(&self, to_come: usize) -> usize {
        // Written after the counts, which others may have changed since: below zero, too.
        let holders = self.holders.load(Ordering::Relaxed).cast_signed().max(0).cast_unsigned();
        self.flows_max / (holders + to_come).max(1)
    }

    /// Changes a count, and the number of endpoints that have flows with it.
    fn update(&self, endpoint: EndpointRef, change: impl Fn(Count) -> Option<Count>) {
        let changed = |word| change(Count::unpack(word)).map(Count::pack);
        let word = &self.counts[endpoint.slot.index()];
        let Ok(before) = word.try_update(Ordering::Relaxed, Ordering::Relaxed, changed) else {
            return;
        };
        let before = Count::unpack(before);
        let after = change(before).expect("it has just changed");
        match (before.has_flows(), after.has_flows()) {
            (false, true) => {
                self.holders.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.holders.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// In which order flows go for a new one; what has no rank stays. Among those of one rank the one
/// seen longest ago goes.
///
/// A *larger* endpoint is one that has more than its share and more flows than the new one's. A
/// flood that nobody answers is *one-way*: the load balancer has sent its packets one way only. A
/// two-way flow is *idle* after 120 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Of an endpoint whose life is over: nobody needs it.
    Ended,
    /// One-way, of a larger endpoint.
    OneWayOfLarger,
    /// One-way, of the new one's own endpoint.
    OneWay,
    /// Two-way and idle, of a larger endpoint.
    IdleOfLarger,
    /// Two-way and idle, of the new one's own endpoint.
    Idle,
    /// Two-way, of a larger endpoint, where the new one's has less than its share.
    LiveOfLarger,
}

/// The endpoint that wants to enter a flow into a full table.
pub(super) struct Newcomer<'a> {
    shares: &'a Shares,
    endpoint: EndpointRef,
    flows: usize,
    share: usize,
    now_secs: u32,
}

impl<'a> Newcomer<'a> {
    /// A new flow of this endpoint.
    pub(super) fn new(shares: &'a Shares, endpoint: EndpointRef, now_secs: u32) -> Self {
        // Who has ended may take no more than what is its own.
        let flows = shares.flows_of(endpoint).unwrap_or(usize::MAX);
        let share = shares.share(usize::from(flows == 0));
        Self { shares, endpoint, flows, share, now_secs }
    }

    /// Whether a flow of this rank may go without a look at more: within its share an endpoint
    /// keeps its own flows if others have some that may go, and what is answered goes last.
    pub(super) fn is_content(&self, rank: Rank) -> bool {
        match rank {
            Rank::Ended | Rank::OneWayOfLarger => true,
            Rank::OneWay | Rank::IdleOfLarger | Rank::Idle => self.flows >= self.share,
            Rank::LiveOfLarger => false,
        }
    }

    /// The rank of a flow of `holder`, if it may go.
    pub(super) fn rank(
        &self,
        holder: EndpointRef,
        state: &FlowState,
        is_two_way: bool,
    ) -> Option<Rank> {
        let Some(flows) = self.shares.flows_of(holder) else {
            return Some(Rank::Ended);
        };
        let is_own = holder == self.endpoint;
        let is_larger = flows > self.share && flows > self.flows;
        if !is_own && !is_larger {
            return None;
        }
        if !is_two_way {
            return Some(if is_own { Rank::OneWay } else { Rank::OneWayOfLarger });
        }
        if state.idle_secs(self.now_secs) >= TWO_WAY_IDLE_SECS {
            return Some(if is_own { Rank::Idle } else { Rank::IdleOfLarger });
        }
        (!is_own && self.flows < self.share).then_some(Rank::LiveOfLarger)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::EndpointSlot;
    use crate::types::Generation;

    fn life(slot: u16, generation: u32) -> EndpointRef {
        EndpointRef { slot: EndpointSlot(slot), generation: Generation(generation) }
    }

    #[test]
    fn a_share_is_the_table_divided_by_who_has_flows() {
        let shares = Shares::new(1000, 4);
        assert_eq!(shares.share(0), 1000, "of nobody");
        shares.entered(life(0, 1));
        shares.entered(life(0, 1));
        assert_eq!((shares.share(0), shares.flows_of(life(0, 1))), (1000, Some(2)));
        shares.entered(life(3, 1));
        assert_eq!(shares.share(0), 500);
        shares.left(life(3, 1));
        assert_eq!((shares.share(0), shares.flows_of(life(3, 1))), (1000, Some(0)));
    }

    #[test]
    fn the_flows_of_an_ended_life_count_for_nobody() {
        let shares = Shares::new(1000, 4);
        for _ in 0..10 {
            shares.entered(life(2, 1));
        }
        shares.end(life(2, 1));
        assert_eq!((shares.flows_of(life(2, 1)), shares.share(0)), (None, 1000));
        shares.entered(life(2, 2));
        assert_eq!((shares.flows_of(life(2, 1)), shares.flows_of(life(2, 2))), (None, Some(1)));
        // What is late for the old life changes nothing about the new one.
        shares.entered(life(2, 1));
        shares.left(life(2, 1));
        shares.end(life(2, 1));
        assert_eq!(shares.flows_of(life(2, 2)), Some(1));
        shares.end(life(2, 3));
        assert_eq!(shares.flows_of(life(2, 2)), None, "a life without flows has ended after it");
    }

    #[test]
    fn generations_may_wrap() {
        let shares = Shares::new(1000, 1);
        shares.end(life(0, 1 << 31));
        shares.end(life(0, u32::MAX));
        shares.entered(life(0, 0));
        assert_eq!(shares.flows_of(life(0, 0)), Some(1));
        assert_eq!(shares.flows_of(life(0, u32::MAX)), None);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Entered(u16),
        Left(u16),
        Next(u16),
    }

    proptest! {
        #[test]
        fn counts_and_holders_are_those_of_a_naive_model(
            ops in prop::collection::vec(
                (0_u16..3, 0_u8..3).prop_map(|(slot, op)| match op {
                    0 => Op::Entered(slot),
                    1 => Op::Left(slot),
                    _ => Op::Next(slot),
                }),
                0..200,
            ),
        ) {
            let shares = Shares::new(1000, 3);
            let mut model: HashMap<u16, (u32, usize)> = (0..3).map(|slot| (slot, (1, 0))).collect();
            for op in ops {
                match op {
                    Op::Entered(slot) => {
                        let (generation, flows) = model.get_mut(&slot).unwrap();
                        shares.entered(life(slot, *generation));
                        *flows += 1;
                    }
                    Op::Left(slot) => {
                        let (generation, flows) = model.get_mut(&slot).unwrap();
                        if *flows > 0 {
                            shares.left(life(slot, *generation));
                            *flows -= 1;
                        }
                    }
                    Op::Next(slot) => {
                        let (generation, flows) = model.get_mut(&slot).unwrap();
                        shares.end(life(slot, *generation));
                        (*generation, *flows) = (*generation + 1, 0);
                    }
                }
                for (&slot, &(generation, flows)) in &model {
                    prop_assert_eq!(shares.flows_of(life(slot, generation)), Some(flows));
                }
                let holders = model.values().filter(|(_, flows)| *flows > 0).count();
                prop_assert_eq!(shares.holders.load(Ordering::Relaxed), holders);
            }
        }
    }

    /// A life may end between the count of its first flow and that of one more holder.
    #[test]
    fn for_a_moment_there_may_be_a_holder_too_few() {
        let shares = Shares::new(100, 8);
        shares.holders.fetch_sub(1, Ordering::Relaxed);
        assert_eq!([0, 1].map(|to_come| shares.share(to_come)), [100, 100]);
    }
}
