//! What a flow is found by: endpoint, protocol and both ends, the same for both directions.
//!
//! A key is a plain string of bytes without gaps, numbers in network order, so that equality is
//! one comparison of memory, and a BPF map could hold the same keys one day. `A` is the length
//! of an address, 4 or 16 bytes:
//!
//! ```text
//!  0            4      6          7               7+A             7+2A         9+2A         11+2A
//!  ┌────────────┬──────┬──────────┬───────────────┬───────────────┬────────────┬────────────┐
//!  │ generation │ slot │ protocol │ lower address │ upper address │ lower port │ upper port │
//!  └────────────┴──────┴──────────┴───────────────┴───────────────┴────────────┴────────────┘
//! ```
//!
//! The *lower* end is the one whose (address, port) is smaller. Which of the two ends a packet
//! came from is its [`Way`]. Later fragments are no flow of two directions, and what tells them
//! apart is no port: there the lower end is the source. The generation makes the entries of an
//! endpoint that was torn down match nothing, without a scan.

use std::fmt;
use std::hash::Hasher as _;

use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;

use crate::types::EndpointRef;
use crate::types::EndpointSlot;
use crate::types::FlowKind;
use crate::types::Generation;
use crate::wire::Addresses;
use crate::wire::Family;
use crate::wire::FiveTuple;
use crate::wire::protocol;

/// Length of the key of an IPv4 flow.
pub(super) const V4_KEY_BYTES: usize = key_bytes(4);

/// Length of the key of an IPv6 flow.
pub(super) const V6_KEY_BYTES: usize = key_bytes(16);

/// Where the addresses start: behind generation, slot and protocol.
const ADDRESSES_AT: usize = 7;

const fn key_bytes(address_bytes: usize) -> usize {
    ADDRESSES_AT + 2 * address_bytes + 4
}

/// Which of the two directions of a flow a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the lower end to the upper one, and every packet whose ends are equal, and every later
    /// fragment.
    Forward,
    /// From the upper end to the lower one.
    Backward,
}

impl Way {
    /// The other direction.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Backward,
            Self::Backward => Self::Forward,
        }
    }

    pub(super) const fn index(self) -> usize {
        match self {
            Self::Forward => 0,
            Self::Backward => 1,
        }
    }
}

/// Identity of a flow: one life of one endpoint, and the 5-tuple in canonical order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey(pub(super) KeyBytes);

/// The bytes of a key by family, so that an IPv4 flow is never mistaken for an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum KeyBytes {
    V4([u8; V4_KEY_BYTES]),
    V6([u8; V6_KEY_BYTES]),
}

impl FlowKey {
    /// The key of the flow that a packet belongs to, and which way the packet goes.
    #[inline]
    pub fn new(endpoint: EndpointRef, tuple: &FiveTuple) -> (Self, Way) {
        let protocol = tuple.protocol;
        match tuple.addresses {
            Addresses::V4 { src, dst } => {
                let ends = [(src, tuple.src_port), (dst, tuple.dst_port)];
                let (bytes, way) = canonical(endpoint, protocol, ends);
                (Self(KeyBytes::V4(bytes)), way)
            }
            Addresses::V6 { src, dst } => {
                let ends = [(src, tuple.src_port), (dst, tuple.dst_port)];
                let (bytes, way) = canonical(endpoint, protocol, ends);
                (Self(KeyBytes::V6(bytes)), way)
            }
        }
    }

    /// The endpoint that the flow is of.
    pub(super) fn endpoint(&self) -> EndpointRef {
        match &self.0 {
            KeyBytes::V4(bytes) => endpoint_of(bytes),
            KeyBytes::V6(bytes) => endpoint_of(bytes),
        }
    }

    /// IP version of the flow.
    pub const fn family(&self) -> Family {
        match self.0 {
            KeyBytes::V4(_) => Family::V4,
            KeyBytes::V6(_) => Family::V6,
        }
    }

    /// IP version and transport of the flow.
    pub const fn kind(&self) -> FlowKind {
        match &self.0 {
            KeyBytes::V4(bytes) => kind_of(Family::V4, protocol_of(bytes)),
            KeyBytes::V6(bytes) => kind_of(Family::V6, protocol_of(bytes)),
        }
    }
}

