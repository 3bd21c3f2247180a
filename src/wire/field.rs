//! Fields at fixed places of a header, in network byte order.
//!
//! Every view names its fields as constant ranges and reads them through these functions. They
//! panic when the range lies outside the bytes or has another size than asked for: the views rule
//! out the first by their check, and the second is a constant that any test of the field meets.

use std::ops::Range;

/// The bytes of a field.
pub(super) fn array<const N: usize>(bytes: &[u8], field: Range<usize>) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[field]);
    value
}

/// A 16-bit field.
pub(super) fn be16(bytes: &[u8], field: Range<usize>) -> u16 {
    u16::from_be_bytes(array(bytes, field))
}

/// A 32-bit field.
pub(super) fn be32(bytes: &[u8], field: Range<usize>) -> u32 {
    u32::from_be_bytes(array(bytes, field))
}
