//! IPv4 headers, RFC 791 §3.1.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+  byte
//! |Version|  IHL  |Type of Service|          Total Length         |  0
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |         Identification        |R|D|M|     Fragment Offset     |  4
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Time to Live |    Protocol   |         Header Checksum       |  8
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                    Source, Destination, Options               |  12
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! A [`Header`] covers bytes that begin with a whole header; what else they hold does not matter,
//! so it may lie over a packet or over a header alone whose payload is elsewhere.
//! [`Header::new_checked`] makes the only check. No setter can undo it, so nothing here panics.

use crate::types::DropReason;
use crate::wire::Addresses;
use crate::wire::checksum;
use crate::wire::field::array;
use crate::wire::field::be16;

/// Bytes of a header without options.
pub const HEADER_BYTES_MIN: usize = 20;

/// Where the fields stand.
pub mod field {
    use std::ops::Range;

    /// Type of service.
    pub const TOS: usize = 1;
    /// Length of header and payload in bytes.
    pub const TOTAL_BYTES: Range<usize> = 2..4;
    /// Identification.
    pub const ID: Range<usize> = 4..6;
    /// Three flags and the fragment offset.
    pub const FRAGMENT: Range<usize> = 6..8;
    /// Time to live.
    pub const TTL: usize = 8;
    /// Protocol of the payload.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: Range<usize> = 10..12;
    /// Source address.
    pub const SRC: Range<usize> = 12..16;
    /// Destination address.
    pub const DST: Range<usize> = 16..20;
}

const DONT_FRAGMENT: u16 = 0x4000;

/// More fragments, or an offset other than 0.
const FRAGMENT_MASK: u16 = 0x3fff;

/// The offset.
const OFFSET_MASK: u16 = 0x1fff;

