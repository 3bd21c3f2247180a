//! Golden datagrams as literal bytes, every option layout against a model, and any bytes at all.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// As captured on targets of a real load balancer (facts/peers-and-gwlb.md §3): VNI 0,
/// attachment 0, options 1, 2, 3. Inside: an ICMP echo request of 28 bytes.
const GOLDEN_V4: [u8; 68] = [
    0x08, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, // version 0, 8 words, IPv4, VNI 0
    0x01, 0x08, 0x01, 0x02, // endpoint
    0x2b, 0x8e, 0xe1, 0xd4, 0xdb, 0x0c, 0x51, 0xc4, //
    0x01, 0x08, 0x02, 0x02, // attachment
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
    0x01, 0x08, 0x03, 0x01, // cookie
    0x4e, 0x7a, 0x10, 0x9f, //
    0x45, 0x00, 0x00, 0x1c, 0x12, 0x34, 0x40, 0x00, 0x3f, 0x01, 0x12,
    0xa3, // IPv4, DF, TTL 63
    0x0a, 0x00, 0x01, 0x05, 0x0a, 0x00, 0x02, 0x06, // 10.0.1.5 to 10.0.2.6
    0x08, 0x00, 0xf7, 0xfd, 0x00, 0x01, 0x00, 0x01, // echo request, id 1, sequence 1
];

/// The same around a UDP packet over IPv6.
const GOLDEN_V6: [u8; 90] = [
    0x08, 0x00, 0x86, 0xdd, 0x00, 0x00, 0x00, 0x00, // version 0, 8 words, IPv6, VNI 0
    0x01, 0x08, 0x01, 0x02, // endpoint
    0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88, //
    0x01, 0x08, 0x02, 0x02, // attachment
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
    0x01, 0x08, 0x03, 0x01, // cookie
    0x00, 0x00, 0x00, 0x01, //
    0x60, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x11, 0x40, // IPv6, 10 bytes of UDP, hop limit 64
    0x20, 0x01, 0x0d, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01,
    0x20, 0x01, 0x0d, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02,
    0x30, 0x39, 0x00, 0x35, 0x00, 0x0a, 0x0b, 0x8e, // port 12345 to 53
    0x68, 0x69, // "hi"
];

fn golden_v4_meta() -> Meta {
    Meta {
        endpoint: EndpointId(0x2b8e_e1d4_db0c_51c4),
        attachment: 0,
        cookie: [0x4e, 0x7a, 0x10, 0x9f],
        cookie_at: 36,
        header_bytes: 40,
        family: Family::V4,
    }
}

/// What [`parse`] says, after both of its ways were asked and agreed.
fn parse_both(datagram: &[u8]) -> Result<Meta, DropReason> {
    parse_both_as(datagram, &Profile::AWS)
}

fn parse_both_as(datagram: &[u8], profile: &Profile) -> Result<Meta, DropReason> {
    let walked = parse_any_layout(datagram, profile.class);
    if let Some(meta) = parse_usual(datagram, profile) {
        assert_eq!(Ok(meta), walked, "{datagram:02x?}");
    }
    assert_eq!(parse(datagram, profile), walked, "{datagram:02x?}");
    walked
}

#[test]
fn golden_datagrams() {
    assert_eq!(parse_usual(&GOLDEN_V4, &Profile::AWS), Some(golden_v4_meta()));
    assert_eq!(parse_both(&GOLDEN_V4), Ok(golden_v4_meta()));
    let v6 = Meta {
        endpoint: EndpointId(0xffee_ddcc_bbaa_9988),
        attachment: 0,
        cookie: [0, 0, 0, 1],
        cookie_at: 36,
        header_bytes: 40,
        family: Family::V6,
    };
    assert_eq!(parse_usual(&GOLDEN_V6, &Profile::AWS), Some(v6));
    assert_eq!(parse_both(&GOLDEN_V6), Ok(v6));
}

#[test]
fn emitted_headers_are_the_golden_ones() {
    for golden in [&GOLDEN_V4[..], &GOLDEN_V6] {
        let meta = parse(golden, &Profile::AWS).unwrap();
        assert_eq!(Repr::from(&meta).emit(), golden[..40]);
    }
}

#[test]
fn another_cloud_s_options_are_those_of_its_class_alone() {
    let mut datagram = GOLDEN_V4;
    assert_eq!(
        parse_both_as(&datagram, &Profile::TENCENT).err(),
        Some(DropReason::OptionMissing),
        "AWS's are nobody's there"
    );
    for at in [8, 20, 32] {
        datagram[at..at + 2].copy_from_slice(&[0x01, 0x67]);
    }
    assert_eq!(parse_usual(&datagram, &Profile::TENCENT), Some(golden_v4_meta()));
    assert_eq!(parse_both_as(&datagram, &Profile::TENCENT), Ok(golden_v4_meta()));
    assert_eq!(parse_both(&datagram).err(), Some(DropReason::OptionMissing));
    // An option of AWS's class among them is one that nobody knows: kept, and never taken.
    let extra = [0x01, 0x08, 0x01, 0x02, 9, 9, 9, 9, 9, 9, 9, 9];
    let mut more = [&datagram[..8], &extra, &datagram[8..]].concat();
    more[0] += 3;
    let meta = parse_both_as(&more, &Profile::TENCENT).unwrap();
    assert_eq!((meta.endpoint, meta.header_bytes), (golden_v4_meta().endpoint, 52));
}

