//! Under which header a packet of the host goes back.
//!
//! Any packet has that which the load balancer sent last for its flow: in the packet's own
//! direction if it has sent any there, else in the other one. Three kinds have no such flow:
//! - **A later fragment that the load balancer sent** has the header that it came under.
//! - **A later fragment that this host made** has that of its first fragment, which goes before it.
//! - **An ICMP error that this host made, or a router behind it,** has that of the packet that it
//!   quotes, in the direction in which the error goes: the other one.
//!
//! Later fragments are entries of the flow table, under tuples of their own ([`inner`]). Their two
//! sides are not two directions: what the load balancer sent stands on the packet's own side, what
//! this host's first fragment said on the other one, where it serves while the first is empty.
//! Identifications are used again: what a first fragment says is of a new packet, unless the load
//! balancer has just sent later ones.

use super::batch::Batch;
use super::coalesce::FLOWS_MAX;
use super::coalesce::FlowId;
use super::count_removed;
use super::endpoints::Endpoint;
use super::endpoints::Endpoints;
use crate::flow::FlowKey;
use crate::flow::FlowTable;
use crate::flow::Learned;
use crate::flow::StoredHeader;
use crate::flow::Tally;
use crate::flow::Way;
use crate::types::DropReason;
use crate::types::Moment;
use crate::wire::FiveTuple;
use crate::wire::inner;
use crate::wire::inner::Inner;
use crate::wire::inner::Part;
use crate::wire::protocol;

/// The answers that the flow table has given in this batch.
pub(super) type Answers = Batch<FlowId, StoredHeader>;

/// Room for the answers of one batch; beyond it the flow table is asked again.
pub(super) fn no_answers() -> Answers {
    Batch::new(FLOWS_MAX, FlowId::NONE, || StoredHeader::NONE)
}

/// Who is asked about the packets of one endpoint.
pub(super) struct Lookup<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) endpoints: &'a Endpoints,
    pub(super) flows: &'a FlowTable,
    pub(super) answers: &'a mut Answers,
    pub(super) tally: &'a mut Tally,
    pub(super) now: Moment,
}

impl Lookup<'_> {
    /// The header for a packet. Nothing if it belongs to no flow that the load balancer has sent,
    /// as far as is known by now.
    #[inline]
    pub(super) fn header(&mut self, packet: &[u8], inner: &Inner) -> Option<StoredHeader> {
        if inner.part != Part::FirstFragment
            && let Some(header) = self.find(&inner.tuple)
        {
            return Some(header);
        }
        self.header_of_unusual(packet, inner)
    }

    /// The header for a first fragment, or a packet that has no flow.
    #[cold]
    fn header_of_unusual(&mut self, packet: &[u8], inner: &Inner) -> Option<StoredHeader> {
        let header =
            self.flow(&inner.tuple).or_else(|| self.quoted(&packet[..inner.packet_bytes]))?;
        if inner.part == Part::FirstFragment {
            self.teach_later_fragments(packet, &header);
        }
        Some(header)
    }

    /// [`Self::find`] for packets that are seldom.
    #[cold]
    pub(super) fn flow(&mut self, tuple: &FiveTuple) -> Option<StoredHeader> {
        self.find(tuple)
    }

    /// The header of the flow with this tuple.
    #[expect(
        clippy::inline_always,
        reason = "out of line it is dearer, by callgrind, and seldom callers take it there"
    )]
    #[inline(always)]
    fn find(&mut self, tuple: &FiveTuple) -> Option<StoredHeader> {
        let flow = FlowId { slot: self.endpoint.endpoint.slot, tuple: *tuple };
        if let Some(place) = self.answers.find(&flow) {
            return Some(*self.answers.at(place));
        }
        let (key, way) = FlowKey::new(self.endpoint.endpoint, tuple);
        let header = self.flows.find(&key, way, self.now, self.tally)?;
        if self.answers.is_full() {
            self.answers.clear();
        }
        let place = self.answers.enter(flow);
        *self.answers.at(place) = header;
        Some(header)
    }

    /// The header of the flow that an ICMP error is about.
    #[cold]
    fn quoted(&mut self, packet: &[u8]) -> Option<StoredHeader> {
        let quoted = inner::quoted(packet)?;
        match quoted.protocol {
            // Of fragments one direction is known only.
            protocol::FRAGMENT => self.flow(&quoted),
            _ => self.flow(&quoted.reversed()),
        }
    }

    /// Enters the packet's later fragments. If the table is full of what may not go for them, they
    /// will not be found.
    #[cold]
    fn teach_later_fragments(&mut self, packet: &[u8], header: &StoredHeader) {
        if let Some(tuple) = inner::later_fragments(packet) {
            let (key, way) = FlowKey::new(self.endpoint.endpoint, &tuple);
            let learned = self.flows.follow(&key, way, header, self.now, self.tally);
            let _ = count_news((self.endpoints, self.endpoint), &key, learned);
        }
    }
}

/// Stores a header with its flow, and counts what became of flows. If it is not stored, says why.
#[inline]
pub(super) fn learn(
    flows: &FlowTable,
    (endpoints, endpoint): (&Endpoints, &Endpoint),
    (key, way): (&FlowKey, Way),
    header: &StoredHeader,
    now: Moment,
    tally: &mut Tally,
) -> Result<(), DropReason> {
    let learned = flows.learn(key, way, header, now, tally);
    if learned == Learned::Known {
        return Ok(());
    }
    count_news((endpoints, endpoint), key, learned)
}

/// Counts what is new about a flow. If its header was not stored, says why.
#[cold]
fn count_news(
    (endpoints, endpoint): (&Endpoints, &Endpoint),
    key: &FlowKey,
    news: Learned,
) -> Result<(), DropReason> {
    match news {
        Learned::Known => Ok(()),
        Learned::Answered => {
            // Later fragments have no two ways: one side of theirs may be this host's doing.
            if key.kind().has_ports() {
                endpoint.cell.answered_flows.add(1);
            }
            Ok(())
        }
        Learned::New { evicted } => {
            endpoint.cell.flows_added.count(key.kind());
            if let Some(evicted) = evicted {
                count_removed(endpoints, evicted);
            }
            Ok(())
        }
        Learned::Full => Err(DropReason::FlowLimit),
        Learned::Pinned => Err(DropReason::SourcePinned),
    }
}
