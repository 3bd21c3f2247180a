//! ICMP messages of both families: RFC 792 and RFC 4443.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+  byte
//! |     Type      |     Code      |           Checksum            |  0
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Identifier, Sequence Number of an echo; unused, MTU, ...     |  4
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Data of an echo; the packet that an error is about        |  8
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! Both families share the layout and differ in the numbers of their types and in the checksum,
//! which covers a pseudo header in IPv6 only. Everything else an ICMP message can be is carried
//! like any packet and not looked at. Nothing here panics.

use crate::wire::Family;
use crate::wire::checksum;
use crate::wire::checksum::Sum;
use crate::wire::field::be16;

/// Bytes before the data of an echo or the packet of an error.
pub const HEADER_BYTES: usize = 8;

/// Where the fields stand.
pub mod field {
    use std::ops::Range;

    /// Type.
    pub const KIND: usize = 0;
    /// Code.
    pub const CODE: usize = 1;
    /// Checksum.
    pub const CHECKSUM: Range<usize> = 2..4;
    /// Identifier of an echo.
    pub const ECHO_ID: Range<usize> = 4..6;
    /// Sequence number of an echo.
    pub const ECHO_SEQUENCE: Range<usize> = 6..8;
    /// In the answer to a packet that is too big: the MTU (RFC 1191 §4). In IPv6 it has 32 bits, of
    /// which these are the lower ones (RFC 4443 §3.2).
    pub const MTU: Range<usize> = 6..8;
}

/// What tells one echo from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Whether this is the answer.
    pub is_reply: bool,
    /// Identifier: which of the sender's programs asks.
    pub id: u16,
    /// Number of the question.
    pub sequence: u16,
}

/// A whole ICMP message.
#[derive(Clone, Copy, Debug)]
pub struct Message<T> {
    bytes: T,
    family: Family,
}

impl<T: AsRef<[u8]>> Message<T> {
    /// Looks at the payload of a packet of `family` whose protocol is that family's ICMP. Nothing
    /// below 8 bytes.
    pub fn new_checked(bytes: T, family: Family) -> Option<Self> {
        (bytes.as_ref().len() >= HEADER_BYTES).then_some(Self { bytes, family })
    }

    /// Type, a number of this family.
    pub fn kind(&self) -> u8 {
        self.bytes.as_ref()[field::KIND]
    }

    /// Code, a number of this type.
    pub fn code(&self) -> u8 {
        self.bytes.as_ref()[field::CODE]
    }

    /// What an echo or its answer says, nothing if the message is neither.
    pub fn echo(&self) -> Option<Echo> {
        let is_reply = match (self.family, self.kind()) {
            (Family::V4, 8) | (Family::V6, 128) => false,
            (Family::V4, 0) | (Family::V6, 129) => true,
            _ => return None,
        };
        let bytes = self.bytes.as_ref();
        Some(Echo {
            is_reply,
            id: be16(bytes, field::ECHO_ID),
            sequence: be16(bytes, field::ECHO_SEQUENCE),
        })
    }

    /// The beginning of the packet that an error is about, nothing if the message is no error.
    pub fn quoted(&self) -> Option<&[u8]> {
        self.is_error().then(|| &self.bytes.as_ref()[HEADER_BYTES..])
    }

    /// Whether the message is an error, which quotes the packet that it is about.
    pub fn is_error(&self) -> bool {
        match self.family {
            // Unreachable, source quench, redirect, time exceeded, parameter problem.
            Family::V4 => matches!(self.kind(), 3 | 4 | 5 | 11 | 12),
            // RFC 4443 §2.1: the high bit tells information from errors.
            Family::V6 => self.kind() < 128,
        }
    }

