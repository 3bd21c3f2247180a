//! The Internet checksum (RFC 1071): the 16-bit one's complement sum of 16-bit words.
//!
//! Two properties of that sum make it cheap (RFC 1071 §2). It does not care about byte order, so
//! words are added as the machine loads them and only the result is turned round. And it is a sum
//! modulo 2¹⁶ − 1, which divides 2³² − 1 and 2⁶⁴ − 1, so words may be as wide as the machine
//! likes: here 32-bit words go into 64-bit lanes, a loop that compilers vectorise by themselves.
//!
//! A [`Sum`] knows whether it covers an odd number of bytes. Data may therefore be summed in
//! pieces that were cut anywhere: `sum(a) + sum(b)` is the sum of `a` followed by `b`.
//!
//! ```
//! use gwlbtun::wire::checksum;
//!
//! let whole = checksum::sum(b"a packet in pieces");
//! let pieces = checksum::sum(b"a packet ") + checksum::sum(b"in pieces");
//! assert_eq!(pieces.finish(), whole.finish());
//! ```
//!
//! Limit: one slice may have at most 16 GiB, beyond which a lane could overflow.

use std::ops::Add;

use crate::wire::Addresses;

/// Bytes taken per turn of the loop: 8 words, which fill one AVX2 or two NEON registers.
const BLOCK_BYTES: usize = 32;

/// The one's complement sum of some bytes, not yet complemented.
///
/// `a + b` is the sum of `a`'s bytes followed by `b`'s.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// In the machine's byte order, modulo 2⁶⁴ − 1.
    words: u64,
    /// Whether the next byte is the second half of a word.
    odd: bool,
}

impl Sum {
    /// The sum as 16 bits, not complemented: what a field holds whose checksum the kernel is
    /// asked to complete (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub fn fold(self) -> u16 {
        let bytes = self.words.to_ne_bytes();
        let (words, _) = bytes.as_chunks();
        let folded =
            words.iter().map(|&word| u16::from_ne_bytes(word)).fold(0, add_with_end_around_carry);
        u16::from_be(folded)
    }

    /// The checksum: what goes into a header.
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether the bytes summed, a checksum among them, are unharmed (RFC 1071 §1).
    pub fn is_valid(self) -> bool {
        self.fold() == u16::MAX
    }
}

impl Add for Sum {
    type Output = Self;

    fn add(self, next: Self) -> Self {
        // Behind an odd number of bytes every byte falls into the other half of its word. That
        // multiplies the sum by 2⁸, which modulo 2⁶⁴ − 1 is a rotation.
        let shift = if self.odd { 8 } else { 0 };
        let (words, carry) = self.words.overflowing_add(next.words.rotate_left(shift));
        Self { words: words + u64::from(carry), odd: self.odd ^ next.odd }
    }
}

/// The sum of `bytes`. A last odd byte counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> Sum {
    let (blocks, tail) = bytes.as_chunks::<BLOCK_BYTES>();
    let mut lanes = [0_u64; BLOCK_BYTES / 4];
    for block in blocks {
        let (words, _) = block.as_chunks();
        for (lane, &word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(word));
        }
    }
    let (words, rest) = tail.as_chunks();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let tail = words.iter().chain([&last]).map(|&word| u64::from(u32::from_ne_bytes(word)));
    Sum { words: lanes.into_iter().chain(tail).sum(), odd: !bytes.len().is_multiple_of(2) }
}

/// The sum of the pseudo header that TCP, UDP and `ICMPv6` checksums cover (RFC 9293 §3.1,
/// RFC 8200 §8.1). `transport_bytes` is the length of transport header and payload.
pub fn pseudo_header(addresses: Addresses, protocol: u8, transport_bytes: u32) -> Sum {
    // IPv4 has zero, protocol and a 16-bit length, IPv6 a 32-bit length, three zeros and the
    // protocol: different places, the same words.
    let ends = match addresses {
        Addresses::V4 { src, dst } => sum(&src) + sum(&dst),
        Addresses::V6 { src, dst } => sum(&src) + sum(&dst),
    };
    ends + sum(&[0, protocol]) + sum(&transport_bytes.to_be_bytes())
}

/// The checksum after one of the words it covers changed from `old` to `new` (RFC 1624 §3,
/// equation 3).
///
/// Exact unless every word covered is zero afterwards, which holds for no IP header.
#[must_use]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !add_with_end_around_carry(add_with_end_around_carry(!checksum, !old), new)
}

fn add_with_end_around_carry(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&data).fold(), 0xddf2);
        assert_eq!(sum(&data).finish(), 0x220d);
    }

    #[test]
    fn nothing_and_extremes() {
        assert_eq!(sum(&[]).finish(), 0xffff);
        assert_eq!(sum(&[0; 99]).finish(), 0xffff);
        for length in 0..200 {
            let bytes = vec![0xff; length];
            assert_eq!(sum(&bytes).finish(), naive(&bytes), "{length} bytes of 0xff");
        }
        let large = vec![0xff; 65535];
        assert_eq!(sum(&large).finish(), naive(&large));
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
        fn equals_the_reference(bytes in vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(sum(&bytes).finish(), naive(&bytes));
        }

        #[test]
        fn pieces_add_up(bytes in vec(any::<u8>(), 0..300), cuts in vec(0..300_usize, 0..6)) {
            let mut cuts: Vec<_> = cuts.iter().map(|&cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|ends| sum(&bytes[ends[0]..ends[1]]));
            let total = pieces.fold(Sum::default(), Add::add);
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
}
