//! GENEVE, RFC 8926: the header of a datagram and the walk over its options.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+  byte
//! |Ver|  Opt Len  |O|C|   Rsvd.   |         Protocol Type         |  0
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |        Virtual Network Identifier (VNI)       |    Reserved   |  4
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |          Option Class         |      Type     |R|R|R| Length  |  8   an option:
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+      4 bytes of head,
//! |                      Variable Option Data                     |  12  0 to 124 of data
//! ```
//!
//! Opt Len counts all options in words of 4 bytes (at most 252 bytes), Length counts the data of
//! one option in the same words, its head not included. The high bit of Type makes an option
//! *critical*: who does not know it must drop the datagram (§3.5).
//!
//! This file is the mechanism. It does not know what any option means, drops nothing but what
//! cannot be walked, and ignores the reserved bits, as §3.4 demands. Every check is made by
//! [`Packet::new_checked`] and by the iterator; no accessor can panic.

use crate::types::DropReason;

/// Bytes of the header before its options.
pub const FIXED_BYTES: usize = 8;

/// Bytes of an option before its data.
pub const OPTION_HEAD_BYTES: usize = 4;

/// Most bytes of options that a header can announce: 63 words (RFC 8926 §3.4).
pub const OPTION_BYTES_MAX: usize = 63 * WORD_BYTES;

/// Most bytes of data that one option can have: 31 words (RFC 8926 §3.5).
pub const OPTION_DATA_BYTES_MAX: usize = 31 * WORD_BYTES;

/// Unit of both length fields.
const WORD_BYTES: usize = 4;

const VERSION_SHIFT: u32 = 6;
const OPTION_WORDS_MASK: u8 = 0x3f;
const OAM_BIT: u8 = 0x80;
const CRITICAL_BIT: u8 = 0x40;
const RESERVED_MASK: u8 = 0x3f;
const DATA_WORDS_MASK: u8 = 0x1f;

/// Virtual network identifier: 24 bits, 0 allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Vni([u8; 3]);

impl Vni {
    /// The identifier `number`, nothing if it needs more than 24 bits.
    pub const fn new(number: u32) -> Option<Self> {
        match number.to_be_bytes() {
            [0, a, b, c] => Some(Self([a, b, c])),
            _ => None,
        }
    }

    /// The identifier as a number below 2²⁴.
    pub const fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_be_bytes([0, a, b, c])
    }
}

/// Who defines an option's types (RFC 8926 §7, IANA "Geneve Option Class").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptionClass(pub u16);

/// What an option is, within its class. The critical bit is part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptionType(pub u8);

impl OptionType {
    /// Whether a receiver that does not know this type must drop the datagram (RFC 8926 §3.5).
    pub const fn is_critical(self) -> bool {
        self.0 & 0x80 != 0
    }
}

/// A datagram of GENEVE version 0 whose options end inside it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    fixed: &'a [u8; FIXED_BYTES],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Looks at a UDP payload.
    ///
    /// # Errors
    /// [`Short`](DropReason::Short) below 8 bytes; [`BadVersion`](DropReason::BadVersion) for any
    /// version but 0, whose layout nobody knows; [`OptionsOverrun`](DropReason::OptionsOverrun)
    /// if the options announced do not fit into the datagram.
    pub fn new_checked(datagram: &'a [u8]) -> Result<Self, DropReason> {
        let (fixed, rest) = datagram.split_first_chunk().ok_or(DropReason::Short)?;
        let fixed: &[u8; FIXED_BYTES] = fixed;
        if fixed[0] >> VERSION_SHIFT != 0 {
            return Err(DropReason::BadVersion);
        }
        let option_bytes = usize::from(fixed[0] & OPTION_WORDS_MASK) * WORD_BYTES;
        let (options, payload) =
            rest.split_at_checked(option_bytes).ok_or(DropReason::OptionsOverrun)?;
        Ok(Self { fixed, options, payload })
    }

    /// Length of the header with its options, in bytes.
    pub const fn header_bytes(&self) -> usize {
        FIXED_BYTES + self.options.len()
    }

    /// The O bit: a control message between tunnel ends, which carries no packet of a host.
    pub const fn is_oam(&self) -> bool {
        self.fixed[1] & OAM_BIT != 0
    }

    /// The C bit: the sender says that one of the options is critical.
    pub const fn has_critical(&self) -> bool {
        self.fixed[1] & CRITICAL_BIT != 0
    }

    /// What the payload is, as an Ethertype.
    pub const fn protocol_type(&self) -> u16 {
        u16::from_be_bytes([self.fixed[2], self.fixed[3]])
    }

    /// The virtual network identifier.
    pub const fn vni(&self) -> Vni {
        Vni([self.fixed[4], self.fixed[5], self.fixed[6]])
    }

    /// The 6 reserved bits of byte 1 and the 8 of byte 7.
    pub const fn reserved(&self) -> [u8; 2] {
        [self.fixed[1] & RESERVED_MASK, self.fixed[7]]
    }

    /// The options, in their order.
    pub const fn options(&self) -> Options<'a> {
        Options { rest: self.options, at: FIXED_BYTES }
    }

    /// What follows the options.
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// One option, as it stands in a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelOption<'a> {
    /// Who defines it.
    pub class: OptionClass,
    /// What it is.
    pub kind: OptionType,
    /// Its data: 0 to 124 bytes, whole words.
    pub data: &'a [u8],
    /// Offset of the data from the start of the datagram, in bytes.
    pub data_at: usize,
}

