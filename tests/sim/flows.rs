//! What the load balancer remembers of a flow: both directions and what each was wrapped in.

use std::time::Duration;

use super::gwlb::Host;
use super::health::Way;
use super::layout::End;
use super::layout::Outer;
use super::layout::Returned;
use super::layout::Tuple;

/// Variants kept per direction of a flow.
const VARIANTS_MAX: usize = 64;

/// An endpoint and an inner 5-tuple, the same for both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) endpoint: u64,
    pub(crate) protocol: u8,
    low: End,
    high: End,
}

impl FlowKey {
    /// The flow of a tuple, and 0 if its source is the lower end, else 1.
    pub(crate) fn of(endpoint: u64, tuple: Tuple) -> (Self, usize) {
        let lane = usize::from(tuple.src > tuple.dst);
        let (low, high) = if lane == 0 { (tuple.src, tuple.dst) } else { (tuple.dst, tuple.src) };
        (Self { endpoint, protocol: tuple.protocol, low, high }, lane)
    }
}

/// What a flow's packets of one direction are wrapped in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrapping {
    /// Addresses and source port.
    pub(crate) outer: Outer,
    /// The whole GENEVE header.
    pub(crate) header: Vec<u8>,
}

#[derive(Debug)]
struct Variant {
    wrapping: Wrapping,
    last_used: u64,
}

/// One direction of a flow.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) packets: u64,
    /// Newest last.
    variants: Vec<Variant>,
}

impl Lane {
    /// Remembers what the next packet was wrapped in.
    pub(crate) fn used(&mut self, wrapping: Wrapping) {
        self.packets += 1;
        self.variants.retain(|variant| variant.wrapping != wrapping);
        if self.variants.len() == VARIANTS_MAX {
            self.variants.remove(0);
        }
        self.variants.push(Variant { wrapping, last_used: self.packets });
    }

    /// Whether nothing was sent in this direction.
    pub(crate) fn is_unused(&self) -> bool {
        self.variants.is_empty()
    }

    /// What the last packet was wrapped in.
    pub(crate) fn newest(&self) -> Option<&Wrapping> {
        self.variants.last().map(|variant| &variant.wrapping)
    }

    /// Whether a datagram is in one of the wrappings of the last `in_flight` packets, turned
    /// round.
    pub(crate) fn accepts(&self, back: &Returned<'_>, header: &[u8], in_flight: u64) -> bool {
        self.variants.iter().any(|variant| {
            let Wrapping { outer, header: sent } = &variant.wrapping;
            self.packets - variant.last_used <= in_flight
                && (back.src, back.dst) == (outer.target, outer.node)
                && back.src_port == outer.port
                && header == sent
        })
    }
}

/// A flow.
#[derive(Debug)]
pub(crate) struct Flow {
    /// The host whose packets have the lower end as source.
    pub(crate) low_host: Host,
    /// Bumped to give the flow another cookie.
    pub(crate) incarnation: u64,
    /// Packets whose source is the lower end, and the others.
    pub(crate) lanes: [Lane; 2],
    /// Who gets its packets.
    pub(crate) way: Way,
    /// When a host last sent.
    pub(crate) seen: Duration,
}

impl Flow {
    /// Packets of both directions.
    pub(crate) fn packets(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.packets).sum()
    }

    /// Begins anew with another cookie. What was sent under the old one is no longer accepted.
    pub(crate) fn renew(&mut self) {
        self.incarnation += 1;
        self.lanes = [Lane::default(), Lane::default()];
    }
}
