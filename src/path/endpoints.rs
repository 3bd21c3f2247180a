//! What one worker knows about endpoints: by id for datagrams, by slot for frames.
//!
//! ```text
//!                announced              attach              closing
//!   (unknown) ──────────────▶ Pending ──────────▶ Active ───────────▶ Closing
//!       ▲                        │ fail                                  │ detach
//!       └────────────────────────┴───────────────────────────────────────┘
//! ```
//!
//! The number of ids is bounded: each has a permit of the admission, but for the moment between
//! the end of an endpoint and the message about it.

use std::sync::Arc;

use hashbrown::HashMap;

use super::hold::HoldList;
use crate::flow::Templates;
use crate::stats::EndpointCell;
use crate::types::EndpointId;
use crate::types::EndpointRef;
use crate::types::EndpointSlot;

/// An endpoint that this worker serves.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The id that its datagrams carry.
    pub id: EndpointId,
    /// Its slot, and which life of the slot this is.
    pub endpoint: EndpointRef,
    /// Its header templates.
    pub templates: Arc<Templates>,
    /// This worker's counters for it.
    pub cell: Arc<EndpointCell>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Pending,
    Active(EndpointSlot),
    Closing,
}

#[derive(Debug)]
struct Known {
    phase: Phase,
    held: HoldList,
}

/// What to do with a datagram of some endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Deliver it.
    Active(EndpointSlot),
    /// Hold it.
    Wait,
    /// Ask for admission.
    Unknown,
}

/// The endpoints of one worker.
#[derive(Debug)]
pub(super) struct Endpoints {
    known: HashMap<EndpointId, Known, foldhash::fast::RandomState>,
    active: Vec<Option<Endpoint>>,
    known_max: usize,
    /// The endpoint of the last delivered datagram: most follow one of the same endpoint.
    last: Option<(EndpointId, EndpointSlot)>,
}

impl Endpoints {
    /// No endpoints, with room for `endpoints_max` and as many that are ending.
    pub(super) fn new(endpoints_max: usize) -> Self {
        let known_max = 2 * endpoints_max;
        Self {
            known: HashMap::with_capacity_and_hasher(
                known_max,
                foldhash::fast::RandomState::default(),
            ),
            active: vec![None; endpoints_max],
            known_max,
            last: None,
        }
    }

    /// The served endpoint in `slot`.
    pub(super) fn at(&self, slot: EndpointSlot) -> Option<&Endpoint> {
        self.active.get(slot.index())?.as_ref()
    }

    /// What to do with a datagram of endpoint `id`.
    pub(super) fn readiness(&mut self, id: EndpointId) -> Readiness {
        if let Some((last, slot)) = self.last
            && last == id
        {
            return Readiness::Active(slot);
        }
        let Some(known) = self.known.get(&id) else {
            return Readiness::Unknown;
        };
        match known.phase {
            Phase::Active(slot) if known.held.is_empty() => {
                self.last = Some((id, slot));
                Readiness::Active(slot)
            }
            // What is held goes first.
            Phase::Pending | Phase::Active(_) | Phase::Closing => Readiness::Wait,
        }
    }

    /// The slot of an endpoint that is served, whatever is held for it.
    pub(super) fn slot_of(&self, id: EndpointId) -> Option<EndpointSlot> {
        match self.known.get(&id)?.phase {
            Phase::Active(slot) => Some(slot),
            Phase::Pending | Phase::Closing => None,
        }
    }

    /// Enters an id that was admitted. Returns false if there is no room for it.
    pub(super) fn announced(&mut self, id: EndpointId) -> bool {
        if self.known.len() >= self.known_max {
            return false;
        }
        self.known.insert(id, Known { phase: Phase::Pending, held: HoldList::default() });
        true
    }

    /// The list of what is held for an id.
    pub(super) fn held_of(&mut self, id: EndpointId) -> Option<&mut HoldList> {
        self.known.get_mut(&id).map(|known| &mut known.held)
    }

    /// The list of what is held for a served endpoint.
    pub(super) fn held_mut(&mut self, endpoint: EndpointRef) -> Option<&mut HoldList> {
        let served = self.at(endpoint.slot)?;
        if served.endpoint != endpoint {
            return None;
        }
        let id = served.id;
        let known = self.known.get_mut(&id)?;
        matches!(known.phase, Phase::Active(_)).then_some(&mut known.held)
    }

