//! Who sent what, and whether it came back: every packet once, with its bytes, and within its flow
//! in the order in which it was sent.
//!
//! A flow is an endpoint with addresses, protocol and ports, in one direction; of a fragment, its
//! id in place of the ports.

use std::collections::HashMap;
use std::collections::VecDeque;

use crate::sim::layout;
use crate::sim::layout::Tuple;

/// How much of a packet a message shows, in bytes.
const SHOWN_BYTES: usize = 96;

/// Endpoint, addresses, protocol, ports, and of a fragment its id.
type Flow = (u64, Tuple, Option<u32>);

/// Packets on their way.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    flows: HashMap<Flow, VecDeque<Vec<u8>>>,
    on_their_way: usize,
    /// Packets and bytes that came back.
    returned: (u64, u64),
}

impl Ledger {
    /// Enters a packet that is sent now.
    pub(crate) fn sent(&mut self, endpoint: u64, inner: &[u8]) {
        self.flows.entry(flow(endpoint, inner)).or_default().push_back(inner.to_vec());
        self.on_their_way += 1;
    }

    /// How many have not come back.
    pub(crate) fn on_their_way(&self) -> usize {
        self.on_their_way
    }

    /// Packets and bytes that have come back.
    pub(crate) fn returned(&self) -> (u64, u64) {
        self.returned
    }

    /// Crosses out a packet that came back.
    ///
    /// # Panics
    /// If it is not the next one of its flow.
    pub(crate) fn came_back(&mut self, endpoint: u64, inner: &[u8]) {
        let flow = flow(endpoint, inner);
        let Some(waiting) = self.flows.get_mut(&flow) else {
            panic!("nobody sent a packet of {flow:?}: {}", shown(inner));
        };
        match waiting.iter().position(|packet| packet == inner) {
            Some(0) => drop(waiting.pop_front()),
            Some(place) => panic!("{flow:?}: a packet overtook {place} others: {}", shown(inner)),
            None => panic!("{flow:?}: {}", difference(waiting.front(), inner)),
        }
        self.on_their_way -= 1;
        self.returned.0 += 1;
        self.returned.1 += u64::try_from(inner.len()).expect("a packet's length");
    }

    /// What is missing, in words: of each flow the first packet.
    pub(crate) fn missing(&self) -> String {
        let missing = self.flows.iter().filter_map(|(flow, waiting)| {
            let first = waiting.front()?;
            Some(format!("{} of {flow:?}, first {}\n", waiting.len(), shown(first)))
        });
        missing.collect()
    }
}

fn flow(endpoint: u64, inner: &[u8]) -> Flow {
    let tuple = layout::inner_tuple(inner).expect("an IP packet");
    (endpoint, tuple, fragment_id(inner))
}

/// The id of a fragment.
fn fragment_id(inner: &[u8]) -> Option<u32> {
    if inner[0] >> 4 == 4 {
        let is_fragment = layout::u16_at(inner, 6) & 0x3fff != 0;
        return is_fragment.then(|| layout::u16_at(inner, 4).into());
    }
    (inner[6] == 44 && inner.len() >= 48).then(|| layout::u32_at(inner, 44))
}

/// Where a packet differs from the one that should have come.
fn difference(expected: Option<&Vec<u8>>, inner: &[u8]) -> String {
    let Some(expected) = expected else {
        return format!("more than was sent: {}", shown(inner));
    };
    let differs = |place: &usize| expected.get(*place) != inner.get(*place);
    let places: Vec<usize> = (0..expected.len().max(inner.len())).filter(differs).collect();
    let (first, count) = (places.first().copied().unwrap_or_default(), places.len());
    let (sent, got) = (shown(expected), shown(inner));
    format!("{count} bytes differ, the first at {first}\nsent {sent}\ngot  {got}")
}

fn shown(packet: &[u8]) -> String {
    format!("{} bytes {:02x?}", packet.len(), &packet[..packet.len().min(SHOWN_BYTES)])
}
