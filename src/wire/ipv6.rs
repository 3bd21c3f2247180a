//! IPv6 headers, RFC 8200 §3, and the way past the extension headers behind them.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+  byte
//! |Version| Traffic Class |           Flow Label                  |  0
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |         Payload Length        |  Next Header  |   Hop Limit   |  4
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                     Source, Destination                       |  8
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! A [`Header`] covers bytes that begin with the 40 bytes of the fixed header.
//! [`Header::new_checked`] makes the only check, no setter can undo it, and nothing here panics.

use crate::types::DropReason;
use crate::wire::Addresses;
use crate::wire::field::array;
use crate::wire::field::be16;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 40;

/// Extension headers that are walked over at most. RFC 8200 §4.1 knows seven of them in a packet;
/// a longer chain is an attempt to make somebody walk.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// Where the fields stand.
pub mod field {
    use std::ops::Range;

    /// Length of everything behind the fixed header, in bytes.
    pub const PAYLOAD_BYTES: Range<usize> = 4..6;
    /// What follows the fixed header.
    pub const NEXT_HEADER: usize = 6;
    /// Hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Source address.
    pub const SRC: Range<usize> = 8..24;
    /// Destination address.
    pub const DST: Range<usize> = 24..40;
}

/// Extension headers (IANA, "IPv6 Extension Header Types") that can be walked over.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

/// Offset and M flag in a fragment header (RFC 8200 §4.5), its two reserved bits left out.
const FRAGMENT_MASK: u16 = 0xfff9;

/// The offset there.
const OFFSET_MASK: u16 = 0xfff8;

/// Bytes that begin with a whole IPv6 header.
#[derive(Clone, Copy, Debug)]
pub struct Header<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Header<T> {
    /// Looks at bytes that should begin with an IPv6 header.
    ///
    /// # Errors
    /// [`InnerVersionMismatch`](DropReason::InnerVersionMismatch) if the version is not 6,
    /// [`InnerTruncated`](DropReason::InnerTruncated) if there are fewer than 40 bytes.
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let packet = bytes.as_ref();
        let first = packet.first().ok_or(DropReason::InnerTruncated)?;
        if first >> 4 != 6 {
            return Err(DropReason::InnerVersionMismatch);
        }
        if packet.len() < HEADER_BYTES {
            return Err(DropReason::InnerTruncated);
        }
        Ok(Self { bytes })
    }

    /// Length of everything behind the fixed header in bytes, as the header claims it. 0 in a
    /// jumbogram (RFC 2675), whose length stands in an option.
    pub fn payload_bytes(&self) -> u16 {
        be16(self.bytes.as_ref(), field::PAYLOAD_BYTES)
    }

    /// What follows the fixed header: an extension header or the protocol.
    pub fn next_header(&self) -> u8 {
        self.bytes.as_ref()[field::NEXT_HEADER]
    }

    /// Hop limit.
    pub fn hop_limit(&self) -> u8 {
        self.bytes.as_ref()[field::HOP_LIMIT]
    }

    /// Source and destination.
    pub fn addresses(&self) -> Addresses {
        Addresses::V6 {
            src: array(self.bytes.as_ref(), field::SRC),
            dst: array(self.bytes.as_ref(), field::DST),
        }
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Header<T> {
    /// Sets the length of everything behind the fixed header.
    pub fn set_payload_bytes(&mut self, bytes: u16) {
        self.bytes.as_mut()[field::PAYLOAD_BYTES].copy_from_slice(&bytes.to_be_bytes());
    }
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperLayer<'a> {
    /// Protocol number; the number of the extension header that stopped the walk, if one did.
    pub protocol: u8,
    /// The transport header and what follows. Nothing in a later fragment, and where the walk
    /// stopped early.
    pub bytes: Option<&'a [u8]>,
    /// Which part of a packet this is, if it is not all of it.
    pub fragment: Option<Fragment>,
}

/// What a fragment header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Tells the packet from others between the same addresses.
    pub id: u32,
    /// Whether this is not the first part.
    pub is_later: bool,
}