#[test]
fn every_truncation_has_its_reason() {
    for golden in [&GOLDEN_V4[..], &GOLDEN_V6] {
        for length in 0..=golden.len() {
            let expected = match length {
                0..8 => Some(DropReason::Short),
                8..40 => Some(DropReason::OptionsOverrun),
                40 => Some(DropReason::InnerTruncated),
                _ => None,
            };
            assert_eq!(parse_both(&golden[..length]).err(), expected, "{length} bytes");
        }
    }
}

#[test]
fn one_change_has_its_reason() {
    // Offset, new value, reason.
    for (at, value, reason) in [
        (0, 0x48, Some(DropReason::BadVersion)),
        (0, 0x07, Some(DropReason::OptionsOverrun)), // The cookie lies beyond the area.
        (0, 0x09, Some(DropReason::OptionsOverrun)), // Takes the packet for an option.
        (0, 0x3f, Some(DropReason::OptionsOverrun)),
        (1, 0x80, Some(DropReason::Oam)),
        (1, 0x40, None), // C says nothing that the options do not say.
        (1, 0x3f, None),
        (2, 0x86, Some(DropReason::BadEthertype)),
        (3, 0x06, Some(DropReason::BadEthertype)),
        (6, 0x01, None),
        (7, 0xff, None),
        (9, 0x09, Some(DropReason::OptionMissing)),
        (10, 0x81, Some(DropReason::CriticalOptionUnknown)),
        (10, 0x02, Some(DropReason::OptionDuplicate)),
        (10, 0x04, Some(DropReason::OptionMissing)),
        (11, 0x01, Some(DropReason::OptionBadLength)),
        (11, 0xe2, None), // Reserved bits of the option.
        (35, 0x00, Some(DropReason::OptionBadLength)),
        (35, 0x02, Some(DropReason::OptionsOverrun)),
    ] {
        let mut datagram = GOLDEN_V4;
        datagram[at] = value;
        assert_eq!(parse_both(&datagram).err(), reason, "byte {at} is {value:#x}");
    }
}

/// One option of a layout: class, type, words of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice(u16, u8, usize);

const THREE: [Choice; 3] = [Choice(0x0108, 1, 2), Choice(0x0108, 2, 2), Choice(0x0108, 3, 1)];

/// A datagram with these options, built byte by byte. Data bytes count up, so that each value
/// shows where it was taken from.
fn datagram_of(options: &[Choice]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0x86, 0xdd, 1, 2, 3, 4];
    for &Choice(class, kind, words) in options {
        bytes.extend(class.to_be_bytes());
        bytes.extend([kind, u8::try_from(words).unwrap()]);
        for _ in 0..words * 4 {
            bytes.push(u8::try_from(bytes.len()).unwrap());
        }
    }
    bytes[0] = u8::try_from((bytes.len() - 8) / 4).unwrap();
    bytes.push(0x60);
    bytes
}

/// What must become of a layout, said about the list and not about bytes.
fn expected_of(options: &[Choice]) -> Result<Meta, DropReason> {
    let mut places = [None; 3];
    let mut at = 8;
    for &option in options {
        let Choice(class, kind, words) = option;
        let known = THREE.iter().position(|known| (known.0, known.1) == (class, kind));
        match known {
            Some(which) if THREE[which].2 != words => return Err(DropReason::OptionBadLength),
            Some(which) if places[which].is_some() => return Err(DropReason::OptionDuplicate),
            Some(which) => places[which] = Some(at + 4),
            None if kind > 0x7f => return Err(DropReason::CriticalOptionUnknown),
            None => {}
        }
        at += 4 + words * 4;
    }
    let [Some(endpoint_at), Some(attachment_at), Some(cookie_at)] = places else {
        return Err(DropReason::OptionMissing);
    };
    let byte = |at: usize| u8::try_from(at).unwrap();
    let eight = |first| std::array::from_fn(|offset| byte(first + offset));
    Ok(Meta {
        endpoint: EndpointId(u64::from_be_bytes(eight(endpoint_at))),
        attachment: u64::from_be_bytes(eight(attachment_at)),
        cookie: std::array::from_fn(|offset| byte(cookie_at + offset)),
        cookie_at,
        header_bytes: at,
        family: Family::V6,
    })
}

