//! Names of links: `gwi-<X>` and `gwo-<X>`, X being the endpoint id in base 60.

use super::EndpointId;
use std::fmt;

/// The first 60 of `0-9a-zA-Z`: the reference's digits, so that scripts find the same names.
const DIGITS: &[u8; 60] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX";

/// Longest name of a link: `IFNAMSIZ` less its closing zero (include/uapi/linux/if.h).
const NAME_BYTES_MAX: usize = 15;

/// Which of an endpoint's two TUN interfaces is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Gateway inbound: packets from the load balancer appear here.
    Gwi,
    /// Gateway outbound: packets sent out here return to the load balancer.
    Gwo,
}

impl Side {
    /// Both sides, `gwi` first.
    pub const BOTH: [Self; 2] = [Self::Gwi, Self::Gwo];

    /// The links that an endpoint has: without `gwo` where nothing is returned.
    pub const fn of_endpoint(returns: bool) -> &'static [Self] {
        if returns { &Self::BOTH } else { &[Self::Gwi] }
    }

    /// 0 for `gwi`, 1 for `gwo`.
    pub const fn index(self) -> usize {
        match self {
            Self::Gwi => 0,
            Self::Gwo => 1,
        }
    }

    const fn prefix(self) -> &'static [u8; 4] {
        match self {
            Self::Gwi => b"gwi-",
            Self::Gwo => b"gwo-",
        }
    }
}

/// Name of a network link, at most 15 bytes of ASCII.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkName {
    bytes: [u8; NAME_BYTES_MAX],
    len: u8,
}

impl LinkName {
    /// What stands where there is no link.
    const NONE: Self = Self { bytes: *b"none\0\0\0\0\0\0\0\0\0\0\0", len: 4 };

    /// The name of one side of an endpoint: 4 bytes of prefix and up to 11 digits.
    pub fn of(id: EndpointId, side: Side) -> Self {
        let mut digits = [0_u8; 11];
        let mut first = digits.len();
        let mut rest = id.0;
        loop {
            first -= 1;
            digits[first] = DIGITS[usize::try_from(rest % 60).expect("below 60")];
            rest /= 60;
            if rest == 0 {
                break;
            }
        }
        let mut bytes = [0; NAME_BYTES_MAX];
        let count = digits.len() - first;
        bytes[..4].copy_from_slice(side.prefix());
        bytes[4..4 + count].copy_from_slice(&digits[first..]);
        Self { bytes, len: u8::try_from(4 + count).expect("at most 15") }
    }

    /// The names of both links of an endpoint; where nothing is returned, the second one is that of
    /// none, as hooks know it from the reference program.
    pub fn of_endpoint(id: EndpointId, returns: bool) -> [Self; 2] {
        let [gwi, gwo] = Side::BOTH.map(|side| Self::of(id, side));
        [gwi, if returns { gwo } else { Self::NONE }]
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("names are ASCII")
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkName({})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that the reference program gave (facts/peers-and-gwlb.md §1.3).
    #[test]
    fn names_equal_the_reference() {
        for (id, digits) in [
            (0, "0"),
            (1, "1"),
            (59, "X"),
            (60, "10"),
            (0x77, "1X"),
            (3599, "XX"),
            (3600, "100"),
            (0xdead_beef, "4MfVTX"),
            (0x0123_4567_89ab_cdef, "887epl1uMf"),
            (0x2b8e_e1d4_db0c_51c4, "5bqWvzLwwkk"),
            (0x0000_4500_0021_0007_0000, "8dlP0RdKR54"),
            (u64::MAX, "uur953OEv0f"),
        ] {
            let id = EndpointId(id);
            assert_eq!(LinkName::of(id, Side::Gwi).as_str(), format!("gwi-{digits}"));
            assert_eq!(LinkName::of(id, Side::Gwo).as_str(), format!("gwo-{digits}"));
        }
    }

    #[test]
    fn where_nothing_returns_there_is_one_link() {
        let id = EndpointId(1);
        let names = |returns| LinkName::of_endpoint(id, returns).map(|name| name.to_string());
        assert_eq!(names(true), ["gwi-1", "gwo-1"]);
        assert_eq!(names(false), ["gwi-1", "none"]);
        assert_eq!(Side::of_endpoint(true), Side::BOTH);
        assert_eq!(Side::of_endpoint(false), [Side::Gwi]);
    }

    #[test]
    fn every_name_fits_a_link() {
        assert_eq!(LinkName::of(EndpointId(u64::MAX), Side::Gwi).as_str().len(), NAME_BYTES_MAX);
    }
}