/// The walk over the options of one datagram.
///
/// Yields [`OptionsOverrun`](DropReason::OptionsOverrun), and then nothing more, if an option
/// does not end inside the option area.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<TunnelOption<'a>, DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        // The area has whole words, so what is left is nothing or at least a head.
        let (&[class_high, class_low, kind, length], rest) = self.rest.split_first_chunk()?;
        let data_bytes = usize::from(length & DATA_WORDS_MASK) * WORD_BYTES;
        let Some((data, rest)) = rest.split_at_checked(data_bytes) else {
            self.rest = &[];
            return Some(Err(DropReason::OptionsOverrun));
        };
        let option = TunnelOption {
            class: OptionClass(u16::from_be_bytes([class_high, class_low])),
            kind: OptionType(kind),
            data,
            data_at: self.at + OPTION_HEAD_BYTES,
        };
        self.rest = rest;
        self.at = option.data_at + data_bytes;
        Some(Ok(option))
    }
}

/// The first 8 bytes of a header as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Length of all options in bytes: a multiple of 4, at most [`OPTION_BYTES_MAX`].
    pub option_bytes: usize,
    /// The O bit.
    pub oam: bool,
    /// The C bit.
    pub critical: bool,
    /// What follows the options, as an Ethertype.
    pub protocol_type: u16,
    /// The virtual network identifier.
    pub vni: Vni,
    /// See [`Packet::reserved`]. The upper 2 bits of the first byte have no place on the wire.
    pub reserved: [u8; 2],
}

impl From<&Packet<'_>> for Repr {
    fn from(packet: &Packet<'_>) -> Self {
        Self {
            option_bytes: packet.options.len(),
            oam: packet.is_oam(),
            critical: packet.has_critical(),
            protocol_type: packet.protocol_type(),
            vni: packet.vni(),
            reserved: packet.reserved(),
        }
    }
}

impl Repr {
    /// The bytes of the header before its options.
    ///
    /// # Panics
    /// If the option length is one that the header cannot say.
    pub fn emit(&self) -> [u8; FIXED_BYTES] {
        let option_words = words(self.option_bytes, OPTION_BYTES_MAX);
        let [protocol_high, protocol_low] = self.protocol_type.to_be_bytes();
        let Vni([a, b, c]) = self.vni;
        let mut flags = self.reserved[0] & RESERVED_MASK;
        if self.oam {
            flags |= OAM_BIT;
        }
        if self.critical {
            flags |= CRITICAL_BIT;
        }
        let reserved = self.reserved[1];
        [option_words, flags, protocol_high, protocol_low, a, b, c, reserved]
    }
}

/// An option to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionRepr<'a> {
    /// Who defines it.
    pub class: OptionClass,
    /// What it is.
    pub kind: OptionType,
    /// Its data: whole words of 4 bytes, at most [`OPTION_DATA_BYTES_MAX`].
    pub data: &'a [u8],
}

impl OptionRepr<'_> {
    /// Writes the option to the start of `buffer`, and returns its length in bytes.
    ///
    /// # Panics
    /// If the data has a length that an option cannot say, or `buffer` is too short.
    pub fn emit(&self, buffer: &mut [u8]) -> usize {
        let data_words = words(self.data.len(), OPTION_DATA_BYTES_MAX);
        let [class_high, class_low] = self.class.0.to_be_bytes();
        let end = OPTION_HEAD_BYTES + self.data.len();
        let (head, data) = buffer[..end].split_at_mut(OPTION_HEAD_BYTES);
        head.copy_from_slice(&[class_high, class_low, self.kind.0, data_words]);
        data.copy_from_slice(self.data);
        end
    }
}

