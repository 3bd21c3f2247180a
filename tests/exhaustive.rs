//! Small spaces, all of them: the program's parsers against the oracle, for every value of the
//! bytes that say how long something is and every length of the datagram around them.
//!
//! Lengths go to 120 bytes: the usual header of 40, the largest inner headers that lead to ports
//! (an IPv4 header of 60 bytes, or one of IPv6 and two extension headers), and some more.

use crate::fuzz::agree;

const LENGTHS: std::ops::RangeInclusive<usize> = 0..=120;

/// The usual header, and an inner packet in which every byte differs from its neighbours.
fn datagram(ethertype: [u8; 2]) -> [u8; 380] {
    let mut bytes = [0; 380];
    for (place, byte) in (0_u8..=255).cycle().zip(&mut bytes) {
        *byte = place.wrapping_mul(37);
    }
    bytes[..8].copy_from_slice(&[8, 0, ethertype[0], ethertype[1], 0, 0, 0, 0]);
    bytes[8..12].copy_from_slice(&[1, 8, 1, 2]);
    bytes[20..24].copy_from_slice(&[1, 8, 2, 2]);
    bytes[32..36].copy_from_slice(&[1, 8, 3, 1]);
    bytes
}

const V4: [u8; 2] = [0x08, 0x00];
const V6: [u8; 2] = [0x86, 0xdd];

/// Version and length of all options × the length byte of the first option × the datagram's length.
#[test]
fn every_first_byte_and_option_length() {
    let mut bytes = datagram(V4);
    bytes[40] = 0x45;
    for first in 0..=255 {
        bytes[0] = first;
        for option in 0..64 {
            bytes[11] = option;
            for length in LENGTHS {
                agree(&bytes[..length]);
            }
        }
    }
}

/// First byte of the inner packet × length of all options × what follows the header. Options
/// beyond the usual ones are of an unknown kind, as few as can be.
fn every_inner_first_byte(ethertype: [u8; 2]) {
    for option_words in 0..64_u8 {
        let header_bytes = 8 + 4 * usize::from(option_words);
        let mut bytes = datagram(ethertype);
        bytes[0] = option_words;
        for option in bytes[40..header_bytes.max(40)].chunks_mut(4 * 32) {
            let data_words = u8::try_from(option.len() / 4 - 1).expect("31 words at most");
            option[..4].copy_from_slice(&[0x0a, 0xaa, 0x11, data_words]);
        }
        let inner = &mut bytes[header_bytes..];
        // Lengths of 60 bytes: IPv4's total length, IPv6's payload length, and the next header.
        let places = inner.iter_mut().zip([0, 0, 0, 60, 0, 60, 17, 64, 0, 6]);
        places.for_each(|(byte, value)| *byte = value);
        for first in 0..=255 {
            bytes[header_bytes] = first;
            for length in LENGTHS.map(|length| header_bytes + length) {
                agree(&bytes[..length]);
            }
        }
    }
}

#[test]
fn every_inner_first_byte_said_to_be_ipv4() {
    every_inner_first_byte(V4);
}

#[test]
fn every_inner_first_byte_said_to_be_ipv6() {
    every_inner_first_byte(V6);
}

/// Class, type and length of an option that stands before the usual ones.
#[test]
fn every_option_head() {
    // The bits above the length are tried with the class that matters.
    for (class, lengths) in [(0x0108_u16, 0..=255), (0x0107, 0..=31), (0x0801, 0..=31)] {
        for kind in 0..=255 {
            for length in lengths.clone() {
                let usual = datagram(V4);
                let mut bytes = [0; 200];
                bytes[..8].copy_from_slice(&usual[..8]);
                let data_bytes = 4 * usize::from(length & 31);
                let end = 12 + data_bytes;
                bytes[8..10].copy_from_slice(&class.to_be_bytes());
                bytes[10..12].copy_from_slice(&[kind, length]);
                bytes[end..end + 32].copy_from_slice(&usual[8..40]);
                bytes[0] = u8::try_from((end + 32 - 8) / 4).expect("63 words at most");
                bytes[end + 32] = 0x45;
                bytes[end + 35] = 20;
                agree(&bytes[..end + 32 + 20]);
                bytes[0] -= 1;
                agree(&bytes[..end + 32 + 20]);
            }
        }
    }
}

/// Both bytes of IPv4's fragment field, and the one of its protocol.
#[test]
fn every_fragment_field_and_protocol() {
    let mut bytes = datagram(V4);
    bytes[40..44].copy_from_slice(&[0x45, 0, 0, 28]);
    for fragment in 0..=u16::MAX {
        bytes[46..48].copy_from_slice(&fragment.to_be_bytes());
        bytes[49] = 17;
        agree(&bytes[..68]);
    }
    bytes[46..48].fill(0);
    for protocol in 0..=255 {
        bytes[49] = protocol;
        for kind in 0..=255 {
            bytes[60] = kind;
            agree(&bytes[..68]);
        }
    }
}

/// Two extension headers of every kind, of every length, cut everywhere.
#[test]
fn every_pair_of_extension_headers() {
    let mut bytes = datagram(V6);
    bytes[40] = 0x60;
    let kinds = [0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135, 255];
    for first in kinds {
        for second in kinds {
            for lengths in 0..=35_u8 {
                bytes[46] = first;
                bytes[80..82].copy_from_slice(&[second, lengths % 6]);
                bytes[82..84].fill(0);
                let first_bytes = match first {
                    44 => 8,
                    51 => 4 * (usize::from(lengths % 6) + 2),
                    _ => 8 * (usize::from(lengths % 6) + 1),
                };
                let next = 80 + first_bytes;
                bytes[next..next + 4].copy_from_slice(&[17, lengths / 6, 0, lengths & 1]);
                for length in 80..=180 {
                    let payload = u16::try_from(length - 80).expect("small");
                    bytes[44..46].copy_from_slice(&payload.to_be_bytes());
                    agree(&bytes[..length]);
                }
            }
        }
    }
}
