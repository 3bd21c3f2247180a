//! The flow table: shards behind locks of their own, shared by all workers.
//!
//! A worker takes one lock for one lookup, gets the header as a copy and holds no lock across
//! I/O. There are many more shards than workers, so two seldom want the same one; how often they
//! did is counted ([`Tally::contended`]).
//!
//! # Room
//! The table holds at most `flows_max` flows, exactly: a counter of all shards says so. It is
//! written when a flow is entered into a table that is not full or leaves by age, never by a
//! packet of a known flow and never by an eviction.
//!
//! Flows do not spread evenly, so each shard has room for six standard deviations above its
//! share λ = `flows_max` / shards. The flows of a shard are binomially distributed with a
//! variance below λ, and by Bernstein's inequality the odds that a shard of a full table wants
//! more are below exp(−18 / (1 + 2/√λ)): 2·10⁻⁸ for 1,000,000 flows in 64 shards, 6·10⁻⁷ for
//! the smallest share, 64. If it happens, that shard evicts a little early.
//!
//! # Whose room
//! All of it is anybody's while there is some. When the table is full, [`shares`](super::shares)
//! says whose flows go: an endpoint within its share loses none to others.
//!
//! # Memory
//! An IPv4 flow takes 60 bytes and an IPv6 flow 84, plus 5 bytes per bucket of the index; for
//! 1,000,000 flows there are 2²¹ buckets, 10.5 MB. Address space is reserved for `flows_max`
//! flows of both families, and becomes resident page by page as flows are entered. (Where
//! transparent huge pages are on for everyone, a page is 2 MiB.)

use std::fmt;
use std::sync::TryLockError;

use super::entry::FlowState;
use super::entry::Sources;
use super::entry::StoredHeader;
use super::entry::Taught;
use super::key::FlowKey;
use super::key::HashSeed;
use super::key::KeyHasher;
use super::key::Way;
use super::shard::Removed;
use super::shard::Shard;
use super::shard::Ttl;
use super::shares::Newcomer;
use super::shares::Shares;
use crate::sync::AtomicUsize;
use crate::sync::Mutex;
use crate::sync::MutexGuard;
use crate::sync::Ordering;
use crate::types::EndpointRef;
use crate::types::Moment;

/// Fewest shards of a table that is not small.
const SHARDS_MIN: usize = 64;

/// Shards per worker.
const SHARDS_PER_WORKER: usize = 16;

/// Fewest flows that are worth a shard. With fewer, one shard would turn flows away while others
/// are empty.
const SHARD_FLOWS_MIN: usize = 64;

/// Flows of a shard above which a table gets more shards. Clearing the traces of removals from an
/// index (see [`Shard::insert`]) takes time in proportion: 0.25 ms for this many, measured.
const SHARD_FLOWS_WANTED: usize = 16_384;

/// Shards are chosen by the bits of the hash from this one up. hashbrown takes the lowest bits
/// for the bucket (at most 32, as places have 32) and the 7 highest for its tags.
const SHARD_BITS_AT: u32 = 32;

/// Most shards: their bits end below hashbrown's tags.
const SHARDS_MAX: usize = 1 << 16;

/// Slots of endpoints unless told: as many endpoints as can be asked for.
const ENDPOINTS: usize = 4096;

/// How large a table is and in how many parts, and who may change what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePlan {
    /// Most flows that the table holds at a time, both families together.
    pub flows_max: usize,
    /// Number of shards, a power of two.
    pub shards: usize,
    /// Slots of endpoints: each one's number is below this.
    pub endpoints_max: usize,
    /// Who may teach a known flow.
    pub sources: Sources,
}

impl TablePlan {
    /// The table for this many flows and workers: 64 shards or 16 per worker, whichever is more;
    /// more than that where a shard would get above 16,384 flows, fewer where below 64.
    pub fn new(flows_max: usize, workers: usize) -> Self {
        let wanted = (workers * SHARDS_PER_WORKER)
            .max(flows_max.div_ceil(SHARD_FLOWS_WANTED))
            .clamp(SHARDS_MIN, SHARDS_MAX)
            .next_power_of_two();
        let worthwhile = (flows_max / SHARD_FLOWS_MIN).max(1);
        let shards = wanted.min(1 << worthwhile.ilog2());
        Self { flows_max, shards, endpoints_max: ENDPOINTS, sources: Sources::default() }
    }