fn words(bytes: usize, bytes_max: usize) -> u8 {
    assert!(
        bytes.is_multiple_of(WORD_BYTES) && bytes <= bytes_max,
        "{bytes} bytes are not whole words up to {bytes_max} bytes"
    );
    u8::try_from(bytes / WORD_BYTES).expect("at most 63 words")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Two options, the second critical and empty, and a payload of two bytes.
    const GOLDEN: [u8; 22] = [
        0x03, 0x40, 0x65, 0x58, 0x12, 0x34, 0x56, 0x00, // 3 words, C, Ethernet, VNI
        0x01, 0x02, 0x03, 0xe1, 0xca, 0xfe, 0xf0, 0x0d, // one word, reserved bits set
        0xff, 0xff, 0x80, 0x00, // critical, no data
        0xaa, 0xbb,
    ];

    #[test]
    fn golden_bytes() {
        let packet = Packet::new_checked(&GOLDEN).unwrap();
        assert_eq!(packet.header_bytes(), 20);
        assert!(!packet.is_oam());
        assert!(packet.has_critical());
        assert_eq!(packet.protocol_type(), 0x6558);
        assert_eq!(packet.vni().get(), 0x12_3456);
        assert_eq!(packet.reserved(), [0, 0]);
        assert_eq!(packet.payload(), [0xaa, 0xbb]);
        let options: Result<Vec<_>, _> = packet.options().collect();
        let first = TunnelOption {
            class: OptionClass(0x0102),
            kind: OptionType(3),
            data: &[0xca, 0xfe, 0xf0, 0x0d],
            data_at: 12,
        };
        let second = TunnelOption {
            class: OptionClass(0xffff),
            kind: OptionType(0x80),
            data: &[],
            data_at: 20,
        };
        assert_eq!(options.unwrap(), [first, second]);
        assert!(!first.kind.is_critical() && second.kind.is_critical());
    }

    #[test]
    fn every_truncation_has_its_reason() {
        for length in 0..GOLDEN.len() {
            let reason = Packet::new_checked(&GOLDEN[..length]).err();
            let expected = match length {
                0..8 => Some(DropReason::Short),
                8..20 => Some(DropReason::OptionsOverrun),
                _ => None,
            };
            assert_eq!(reason, expected, "{length} bytes");
        }
    }

    #[test]
    fn other_versions_are_refused() {
        for version in 1..4 {
            let mut datagram = GOLDEN;
            datagram[0] |= version << 6;
            let reason = Packet::new_checked(&datagram).err();
            assert_eq!(reason, Some(DropReason::BadVersion));
        }
    }

    #[test]
    fn an_option_past_the_area_ends_the_walk() {
        let mut datagram = GOLDEN;
        datagram[19] = 1;
        let packet = Packet::new_checked(&datagram).unwrap();
        let mut options = packet.options();
        assert!(options.next().unwrap().is_ok());
        assert_eq!(options.next(), Some(Err(DropReason::OptionsOverrun)));
        assert_eq!(options.next(), None);
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert_eq!(Vni::new(0xff_ffff).map(Vni::get), Some(0xff_ffff));
        assert_eq!(Vni::new(0x100_0000), None);
        assert_eq!(Vni::new(0), Some(Vni::default()));
    }

    /// A list of options as class, type and data.
    fn options() -> impl Strategy<Value = Vec<(u16, u8, Vec<u8>)>> {
        let data = vec(any::<[u8; 4]>(), 0..=6).prop_map(|words| words.concat());
        vec((any::<u16>(), any::<u8>(), data), 0..=9)
    }

    proptest! {
        #[test]
        fn the_fixed_part_comes_back(mut bytes in any::<[u8; FIXED_BYTES]>()) {
            bytes[0] &= OPTION_WORDS_MASK;
            let mut datagram = bytes.to_vec();
            datagram.resize(FIXED_BYTES + OPTION_BYTES_MAX, 0);
            let packet = Packet::new_checked(&datagram).unwrap();
            prop_assert_eq!(Repr::from(&packet).emit(), bytes);
        }

        #[test]
        fn options_come_back(list in options()) {
            let mut datagram = [0; FIXED_BYTES + OPTION_BYTES_MAX];
            let mut end = FIXED_BYTES;
            for (class, kind, data) in &list {
                let option = OptionRepr {
                    class: OptionClass(*class),
                    kind: OptionType(*kind),
                    data,
                };
                end += option.emit(&mut datagram[end..]);
            }
            datagram[0] = u8::try_from((end - FIXED_BYTES) / 4).unwrap();
            let packet = Packet::new_checked(&datagram[..end]).unwrap();
            let mut count = 0;
            for (found, (class, kind, data)) in packet.options().zip(&list) {
                let found = found.unwrap();
                prop_assert_eq!(found.class, OptionClass(*class));
                prop_assert_eq!(found.kind, OptionType(*kind));
                prop_assert_eq!(found.data, data);
                prop_assert_eq!(&datagram[found.data_at..][..data.len()], data);
                count += 1;
            }
            prop_assert_eq!(count, list.len());
            prop_assert!(packet.payload().is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300)) {
            if let Ok(packet) = Packet::new_checked(&bytes) {
                let walked: usize = packet
                    .options()
                    .map_while(Result::ok)
                    .map(|option| OPTION_HEAD_BYTES + option.data.len())
                    .sum();
                prop_assert!(FIXED_BYTES + walked <= packet.header_bytes());
                prop_assert_eq!(packet.header_bytes() + packet.payload().len(), bytes.len());
            }
        }
    }
}
