//! The largest TCP segment that connections may agree on.

use std::ops::RangeInclusive;

/// Bytes of TCP payload in a packet, at most: as IPv4 counts it. In IPv6 it is 20 less, because the
/// header is 20 longer and the packets are to have the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegmentMax(u16);

impl TcpSegmentMax {
    /// From what every host takes (RFC 9293 §3.7.1) to what fills a packet of 8,500 bytes.
    pub const RANGE: RangeInclusive<i64> = 536..=8460;

    /// So many bytes, which are in [`Self::RANGE`].
    pub const fn new(v4_bytes: u16) -> Self {
        Self(v4_bytes)
    }

    /// In IPv4.
    pub const fn v4_bytes(self) -> u16 {
        self.0
    }

    /// In IPv6.
    pub const fn v6_bytes(self) -> u16 {
        self.0.saturating_sub(20)
    }
}