/// Walks from the `next_header` field of the fixed header and the bytes behind that header to
/// the upper layer.
///
/// An atomic fragment (offset 0, no more to come; RFC 6946) is a whole packet. Its header is walked
/// over, and so is that of a first fragment. A later fragment ends the walk with the protocol that
/// its fragment header names: there is no transport header in it. The walk also ends before an
/// extension header that is cut, and before the ninth.
pub fn upper_layer(next_header: u8, payload: &[u8]) -> UpperLayer<'_> {
    let mut protocol = next_header;
    let mut rest = payload;
    let mut fragment = None;
    for _ in 0..EXTENSION_HEADERS_MAX {
        match pass(protocol, rest) {
            Pass::Over { next, behind } => (protocol, rest) = (next, behind),
            Pass::Fragment { next, behind, part } => {
                // Of several such headers the outermost counts: its sender cut last.
                let part = *fragment.get_or_insert(part);
                if part.is_later {
                    return UpperLayer { protocol: next, bytes: None, fragment };
                }
                (protocol, rest) = (next, behind);
            }
            Pass::NotExtension | Pass::Cut => break,
        }
    }
    UpperLayer { protocol, bytes: (!is_extension(protocol)).then_some(rest), fragment }
}

/// One step of the walk.
enum Pass<'a> {
    NotExtension,
    Over { next: u8, behind: &'a [u8] },
    Fragment { next: u8, behind: &'a [u8], part: Fragment },
    Cut,
}

const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION
    )
}

