//! The sum in general registers: what every machine has, and the quickest for a header.

use super::Sum;

/// Bytes per turn of the loop: long enough that a chain of additions with carry pays.
const BLOCK_BYTES: usize = 32;

/// The sum of `bytes`, like [`super::sum`] and by no instruction that a machine might lack.
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    Sum::of(words(bytes), bytes)
}

/// The sum of `bytes` as little-endian words, modulo 2⁶⁴ − 1. (Sums of narrower words differ from
/// it, but not modulo 2¹⁶ − 1, which is what counts.)
#[inline]
pub(super) fn words(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    let total = blocks.iter().fold(0, |total, block| {
        let (words, _) = block.as_chunks();
        // One carry runs through the block and on into the total. The block begins at 0, so that it
        // need not wait for the block before.
        let (sum, carry) = words.iter().fold((0, false), |(sum, carry), &word| {
            u64::carrying_add(sum, u64::from_le_bytes(word), carry)
        });
        let (total, carry) = u64::carrying_add(total, sum, carry);
        // No overflow: that would take a sum of all ones with a carry, and a sum of two words
        // that begins at 0 ends below all ones if it carries, as does then each longer one.
        total + u64::from(carry)
    });
    add(total, rest_words(bytes, rest))
}

/// The sum of `rest`, the end of `bytes`. Meant for less than a block.
#[inline]
pub(super) fn rest_words(bytes: &[u8], rest: &[u8]) -> u64 {
    let (words, last) = rest.as_chunks();
    let total = words.iter().fold(0, |total, &word| add(total, u64::from_le_bytes(word)));
    add(total, last_word(bytes, last))
}

/// The sum of `last`, the up to 7 bytes at the end of `bytes`.
#[inline]
fn last_word(bytes: &[u8], last: &[u8]) -> u64 {
    if let Some(&word) = bytes.last_chunk() {
        // The last 8 bytes, without those before `last`: one load whatever the length. Two
        // shifts, because one by 64 would be none.
        return u64::from_le_bytes(word) >> 8 >> (56 - 8 * last.len());
    }
    let (halves, last) = last.as_chunks();
    let last = last.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    halves.iter().fold(last, |total, &half| total + u64::from(u32::from_le_bytes(half)))
}

/// `a + b` modulo 2⁶⁴ − 1: the carry comes back in at the lower end.
#[inline]
pub(super) fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}
