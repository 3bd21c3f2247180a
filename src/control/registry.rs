//! Who lives: the endpoints by id, what phase they are in, and who asked for them.

use std::collections::HashMap;
use std::collections::HashSet;

use tokio::sync::mpsc;

use super::life::Notice;
use super::slots::Slots;
use crate::types::EndpointId;
use crate::types::EndpointRef;
use crate::types::WorkerId;

/// How far an endpoint is, as far as an announcement cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its links or its CREATE hook are under way: whoever asks will get it.
    Starting,
    /// All workers have it, or have it in their mailbox.
    Serving,
    /// The workers were told to let go: whoever asks from now on means its next life.
    Leaving,
}

/// What an announcement leads to.
#[derive(Debug)]
pub(super) enum Announced {
    /// A life begins; it keeps the permit.
    Begin(EndpointRef, mpsc::Receiver<Notice>),
    /// The next life will begin when this one has ended; it keeps the permit.
    Later,
    /// It is being dealt with already; the permit goes back.
    Known,
    /// No slot is free, although there was a permit; the permit goes back.
    NoSlot,
}

#[derive(Debug)]
struct Entry {
    order: u64,
    endpoint: EndpointRef,
    phase: Phase,
    notices: mpsc::Sender<Notice>,
    /// Workers that asked for this life.
    asked: HashSet<WorkerId>,
    /// Workers that asked for the next one.
    asked_next: HashSet<WorkerId>,
}

/// All endpoints.
#[derive(Debug)]
pub(super) struct Registry {
    entries: HashMap<EndpointId, Entry>,
    /// Who has a slot, or had it last.
    ids: Vec<EndpointId>,
    slots: Slots,
    workers: usize,
    begun: u64,
}

impl Registry {
    /// Room for `endpoints` endpoints of `workers` workers.
    pub(super) fn new(endpoints: u16, workers: usize) -> Self {
        Self {
            entries: HashMap::new(),
            ids: vec![EndpointId(0); endpoints.into()],
            slots: Slots::new(endpoints),
            workers,
            begun: 0,
        }
    }

    /// A worker has seen the first datagram of an endpoint.
    pub(super) fn announce(&mut self, worker: WorkerId, id: EndpointId) -> Announced {
        let Some(entry) = self.entries.get_mut(&id) else {
            return self.begin(id, HashSet::from([worker]));
        };
        match entry.phase {
            Phase::Starting => {
                entry.asked.insert(worker);
                Announced::Known
            }
            Phase::Serving => Announced::Known,
            Phase::Leaving => {
                let is_first = entry.asked_next.is_empty();
                entry.asked_next.insert(worker);
                if is_first { Announced::Later } else { Announced::Known }
            }
        }
    }

    /// Begins a life that the workers `asked` wait for.
    pub(super) fn begin(&mut self, id: EndpointId, asked: HashSet<WorkerId>) -> Announced {
        let Some(endpoint) = self.slots.take() else {
            return Announced::NoSlot;
        };
        // Each worker says "detached" once, and "lost" twice per queue if it could not even be
        // registered; and there is one end.
        let (notices, receiver) = mpsc::channel(5 * self.workers + 1);
        self.begun += 1;
        let entry = Entry {
            order: self.begun,
            endpoint,
            phase: Phase::Starting,
            notices,
            asked,
            asked_next: HashSet::new(),
        };
        self.entries.insert(id, entry);
        self.ids[endpoint.slot.index()] = id;
        Announced::Begin(endpoint, receiver)
    }

    /// A life has ended. Who asked for the next one, if anybody did.
    pub(super) fn end(&mut self, id: EndpointId, endpoint: EndpointRef) -> HashSet<WorkerId> {
        self.slots.give_back(endpoint);
        let entry = self.entries.remove(&id);
        entry.map_or_else(HashSet::new, |entry| entry.asked_next)
    }

    pub(super) fn set_phase(&mut self, id: EndpointId, phase: Phase) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = phase;
        }
    }

    /// The workers that wait for an endpoint which will not come; they are to be told.
    pub(super) fn take_asked(&mut self, id: EndpointId) -> HashSet<WorkerId> {
        let entry = self.entries.get_mut(&id);
        entry.map_or_else(HashSet::new, |entry| std::mem::take(&mut entry.asked))
    }

    /// Tells the task of one life; a message about an earlier life is dropped.
    pub(super) fn notify(&self, endpoint: EndpointRef, notice: Notice) {
        let id = self.ids.get(endpoint.slot.index());
        let entry = id.and_then(|id| self.entries.get(id));
        if let Some(entry) = entry.filter(|entry| entry.endpoint == endpoint) {
            // A full queue holds the same message already, and more of them than there are workers.
            let _ = entry.notices.try_send(notice);
        }
    }

    /// Tells all tasks to end, the oldest first.
    pub(super) fn end_all(&self) {
        let mut entries: Vec<_> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.order);
        for entry in entries {
            let _ = entry.notices.try_send(Notice::End);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_life_at_a_time_and_the_next_is_remembered() {
        let (a, b) = (WorkerId(0), WorkerId(1));
        let id = EndpointId(7);
        let mut registry = Registry::new(1, 2);
        let Announced::Begin(first, mut notices) = registry.announce(a, id) else {
            panic!("the first announcement begins a life");
        };
        assert!(matches!(registry.announce(b, id), Announced::Known));
        assert!(matches!(registry.announce(a, EndpointId(8)), Announced::NoSlot));
        registry.set_phase(id, Phase::Serving);
        assert!(matches!(registry.announce(b, id), Announced::Known));
        registry.notify(first, Notice::Detached(b));
        assert!(matches!(notices.try_recv(), Ok(Notice::Detached(WorkerId(1)))));

        registry.set_phase(id, Phase::Leaving);
        assert!(matches!(registry.announce(b, id), Announced::Later));
        assert!(matches!(registry.announce(a, id), Announced::Known));
        let asked = registry.end(id, first);
        assert_eq!(asked, HashSet::from([a, b]));
        assert!(registry.is_empty());
        let Announced::Begin(second, mut notices) = registry.begin(id, asked) else {
            panic!("the slot is free again");
        };
        assert_eq!(second.slot, first.slot);
        assert_ne!(second.generation, first.generation);
        registry.notify(first, Notice::End);
        assert!(notices.try_recv().is_err(), "that was for the earlier life");
        assert_eq!(registry.take_asked(id), HashSet::from([a, b]));
        registry.end_all();
        assert!(matches!(notices.try_recv(), Ok(Notice::End)));
        assert!(registry.end(id, second).is_empty());
    }
}
