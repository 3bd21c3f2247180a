//! Cutting datagrams out of what is gathered from many places.

use std::ops::Range;

use crate::path::plan::Job;
use crate::path::plan::Span;

/// Bytes in one place.
pub trait Piece: Copy {
    /// How many there are.
    fn bytes(&self) -> usize;

    /// Some of them. The range is inside.
    #[must_use]
    fn part(&self, range: Range<usize>) -> Self;
}

/// The bytes `range` of all `pieces`, one after another. What is beyond their end is left out.
pub fn cut<P: Piece>(
    pieces: impl IntoIterator<Item = P>,
    range: Range<usize>,
) -> impl Iterator<Item = P> {
    let mut end = 0;
    pieces.into_iter().filter_map(move |piece| {
        let start = end;
        end += piece.bytes();
        let (from, to) = (range.start.max(start), range.end.min(end));
        (from < to).then(|| piece.part(from - start..to - start))
    })
}

/// Many datagrams one after another, of one size but for the last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// Datagrams, one per packet.
    pub packets: u32,
    /// Sum of the packets' lengths in bytes.
    pub packet_bytes: u32,
    /// Bytes of each datagram but the last.
    pub datagram_bytes: u16,
    /// Bytes of all datagrams.
    pub total_bytes: usize,
}

impl Whole {
    /// What a job sends.
    pub fn new(job: &Job, spans: &[Span]) -> Self {
        let Job { packets, packet_bytes, datagram_bytes, .. } = *job;
        let total_bytes = spans.iter().map(Piece::bytes).sum();
        Self { packets, packet_bytes, datagram_bytes, total_bytes }
    }

    /// Where datagram `index` is.
    pub fn datagram(&self, index: u32) -> Range<usize> {
        let start = index as usize * usize::from(self.datagram_bytes);
        let is_last = index + 1 == self.packets;
        let end = if is_last { self.total_bytes } else { start + usize::from(self.datagram_bytes) };
        debug_assert!(start < end && end <= self.total_bytes, "{index} of {self:?}");
        start..end
    }

    /// Bytes of the packet in datagram `index`. What is no packet is header, as long for each; the
    /// last packet gets what is left, so that the sum is right in any case.
    pub fn packet_bytes(&self, index: u32) -> u32 {
        let total = u32::try_from(self.total_bytes).unwrap_or(u32::MAX);
        let headers = total.saturating_sub(self.packet_bytes);
        let usual = u32::from(self.datagram_bytes).saturating_sub(headers / self.packets);
        let is_last = index + 1 == self.packets;
        if is_last { self.packet_bytes.saturating_sub(index * usual) } else { usual }
    }
}

impl Piece for Span {
    fn bytes(&self) -> usize {
        self.len as usize
    }

    fn part(&self, range: Range<usize>) -> Self {
        let length = |n: usize| u32::try_from(n).expect("no more than the span's own");
        Self { start: self.start + length(range.start), len: length(range.len()), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::path::plan::BufferId;
    use crate::path::plan::Group;
    use crate::path::plan::Target;
    use crate::types::EndpointSlot;

    proptest! {
        #[test]
        fn datagrams_are_cut_as_from_one_slice(
            lengths in prop::collection::vec(0..50_u32, 1..20),
            datagram_bytes in 1..60_u16,
        ) {
            // The pieces are neighbours, so that a byte's place is its number.
            let mut start = 0;
            let spans: Vec<_> = lengths.iter().map(|&len| {
                let span = Span { buffer: BufferId::new(Group::Udp, 7), start, len };
                start += len;
                span
            }).collect();
            let all: Vec<_> = (0..start).collect();
            let packets = start.div_ceil(datagram_bytes.into());
            // Headers of 3 bytes each.
            let packet_bytes = start.saturating_sub(3 * packets);
            let (endpoint, target) = (EndpointSlot(0), Target::Gwi(None));
            let job = Job { endpoint, target, packets, packet_bytes, datagram_bytes };
            let whole = Whole::new(&job, &spans);
            let mut packets_sum = 0;
            for (index, expected) in (0..).zip(all.chunks(datagram_bytes.into())) {
                let parts = cut(spans.iter().copied(), whole.datagram(index));
                let got: Vec<_> = parts.flat_map(|part| {
                    assert!(part.len > 0);
                    part.start..part.start + part.len
                }).collect();
                prop_assert_eq!(got, expected);
                packets_sum += whole.packet_bytes(index);
            }
            if packets > 0 && whole.datagram(packets - 1).len() > 3 {
                prop_assert_eq!(packets_sum, packet_bytes);
                prop_assert!(packets < 2 || whole.packet_bytes(0) == u32::from(datagram_bytes) - 3);
            }
        }
    }
}
