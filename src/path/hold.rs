//! Datagrams that wait for their endpoint: copied into a fixed arena, in order per endpoint.
//!
//! The arena is 1 MiB per worker in blocks of 256 bytes; a datagram takes as many neighbouring
//! blocks as it needs. One endpoint may hold up to [`PER_ENDPOINT_MAX`] datagrams, in as many
//! blocks as are still free: alone it gets half of the arena, several times what the reference
//! program's socket keeps while its hook runs; each further one gets half of what the others leave,
//! so that a few busy endpoints do not take it all (Choudhury and Hahne, "Dynamic queue length
//! thresholds for shared-memory packet switches", 1998). This is off the packet path of
//! established traffic: the search for room may take a few microseconds.

use std::ops::Range;

use crate::types::OuterPath;

/// Most datagrams held for one endpoint.
pub(super) const PER_ENDPOINT_MAX: usize = 1024;

const BLOCK_BYTES: usize = 256;
const BLOCKS: usize = 4096;

/// One held datagram, known by its first block.
#[derive(Clone, Copy, Debug)]
struct Held {
    len: usize,
    outer: OuterPath,
    /// The next younger datagram of the same list.
    next: usize,
}

impl Held {
    /// What stands where no datagram starts.
    const NOTHING: Self = Self { len: 0, outer: OuterPath::NONE, next: 0 };

    fn block_count(&self) -> usize {
        self.len.div_ceil(BLOCK_BYTES)
    }

    fn blocks(&self, first: usize) -> Range<usize> {
        first..first + self.block_count()
    }

    fn bytes(&self, first: usize) -> Range<usize> {
        first * BLOCK_BYTES..first * BLOCK_BYTES + self.len
    }
}

/// The datagrams held for one endpoint, oldest first: a chain through a [`HoldArena`].
#[derive(Debug, Default)]
pub(super) struct HoldList {
    count: usize,
    blocks: usize,
    oldest: usize,
    youngest: usize,
}

