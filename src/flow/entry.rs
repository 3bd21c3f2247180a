//! What the table remembers of one flow, and the rules by which a header enters and leaves.
//!
//! An entry is plain bytes, `Copy`, aligned to nothing and without a pointer: 60 bytes for IPv4,
//! 84 for IPv6. `K` is the length of the key ([`key`](super::key)), 19 or 43:
//!
//! ```text
//!  0        K          K+1                                                  K+21           K+41
//!  ┌────────┬──────────┬────────────────────────────────────────────────────┬──────────────┐
//!  │  key   │ received │                    forward side                    │ backward side│
//!  └────────┴──────────┴────────────────────────────────────────────────────┴──────────────┘
//!              bit 0 forward, bit 1 backward: the load balancer has sent this way
//!
//!                      0           4        8          10      14       18            20
//!                      ┌───────────┬────────┬──────────┬───────┬────────┬─────────────┐
//!              a side: │ last seen │ cookie │ template │ local │ remote │ remote port │
//!                      └───────────┴────────┴──────────┴───────┴────────┴─────────────┘
//!                        seconds     what the load balancer sent last this way
//! ```
//!
//! Time is kept in whole seconds of [`Moment`](crate::types::Moment).

use std::net::Ipv4Addr;

use super::COOKIE_BYTES;
use super::TemplateId;
use super::key::V4_KEY_BYTES;
use super::key::V6_KEY_BYTES;
use super::key::Way;
use crate::types::OuterPath;

/// Idle seconds of a flow after which even a pinned one is taught by another source: when a load
/// balancer forgets a flow that is not TCP (AWS guide, "Gateway Load Balancers", *Idle timeout*).
/// What comes after that may be a new flow by another node.
const PIN_IDLE_SECS: u32 = 120;

/// Who may teach a direction of a known flow a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sources {
    /// Anybody: the newest header wins at once.
    #[default]
    Any,
    /// The outer source address that taught it before, until the flow has been idle for 120
    /// seconds. The port does not count: it belongs to the flow, and its node may change it.
    Pinned,
}

/// Seconds after which a later fragment that the load balancer has sent has gone through this host,
/// whatever it does with packets. Identifications are used again.
const FRAGMENT_PASSED_SECS: u32 = 1;

/// What became of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taught {
    /// It is stored, from the source that this direction had, or its first one.
    Stored,
    /// The same, and now the load balancer has sent both ways.
    Answered,
    /// It is stored, and this direction had another source before.
    FromElsewhere,
    /// It is refused: this direction has another source, and is pinned to it.
    Refused,
}

/// Everything needed to send a packet of a flow back to the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoredHeader {
    /// Which of the endpoint's templates gives the GENEVE header.
    pub template: TemplateId,
    /// The flow cookie that belongs into it.
    pub cookie: [u8; COOKIE_BYTES],
    /// Where the header came from and where to.
    pub outer: OuterPath,
}

const HEADER_PACKED_BYTES: usize = 16;

impl StoredHeader {
    /// What stands where there is none yet.
    pub const NONE: Self =
        Self { template: TemplateId::new(0), cookie: [0; COOKIE_BYTES], outer: OuterPath::NONE };

    fn pack(&self) -> [u8; HEADER_PACKED_BYTES] {
        let mut bytes = [0; HEADER_PACKED_BYTES];
        bytes[..4].copy_from_slice(&self.cookie);
        bytes[4..6].copy_from_slice(&self.template.get().to_be_bytes());
        bytes[6..10].copy_from_slice(&self.outer.local.octets());
        bytes[10..14].copy_from_slice(&self.outer.remote.octets());
        bytes[14..].copy_from_slice(&self.outer.remote_port.to_be_bytes());
        bytes
    }

    const fn unpack(bytes: &[u8; HEADER_PACKED_BYTES]) -> Self {
        let [c0, c1, c2, c3, t0, t1, l0, l1, l2, l3, r0, r1, r2, r3, p0, p1] = *bytes;
        Self {
            template: TemplateId::new(u16::from_be_bytes([t0, t1])),
            cookie: [c0, c1, c2, c3],
            outer: OuterPath {
                local: Ipv4Addr::new(l0, l1, l2, l3),
                remote: Ipv4Addr::new(r0, r1, r2, r3),
                remote_port: u16::from_be_bytes([p0, p1]),
            },
        }
    }
}

/// One flow: its key and its state.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Entry<const KEY: usize> {
    pub(super) key: [u8; KEY],
    pub(super) state: FlowState,
}