    /// Serves an endpoint, whether it was announced here or by another worker.
    pub(super) fn attach(&mut self, endpoint: Endpoint) {
        self.last = None;
        let phase = Phase::Active(endpoint.endpoint.slot);
        match self.known.get_mut(&endpoint.id) {
            Some(known) => known.phase = phase,
            None => {
                self.known.insert(endpoint.id, Known { phase, held: HoldList::default() });
            }
        }
        let place = endpoint.endpoint.slot.index();
        self.active[place] = Some(endpoint);
    }

    /// Holds the endpoint's datagrams from now on.
    pub(super) fn closing(&mut self, endpoint: EndpointRef) {
        self.last = None;
        let Some(id) = self.id_of(endpoint) else {
            return;
        };
        if let Some(known) = self.known.get_mut(&id) {
            known.phase = Phase::Closing;
        }
    }

    /// Serves the endpoint no longer. Returns its id if datagrams are held for it; it is pending
    /// again then.
    pub(super) fn detach(&mut self, endpoint: EndpointRef) -> Option<EndpointId> {
        self.last = None;
        let id = self.id_of(endpoint)?;
        self.active[endpoint.slot.index()] = None;
        let known = self.known.get_mut(&id)?;
        if known.held.is_empty() {
            self.known.remove(&id);
            return None;
        }
        known.phase = Phase::Pending;
        Some(id)
    }

    /// Forgets a pending id. Returns what was held for it; nothing if it is not pending.
    pub(super) fn fail(&mut self, id: EndpointId) -> Option<HoldList> {
        if self.known.get(&id)?.phase != Phase::Pending {
            return None;
        }
        self.known.remove(&id).map(|known| known.held)
    }

    /// Takes some list that holds something.
    pub(super) fn take_any_held(&mut self) -> Option<HoldList> {
        let known = self.known.values_mut().find(|known| !known.held.is_empty())?;
        Some(std::mem::take(&mut known.held))
    }

    fn id_of(&self, endpoint: EndpointRef) -> Option<EndpointId> {
        let served = self.at(endpoint.slot)?;
        (served.endpoint == endpoint).then_some(served.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    const ID: EndpointId = EndpointId(7);

    fn life(generation: u32) -> EndpointRef {
        EndpointRef { slot: EndpointSlot(3), generation: Generation(generation) }
    }

    fn endpoint(generation: u32) -> Endpoint {
        Endpoint {
            id: ID,
            endpoint: life(generation),
            templates: Arc::default(),
            cell: Arc::default(),
        }
    }

    #[test]
    fn an_endpoint_lives_and_ends() {
        let mut endpoints = Endpoints::new(8);
        assert_eq!(endpoints.readiness(ID), Readiness::Unknown);
        assert!(endpoints.announced(ID));
        assert_eq!(endpoints.readiness(ID), Readiness::Wait);
        endpoints.attach(endpoint(1));
        assert_eq!(endpoints.readiness(ID), Readiness::Active(EndpointSlot(3)));
        endpoints.closing(life(1));
        assert_eq!(endpoints.readiness(ID), Readiness::Wait);
        assert!(endpoints.at(EndpointSlot(3)).is_some(), "frames are still read");
        assert_eq!(endpoints.detach(life(1)), None);
        assert_eq!(endpoints.readiness(ID), Readiness::Unknown);
        assert!(endpoints.at(EndpointSlot(3)).is_none());
    }

    #[test]
    fn another_life_of_the_slot_is_not_touched() {
        let mut endpoints = Endpoints::new(8);
        endpoints.attach(endpoint(2));
        endpoints.closing(life(1));
        assert_eq!(endpoints.detach(life(1)), None);
        assert_eq!(endpoints.readiness(ID), Readiness::Active(EndpointSlot(3)));
    }

    #[test]
    fn only_a_pending_endpoint_fails() {
        let mut endpoints = Endpoints::new(8);
        endpoints.announced(ID);
        assert!(endpoints.fail(ID).is_some());
        assert_eq!(endpoints.readiness(ID), Readiness::Unknown);
        endpoints.attach(endpoint(1));
        assert!(endpoints.fail(ID).is_none());
        assert_eq!(endpoints.readiness(ID), Readiness::Active(EndpointSlot(3)));
    }

    #[test]
    fn the_number_of_ids_is_bounded() {
        let mut endpoints = Endpoints::new(4);
        for id in 0..8 {
            assert!(endpoints.announced(EndpointId(id)));
        }
        assert!(!endpoints.announced(EndpointId(8)));
        endpoints.fail(EndpointId(3));
        assert!(endpoints.announced(EndpointId(8)));
    }
}