/// Writes a key as drawn above. `ends` are source and destination.
#[inline]
fn canonical<const ADDRESS: usize, const KEY: usize>(
    endpoint: EndpointRef,
    protocol: u8,
    ends: [([u8; ADDRESS], u16); 2],
) -> ([u8; KEY], Way) {
    const { assert!(KEY == key_bytes(ADDRESS)) }
    let [source, destination] = ends;
    let is_forward = source <= destination || is_fragment(protocol, source.1, destination.1);
    let (way, lower, upper) = if is_forward {
        (Way::Forward, source, destination)
    } else {
        (Way::Backward, destination, source)
    };
    let ports_at = ADDRESSES_AT + 2 * ADDRESS;
    let mut key = [0; KEY];
    key[..4].copy_from_slice(&endpoint.generation.0.to_be_bytes());
    key[4..6].copy_from_slice(&endpoint.slot.0.to_be_bytes());
    key[6] = protocol;
    key[ADDRESSES_AT..][..ADDRESS].copy_from_slice(&lower.0);
    key[ADDRESSES_AT + ADDRESS..][..ADDRESS].copy_from_slice(&upper.0);
    key[ports_at..][..2].copy_from_slice(&lower.1.to_be_bytes());
    key[ports_at + 2..].copy_from_slice(&upper.1.to_be_bytes());
    (key, way)
}

/// Whether these are no ports, but the identification of a later fragment. That of a packet whose
/// identification is 0 is taken for a flow that has no ports.
const fn is_fragment(protocol: u8, src_port: u16, dst_port: u16) -> bool {
    protocol == protocol::FRAGMENT && (src_port | dst_port) != 0
}

/// The endpoint that a key names.
pub(super) fn endpoint_of<const KEY: usize>(key: &[u8; KEY]) -> EndpointRef {
    let [g0, g1, g2, g3, s0, s1, ..] = *key.first_chunk::<ADDRESSES_AT>().expect("keys are longer");
    EndpointRef {
        slot: EndpointSlot(u16::from_be_bytes([s0, s1])),
        generation: Generation(u32::from_be_bytes([g0, g1, g2, g3])),
    }
}

/// The protocol number that a key names.
pub(super) const fn protocol_of<const KEY: usize>(key: &[u8; KEY]) -> u8 {
    key[6]
}

/// The kind of a flow with this IP version and protocol number.
pub(super) const fn kind_of(family: Family, protocol: u8) -> FlowKind {
    match (family, protocol) {
        (Family::V4, protocol::TCP) => FlowKind::V4Tcp,
        (Family::V4, protocol::UDP) => FlowKind::V4Udp,
        (Family::V4, _) => FlowKind::V4Other,
        (Family::V6, protocol::TCP) => FlowKind::V6Tcp,
        (Family::V6, protocol::UDP) => FlowKind::V6Udp,
        (Family::V6, _) => FlowKind::V6Other,
    }
}

/// Secret of one run's flow hash: who does not know it cannot choose flows that collide.
#[derive(Clone, Copy)]
pub struct HashSeed([u64; 2]);

impl HashSeed {
    /// A seed from the kernel's random numbers, for one run of the program.
    ///
    /// # Errors
    /// If the kernel gives none.
    pub fn random() -> Result<Self, getrandom::Error> {
        Ok(Self([getrandom::u64()?, getrandom::u64()?]))
    }

    /// A seed that is no secret: the same flows meet in the same shards in every run. For tests
    /// and measurements.
    pub const fn fixed(seed: u64) -> Self {
        Self([seed, seed])
    }
}

impl fmt::Debug for HashSeed {
    /// Keeps the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashSeed(..)")
    }
}

/// The one hash of the flow table. Both directions of a flow have the same, their key being the
/// same.
pub(super) struct KeyHasher {
    shared: SharedSeed,
    own: u64,
}

impl KeyHasher {
    pub(super) const fn new(seed: HashSeed) -> Self {
        Self { shared: SharedSeed::from_u64(seed.0[0]), own: seed.0[1] }
    }

    #[inline]
    pub(super) fn hash(&self, key: &FlowKey) -> u64 {
        match &key.0 {
            KeyBytes::V4(bytes) => self.hash_bytes(bytes),
            KeyBytes::V6(bytes) => self.hash_bytes(bytes),
        }
    }

