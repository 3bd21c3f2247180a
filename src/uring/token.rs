//! What a completion is about, packed into the 64 bits of `user_data`.
//!
//! ```text
//!  63      56 55              40 39      32 31                              0
//! ┌──────────┬──────────────────┬──────────┬────────────────────────────────┐
//! │operation │ queue            │generation│ slot                           │
//! └──────────┴──────────────────┴──────────┴────────────────────────────────┘
//! ```
//!
//! The generation tells a completion for the slot's present use from one for an earlier use.

/// What kind of operation was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Multishot receive on the UDP socket.
    Receive = 1,
    /// Multishot read, or poll, of one TUN queue.
    TunRead = 2,
    /// One write to a TUN queue.
    TunWrite = 3,
    /// One send on a send socket.
    Send = 4,
    /// Wait until a send socket takes more.
    SendReady = 5,
    /// Wait for the mailbox's eventfd.
    Wake = 6,
    /// Cancellation of another operation.
    Cancel = 7,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Receive,
        Self::TunRead,
        Self::TunWrite,
        Self::Send,
        Self::SendReady,
        Self::Wake,
        Self::Cancel,
    ];
}

/// The name of one operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Kind of the operation.
    pub operation: Operation,
    /// Which queue or socket, as the operation counts them.
    pub queue: u16,
    /// Which use of the slot or queue.
    pub generation: u8,
    /// Which slot; zero for operations that have none.
    pub slot: u32,
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        (token.operation as Self) << 56
            | Self::from(token.queue) << 40
            | Self::from(token.generation) << 32
            | Self::from(token.slot)
    }
}

/// Bits that no [`Token`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:#x} is no token")]
pub struct BadTokenError(pub u64);

impl TryFrom<u64> for Token {
    type Error = BadTokenError;

    fn try_from(bits: u64) -> Result<Self, BadTokenError> {
        let [operation, queue_high, queue_low, generation, slot @ ..] = bits.to_be_bytes();
        let operation = Operation::ALL
            .into_iter()
            .find(|&known| known as u8 == operation)
            .ok_or(BadTokenError(bits))?;
        Ok(Self {
            operation,
            queue: u16::from_be_bytes([queue_high, queue_low]),
            generation,
            slot: u32::from_be_bytes(slot),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_token_comes_back(
            operation in prop::sample::select(&Operation::ALL[..]),
            queue: u16,
            generation: u8,
            slot: u32,
        ) {
            let token = Token { operation, queue, generation, slot };
            prop_assert_eq!(Token::try_from(u64::from(token)), Ok(token));
        }

        #[test]
        fn bits_are_a_token_or_refused(bits: u64) {
            match Token::try_from(bits) {
                Ok(token) => prop_assert_eq!(u64::from(token), bits),
                Err(error) => {
                    prop_assert_eq!(error, BadTokenError(bits));
                    let operation = bits >> 56;
                    prop_assert!(operation == 0 || operation > 7);
                }
            }
        }
    }
}
