//! What is open while a batch is worked off: a small map whose values stay in place, so that
//! forgetting them all costs next to nothing and no value is ever moved.

use std::hash::BuildHasher;
use std::hash::Hash;

use hashbrown::HashTable;

/// A map of up to a fixed number of values. Each is used again and again in place: what the last
/// user left in it is for the next one to overwrite.
#[derive(Debug)]
pub(super) struct Batch<K, V> {
    entries: Box<[(K, V)]>,
    used: usize,
    index: HashTable<u16>,
    hasher: foldhash::fast::RandomState,
    /// The entry found last: most packets follow one of the same flow.
    last: usize,
}

impl<K: Copy + Eq + Hash, V> Batch<K, V> {
    /// A map for up to `count` values, which are made by `empty` now.
    pub(super) fn new(count: u16, key: K, mut empty: impl FnMut() -> V) -> Self {
        Self {
            entries: (0..count).map(|_| (key, empty())).collect(),
            used: 0,
            // Nothing is ever removed from it one by one, so it never grows.
            index: HashTable::with_capacity(usize::from(count)),
            hasher: foldhash::fast::RandomState::default(),
            last: 0,
        }
    }

    /// Number of values in use.
    pub(super) const fn len(&self) -> usize {
        self.used
    }

    /// Whether there is no room for another value.
    pub(super) const fn is_full(&self) -> bool {
        self.used == self.entries.len()
    }

    /// The place of a key's value.
    #[expect(
        clippy::inline_always,
        reason = "out of line it is dearer, by callgrind, and a second caller takes it there"
    )]
    #[inline(always)]
    pub(super) fn find(&mut self, key: &K) -> Option<usize> {
        if self.last < self.used && self.entries[self.last].0 == *key {
            return Some(self.last);
        }
        let hash = self.hasher.hash_one(key);
        let is_it = |&place: &u16| self.entries[usize::from(place)].0 == *key;
        let place = usize::from(*self.index.find(hash, is_it)?);
        self.last = place;
        Some(place)
    }

    /// Gives a key that has none a value, with what its last user left in it. Returns its place.
    ///
    /// # Panics
    /// If the map is full.
    pub(super) fn enter(&mut self, key: K) -> usize {
        assert!(!self.is_full(), "a batch does not grow");
        let place = self.used;
        let Self { entries, index, hasher, .. } = self;
        entries[place].0 = key;
        let number = u16::try_from(place).expect("the count has 16 bits");
        let rehash = |&other: &u16| hasher.hash_one(entries[usize::from(other)].0);
        index.insert_unique(hasher.hash_one(key), number, rehash);
        self.used += 1;
        self.last = place;
        place
    }

    /// The value at a place.
    #[inline]
    pub(super) fn at(&mut self, place: usize) -> &mut V {
        &mut self.entries[place].1
    }

    /// Key and value at a place.
    #[inline]
    pub(super) fn entry(&mut self, place: usize) -> (&K, &mut V) {
        let (key, value) = &mut self.entries[place];
        (key, value)
    }

    /// Forgets all keys.
    pub(super) fn clear(&mut self) {
        if self.used > 0 {
            self.index.clear();
            self.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_until_it_is_cleared(
            keys in prop::collection::vec(prop::option::weighted(0.9, 0..40_u32), 0..300),
        ) {
            let mut batch = Batch::new(32, 0, || 0_u32);
            let room = batch.index.capacity();
            let mut model = HashMap::new();
            for key in keys {
                let Some(key) = key else {
                    batch.clear();
                    model.clear();
                    continue;
                };
                let found = batch.find(&key).map(|place| *batch.at(place));
                prop_assert_eq!(found, model.get(&key).copied());
                if found.is_none() && !batch.is_full() {
                    let place = batch.enter(key);
                    *batch.at(place) = key + 1;
                    model.insert(key, key + 1);
                }
                prop_assert_eq!(batch.len(), model.len());
            }
            prop_assert_eq!(batch.index.capacity(), room, "it has allocated");
        }
    }
}
