//! Which receive buffer is whose: the state of each, free of any kernel.
//!
//! ```text
//!            offer                received             release, count 1
//!   Free ───────────▶ Offered ───────────────▶ Held(1) ───────────────▶ Free
//!     └──────────────────────────────────▶      │  ▲
//!                       take              lease ▼  │ release
//!                                             Held(n)
//! ```
//!
//! The free list is a stack: the buffer that came back last is offered first, while it is still
//! in the cache.

/// A buffer was not in the state that the call needs: a bug of ours or of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffer {0} is not in the state for this")]
pub(super) struct WrongStateError(pub u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Offered,
    Held(u16),
}

/// The state of every buffer of one group.
#[derive(Debug)]
pub(super) struct LeaseTable {
    states: Vec<State>,
    free: Vec<u16>,
    offered: u16,
}

impl LeaseTable {
    /// A table of `count` free buffers.
    pub(super) fn new(count: u16) -> Self {
        Self {
            states: vec![State::Free; usize::from(count)],
            free: (0..count).rev().collect(),
            offered: 0,
        }
    }

    /// How many times [`Self::offer`] or [`Self::take`] would find a buffer.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Number of buffers that the kernel may write into.
    pub(super) fn offered(&self) -> u16 {
        self.offered
    }

    /// Takes the most recently freed buffer to give it to the kernel.
    pub(super) fn offer(&mut self) -> Option<u16> {
        let buffer = self.free.pop()?;
        self.states[usize::from(buffer)] = State::Offered;
        self.offered += 1;
        Some(buffer)
    }

    /// The kernel has filled a buffer: it is ours, with one lease, the caller's.
    ///
    /// # Errors
    /// If it was not offered.
    pub(super) fn received(&mut self, buffer: u16) -> Result<(), WrongStateError> {
        match self.states.get_mut(usize::from(buffer)) {
            Some(state @ State::Offered) => {
                *state = State::Held(1);
                self.offered -= 1;
                Ok(())
            }
            _ => Err(WrongStateError(buffer)),
        }
    }

    /// Takes a free buffer for the caller's own use, with one lease.
    pub(super) fn take(&mut self) -> Option<u16> {
        let buffer = self.free.pop()?;
        self.states[usize::from(buffer)] = State::Held(1);
        Some(buffer)
    }

    /// One more user of a held buffer.
    ///
    /// # Errors
    /// If it is not held, or by 65,535 users already.
    pub(super) fn lease(&mut self, buffer: u16) -> Result<(), WrongStateError> {
        match self.states.get_mut(usize::from(buffer)) {
            Some(State::Held(users)) if *users < u16::MAX => {
                *users += 1;
                Ok(())
            }
            _ => Err(WrongStateError(buffer)),
        }
    }

    /// One user less; the last one frees the buffer.
    ///
    /// # Errors
    /// If it is not held.
    pub(super) fn release(&mut self, buffer: u16) -> Result<(), WrongStateError> {
        match self.states.get_mut(usize::from(buffer)) {
            Some(state @ State::Held(1)) => {
                *state = State::Free;
                self.free.push(buffer);
                Ok(())
            }
            Some(State::Held(users)) => {
                *users -= 1;
                Ok(())
            }
            _ => Err(WrongStateError(buffer)),
        }
    }

    /// Users of a buffer: zero if it is free or the kernel's.
    pub(super) fn users(&self, buffer: u16) -> u16 {
        match self.states.get(usize::from(buffer)) {
            Some(State::Held(users)) => *users,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Offer,
        Take,
        Received(u16),
        Lease(u16),
        Release(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Nine numbers for eight buffers: one of them is always out of range.
        prop_oneof![
            Just(Step::Offer),
            Just(Step::Take),
            (0..9_u16).prop_map(Step::Received),
            (0..9_u16).prop_map(Step::Lease),
            (0..9_u16).prop_map(Step::Release),
        ]
    }

    /// Sets and a map in place of states: slow and obvious.
    #[derive(Default)]
    struct Oracle {
        offered: HashSet<u16>,
        held: HashMap<u16, u16>,
    }

    impl Oracle {
        fn is_free(&self, buffer: u16) -> bool {
            !self.offered.contains(&buffer) && !self.held.contains_key(&buffer)
        }

        fn agree(&mut self, table: &mut LeaseTable, step: &Step) {
            match *step {
                Step::Offer => match table.offer() {
                    Some(buffer) => assert!(self.is_free(buffer) && self.offered.insert(buffer)),
                    None => assert_eq!(self.offered.len() + self.held.len(), 8),
                },
                Step::Take => match table.take() {
                    Some(buffer) => {
                        assert!(self.is_free(buffer));
                        self.held.insert(buffer, 1);
                    }
                    None => assert_eq!(self.offered.len() + self.held.len(), 8),
                },
                Step::Received(buffer) => {
                    let ours = self.offered.remove(&buffer);
                    assert_eq!(table.received(buffer).is_ok(), ours);
                    if ours {
                        self.held.insert(buffer, 1);
                    }
                }
                Step::Lease(buffer) => {
                    let users = self.held.get_mut(&buffer);
                    assert_eq!(table.lease(buffer).is_ok(), users.is_some());
                    if let Some(users) = users {
                        *users += 1;
                    }
                }
                Step::Release(buffer) => {
                    assert_eq!(table.release(buffer).is_ok(), self.held.contains_key(&buffer));
                    if let Some(users) = self.held.get_mut(&buffer) {
                        *users -= 1;
                    }
                    self.held.retain(|_, users| *users > 0);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_sequence_of_calls_agrees_with_the_oracle(
            steps in prop::collection::vec(step(), 0..300),
        ) {
            let mut table = LeaseTable::new(8);
            let mut oracle = Oracle::default();
            for step in &steps {
                oracle.agree(&mut table, step);
                prop_assert_eq!(usize::from(table.offered()), oracle.offered.len());
                prop_assert_eq!(table.free(), 8 - oracle.offered.len() - oracle.held.len());
                for buffer in 0..9 {
                    let users = oracle.held.get(&buffer).copied().unwrap_or(0);
                    prop_assert_eq!(table.users(buffer), users);
                }
            }
        }
    }

    #[test]
    fn the_buffer_freed_last_is_offered_first() {
        let mut table = LeaseTable::new(4);
        let (first, second) = (table.take().unwrap(), table.take().unwrap());
        table.release(first).unwrap();
        table.release(second).unwrap();
        assert_eq!(table.offer(), Some(second));
    }
}