    /// Whether the message is unharmed. The pseudo header counts in IPv6 only; in IPv4 it is
    /// [`Sum::default`].
    pub fn checksum_is_valid(&self, pseudo_header: Sum) -> bool {
        (pseudo_header + checksum::sum(self.bytes.as_ref())).is_valid()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Message<T> {
    /// Computes the checksum, after everything else is set. For the pseudo header see
    /// [`Self::checksum_is_valid`].
    pub fn fill_checksum(&mut self, pseudo_header: Sum) {
        let bytes = self.bytes.as_mut();
        bytes[field::CHECKSUM].fill(0);
        let checksum = (pseudo_header + checksum::sum(bytes)).finish();
        bytes[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Addresses;
    use crate::wire::protocol;

    const ECHO_V4: [u8; 11] = [
        0x08, 0x00, 0x21, 0x64, 0x12, 0x34, 0x00, 0x05, // id 0x1234, sequence 5
        0x61, 0x62, 0x63, // "abc"
    ];

    /// Packet too big: MTU 1500, about a packet of which four bytes are quoted.
    const ERROR_V6: [u8; 12] =
        [0x02, 0x00, 0x3c, 0x68, 0x00, 0x00, 0x05, 0xdc, 0x60, 0x00, 0x00, 0x00];

    fn pseudo_header_v6() -> Sum {
        let addresses = Addresses::V6 {
            src: [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            dst: [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        };
        checksum::pseudo_header(addresses, protocol::ICMPV6, 12)
    }

    #[test]
    fn golden_echo() {
        let message = Message::new_checked(&ECHO_V4, Family::V4).unwrap();
        assert_eq!((message.kind(), message.code()), (8, 0));
        let echo = Echo { is_reply: false, id: 0x1234, sequence: 5 };
        assert_eq!(message.echo(), Some(echo));
        assert_eq!(message.quoted(), None);
        assert!(message.checksum_is_valid(Sum::default()));
    }

    #[test]
    fn golden_error() {
        let message = Message::new_checked(&ERROR_V6, Family::V6).unwrap();
        assert_eq!((message.kind(), message.code()), (2, 0));
        assert_eq!(message.echo(), None);
        assert_eq!(message.quoted(), Some(&[0x60, 0, 0, 0][..]));
        assert!(message.checksum_is_valid(pseudo_header_v6()));
        assert!(!message.checksum_is_valid(Sum::default()));
    }

    #[test]
    fn numbers_of_one_family_mean_nothing_in_the_other() {
        for kind in 0..=u8::MAX {
            let mut bytes = ECHO_V4;
            bytes[0] = kind;
            let v4 = Message::new_checked(&bytes, Family::V4).unwrap();
            let is_reply = v4.echo().map(|echo| echo.is_reply);
            let expected = [(8, false), (0, true)].into_iter().find(|it| it.0 == kind);
            assert_eq!(is_reply, expected.map(|it| it.1), "{kind}");
            assert_eq!(v4.quoted().is_some(), [3, 4, 5, 11, 12].contains(&kind));

            let v6 = Message::new_checked(&bytes, Family::V6).unwrap();
            let is_reply = v6.echo().map(|echo| echo.is_reply);
            let expected = [(128, false), (129, true)].into_iter().find(|it| it.0 == kind);
            assert_eq!(is_reply, expected.map(|it| it.1), "{kind}");
            assert_eq!(v6.quoted().is_some(), kind < 128);
        }
    }

    #[test]
    fn fewer_than_8_bytes_are_nothing() {
        for length in 0..8 {
            let message = Message::new_checked(&ECHO_V4[..length], Family::V4);
            assert!(message.is_none(), "{length}");
        }
        assert!(Message::new_checked(&ECHO_V4[..8], Family::V4).is_some());
    }

    #[test]
    fn a_checksum_is_filled_in() {
        let mut bytes = ECHO_V4;
        bytes[2..4].copy_from_slice(&[0xaa, 0xaa]);
        let mut message = Message::new_checked(&mut bytes, Family::V4).unwrap();
        message.fill_checksum(Sum::default());
        assert_eq!(bytes, ECHO_V4);

        let mut bytes = ERROR_V6;
        bytes[2..4].copy_from_slice(&[0xaa, 0xaa]);
        let mut message = Message::new_checked(&mut bytes, Family::V6).unwrap();
        message.fill_checksum(pseudo_header_v6());
        assert_eq!(bytes, ERROR_V6);
    }
}
