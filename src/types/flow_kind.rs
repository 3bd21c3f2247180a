//! Which kind of flow: the six tables that version 3.2 of the reference program counts apart.

/// IP version and transport of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKind {
    /// TCP over IPv4.
    V4Tcp,
    /// UDP over IPv4.
    V4Udp,
    /// Anything else over IPv4.
    V4Other,
    /// TCP over IPv6.
    V6Tcp,
    /// UDP over IPv6.
    V6Udp,
    /// Anything else over IPv6.
    V6Other,
}

impl FlowKind {
    /// Number of kinds.
    pub const COUNT: usize = Self::ALL.len();

    /// All kinds, IPv4 first.
    pub const ALL: [Self; 6] =
        [Self::V4Tcp, Self::V4Udp, Self::V4Other, Self::V6Tcp, Self::V6Udp, Self::V6Other];

    /// The kinds of IPv4.
    pub const V4: [Self; 3] = [Self::V4Tcp, Self::V4Udp, Self::V4Other];

    /// The kinds of IPv6.
    pub const V6: [Self; 3] = [Self::V6Tcp, Self::V6Udp, Self::V6Other];

    /// Whether it is TCP or UDP.
    pub const fn has_ports(self) -> bool {
        !matches!(self, Self::V4Other | Self::V6Other)
    }

    /// Its place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Self::V4Tcp => 0,
            Self::V4Udp => 1,
            Self::V4Other => 2,
            Self::V6Tcp => 3,
            Self::V6Udp => 4,
            Self::V6Other => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_place_of_its_own() {
        for (place, kind) in FlowKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), place);
        }
        assert_eq!([FlowKind::V4, FlowKind::V6].concat(), FlowKind::ALL);
    }
}
