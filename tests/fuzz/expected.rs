//! What must leave for the load balancer, by the oracle and by what came before.

use gwlbtun::path::WAITING_MAX;
use gwlbtun::types::INNER_BYTES_MAX;
use gwlbtun::types::Moment;
use gwlbtun::wire::gso::Segmenter;
use gwlbtun::wire::virtio_net;
use gwlbtun::wire::virtio_net::Gso;

use super::segmenter::cut;
use crate::oracle;
use crate::oracle::Name;
use crate::returns;
use crate::returns::Book;
use crate::returns::Header;

/// Packets of a frame at most; and answers at once to what is too big.
const FRAME_PACKETS_MAX: usize = 1400;
const REFUSALS_AT_ONCE: usize = 50;

/// How long a later fragment waits for its first one.
const WAIT_NANOS: u64 = 250_000_000;

/// A datagram that left or must leave: the node's port, and all bytes.
pub(crate) type Left = (u16, Vec<u8>);

/// A later fragment that came before its first one.
#[derive(Debug)]
struct Waiting {
    name: Name,
    packet: Vec<u8>,
    until_nanos: u64,
}

/// What must leave, and what was learned.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    pub(crate) book: Book,
    /// Whether SYNs are clamped.
    pub(crate) clamps: bool,
    /// Whether nothing returns.
    pub(crate) returns: bool,
    /// Whether there may be no buffer for copies.
    pub(crate) has_faults: bool,
    must: Vec<Left>,
    /// Copies, which need a buffer.
    may: Vec<Left>,
    /// What is too big, and the header that its sender is told under.
    refused: Vec<(Header, Vec<u8>)>,
    refusals: usize,
    waiting: Vec<Waiting>,
}

impl Expected {
    /// A frame was read.
    pub(crate) fn read(&mut self, frame: &[u8], now: Moment) {
        let Some((mut packets, is_super)) = packets_in(frame).filter(|_| self.returns) else {
            return;
        };
        let Ok((_, belongs)) = oracle::packet(&packets[0]) else { return };
        let Some(header) = self.book.header(&belongs) else {
            if matches!(belongs.name, Name::Fragments { .. }) && !is_super {
                self.wait(belongs.name, packets.remove(0), now);
            }
            return;
        };
        if self.clamps && !is_super {
            returns::clamp(&mut packets[0]);
        }
        if packets.iter().any(|packet| packet.len() > INNER_BYTES_MAX) {
            let way = returns::way_of_refusal(&packets[0]);
            let header = way.and_then(|way| self.book.ask(way));
            self.refused.extend(header.map(|header| (header, packets.remove(0))));
            return;
        }
        let left = packets.into_iter().map(|packet| under(&header, &packet));
        if is_super && self.has_faults { self.may.extend(left) } else { self.must.extend(left) }
    }

    fn wait(&mut self, name: Name, packet: Vec<u8>, now: Moment) {
        if packet.len() <= INNER_BYTES_MAX && self.waiting.len() < WAITING_MAX {
            let until_nanos = now.as_nanos() + WAIT_NANOS;
            self.waiting.push(Waiting { name, packet, until_nanos });
        }
    }

    /// Fragments whose first one has been seen leave; `left` is what did.
    pub(crate) fn waiting_leave(&mut self, left: &[Left], now: Moment, is_attached: bool) {
        let Self { book, waiting, must, has_faults, .. } = self;
        waiting.retain(|fragment| {
            if !is_attached {
                return false;
            }
            let is_early = fragment.until_nanos > now.as_nanos();
            let Some(header) = book.ask(fragment.name) else { return is_early };
            let leaves = under(&header, &fragment.packet);
            if *has_faults && !left.contains(&leaves) {
                return is_early;
            }
            must.push(leaves);
            false
        });
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requires that this is what left.
    pub(crate) fn expect(&mut self, mut left: Vec<Left>) {
        left.sort();
        self.must.sort();
        let mut must = std::mem::take(&mut self.must).into_iter().peekable();
        left.retain(|left| must.next_if(|must| must == left).is_none());
        assert!(must.peek().is_none(), "{:02x?} has not left, but {left:02x?}", must.peek());
        let mut may = std::mem::take(&mut self.may);
        let mut refused = std::mem::take(&mut self.refused);
        let all = refused.len();
        for left in left {
            if let Some(place) = may.iter().position(|may| *may == left) {
                may.swap_remove(place);
                continue;
            }
            let is_about = |(header, packet): &(Header, Vec<u8>)| {
                let quote = &packet[..packet.len().min(200)];
                let answers = left.1.windows(quote.len()).any(|bytes| bytes == quote);
                left.0 == header.port && left.1.starts_with(&header.bytes) && answers
            };
            let place = refused.iter().position(is_about);
            let place = place.unwrap_or_else(|| panic!("nobody sent {left:02x?}"));
            let (header, packet) = refused.swap_remove(place);
            returns::expect_refusal(&left.1[header.bytes.len()..], &packet);
        }
        self.refusals += all;
        let may_lack = self.has_faults || self.refusals > REFUSALS_AT_ONCE;
        assert!(may_lack || refused.is_empty(), "nobody was told of {:02x?}", refused[0]);
    }
}

fn under(header: &Header, packet: &[u8]) -> Left {
    (header.port, [&header.bytes[..], packet].concat())
}

/// The packets of a frame from a TUN, and whether it is a super-packet. (Another fuzzer judges how
/// one is cut.) Nothing if it is no frame.
fn packets_in(frame: &[u8]) -> Option<(Vec<Vec<u8>>, bool)> {
    let header = virtio_net::Header::parse(frame).ok()?;
    let mut packet = frame[virtio_net::HEADER_BYTES..].to_vec();
    if header.gso == Gso::None {
        virtio_net::complete_checksum(&mut packet, &header).ok()?;
        return Some((vec![packet], false));
    }
    let segmenter = Segmenter::new(&packet, &header).ok()?;
    let count = segmenter.segments();
    let packets = (0..count).map(|number| cut(&segmenter, &packet, number));
    (count <= FRAME_PACKETS_MAX).then(|| (packets.collect(), true))
}
