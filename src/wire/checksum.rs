//! The Internet checksum (RFC 1071): the 16-bit one's complement sum of 16-bit words.
//!
//! Two properties of that sum make it cheap (RFC 1071 §2). It does not care about byte order, so
//! words are added little-endian and only the result is turned round. And it is a sum modulo
//! 2¹⁶ − 1, which divides 2³² − 1 and 2⁶⁴ − 1, so words may be as wide as the machine likes.
//!
//! Short data, such as headers, is added up in general registers ([`scalar`]); what is longer than
//! a few vectors goes through AVX2 or NEON where the machine has it.
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

use std::fmt;
use std::iter;
use std::ops::Add;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::wire::Addresses;

use simd::Simd;

pub mod scalar;
mod simd;

/// From this length on vectors are quicker, their detection and the sum across them included. On a
/// Zen with AVX2 both take the same time at 192 bytes; less is not worth waking the wide units.
const SIMD_BYTES_MIN: usize = 256;

/// By which instructions long data is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// General registers only.
    Scalar,
    /// 256-bit vectors of `x86_64`.
    Avx2,
    /// 128-bit vectors of aarch64.
    Neon,
}

impl Implementation {
    /// The one that [`sum`] uses on this machine, unless [`use_scalar`] was called.
    pub fn in_use() -> Self {
        vectors().map_or(Self::Scalar, |_| Simd::IMPLEMENTATION)
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
        })
    }
}

/// The one's complement sum of some bytes, not yet complemented.
///
/// `a + b` is the sum of `a`'s bytes followed by `b`'s.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Of little-endian words. What counts is the remainder modulo 2¹⁶ − 1.
    words: u64,
    /// Whether the next byte is the second half of a word.
    odd: bool,
}

impl Sum {
    /// The sum as 16 bits, not complemented: what a field holds whose checksum the kernel is
    /// asked to complete (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    #[inline]
    pub fn fold(self) -> u16 {
        // A sum plus itself with halves exchanged has in its upper half the sum of both halves,
        // and the carry out of the lower one.
        let word = self.words.wrapping_add(self.words.rotate_left(32)) >> 32;
        let folded = (word & 0xffff) + (word >> 16);
        let folded = (folded + (folded >> 16)) & 0xffff;
        u16::try_from(folded).expect("masked to 16 bits").swap_bytes()
    }

    /// The checksum: what goes into a header.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether the bytes summed, a checksum among them, are unharmed (RFC 1071 §1).
    #[inline]
    pub fn is_valid(self) -> bool {
        self.fold() == u16::MAX
    }

    /// The sum of one word, given as a number.
    #[inline]
    pub const fn of_word(word: u16) -> Self {
        Self { words: u16::from_le_bytes(word.to_be_bytes()) as u64, odd: false }
    }

    /// The sum of two words, given as one number.
    #[inline]
    pub const fn of_double_word(words: u32) -> Self {
        Self { words: u32::from_le_bytes(words.to_be_bytes()) as u64, odd: false }
    }

    /// The sum of `bytes`, whose `words` have been added up.
    #[inline]
    fn of(words: u64, bytes: &[u8]) -> Self {
        Self { words, odd: !bytes.len().is_multiple_of(2) }
    }
}

impl Add for Sum {
    type Output = Self;

    #[inline]
    fn add(self, next: Self) -> Self {
        // Behind an odd number of bytes every byte falls into the other half of its word. That
        // multiplies the sum by 2⁸, which modulo 2⁶⁴ − 1 is a rotation.
        let shift = if self.odd { 8 } else { 0 };
        let words = scalar::add(self.words, next.words.rotate_left(shift));
        Self { words, odd: self.odd != next.odd }
    }
}

/// The sum of data that lies in several places, in their order.
impl iter::Sum for Sum {
    fn sum<I: Iterator<Item = Self>>(pieces: I) -> Self {
        pieces.fold(Self::default(), Add::add)
    }
}

/// Whether vectors are left alone.
static IS_SCALAR: AtomicBool = AtomicBool::new(false);

/// From now on this process sums in general registers, to find out whether vectors are at fault.
pub fn use_scalar() {
    IS_SCALAR.store(true, Ordering::Relaxed);
}

/// The machine's vectors, if they may be used.
#[inline]
fn vectors() -> Option<Simd> {
    if IS_SCALAR.load(Ordering::Relaxed) { None } else { Simd::detect() }
}

/// The sum of `bytes`. A last odd byte counts as if a zero followed.
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    if bytes.len() >= SIMD_BYTES_MIN
        && let Some(simd) = vectors()
    {
        return Sum::of(simd.words(bytes), bytes);
    }
    scalar::sum(bytes)
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
mod tests;