/// The layouts that differ from `layout` by one option: left out, made critical, given another
/// length, or said twice with the second one in any place.
fn one_fault(layout: &[Choice]) -> Vec<Vec<Choice>> {
    let mut faults = Vec::new();
    for which in 0..layout.len() {
        let mut without = layout.to_vec();
        let option = without.remove(which);
        for place in 0..=layout.len() {
            let mut twice = layout.to_vec();
            twice.insert(place, option);
            faults.push(twice);
        }
        let mut critical = layout.to_vec();
        critical[which].1 |= 0x80;
        for words in 0..=4 {
            let mut resized = layout.to_vec();
            resized[which].2 = words;
            faults.push(resized);
        }
        faults.extend([without, critical]);
    }
    faults
}

/// Options that nobody knows: of AWS's class and of others, critical and not, of several lengths.
fn unknown_options() -> Vec<Choice> {
    let mut unknowns = Vec::new();
    for class in [0x0108, 0x0000, 0x0107, 0xffff] {
        for kind in [0, 4, 0x7f, 0x80, 0x83, 0xff] {
            unknowns.extend([0, 1, 2, 5].map(|words| Choice(class, kind, words)));
        }
    }
    unknowns
}

#[test]
fn every_option_layout() {
    const ORDERS: [[usize; 3]; 6] =
        [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let unknowns = unknown_options();
    let mut accepted = 0;
    let mut refused = [0; DropReason::COUNT];
    for order in ORDERS {
        let plain: Vec<_> = order.iter().map(|&which| THREE[which]).collect();
        let mut layouts = vec![plain.clone()];
        for place in 0..=3 {
            for &unknown in &unknowns {
                let mut layout = plain.clone();
                layout.insert(place, unknown);
                layouts.push(layout);
            }
        }
        for layout in &layouts {
            for options in one_fault(layout).iter().chain([layout]) {
                let expected = expected_of(options);
                assert_eq!(parse_both(&datagram_of(options)), expected, "{options:x?}");
                match expected {
                    Ok(_) => accepted += 1,
                    Err(reason) => refused[reason.index()] += 1,
                }
            }
        }
    }
    // The model is of use only if it meets every outcome.
    assert!(accepted > 1000);
    for reason in [
        DropReason::OptionMissing,
        DropReason::OptionDuplicate,
        DropReason::OptionBadLength,
        DropReason::CriticalOptionUnknown,
    ] {
        assert!(refused[reason.index()] > 1000, "{reason}");
    }
}

#[test]
fn first_byte_option_length_and_datagram_length_in_all_combinations() {
    let mut accepted = 0;
    let mut bytes = [0; 120];
    bytes[..GOLDEN_V4.len()].copy_from_slice(&GOLDEN_V4);
    for first in 0..=u8::MAX {
        bytes[0] = first;
        for option_length in 0..64 {
            bytes[11] = option_length;
            for length in 0..=bytes.len() {
                accepted += usize::from(parse_both(&bytes[..length]).is_ok());
            }
        }
    }
    // Version 0, 8 words of options, 2 words in the first (the reserved bit does not matter) and
    // at least a byte behind. A longer area takes the packet for an option, which says that it
    // has 28 words: more than there are.
    assert_eq!(accepted, 2 * (120 - 40));
}

fn repr() -> impl Strategy<Value = Repr> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    (any::<u64>(), any::<u64>(), any::<[u8; 4]>(), family).prop_map(
        |(endpoint, attachment, cookie, family)| Repr {
            endpoint: EndpointId(endpoint),
            attachment,
            cookie,
            family,
        },
    )
}

proptest! {
    #[test]
    fn what_was_emitted_is_parsed(repr in repr(), inner in vec(any::<u8>(), 1..50)) {
        let datagram = [&repr.emit()[..], &inner].concat();
        let meta = parse_both(&datagram).unwrap();
        prop_assert!(parse_usual(&datagram, &Profile::AWS).is_some());
        prop_assert_eq!(Repr::from(&meta), repr);
        prop_assert_eq!(&datagram[meta.header_bytes..], inner);
        prop_assert_eq!(&datagram[meta.cookie_at..][..4], meta.cookie);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = parse_both(&bytes);
    }

    /// Random bytes hardly get past the first checks; golden bytes with a few changes do.
    #[test]
    fn no_changes_make_it_panic(
        changes in vec((0..GOLDEN_V6.len(), any::<u8>()), 0..6),
        length in 0..=GOLDEN_V6.len(),
    ) {
        let mut datagram = GOLDEN_V6;
        for (at, value) in changes {
            datagram[at] = value;
        }
        if let Ok(meta) = parse_both(&datagram[..length]) {
            prop_assert!(meta.header_bytes < length);
            prop_assert!(meta.cookie_at + 4 <= meta.header_bytes);
        }
    }
}
