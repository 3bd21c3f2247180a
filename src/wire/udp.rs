//! UDP headers, RFC 768.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+  byte
//! |          Source Port          |       Destination Port        |  0
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |            Length             |           Checksum            |  4
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! A [`Header`] covers bytes that begin with a whole header; the payload may follow or be
//! elsewhere. [`Header::new_checked`] makes the only check and nothing here panics. Too few bytes
//! are no reason to drop a packet, so the check answers with nothing instead of a reason.

use crate::wire::checksum;
use crate::wire::checksum::Sum;
use crate::wire::field::be16;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;

/// Where the fields stand.
pub mod field {
    use std::ops::Range;

    /// Source port.
    pub const SRC_PORT: Range<usize> = 0..2;
    /// Destination port.
    pub const DST_PORT: Range<usize> = 2..4;
    /// Length of header and payload in bytes.
    pub const LENGTH_BYTES: Range<usize> = 4..6;
    /// Checksum, 0 for none.
    pub const CHECKSUM: Range<usize> = 6..8;
}

/// Bytes that begin with a whole UDP header.
#[derive(Clone, Copy, Debug)]
pub struct Header<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Header<T> {
    /// Looks at bytes that should begin with a UDP header. Nothing below 8 bytes.
    pub fn new_checked(bytes: T) -> Option<Self> {
        (bytes.as_ref().len() >= HEADER_BYTES).then_some(Self { bytes })
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        be16(self.bytes.as_ref(), field::SRC_PORT)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        be16(self.bytes.as_ref(), field::DST_PORT)
    }

    /// Length of header and payload in bytes, as the header claims it.
    pub fn length_bytes(&self) -> u16 {
        be16(self.bytes.as_ref(), field::LENGTH_BYTES)
    }

    /// Whether the sender computed a checksum: 0 says that it did not.
    pub fn has_checksum(&self) -> bool {
        be16(self.bytes.as_ref(), field::CHECKSUM) != 0
    }

    /// Whether the datagram has a checksum and is unharmed. `payload` is the sum of what follows
    /// the header.
    pub fn checksum_is_valid(&self, pseudo_header: Sum, payload: Sum) -> bool {
        let header = checksum::sum(&self.bytes.as_ref()[..HEADER_BYTES]);
        self.has_checksum() && (pseudo_header + header + payload).is_valid()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Header<T> {
    /// Sets source and destination port.
    pub fn set_ports(&mut self, src: u16, dst: u16) {
        self.bytes.as_mut()[field::SRC_PORT].copy_from_slice(&src.to_be_bytes());
        self.bytes.as_mut()[field::DST_PORT].copy_from_slice(&dst.to_be_bytes());
    }

    /// Sets the length of header and payload.
    pub fn set_length_bytes(&mut self, bytes: u16) {
        self.bytes.as_mut()[field::LENGTH_BYTES].copy_from_slice(&bytes.to_be_bytes());
    }

    /// Computes the checksum, after everything else is set. `payload` is the sum of what follows
    /// the header.
    pub fn fill_checksum(&mut self, pseudo_header: Sum, payload: Sum) {
        let header = &mut self.bytes.as_mut()[..HEADER_BYTES];
        header[field::CHECKSUM].fill(0);
        let checksum = match (pseudo_header + checksum::sum(header) + payload).finish() {
            // 0 would say "no checksum", and 0xffff is the same number.
            0 => u16::MAX,
            checksum => checksum,
        };
        header[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Addresses;
    use crate::wire::protocol;

    const GOLDEN: [u8; 11] = [
        0x30, 0x39, 0x00, 0x35, // port 12345 to 53
        0x00, 0x0b, 0xaf, 0x92, // 11 bytes
        0x61, 0x62, 0x63, // "abc"
    ];

    fn pseudo_header() -> Sum {
        let addresses = Addresses::V6 {
            src: [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            dst: [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        };
        checksum::pseudo_header(addresses, protocol::UDP, 11)
    }

    #[test]
    fn golden_bytes() {
        let header = Header::new_checked(&GOLDEN).unwrap();
        assert_eq!(header.src_port(), 12345);
        assert_eq!(header.dst_port(), 53);
        assert_eq!(header.length_bytes(), 11);
        assert!(header.has_checksum());
        assert!(header.checksum_is_valid(pseudo_header(), checksum::sum(b"abc")));
        assert!(!header.checksum_is_valid(pseudo_header(), checksum::sum(b"abd")));
    }

    #[test]
    fn fewer_than_8_bytes_are_nothing() {
        for length in 0..8 {
            assert!(Header::new_checked(&GOLDEN[..length]).is_none(), "{length}");
        }
        assert!(Header::new_checked(&GOLDEN[..8]).is_some());
    }

    #[test]
    fn an_edited_header_is_valid_again() {
        let mut bytes = GOLDEN;
        let mut header = Header::new_checked(&mut bytes[..8]).unwrap();
        header.set_ports(12_346, 54);
        header.set_length_bytes(10);
        header.fill_checksum(pseudo_header(), checksum::sum(b"abc"));
        assert!(header.checksum_is_valid(pseudo_header(), checksum::sum(b"abc")));
        let mut expected = GOLDEN;
        expected[..8].copy_from_slice(&[0x30, 0x3a, 0x00, 0x36, 0x00, 0x0a, 0xaf, 0x91]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_checksum_is_never_zero() {
        let mut bytes = [0, 0, 0, 0, 0, 0, 0, 0];
        let mut header = Header::new_checked(&mut bytes).unwrap();
        assert!(!header.has_checksum());
        assert!(!header.checksum_is_valid(Sum::default(), checksum::sum(&[0xff, 0xff])));
        header.fill_checksum(Sum::default(), checksum::sum(&[0xff, 0xff]));
        assert!(header.checksum_is_valid(Sum::default(), checksum::sum(&[0xff, 0xff])));
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    }
}
