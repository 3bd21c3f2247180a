//! Identity of a Gateway Load Balancer endpoint (GWLBE), on the wire and in our tables.

use std::fmt;
use std::str::FromStr;

/// The 64-bit id of an endpoint, as AWS option type 1 carries it.
///
/// Its text is 17 lower-case hexadecimal digits, zero-padded: what follows `vpce-` in the
/// console, what hooks get as argument 4, and what the reference program logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u64);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:017x}", self.0)
    }
}

/// Why a text is not an endpoint id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no endpoint id: expected up to 17 hexadecimal digits, with or without vpce-")]
pub struct ParseEndpointIdError(String);

impl FromStr for EndpointId {
    type Err = ParseEndpointIdError;

    /// Accepts `vpce-…` and bare hexadecimal digits of either case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseEndpointIdError(text.to_owned());
        let digits = text.strip_prefix("vpce-").unwrap_or(text);
        if digits.is_empty() || digits.len() > 17 || digits.starts_with('+') {
            return Err(refuse());
        }
        u64::from_str_radix(digits, 16).map(Self).map_err(|_| refuse())
    }
}

/// Index of an endpoint in every table of the program: counters, registered files, queues.
///
/// Slots are reused after teardown; an [`EndpointRef`] tells two users of one slot apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointSlot(pub u16);

impl EndpointSlot {
    /// The slot's number as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How often a slot has been given out. It never returns to an earlier value in practice:
/// 2³² creations at the admission rate take longer than a host lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation of the slot's next user.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// One life of one endpoint: its slot and the slot's generation.
///
/// A flow entry or a message that names an older generation belongs to an endpoint that was torn
/// down, and matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointRef {
    /// Index into the tables.
    pub slot: EndpointSlot,
    /// Which user of the slot is meant.
    pub generation: Generation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_seventeen_hex_digits() {
        assert_eq!(EndpointId(0x0123_4567_89ab_cdef).to_string(), "00123456789abcdef");
        assert_eq!(EndpointId(u64::MAX).to_string(), "0ffffffffffffffff");
        assert_eq!(EndpointId(1).to_string(), "00000000000000001");
    }

    #[test]
    fn text_parses_back() {
        for id in [0, 1, 0x2b8e_e1d4_db0c_51c4, u64::MAX] {
            let id = EndpointId(id);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(format!("vpce-{id}").parse(), Ok(id));
        }
        for bad in ["", "vpce-", "xyz", "+1", "100000000000000000", "-1", "123456789012345678"] {
            assert!(bad.parse::<EndpointId>().is_err(), "{bad}");
        }
    }
}