const _: () = assert!(size_of::<Entry<V4_KEY_BYTES>>() == 60);
const _: () = assert!(size_of::<Entry<V6_KEY_BYTES>>() == 84);

/// The part of an entry that does not depend on the IP version.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct FlowState {
    /// Never zero: the other side's header only goes when this side's has come.
    received: u8,
    sides: [Side; 2],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Side {
    seen_secs: [u8; 4],
    header: [u8; HEADER_PACKED_BYTES],
}

impl FlowState {
    /// A flow of which the load balancer has just sent its first packet.
    #[inline]
    pub(super) fn new(way: Way, header: &StoredHeader, now_secs: u32) -> Self {
        // The other side was never seen, which must not make the flow look younger.
        let unseen = Side { seen_secs: [0; 4], header: [0; HEADER_PACKED_BYTES] };
        let mut state = Self { received: 0, sides: [unseen; 2] };
        state.store(way, header, now_secs);
        state
    }

    /// Stores the header that the load balancer sent last this way. Mostly it is the one that is
    /// there.
    #[inline]
    pub(super) fn learn(
        &mut self,
        way: Way,
        header: &StoredHeader,
        now_secs: u32,
        sources: Sources,
    ) -> Taught {
        if self.has(way) && self.sides[way.index()].header == header.pack() {
            self.refresh(way, now_secs);
            return Taught::Stored;
        }
        self.learn_another(way, header, now_secs, sources)
    }

    #[cold]
    fn learn_another(
        &mut self,
        way: Way,
        header: &StoredHeader,
        now_secs: u32,
        sources: Sources,
    ) -> Taught {
        let source = |header: &StoredHeader| header.outer.remote;
        let is_from_elsewhere = self.has(way) && source(&self.header(way)) != source(header);
        if is_from_elsewhere
            && sources == Sources::Pinned
            && self.idle_secs(now_secs) < PIN_IDLE_SECS
        {
            return Taught::Refused;
        }
        let was_two_way = self.is_two_way();
        self.store(way, header, now_secs);
        if is_from_elsewhere {
            return Taught::FromElsewhere;
        }
        if !was_two_way && self.is_two_way() { Taught::Answered } else { Taught::Stored }
    }

    /// Stores, on the other side, the header under which this host's first fragment has gone this
    /// way. The load balancer has taught nothing, so no source counts. What it sent before under
    /// the same identification is of another packet, and goes.
    pub(super) fn follow(&mut self, way: Way, header: &StoredHeader, now_secs: u32) {
        if self.has(way) && idle_secs(self.seen_secs(way), now_secs) >= FRAGMENT_PASSED_SECS {
            self.received &= !bit(way);
        }
        self.put(way.opposite(), header, now_secs);
    }

    /// A cookie that changes means that the load balancer has a new flow under this 5-tuple
    /// (ports are reused), and the other side's header belongs to the old one: it goes, unless
    /// it already has the new cookie.
    fn store(&mut self, way: Way, header: &StoredHeader, now_secs: u32) {
        let other = way.opposite();
        let is_new_flow = self.has(way) && self.cookie(way) != header.cookie;
        if is_new_flow && self.cookie(other) != header.cookie {
            self.received &= !bit(other);
        }
        self.put(way, header, now_secs);
    }

    fn put(&mut self, way: Way, header: &StoredHeader, now_secs: u32) {
        self.received |= bit(way);
        self.sides[way.index()].header = header.pack();
        self.refresh(way, now_secs);
    }

    /// The header for a packet that goes this way: its own side's, else the other side's.
    #[inline]
    pub(super) const fn header(&self, way: Way) -> StoredHeader {
        let side = if self.has(way) { way } else { way.opposite() };
        StoredHeader::unpack(&self.sides[side.index()].header)
    }

    /// Notes a packet that goes this way. Workers read the clock each for themselves, so `now`
    /// may lie before what another one noted.
    #[inline]
    pub(super) fn refresh(&mut self, way: Way, now_secs: u32) {
        let seen_secs = self.seen_secs(way).max(now_secs);
        self.sides[way.index()].seen_secs = seen_secs.to_ne_bytes();
    }

    /// Whether the load balancer has sent both ways. A flood that nobody answers never gets here.
    pub(super) const fn is_two_way(&self) -> bool {
        self.received == bit(Way::Forward) | bit(Way::Backward)
    }

    /// When a packet of either direction, from either side, was last seen.
    pub(super) fn last_seen_secs(&self) -> u32 {
        self.seen_secs(Way::Forward).max(self.seen_secs(Way::Backward))
    }