    #[inline]
    pub(super) fn hash_bytes<const KEY: usize>(&self, key: &[u8; KEY]) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.own, &self.shared);
        hasher.write(key);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(slot: u16, generation: u32) -> EndpointRef {
        EndpointRef { slot: EndpointSlot(slot), generation: Generation(generation) }
    }

    fn v4(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16) -> FiveTuple {
        FiveTuple { addresses: Addresses::V4 { src, dst }, protocol: 6, src_port, dst_port }
    }

    fn any_tuple() -> impl Strategy<Value = FiveTuple> {
        let addresses = prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(src, dst)| Addresses::V4 { src, dst }),
            any::<([u8; 16], [u8; 16])>().prop_map(|(src, dst)| Addresses::V6 { src, dst }),
        ];
        let protocol = prop_oneof![any::<u8>(), Just(protocol::FRAGMENT)];
        (addresses, protocol, any::<(u16, u16)>()).prop_map(|(addresses, protocol, (from, to))| {
            FiveTuple { addresses, protocol, src_port: from, dst_port: to }
        })
    }

    #[test]
    fn the_bytes_are_as_drawn() {
        let tuple = v4([10, 0, 0, 2], 0x1234, [10, 0, 0, 1], 0x5678);
        let (key, way) = FlowKey::new(endpoint(0x0102, 0x0304_0506), &tuple);
        let bytes = [3, 4, 5, 6, 1, 2, 6, 10, 0, 0, 1, 10, 0, 0, 2, 0x56, 0x78, 0x12, 0x34];
        assert_eq!(key, FlowKey(KeyBytes::V4(bytes)));
        assert_eq!(way, Way::Backward);
        assert_eq!(endpoint_of(&bytes), endpoint(0x0102, 0x0304_0506));
        assert_eq!(protocol_of(&bytes), 6);
    }

    #[test]
    fn a_packet_from_an_end_to_itself_goes_forward_only() {
        let tuple = v4([10, 0, 0, 1], 7, [10, 0, 0, 1], 7);
        assert_eq!(FlowKey::new(endpoint(0, 0), &tuple).1, Way::Forward);
        let other_port = v4([10, 0, 0, 1], 8, [10, 0, 0, 1], 7);
        assert_eq!(FlowKey::new(endpoint(0, 0), &other_port).1, Way::Backward);
    }

    proptest! {
        #[test]
        fn both_directions_have_one_key_and_opposite_ways(tuple in any_tuple(), seed: u64) {
            let (key, way) = FlowKey::new(endpoint(1, 2), &tuple);
            let (back, back_way) = FlowKey::new(endpoint(1, 2), &tuple.reversed());
            let hasher = KeyHasher::new(HashSeed::fixed(seed));
            if is_fragment(tuple.protocol, tuple.src_port, tuple.dst_port) {
                prop_assert_eq!((way, back_way), (Way::Forward, Way::Forward));
                prop_assert!(key != back || tuple == tuple.reversed());
                return Ok(());
            }
            prop_assert_eq!(key, back);
            prop_assert_eq!(hasher.hash(&key), hasher.hash(&back));
            prop_assert_eq!(key.family(), tuple.family());
            if tuple != tuple.reversed() {
                prop_assert_eq!(way, back_way.opposite());
            }
        }

        #[test]
        fn whatever_differs_gives_another_key(one in any_tuple(), two in any_tuple()) {
            prop_assume!(one != two && one != two.reversed());
            let here = endpoint(1, 2);
            prop_assert_ne!(FlowKey::new(here, &one).0, FlowKey::new(here, &two).0);
            for elsewhere in [endpoint(2, 2), endpoint(1, 3)] {
                prop_assert_ne!(FlowKey::new(here, &one).0, FlowKey::new(elsewhere, &one).0);
            }
        }
    }

    #[test]
    fn ports_that_swap_alone_are_another_flow() {
        // The reference adds both ends up, which would make one flow of these two.
        let here = endpoint(0, 0);
        let one = v4([10, 0, 0, 1], 1, [10, 0, 0, 2], 2);
        let two = v4([10, 0, 0, 1], 2, [10, 0, 0, 2], 1);
        assert_ne!(FlowKey::new(here, &one).0, FlowKey::new(here, &two).0);
    }

    #[test]
    fn a_later_fragment_has_no_other_direction() {
        let here = endpoint(0, 0);
        let fragment = v4([10, 0, 0, 2], 17, [10, 0, 0, 1], 6);
        let fragment = FiveTuple { protocol: protocol::FRAGMENT, ..fragment };
        let (key, way) = FlowKey::new(here, &fragment);
        assert_eq!(way, Way::Forward);
        assert_ne!(key, FlowKey::new(here, &fragment.reversed()).0);
    }

    #[test]
    fn random_seeds_differ_and_do_not_show() {
        let tuple = v4([10, 0, 0, 1], 1, [10, 0, 0, 2], 2);
        let (key, _) = FlowKey::new(endpoint(0, 0), &tuple);
        let [one, two] = [(); 2].map(|()| HashSeed::random().unwrap());
        assert_ne!(KeyHasher::new(one).hash(&key), KeyHasher::new(two).hash(&key));
        assert_eq!(format!("{one:?}"), "HashSeed(..)");
    }
}