impl HoldList {
    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Memory for held datagrams of one worker.
#[derive(Debug)]
pub(super) struct HoldArena {
    bytes: Box<[u8]>,
    used: Box<[bool]>,
    free: usize,
    held: Box<[Held]>,
}

impl HoldArena {
    /// An empty arena.
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BLOCKS * BLOCK_BYTES].into_boxed_slice(),
            used: vec![false; BLOCKS].into_boxed_slice(),
            free: BLOCKS,
            held: vec![Held::NOTHING; BLOCKS].into_boxed_slice(),
        }
    }

    /// Copies a datagram to the end of a list. Returns false if the list is full or the arena
    /// has no room for it.
    pub(super) fn push(&mut self, list: &mut HoldList, datagram: &[u8], outer: OuterPath) -> bool {
        let held = Held { len: datagram.len(), outer, next: 0 };
        let blocks = held.block_count();
        // Afterwards no more blocks are this list's than are free.
        let has_share = list.count < PER_ENDPOINT_MAX && list.blocks + 2 * blocks <= self.free;
        if !has_share || datagram.is_empty() {
            return false;
        }
        let Some(first) = self.find_room(blocks) else {
            return false;
        };
        self.used[held.blocks(first)].fill(true);
        self.free -= blocks;
        self.bytes[held.bytes(first)].copy_from_slice(datagram);
        self.held[first] = held;
        if list.count == 0 {
            list.oldest = first;
        } else {
            self.held[list.youngest].next = first;
        }
        list.youngest = first;
        list.count += 1;
        list.blocks += blocks;
        true
    }

    /// Moves the oldest datagram of a list to the start of `out`.
    ///
    /// # Panics
    /// If `out` is too short for it.
    pub(super) fn pop(
        &mut self,
        list: &mut HoldList,
        out: &mut [u8],
    ) -> Option<(usize, OuterPath)> {
        let (first, held) = self.unchain(list)?;
        out[..held.len].copy_from_slice(&self.bytes[held.bytes(first)]);
        Some((held.len, held.outer))
    }

    /// Empties a list. Returns how many datagrams were in it.
    pub(super) fn discard(&mut self, list: &mut HoldList) -> u64 {
        let mut count = 0;
        while self.unchain(list).is_some() {
            count += 1;
        }
        count
    }

    /// Takes the oldest datagram off a list and frees its blocks, whose bytes stay until the next
    /// push.
    fn unchain(&mut self, list: &mut HoldList) -> Option<(usize, Held)> {
        list.count = list.count.checked_sub(1)?;
        let first = list.oldest;
        let held = self.held[first];
        list.oldest = held.next;
        list.blocks -= held.block_count();
        self.used[held.blocks(first)].fill(false);
        self.free += held.block_count();
        Some((first, held))
    }

    fn find_room(&self, blocks: usize) -> Option<usize> {
        let mut run = 0;
        for (block, &used) in self.used.iter().enumerate() {
            run = if used { 0 } else { run + 1 };
            if run == blocks {
                return Some(block + 1 - blocks);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn outer(remote_port: u16) -> OuterPath {
        OuterPath { local: Ipv4Addr::LOCALHOST, remote: Ipv4Addr::LOCALHOST, remote_port }
    }

    proptest! {
        /// Three endpoints hold and release datagrams of any size in any order.
        #[test]
        fn what_goes_in_comes_out_in_order(
            steps in prop::collection::vec((0..3_usize, prop::option::of(1..9_000_usize)), 0..400),
        ) {
            let mut arena = HoldArena::new();
            let mut lists = [HoldList::default(), HoldList::default(), HoldList::default()];
            let mut models: [VecDeque<Vec<u8>>; 3] = Default::default();
            let mut out = vec![0; 9_000];
            let blocks = |len: usize| len.div_ceil(BLOCK_BYTES);
            for (step, (endpoint, push)) in (0_u16..).zip(steps) {
                let Some(len) = push else {
                    let popped = arena.pop(&mut lists[endpoint], &mut out);
                    let expected = models[endpoint].pop_front();
                    prop_assert_eq!(popped.map(|(len, _)| out[..len].to_vec()), expected);
                    continue;
                };
                let datagram = vec![step.to_be_bytes()[1]; len];
                if arena.push(&mut lists[endpoint], &datagram, outer(step)) {
                    models[endpoint].push_back(datagram);
                } else {
                    let held =
                        |model: &VecDeque<Vec<u8>>| model.iter().map(|d| blocks(d.len())).sum();
                    let [mine, all]: [usize; 2] =
                        [held(&models[endpoint]), models.iter().map(held).sum()];
                    // Holes may be too small, but no more than every second block is lost to them.
                    let full = mine + 2 * blocks(len) + all > BLOCKS || all > BLOCKS / 2;
                    prop_assert!(full, "{mine} blocks of {all} and no room for {len} bytes");
                }
            }
            for (list, model) in lists.iter_mut().zip(&models) {
                prop_assert_eq!(arena.discard(list), model.len() as u64);
            }
            prop_assert!(arena.used.iter().all(|&used| !used), "blocks leak");
            prop_assert_eq!(arena.free, BLOCKS);
        }
    }

    /// How many datagrams of `len` bytes find room for one more endpoint.
    fn fill(arena: &mut HoldArena, len: usize) -> (HoldList, usize) {
        let mut list = HoldList::default();
        let datagram = vec![7; len];
        let held = (0..3000).take_while(|_| arena.push(&mut list, &datagram, outer(1))).count();
        (list, held)
    }

    #[test]
    fn one_endpoint_holds_no_more_than_its_share() {
        let mut arena = HoldArena::new();
        assert_eq!(fill(&mut arena, 1).1, PER_ENDPOINT_MAX);
        let mut arena = HoldArena::new();
        let (mut large, held) = fill(&mut arena, 9000);
        assert_eq!(held, BLOCKS / 2 / 36);
        assert_eq!(arena.discard(&mut large), held as u64);
        assert_eq!(fill(&mut arena, 9000).1, held, "what is given back is free");
    }

    /// While hooks run one at a time, busy endpoints that wait must not take it all.
    #[test]
    fn there_is_room_for_one_more_endpoint() {
        let mut arena = HoldArena::new();
        let held: Vec<_> = (0..5).map(|_| fill(&mut arena, 512).1).collect();
        assert_eq!(held, [1024, 512, 256, 128, 64]);
        let (mut modest, _) = fill(&mut arena, 1);
        let mut out = [0; 1];
        assert_eq!(arena.pop(&mut modest, &mut out), Some((1, outer(1))));
        assert_eq!(out, [7]);
    }
}
