//! Which slot an endpoint has in every table, and which life of the slot it is.

use crate::types::EndpointRef;
use crate::types::EndpointSlot;
use crate::types::Generation;

/// All slots of the program.
#[derive(Debug)]
pub(super) struct Slots {
    /// The generation last given out, by slot. The first user of a slot has generation 1.
    generations: Vec<Generation>,
    free: Vec<EndpointSlot>,
}

impl Slots {
    /// `count` free slots.
    pub(super) fn new(count: u16) -> Self {
        Self {
            generations: vec![Generation::default(); count.into()],
            // The lowest number first, so that tables stay dense.
            free: (0..count).rev().map(EndpointSlot).collect(),
        }
    }

    /// A slot in a new generation, if one is free.
    pub(super) fn take(&mut self) -> Option<EndpointRef> {
        let slot = self.free.pop()?;
        let generation = &mut self.generations[slot.index()];
        *generation = generation.next();
        Some(EndpointRef { slot, generation: *generation })
    }

    /// Takes back what [`Self::take`] gave.
    pub(super) fn give_back(&mut self, endpoint: EndpointRef) {
        debug_assert_eq!(
            self.generations[endpoint.slot.index()],
            endpoint.generation,
            "a slot was given back twice"
        );
        self.free.push(endpoint.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_life_has_a_reference_of_its_own() {
        let mut slots = Slots::new(2);
        let (a, b) = (slots.take().unwrap(), slots.take().unwrap());
        assert_eq!((a.slot.0, b.slot.0), (0, 1));
        assert_eq!(slots.take(), None);
        slots.give_back(a);
        let c = slots.take().unwrap();
        assert_eq!(c.slot, a.slot);
        assert_ne!(c.generation, a.generation);
        assert_ne!(a.generation, Generation::default());
    }
}