    /// Room in one shard: its share and six standard deviations.
    fn shard_flows_max(&self) -> usize {
        let share = self.flows_max.div_ceil(self.shards);
        if self.shards == 1 {
            return share;
        }
        (share + 6 * (share.isqrt() + 1)).min(self.flows_max)
    }
}

/// What a worker counts about its use of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Times the lock of a shard was held by somebody else.
    pub contended: u64,
    /// Flows removed to make room, before they were idle too long.
    pub evicted: u64,
    /// Headers that a known flow's direction got from another outer source than before.
    pub retaught: u64,
}

/// What became of a header that the load balancer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It is the first of a flow that is new to the table.
    New {
        /// The flow that had to go for it.
        evicted: Option<Removed>,
    },
    /// It was stored with a flow that the table holds.
    Known,
    /// The same, and it is the first this way: the load balancer has sent both ways now.
    Answered,
    /// The table is full, and nothing in reach may go: the flow was not entered.
    Full,
    /// It came from another outer source than the flow is pinned to, and was not stored.
    Pinned,
}

/// A value on cache lines of its own: two of 64 bytes, because the processor prefetches pairs.
#[repr(align(128))]
struct OwnLines<T>(T);

#[cfg(not(gwlbtun_loom))]
const _: () = assert!(size_of::<OwnLines<Mutex<Shard>>>() == 128);

/// All flows of all endpoints.
pub struct FlowTable {
    hasher: KeyHasher,
    shards: Box<[OwnLines<Mutex<Shard>>]>,
    flows_max: usize,
    sources: Sources,
    shares: Shares,
    /// Flows in all shards. A flow is counted before it is entered, and until it is removed.
    flows: OwnLines<AtomicUsize>,
}

impl FlowTable {
    /// An empty table. All memory is reserved here; nothing allocates afterwards.
    ///
    /// # Panics
    /// If `plan.shards` is no power of two or above 2¹⁶, or a shard would hold more than 2³¹
    /// flows. Aborts if there is not enough address space.
    pub fn new(plan: TablePlan, seed: HashSeed) -> Self {
        assert!(plan.shards.is_power_of_two() && plan.shards <= SHARDS_MAX);
        let shard_flows_max = plan.shard_flows_max();
        Self {
            hasher: KeyHasher::new(seed),
            shards: (0..plan.shards)
                .map(|_| OwnLines(Mutex::new(Shard::new(shard_flows_max))))
                .collect(),
            flows_max: plan.flows_max,
            sources: plan.sources,
            shares: Shares::new(plan.flows_max, plan.endpoints_max),
            flows: OwnLines(AtomicUsize::new(0)),
        }
    }

    /// Stores the header of a packet that the load balancer sent, for the flow and the direction
    /// that the packet has. The newest header wins at once, unless the flow is pinned to the source
    /// of the one before.
    ///
    /// A header whose cookie differs from the one stored for its direction begins a new flow
    /// under the same 5-tuple: the other direction's header is dropped then, unless it has the
    /// new cookie too.
    ///
    /// # Panics
    /// If the endpoint's slot is none of the plan's.
    pub fn learn(
        &self,
        key: &FlowKey,
        way: Way,
        header: &StoredHeader,
        now: Moment,
        tally: &mut Tally,
    ) -> Learned {
        let hash = self.hasher.hash(key);
        let mut shard = self.lock(self.shard_of(hash), tally);
        if let Some(state) = shard.find_mut(key, hash) {
            return match state.learn(way, header, now.secs(), self.sources) {
                Taught::Stored => Learned::Known,
                Taught::Answered => Learned::Answered,
                Taught::FromElsewhere => {
                    tally.retaught += 1;
                    Learned::Known
                }
                Taught::Refused => Learned::Pinned,
            };
        }
        self.enter(&mut shard, (key, hash), FlowState::new(way, header, now.secs()), now, tally)
    }

    /// Stores the header under which a first fragment of this host has gone back, for the packet's
    /// later ones: `key` and `way` are theirs. It serves where the load balancer has sent none of
    /// them just before, under which headers those go that it has.
    ///
    /// # Panics
    /// If the endpoint's slot is none of the plan's.
    pub fn follow(
        &self,
        key: &FlowKey,
        way: Way,
        header: &StoredHeader,
        now: Moment,
        tally: &mut Tally,
    ) -> Learned {
        let hash = self.hasher.hash(key);
        let mut shard = self.lock(self.shard_of(hash), tally);
        if let Some(state) = shard.find_mut(key, hash) {
            state.follow(way, header, now.secs());
            return Learned::Known;
        }
        let state = FlowState::new(way.opposite(), header, now.secs());
        self.enter(&mut shard, (key, hash), state, now, tally)
    }