    /// Seconds for which the flow has certainly been idle.
    pub(super) fn idle_secs(&self, now_secs: u32) -> u32 {
        idle_secs(self.last_seen_secs(), now_secs)
    }

    const fn seen_secs(&self, way: Way) -> u32 {
        u32::from_ne_bytes(self.sides[way.index()].seen_secs)
    }

    const fn has(&self, way: Way) -> bool {
        self.received & bit(way) != 0
    }

    fn cookie(&self, way: Way) -> [u8; COOKIE_BYTES] {
        *self.sides[way.index()].header.first_chunk().expect("the header starts with the cookie")
    }
}

/// Seconds that have certainly passed. Both moments are cut to whole seconds, so one second of
/// their difference may not have.
const fn idle_secs(seen_secs: u32, now_secs: u32) -> u32 {
    now_secs.saturating_sub(seen_secs).saturating_sub(1)
}

const fn bit(way: Way) -> u8 {
    1 << way.index()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORWARD: Way = Way::Forward;
    const BACKWARD: Way = Way::Backward;

    fn header(cookie: u8, remote_port: u16) -> StoredHeader {
        StoredHeader {
            template: TemplateId::new(0x0203),
            cookie: [cookie; 4],
            outer: OuterPath {
                local: Ipv4Addr::new(10, 0, 0, 1),
                remote: Ipv4Addr::new(10, 0, 0, 2),
                remote_port,
            },
        }
    }

    fn learn(state: &mut FlowState, way: Way, header: &StoredHeader, now_secs: u32) {
        assert_ne!(state.learn(way, header, now_secs, Sources::Any), Taught::Refused);
    }

    /// The header of a node with this last number.
    fn header_of_node(node: u8, remote_port: u16) -> StoredHeader {
        let header = header(1, remote_port);
        let remote = Ipv4Addr::new(10, 0, 0, node);
        StoredHeader { outer: OuterPath { remote, ..header.outer }, ..header }
    }

    fn two_way(forward: u8, backward: u8) -> FlowState {
        let mut state = FlowState::new(FORWARD, &header(forward, 1), 10);
        learn(&mut state, BACKWARD, &header(backward, 2), 10);
        state
    }

    #[test]
    fn a_header_is_the_same_after_packing() {
        let one = header(0xab, 60_001);
        assert_eq!(StoredHeader::unpack(&one.pack()), one);
        assert_eq!(
            one.pack(),
            [0xab, 0xab, 0xab, 0xab, 2, 3, 10, 0, 0, 1, 10, 0, 0, 2, 0xea, 0x61]
        );
    }

    #[test]
    fn a_flow_seen_one_way_answers_both_with_that_header() {
        let state = FlowState::new(BACKWARD, &header(1, 1), 10);
        assert_eq!(state.header(FORWARD), header(1, 1));
        assert_eq!(state.header(BACKWARD), header(1, 1));
        assert!(!state.is_two_way());
    }

    #[test]
    fn each_way_has_its_own_header() {
        let state = two_way(1, 2);
        assert!(state.is_two_way());
        assert_eq!(state.header(FORWARD), header(1, 1));
        assert_eq!(state.header(BACKWARD), header(2, 2));
    }

    #[test]
    fn the_newest_header_wins_at_once() {
        let mut state = two_way(1, 1);
        learn(&mut state, FORWARD, &header(1, 7), 11);
        assert_eq!(state.header(FORWARD), header(1, 7));
        assert_eq!(state.header(BACKWARD), header(1, 2), "same cookie: it stays");
    }

    #[test]
    fn a_new_cookie_drops_the_other_sides_header() {
        let mut state = two_way(1, 2);
        learn(&mut state, FORWARD, &header(3, 7), 11);
        assert_eq!(state.header(FORWARD), header(3, 7));
        assert_eq!(state.header(BACKWARD), header(3, 7), "the old one is gone");
        assert!(!state.is_two_way());
    }

    #[test]
    fn a_new_cookie_that_the_other_side_has_already_drops_nothing() {
        let mut state = two_way(1, 1);
        learn(&mut state, FORWARD, &header(3, 7), 11);
        learn(&mut state, BACKWARD, &header(3, 8), 11);
        assert!(state.is_two_way());
        // A late datagram of the old flow on one side, then the new flow's next.
        learn(&mut state, BACKWARD, &header(1, 2), 11);
        assert_eq!(state.header(FORWARD), header(1, 2), "the late one counts as new");
        learn(&mut state, FORWARD, &header(3, 7), 12);
        learn(&mut state, BACKWARD, &header(3, 8), 12);
        assert!(state.is_two_way(), "and the flow is whole again");
        assert_eq!(state.header(FORWARD), header(3, 7));
        assert_eq!(state.header(BACKWARD), header(3, 8));
    }

    #[test]
    fn the_first_header_of_a_side_changes_no_cookie() {
        let mut state = FlowState::new(FORWARD, &header(1, 1), 10);
        learn(&mut state, BACKWARD, &header(2, 2), 10);
        assert_eq!(state.header(FORWARD), header(1, 1));
    }

    #[test]
    fn a_dropped_header_cannot_come_back() {
        let mut state = two_way(1, 2);
        learn(&mut state, FORWARD, &header(3, 3), 10);
        // The backward side's old bytes say cookie 2; learning 2 anew must not be compared to it.
        learn(&mut state, BACKWARD, &header(4, 4), 10);
        assert_eq!(state.header(FORWARD), header(3, 3));
        assert_eq!(state.header(BACKWARD), header(4, 4));
    }

    #[test]
    fn idle_counts_from_the_later_way_and_never_too_much() {
        let mut state = FlowState::new(FORWARD, &header(1, 1), 100);
        assert_eq!(state.idle_secs(100), 0);
        assert_eq!(state.idle_secs(101), 0, "may be a millisecond");
        assert_eq!(state.idle_secs(111), 10);
        state.refresh(BACKWARD, 105);
        assert_eq!(state.idle_secs(111), 5);
        state.refresh(BACKWARD, 101);
        assert_eq!(state.last_seen_secs(), 105, "a slower clock takes nothing back");
        assert_eq!(state.idle_secs(90), 0);
    }

    #[test]
    fn a_first_fragment_of_this_host_pins_nobody() {
        let (ours, theirs) = (header_of_node(2, 1), header_of_node(3, 1));
        let mut state = FlowState::new(BACKWARD, &ours, 10);
        state.follow(FORWARD, &theirs, 10);
        assert_eq!(state.header(FORWARD), theirs);
        let own = header(9, 9);
        let taught = state.learn(FORWARD, &own, 10, Sources::Pinned);
        assert_eq!(taught, Taught::Answered, "the load balancer's first");
        for (now_secs, expected) in [(10, own), (11, own), (12, ours)] {
            state.follow(FORWARD, &ours, now_secs);
            assert_eq!(state.header(FORWARD), expected, "at {now_secs}");
        }
    }

    #[test]
    fn another_source_is_told_apart_by_its_address_alone() {
        let (any, pinned) = (Sources::Any, Sources::Pinned);
        let mut state = FlowState::new(FORWARD, &header_of_node(2, 1), 10);
        assert_eq!(state.learn(FORWARD, &header_of_node(2, 1), 10, any), Taught::Stored);
        assert_eq!(state.learn(FORWARD, &header_of_node(2, 7), 10, pinned), Taught::Stored);
        assert_eq!(state.header(FORWARD), header_of_node(2, 7), "the port belongs to the flow");
        assert_eq!(state.learn(FORWARD, &header(9, 7), 10, pinned), Taught::Stored, "port reuse");
        assert_eq!(state.learn(FORWARD, &header_of_node(3, 1), 10, any), Taught::FromElsewhere);
        assert_eq!(state.header(FORWARD), header_of_node(3, 1), "it wins at once");
        assert_eq!(
            state.learn(BACKWARD, &header_of_node(4, 1), 10, pinned),
            Taught::Answered,
            "the first of its direction"
        );
    }

    #[test]
    fn a_pinned_flow_keeps_its_source_until_it_was_idle_for_120_seconds() {
        let (ours, theirs) = (header_of_node(2, 1), header_of_node(3, 1));
        let mut state = FlowState::new(FORWARD, &ours, 10);
        for now_secs in [10, 70, 10 + PIN_IDLE_SECS] {
            let taught = state.learn(FORWARD, &theirs, now_secs, Sources::Pinned);
            assert_eq!(taught, Taught::Refused, "at {now_secs}");
            assert_eq!(state.header(FORWARD), ours);
            assert_eq!(state.last_seen_secs(), 10, "who is refused keeps nothing alive");
        }
        let taught = state.learn(FORWARD, &theirs, 11 + PIN_IDLE_SECS, Sources::Pinned);
        assert_eq!(taught, Taught::FromElsewhere);
        assert_eq!(state.header(FORWARD), theirs);
    }
}
