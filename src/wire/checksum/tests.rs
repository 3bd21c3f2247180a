//! Every implementation against the sum as RFC 1071 writes it, at all alignments and cuts.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// RFC 1071 as it is written: big-endian words one by one, carries folded at the end.
fn naive(bytes: &[u8]) -> u16 {
    let mut total = 0_u64;
    for pair in bytes.chunks(2) {
        total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap()
}

/// What every implementation that this machine has makes of `bytes`, each by its name.
fn by_all(bytes: &[u8]) -> impl Iterator<Item = (&'static str, u16)> {
    let simd = Simd::detect().map(|simd| Sum::of(simd.words(bytes), bytes));
    let sums = [("scalar", Some(scalar::sum(bytes))), ("simd", simd), ("sum", Some(sum(bytes)))];
    sums.into_iter().filter_map(|(name, sum)| Some((name, sum?.finish())))
}

/// Bytes without a pattern that a sum could miss, from the words' places in a sequence.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = iter::from_fn(|| {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state.to_le_bytes())
    });
    word.flatten().take(bytes).collect()
}

#[test]
fn all_implementations_agree_at_every_length_and_alignment() {
    for (name, buffer) in [("noise", noise(400)), ("0xff", vec![0xff; 400])] {
        // Where an aligned vector begins depends on the allocator.
        let aligned = buffer.as_ptr().align_offset(64);
        for skip in 0..64 {
            for length in 0..=300 {
                let start = (aligned + skip) % 64;
                let bytes = &buffer[start..start + length];
                for (how, checksum) in by_all(bytes) {
                    assert_eq!(checksum, naive(bytes), "{how}: {length} {name} at {skip} of 64");
                }
            }
        }
    }
}

#[test]
fn all_implementations_agree_on_the_longest_packets() {
    for buffer in [noise(65535), vec![0xff; 65535], vec![0; 65535]] {
        for bytes in [&buffer[..], &buffer[1..], &buffer[..65000], &buffer[7..65534]] {
            for (how, checksum) in by_all(bytes) {
                assert_eq!(checksum, naive(bytes), "{how}: {} bytes", bytes.len());
            }
        }
    }
}

#[test]
fn carries_of_every_lane_come_back() {
    // All ones but for one byte: the sum is not the all-ones that any wrong fold gives too.
    for length in [8, 32, 128, 160, 300] {
        for odd_one in 0..length {
            let mut bytes = vec![0xff; length];
            bytes[odd_one] = 0x01;
            for (how, checksum) in by_all(&bytes) {
                assert_eq!(checksum, naive(&bytes), "{how}: byte {odd_one} of {length}");
            }
        }
    }
}

/// A machine of which the kernel says that it has AVX2 must not fall back in silence.
#[cfg(target_arch = "x86_64")]
#[test]
fn what_the_kernel_lists_is_detected() {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").expect("Linux has this file");
    let listed = cpus.split_whitespace().any(|flag| flag == "avx2");
    let expected = if listed { Implementation::Avx2 } else { Implementation::Scalar };
    assert_eq!(Implementation::in_use(), expected);
}

#[test]
fn the_examples_of_rfc_1624() {
    // §4: the checksum of a header changes as its word changes from 0x5555 to 0x3285; equation 2
    // would give 0xffff here.
    assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn the_example_of_rfc_1071() {
    let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(sum(&data).fold(), 0xddf2);
    assert_eq!(sum(&data).finish(), 0x220d);
}

#[test]
fn nothing_and_zeros() {
    assert_eq!(sum(&[]).finish(), 0xffff);
    assert_eq!(sum(&[0; 99]).finish(), 0xffff);
    assert_eq!(iter::empty::<Sum>().sum::<Sum>().finish(), 0xffff);
}

#[test]
fn pseudo_headers_equal_their_bytes() {
    let v4 = Addresses::V4 { src: [192, 0, 2, 1], dst: [198, 51, 100, 7] };
    let bytes = [192, 0, 2, 1, 198, 51, 100, 7, 0, 17, 0x12, 0x34];
    assert_eq!(pseudo_header(v4, 17, 0x1234).finish(), naive(&bytes));

    let (src, dst) = ([0x20; 16], [0xfd; 16]);
    let mut bytes = vec![0x20; 16];
    bytes.extend([0xfd; 16]);
    bytes.extend([0x00, 0x01, 0x86, 0xa0, 0, 0, 0, 58]);
    let v6 = Addresses::V6 { src, dst };
    assert_eq!(pseudo_header(v6, 58, 100_000).finish(), naive(&bytes));
}

proptest! {
    #[test]
    fn all_implementations_agree(bytes in vec(any::<u8>(), 0..10_000), skip in 0..64_usize) {
        let bytes = &bytes[skip.min(bytes.len())..];
        for (how, checksum) in by_all(bytes) {
            prop_assert_eq!(checksum, naive(bytes), "{}", how);
        }
    }

    #[test]
    fn pieces_add_up(bytes in vec(any::<u8>(), 0..1500), cuts in vec(0..1500_usize, 0..6)) {
        let mut cuts: Vec<_> = cuts.iter().map(|&cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let total: Sum = cuts.windows(2).map(|ends| sum(&bytes[ends[0]..ends[1]])).sum();
        prop_assert_eq!(total.finish(), naive(&bytes));
    }

    #[test]
    fn a_filled_in_checksum_is_valid(bytes in vec(any::<u8>(), 0..100), harm in 1..=u16::MAX) {
        let total = sum(&bytes) + sum(&[0; 1][..bytes.len() % 2]);
        let checksum = total.finish();
        prop_assert!((total + sum(&checksum.to_be_bytes())).is_valid());
        // 0x0000 and 0xffff are the two zeros of one's complement arithmetic.
        let harmed = checksum ^ harm;
        prop_assume!(!(harmed == 0 || harmed == 0xffff) || harm != 0xffff);
        prop_assert!(!(total + sum(&harmed.to_be_bytes())).is_valid());
    }

    #[test]
    fn incremental_equals_full(
        mut bytes in vec(any::<u8>(), 2..60),
        at in any::<prop::sample::Index>(),
        new in any::<u16>(),
    ) {
        bytes.extend([0x45, 0]);
        bytes.rotate_right(2);
        let at = 2 + at.index((bytes.len() - 2) / 2) * 2;
        let before = sum(&bytes).finish();
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
        prop_assert_eq!(update(before, old, new), sum(&bytes).finish());
    }
}