/// Bytes that begin with a whole IPv4 header.
#[derive(Clone, Copy, Debug)]
pub struct Header<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Header<T> {
    /// Looks at bytes that should begin with an IPv4 header.
    ///
    /// # Errors
    /// [`InnerVersionMismatch`](DropReason::InnerVersionMismatch) if the version is not 4,
    /// [`InnerMalformed`](DropReason::InnerMalformed) if the header says that it is shorter than
    /// 20 bytes, [`InnerTruncated`](DropReason::InnerTruncated) if it does not fit.
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let packet = bytes.as_ref();
        let first = *packet.first().ok_or(DropReason::InnerTruncated)?;
        if first >> 4 != 4 {
            return Err(DropReason::InnerVersionMismatch);
        }
        let header_bytes = header_bytes(first);
        if header_bytes < HEADER_BYTES_MIN {
            return Err(DropReason::InnerMalformed);
        }
        if packet.len() < header_bytes {
            return Err(DropReason::InnerTruncated);
        }
        Ok(Self { bytes })
    }

    /// Length of the header with its options: 20 to 60 bytes.
    pub fn header_bytes(&self) -> usize {
        header_bytes(self.bytes.as_ref()[0])
    }

    /// Type of service.
    pub fn tos(&self) -> u8 {
        self.bytes.as_ref()[field::TOS]
    }

    /// Length of header and payload in bytes, as the header claims it.
    pub fn total_bytes(&self) -> u16 {
        be16(self.bytes.as_ref(), field::TOTAL_BYTES)
    }

    /// Identification.
    pub fn id(&self) -> u16 {
        be16(self.bytes.as_ref(), field::ID)
    }

    /// Whether the packet must not be fragmented.
    pub fn dont_fragment(&self) -> bool {
        self.fragment() & DONT_FRAGMENT != 0
    }

    /// Whether this is a part of a packet: the first, the last or one between.
    pub fn is_fragment(&self) -> bool {
        self.fragment() & FRAGMENT_MASK != 0
    }

    /// Whether this is a part of a packet, but not the first one.
    pub fn is_later_fragment(&self) -> bool {
        self.fragment() & OFFSET_MASK != 0
    }

    /// Time to live.
    pub fn ttl(&self) -> u8 {
        self.bytes.as_ref()[field::TTL]
    }

    /// Protocol of the payload.
    pub fn protocol(&self) -> u8 {
        self.bytes.as_ref()[field::PROTOCOL]
    }

    /// Source and destination.
    pub fn addresses(&self) -> Addresses {
        Addresses::V4 {
            src: array(self.bytes.as_ref(), field::SRC),
            dst: array(self.bytes.as_ref(), field::DST),
        }
    }

    /// Whether the header is unharmed.
    pub fn checksum_is_valid(&self) -> bool {
        checksum::sum(&self.bytes.as_ref()[..self.header_bytes()]).is_valid()
    }

    fn fragment(&self) -> u16 {
        be16(self.bytes.as_ref(), field::FRAGMENT)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Header<T> {
    /// Sets the length of header and payload.
    pub fn set_total_bytes(&mut self, bytes: u16) {
        self.bytes.as_mut()[field::TOTAL_BYTES].copy_from_slice(&bytes.to_be_bytes());
    }

    /// Sets the identification.
    pub fn set_id(&mut self, id: u16) {
        self.bytes.as_mut()[field::ID].copy_from_slice(&id.to_be_bytes());
    }

    /// Computes the header checksum, after everything else is set.
    pub fn fill_checksum(&mut self) {
        let header_bytes = self.header_bytes();
        let header = &mut self.bytes.as_mut()[..header_bytes];
        header[field::CHECKSUM].fill(0);
        let checksum = checksum::sum(header).finish();
        header[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Header length that the first byte of a header claims, in bytes.
fn header_bytes(first: u8) -> usize {
    usize::from(first & 0x0f) * 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol;

    /// With 4 bytes of options (router alert, RFC 2113) and one byte behind the header.
    const GOLDEN: [u8; 25] = [
        0x46, 0xb8, 0x00, 0x19, 0xbe, 0xef, 0x40, 0x00, 0x01, 0x11, 0x82, 0x2b, //
        0xc0, 0x00, 0x02, 0x01, 0xe0, 0x00, 0x00, 0xfb, // 192.0.2.1 to 224.0.0.251
        0x94, 0x04, 0x00, 0x00, //
        0xaa,
    ];

    #[test]
    fn golden_bytes() {
        let header = Header::new_checked(&GOLDEN).unwrap();
        assert_eq!(header.header_bytes(), 24);
        assert_eq!(header.tos(), 0xb8);
        assert_eq!(header.total_bytes(), 25);
        assert_eq!(header.id(), 0xbeef);
        assert!(header.dont_fragment());
        assert!(!header.is_fragment());
        assert_eq!(header.ttl(), 1);
        assert_eq!(header.protocol(), protocol::UDP);
        let addresses = Addresses::V4 { src: [192, 0, 2, 1], dst: [224, 0, 0, 251] };
        assert_eq!(header.addresses(), addresses);
        assert!(header.checksum_is_valid());
    }

    #[test]
    fn fragments_are_told_from_whole_packets() {
        for (high, low, is_fragment, dont_fragment) in [
            (0x00, 0x00, false, false),
            (0x80, 0x00, false, false), // The reserved bit makes no fragment.
            (0x20, 0x00, true, false),
            (0x00, 0x01, true, false),
            (0x1f, 0xff, true, false),
            (0x60, 0x00, true, true),
        ] {
            let mut bytes = GOLDEN;
            bytes[6..8].copy_from_slice(&[high, low]);
            let header = Header::new_checked(&bytes).unwrap();
            assert_eq!(header.is_fragment(), is_fragment, "{high:x} {low:x}");
            assert_eq!(header.dont_fragment(), dont_fragment, "{high:x} {low:x}");
        }
    }

    #[test]
    fn what_is_no_header_has_its_reason() {
        for length in 0..24 {
            let reason = Header::new_checked(&GOLDEN[..length]).err();
            assert_eq!(reason, Some(DropReason::InnerTruncated), "{length}");
        }
        assert!(Header::new_checked(&GOLDEN[..24]).is_ok());
        for (first, reason) in [
            (0x44, DropReason::InnerMalformed),
            (0x40, DropReason::InnerMalformed),
            (0x4f, DropReason::InnerTruncated),
            (0x65, DropReason::InnerVersionMismatch),
        ] {
            let mut bytes = GOLDEN;
            bytes[0] = first;
            assert_eq!(Header::new_checked(&bytes).err(), Some(reason), "{first:x}");
        }
    }

    #[test]
    fn an_edited_header_is_valid_again() {
        let mut bytes = GOLDEN;
        let mut header = Header::new_checked(&mut bytes).unwrap();
        header.set_total_bytes(0x1234);
        header.set_id(0xbef0);
        assert!(!header.checksum_is_valid());
        header.fill_checksum();
        assert!(header.checksum_is_valid());
        let mut expected = GOLDEN;
        expected[2..6].copy_from_slice(&[0x12, 0x34, 0xbe, 0xf0]);
        expected[10..12].copy_from_slice(&[0x70, 0x0f]);
        assert_eq!(bytes, expected);
    }
}
