//! At most one write and one send whose end is waited for: samples of how long the way of a packet
//! takes.

use super::token::Operation;
use super::token::Token;
use crate::types::Moment;

/// In place of a slot: nothing is watched, or the next one that is started.
const NOTHING: u32 = u32::MAX;
const NEXT: u32 = u32::MAX - 1;

/// What is watched of one kind, and since when. It is asked for every operation, so the slot alone
/// says no; `token` is its whole token.
#[derive(Debug)]
struct Watched {
    slot: u32,
    token: Option<Token>,
    since: Moment,
}

impl Watched {
    const NOTHING: Self = Self { slot: NOTHING, token: None, since: Moment::ZERO };

    fn is(&self, token: Token) -> bool {
        self.slot == token.slot && self.token == Some(token)
    }
}

/// The operations that are watched.
#[derive(Debug)]
pub(super) struct Watch {
    write: Watched,
    send: Watched,
}

impl Default for Watch {
    fn default() -> Self {
        Self { write: Watched::NOTHING, send: Watched::NOTHING }
    }
}

impl Watch {
    /// A turn begins: what was to be watched and was not started is forgotten. If it is to be
    /// watched, `since` is when it began: that counts for the next write and the next send, as far
    /// as none is watched from an earlier turn.
    pub(super) fn begin(&mut self, since: Option<Moment>) {
        for watched in [&mut self.write, &mut self.send] {
            if watched.slot >= NEXT {
                watched.slot = if since.is_some() { NEXT } else { NOTHING };
                watched.since = since.unwrap_or(Moment::ZERO);
            }
        }
    }

    /// A write or send is started.
    pub(super) fn started(&mut self, token: Token) {
        let watched = self.of(token.operation);
        if watched.slot == NEXT {
            (watched.slot, watched.token) = (token.slot, Some(token));
        }
    }

    /// Since when this one is watched, if it is.
    pub(super) fn since(&self, token: Token) -> Option<Moment> {
        let mut both = [&self.write, &self.send].into_iter();
        both.find(|watched| watched.is(token)).map(|watched| watched.since)
    }

    /// A write or send has ended: its token may soon be another one's.
    pub(super) fn ended(&mut self, token: Token) {
        let watched = self.of(token.operation);
        if watched.is(token) {
            watched.slot = NOTHING;
        }
    }

    const fn of(&mut self, operation: Operation) -> &mut Watched {
        if matches!(operation, Operation::TunWrite) { &mut self.write } else { &mut self.send }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Moment = Moment::from_secs(1);
    const TWO: Moment = Moment::from_secs(2);

    fn token(operation: Operation, slot: u32) -> Token {
        Token { operation, queue: 3, generation: 7, slot }
    }

    #[test]
    fn the_first_of_a_turn_is_watched_until_it_ends() {
        let [first, second] = [1, 2].map(|slot| token(Operation::TunWrite, slot));
        let send = token(Operation::Send, 1);
        let mut watch = Watch::default();
        watch.started(first);
        assert_eq!(watch.since(first), None, "nobody wanted that");
        watch.begin(Some(ONE));
        watch.started(first);
        watch.started(second);
        assert_eq!((watch.since(first), watch.since(second)), (Some(ONE), None));
        watch.begin(Some(TWO));
        watch.started(second);
        watch.started(send);
        assert_eq!((watch.since(second), watch.since(send)), (None, Some(TWO)));
        watch.ended(second);
        assert_eq!(watch.since(first), Some(ONE));
        watch.ended(first);
        assert_eq!((watch.since(first), watch.since(send)), (None, Some(TWO)));
    }

    #[test]
    fn what_a_turn_does_not_start_is_not_watched_later() {
        let mut watch = Watch::default();
        let write = token(Operation::TunWrite, 1);
        watch.begin(Some(ONE));
        watch.begin(None);
        watch.started(write);
        assert_eq!(watch.since(write), None);
    }
}