    /// Enters a flow that its shard does not hold, if there is room for it or can be made.
    #[inline(never)]
    fn enter(
        &self,
        shard: &mut Shard,
        (key, hash): (&FlowKey, u64),
        state: FlowState,
        now: Moment,
        tally: &mut Tally,
    ) -> Learned {
        let endpoint = key.endpoint();
        let mut evicted = None;
        if !(shard.has_room() && self.count_one_more()) {
            let newcomer = Newcomer::new(&self.shares, endpoint, now.secs());
            let Some(place) = shard.victim(&newcomer) else {
                return Learned::Full;
            };
            evicted = Some(shard.remove(place, &self.hasher));
            tally.evicted += 1;
        }
        // Within one endpoint the count stays: a flood writes nothing that workers share.
        let loser = evicted.map(|evicted| evicted.endpoint);
        if loser != Some(endpoint) {
            self.shares.entered(endpoint);
            loser.inspect(|&loser| self.shares.left(loser));
        }
        shard.insert(key, hash, state, &self.hasher);
        Learned::New { evicted }
    }

    /// This life of an endpoint is over: its flows make room first, go when next looked at, and do
    /// not count against the endpoint that has its slot next. To be said once at least.
    ///
    /// # Panics
    /// If the endpoint's slot is none of the plan's.
    pub fn end(&self, endpoint: EndpointRef) {
        self.shares.end(endpoint);
    }

    /// The header for a packet of the host: the last one received for its own direction, else
    /// for the other one. The flow counts as seen.
    pub fn find(
        &self,
        key: &FlowKey,
        way: Way,
        now: Moment,
        tally: &mut Tally,
    ) -> Option<StoredHeader> {
        let hash = self.hasher.hash(key);
        let mut shard = self.lock(self.shard_of(hash), tally);
        let state = shard.find_mut(key, hash)?;
        state.refresh(way, now.secs());
        Some(state.header(way))
    }

    /// Looks at the next `flows` flows of one shard and forgets those that have been idle too
    /// long, and those of endpoints that have ended; where it stops, the next call goes on. The
    /// idle time counts from the last packet of either direction that was learned or found.
    ///
    /// `removed` is called under the shard's lock and must not use the table.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn expire(
        &self,
        shard: usize,
        flows: usize,
        ttl: &Ttl,
        now: Moment,
        tally: &mut Tally,
        mut removed: impl FnMut(Removed),
    ) {
        let mut gone = 0;
        let context = (&self.hasher, &self.shares);
        self.lock(shard, tally).expire(flows, *ttl, now.secs(), context, |flow| {
            gone += 1;
            self.shares.left(flow.endpoint);
            removed(flow);
        });
        if gone > 0 {
            self.flows.0.fetch_sub(gone, Ordering::Relaxed);
        }
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Flows that the table holds. While workers enter and remove flows it may count one of
    /// theirs that is not yet in or already out.
    pub fn len(&self) -> usize {
        self.flows.0.load(Ordering::Relaxed)
    }

    /// Whether the table holds no flow.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most flows that the table holds at a time.
    pub const fn flows_max(&self) -> usize {
        self.flows_max
    }

    fn shard_of(&self, hash: u64) -> usize {
        let bits = usize::from(u16::try_from(hash >> SHARD_BITS_AT & 0xffff).expect("16 bits"));
        bits & (self.shards.len() - 1)
    }

    fn lock(&self, shard: usize, tally: &mut Tally) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[shard].0;
        match shard.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => {
                tally.contended += 1;
                shard.lock().expect("nothing panics under this lock")
            }
            Err(TryLockError::Poisoned(_)) => unreachable!("nothing panics under this lock"),
        }
    }

    /// Counts one more flow if the table may hold it.
    fn count_one_more(&self) -> bool {
        let below_max = |flows| (flows < self.flows_max).then_some(flows + 1);
        self.flows.0.try_update(Ordering::Relaxed, Ordering::Relaxed, below_max).is_ok()
    }
}

impl fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable")
            .field("flows", &self.len())
            .field("flows_max", &self.flows_max)
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