fn pass(number: u8, bytes: &[u8]) -> Pass<'_> {
    if !is_extension(number) {
        return Pass::NotExtension;
    }
    // None of them is shorter than 8 bytes.
    let Some((&[next, length, offset_high, offset_low, id @ ..], behind)) =
        bytes.split_first_chunk::<8>()
    else {
        return Pass::Cut;
    };
    let header_bytes = match number {
        extension::FRAGMENT => {
            let offset = u16::from_be_bytes([offset_high, offset_low]);
            if offset & FRAGMENT_MASK != 0 {
                let is_later = offset & OFFSET_MASK != 0;
                let part = Fragment { id: u32::from_be_bytes(id), is_later };
                return Pass::Fragment { next, behind, part };
            }
            8
        }
        // RFC 4302 §2.2: in words of 4 bytes, less 2.
        extension::AUTHENTICATION => (usize::from(length) + 2) * 4,
        // RFC 8200 §4.3 to §4.6: in units of 8 bytes, less 1.
        _ => (usize::from(length) + 1) * 8,
    };
    match bytes.get(header_bytes..) {
        Some(behind) => Pass::Over { next, behind },
        None => Pass::Cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol;

    const GOLDEN: [u8; 41] = [
        0x6a, 0xb1, 0x23, 0x45, 0x00, 0x01, 0x3b,
        0x40, // 1 byte, no next header, hop limit 64
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, //
        0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb, //
        0xaa,
    ];

    #[test]
    fn golden_bytes() {
        let header = Header::new_checked(&GOLDEN).unwrap();
        assert_eq!(header.payload_bytes(), 1);
        assert_eq!(header.next_header(), 59);
        assert_eq!(header.hop_limit(), 64);
        let addresses = Addresses::V6 {
            src: [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            dst: [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb],
        };
        assert_eq!(header.addresses(), addresses);
    }

    #[test]
    fn what_is_no_header_has_its_reason() {
        for length in 0..40 {
            let reason = Header::new_checked(&GOLDEN[..length]).err();
            assert_eq!(reason, Some(DropReason::InnerTruncated), "{length}");
        }
        assert!(Header::new_checked(&GOLDEN[..40]).is_ok());
        let reason = Header::new_checked(&[0x45; 60]).err();
        assert_eq!(reason, Some(DropReason::InnerVersionMismatch));
    }

    #[test]
    fn the_payload_length_can_be_set() {
        let mut bytes = GOLDEN;
        let mut header = Header::new_checked(&mut bytes).unwrap();
        header.set_payload_bytes(0x1234);
        let mut expected = GOLDEN;
        expected[4..6].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(bytes, expected);
    }

    /// Every kind of extension header once, TCP behind: 8, 24, 8, 12 and 16 bytes.
    const CHAIN: [u8; 72] = [
        43, 0, 1, 4, 0, 0, 0, 0, // hop-by-hop: PadN
        44, 2, 4, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, // routing
        51, 0, 0, 0, 0, 0, 0, 7, // fragment, atomic
        60, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, // authentication, 3 words
        6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // destination: PadN
        0x01, 0xbb, 0x30, 0x39, // first bytes of TCP
    ];

    #[test]
    fn every_kind_is_walked_over() {
        let upper = upper_layer(extension::HOP_BY_HOP, &CHAIN);
        assert_eq!(upper.protocol, protocol::TCP);
        assert_eq!(upper.bytes, Some(&CHAIN[68..]));
    }

    #[test]
    fn a_cut_chain_names_what_is_cut() {
        for length in 0..=CHAIN.len() {
            let upper = upper_layer(extension::HOP_BY_HOP, &CHAIN[..length]);
            let expected = match length {
                0..8 => extension::HOP_BY_HOP,
                8..32 => extension::ROUTING,
                32..40 => extension::FRAGMENT,
                40..52 => extension::AUTHENTICATION,
                52..68 => extension::DESTINATION,
                _ => protocol::TCP,
            };
            assert_eq!(upper.protocol, expected, "{length} bytes");
            let bytes = CHAIN[..length].get(68..);
            assert_eq!(upper.bytes, bytes, "{length} bytes");
        }
    }

    #[test]
    fn only_the_first_fragment_has_a_transport_header() {
        for (high, low, is_later) in [(0, 0x01, false), (0, 0x08, true), (0xff, 0xf8, true)] {
            let fragment = [protocol::UDP, 0, high, low, 9, 8, 0, 7, 1, 2, 3, 4];
            let upper = upper_layer(extension::FRAGMENT, &fragment);
            assert_eq!(upper.protocol, protocol::UDP);
            assert_eq!(upper.bytes, (!is_later).then_some(&[1, 2, 3, 4][..]));
            assert_eq!(upper.fragment, Some(Fragment { id: 0x0908_0007, is_later }));
        }
        let atomic = [protocol::UDP, 0, 0x00, 0x06, 0, 0, 0, 7, 1, 2, 3, 4];
        let upper = upper_layer(extension::FRAGMENT, &atomic);
        assert_eq!(upper.bytes, Some(&[1, 2, 3, 4][..]), "reserved bits");
        assert_eq!(upper.fragment, None);
    }

    #[test]
    fn the_outermost_of_several_fragment_headers_counts() {
        let header = |next, low, id| [next, 0, 0, low, 0, 0, 0, id];
        let twice = |outer: u8, inner: u8| {
            let headers = [header(extension::FRAGMENT, outer, 1), header(6, inner, 2)].concat();
            upper_layer(extension::FRAGMENT, &headers).fragment
        };
        assert_eq!(twice(1, 8), Some(Fragment { id: 1, is_later: false }));
        assert_eq!(twice(8, 1), Some(Fragment { id: 1, is_later: true }));
        assert_eq!(twice(0, 8), Some(Fragment { id: 2, is_later: true }), "the outer is atomic");
    }

    #[test]
    fn eight_headers_are_walked_and_not_nine() {
        for count in [7, 8, 9, 10] {
            let mut chain = [extension::DESTINATION, 0, 1, 4, 0, 0, 0, 0].repeat(count);
            let last = chain.len() - 8;
            chain[last] = protocol::TCP;
            let upper = upper_layer(extension::DESTINATION, &chain);
            if count <= 8 {
                assert_eq!((upper.protocol, upper.bytes), (protocol::TCP, Some(&[][..])));
            } else {
                assert_eq!((upper.protocol, upper.bytes), (extension::DESTINATION, None));
            }
        }
    }

    #[test]
    fn any_other_protocol_is_the_upper_layer() {
        for number in [protocol::TCP, protocol::ICMPV6, 50, 59, 135, 255] {
            let upper = upper_layer(number, &CHAIN);
            assert_eq!((upper.protocol, upper.bytes), (number, Some(&CHAIN[..])));
        }
    }
}
