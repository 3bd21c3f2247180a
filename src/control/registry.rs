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

/// A life that begins: its slot, and where it hears what others tell it.
pub(super) type Beginning = (EndpointRef, mpsc::Receiver<Notice>);

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
    /// It was told to make room, and has not said yet that it stays.
    is_to_go: bool,
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

    /// A worker has seen the first datagram of an endpoint. Returns whether nobody knows of it: it
    /// may begin. Otherwise it is being dealt with, or will begin when this life has ended.
    pub(super) fn announce(&mut self, worker: WorkerId, id: EndpointId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return true;
        };
        match entry.phase {
            Phase::Starting => {
                entry.asked.insert(worker);
            }
            Phase::Serving => {}
            Phase::Leaving => {
                entry.asked_next.insert(worker);
            }
        }
        false
    }

    /// Begins a life that the workers `asked` wait for.
    ///
    /// # Panics
    /// Without a permit: there are as many slots.
    pub(super) fn begin(&mut self, id: EndpointId, asked: HashSet<WorkerId>) -> Beginning {
        let endpoint = self.slots.take().expect("every permit has a slot");
        // Each worker says "detached" once, and "lost" twice per queue if it could not even be
        // registered; and there is one end, and one wish that it may go.
        let (notices, receiver) = mpsc::channel(5 * self.workers + 2);
        self.begun += 1;
        let entry = Entry {
            order: self.begun,
            endpoint,
            phase: Phase::Starting,
            notices,
            asked,
            asked_next: HashSet::new(),
            is_to_go: false,
        };
        self.entries.insert(id, entry);
        self.ids[endpoint.slot.index()] = id;
        (endpoint, receiver)
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

    /// Asks the task of an endpoint to end if that is idle and a stranger, to make room. Returns
    /// whether it was asked: not if it is not served, or was asked before.
    pub(super) fn ask_to_go(&mut self, id: EndpointId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        let is_news = entry.phase == Phase::Serving && !entry.is_to_go;
        entry.is_to_go |= is_news;
        is_news && entry.notices.try_send(Notice::MakeRoom).is_ok()
    }

    /// How many were asked to go and are still there, without having said that they stay.
    pub(super) fn still_going(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_to_go).count()
    }

    /// The endpoint that was asked to go stays.
    pub(super) fn stays(&mut self, id: EndpointId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_to_go = false;
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
        assert!(registry.announce(a, id));
        let (first, mut notices) = registry.begin(id, HashSet::from([a]));
        assert!(!registry.announce(b, id));
        registry.set_phase(id, Phase::Serving);
        assert!(!registry.announce(b, id));
        registry.notify(first, Notice::Detached(b));
        assert!(matches!(notices.try_recv(), Ok(Notice::Detached(WorkerId(1)))));

        registry.set_phase(id, Phase::Leaving);
        assert!(!registry.announce(b, id) && !registry.announce(a, id));
        let asked = registry.end(id, first);
        assert_eq!(asked, HashSet::from([a, b]));
        assert!(registry.is_empty());
        let (second, mut notices) = registry.begin(id, asked);
        assert_eq!(second.slot, first.slot);
        assert_ne!(second.generation, first.generation);
        registry.notify(first, Notice::End);
        assert!(notices.try_recv().is_err(), "that was for the earlier life");
        assert_eq!(registry.take_asked(id), HashSet::from([a, b]));
        registry.end_all();
        assert!(matches!(notices.try_recv(), Ok(Notice::End)));
        assert!(registry.end(id, second).is_empty());
    }

    #[test]
    fn an_endpoint_is_asked_to_go_once_while_it_is_served() {
        let id = EndpointId(7);
        let mut registry = Registry::new(1, 1);
        let (_, mut notices) = registry.begin(id, HashSet::new());
        assert!(!registry.ask_to_go(id), "its hook runs");
        registry.set_phase(id, Phase::Serving);
        assert_eq!(registry.still_going(), 0);
        assert!(registry.ask_to_go(id) && !registry.ask_to_go(id));
        assert!(matches!(notices.try_recv(), Ok(Notice::MakeRoom)));
        assert!(notices.try_recv().is_err(), "told once");
        assert_eq!(registry.still_going(), 1);
        registry.stays(id);
        assert_eq!(registry.still_going(), 0);
        assert!(registry.ask_to_go(id));
        registry.set_phase(id, Phase::Leaving);
        registry.stays(id);
        assert!(!registry.ask_to_go(id) && !registry.ask_to_go(EndpointId(8)));
    }

    #[test]
    fn who_was_asked_is_going_until_it_has_gone() {
        let id = EndpointId(7);
        let mut registry = Registry::new(1, 1);
        let (endpoint, _notices) = registry.begin(id, HashSet::new());
        registry.set_phase(id, Phase::Serving);
        assert!(registry.ask_to_go(id));
        registry.set_phase(id, Phase::Leaving);
        assert_eq!(registry.still_going(), 1, "its hook runs");
        registry.end(id, endpoint);
        assert_eq!(registry.still_going(), 0);
    }
}
