//! Which operation is in flight: a fixed table of slots, free of any kernel.
//!
//! A slot keeps its value in place: claiming one hands out what the last user left, to be filled
//! anew, so that no operation's state is moved about. The generation of a slot rises each time it
//! is freed, and a key of an earlier use opens nothing.

/// Name of one use of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SlotKey {
    /// Number of the slot.
    pub(super) slot: u32,
    /// Which use of the slot.
    pub(super) generation: u8,
}

#[derive(Debug)]
struct Slot<T> {
    value: T,
    generation: u8,
    in_use: bool,
}

/// A fixed number of slots.
#[derive(Debug)]
pub(super) struct SlotTable<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T: Default> SlotTable<T> {
    /// A table of `count` free slots.
    pub(super) fn new(count: u32) -> Self {
        let empty = || Slot { value: T::default(), generation: 0, in_use: false };
        Self { slots: (0..count).map(|_| empty()).collect(), free: (0..count).rev().collect() }
    }
}

impl<T> SlotTable<T> {
    /// Number of slots in use.
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes the slot that was freed last, with the value that its last user left in it.
    pub(super) fn claim(&mut self) -> Option<(SlotKey, &mut T)> {
        let number = self.free.pop()?;
        let slot = &mut self.slots[number as usize];
        debug_assert!(!slot.in_use, "a slot on the free list is in use");
        slot.in_use = true;
        Some((SlotKey { slot: number, generation: slot.generation }, &mut slot.value))
    }

    /// The value of a slot in use, unless the key belongs to an earlier use.
    pub(super) fn get_mut(&mut self, key: SlotKey) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        (slot.in_use && slot.generation == key.generation).then_some(&mut slot.value)
    }

    /// Frees a slot. Returns whether the key was of its present use.
    pub(super) fn free(&mut self, key: SlotKey) -> bool {
        if self.get_mut(key).is_none() {
            return false;
        }
        let slot = &mut self.slots[key.slot as usize];
        slot.in_use = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Claim(u64),
        /// Frees the claim made this many claims ago, which may be long gone.
        Free(usize),
        Look(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<u64>().prop_map(Step::Claim),
            (0..40_usize).prop_map(Step::Free),
            (0..40_usize).prop_map(Step::Look),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_of_calls_agrees_with_a_map(steps in prop::collection::vec(step(), 0..300)) {
            let mut table = SlotTable::<u64>::new(6);
            let mut live: HashMap<SlotKey, u64> = HashMap::new();
            let mut claimed = Vec::new();
            for step in steps {
                match step {
                    Step::Claim(value) => if let Some((key, place)) = table.claim() {
                        *place = value;
                        prop_assert!(live.insert(key, value).is_none(), "given out twice");
                        claimed.push(key);
                    } else {
                        prop_assert_eq!(live.len(), 6);
                    },
                    Step::Free(ago) => if let Some(&key) = claimed.iter().rev().nth(ago) {
                        prop_assert_eq!(table.free(key), live.remove(&key).is_some());
                    },
                    Step::Look(ago) => if let Some(&key) = claimed.iter().rev().nth(ago) {
                        prop_assert_eq!(table.get_mut(key).copied(), live.get(&key).copied());
                    },
                }
                prop_assert_eq!(table.in_use(), live.len());
            }
        }
    }

    #[test]
    fn a_key_of_an_earlier_use_opens_nothing() {
        let mut table = SlotTable::<u8>::new(1);
        let (old, _) = table.claim().unwrap();
        assert!(table.free(old));
        let (new, _) = table.claim().unwrap();
        assert_eq!(old.slot, new.slot);
        assert!(table.get_mut(old).is_none() && !table.free(old));
        assert!(table.get_mut(new).is_some());
        assert!(!table.free(SlotKey { slot: 99, generation: 0 }));
    }
}
