//! From a frame that was read from a TUN to a datagram for the load balancer.

use std::ops::Range;

use super::Path;
use super::endpoints::Endpoint;
use super::plan::BufferId;
use super::plan::Job;
use super::plan::Plan;
use super::plan::Span;
use super::plan::Target;
use crate::flow::FlowKey;
use crate::flow::StoredHeader;
use crate::types::DropReason;
use crate::types::EndpointSlot;
use crate::types::GENEVE_PORT;
use crate::types::INNER_BYTES_MAX;
use crate::types::Moment;
use crate::types::OuterPath;
use crate::types::Side;
use crate::wire::Addresses;
use crate::wire::FiveTuple;
use crate::wire::checksum;
use crate::wire::inner;
use crate::wire::protocol;
use crate::wire::udp;
use crate::wire::virtio_net;

/// A frame in a receive buffer.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The buffer, for the plan.
    pub buffer: BufferId,
    /// All bytes of the buffer. There is room for a GENEVE header before the packet.
    pub bytes: &'a mut [u8],
    /// Where in them the frame is, its virtio header included.
    pub frame: Range<usize>,
    /// The link that it was read from.
    pub side: Side,
}

/// Why a packet is not sent: lost, or nobody's loss.
enum Unsent {
    Dropped(DropReason),
    Noise,
}

impl From<DropReason> for Unsent {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

/// Where the packet of a frame is: behind the virtio header. Empty if there is none.
pub fn packet_in(frame: Range<usize>) -> Range<usize> {
    (frame.start + virtio_net::HEADER_BYTES).min(frame.end)..frame.end
}

/// Puts the UDP header of an answer on `outer` before its payload, which stands at `payload` of
/// `bytes`: for a socket that leaves this header to us. Returns where the datagram begins; nothing
/// if there is no room before the payload, or too much in it.
///
/// The checksum is filled in, as the kernel does it on the ordinary way: it is what protects the
/// flow cookie, and receivers merge only datagrams that have one.
pub fn prepend_udp_header(
    bytes: &mut [u8],
    payload: Range<usize>,
    outer: &OuterPath,
) -> Option<usize> {
    let start = payload.start.checked_sub(udp::HEADER_BYTES)?;
    let datagram_bytes = u16::try_from(payload.end - start).ok()?;
    let payload_sum = checksum::sum(bytes.get(payload.clone())?);
    let addresses = Addresses::V4 { src: outer.local.octets(), dst: outer.remote.octets() };
    let pseudo_header = checksum::pseudo_header(addresses, protocol::UDP, datagram_bytes.into());
    let mut header = udp::Header::new_checked(&mut bytes[start..payload.start])?;
    header.set_ports(outer.remote_port, GENEVE_PORT);
    header.set_length_bytes(datagram_bytes);
    header.fill_checksum(pseudo_header, payload_sum);
    Some(start)
}

impl Path {
    /// Takes a frame that was read from a queue of the endpoint in `slot`.
    pub fn encap(&mut self, slot: EndpointSlot, frame: Frame<'_>, now: Moment, plan: &mut Plan) {
        let Self { endpoints, flows, tally, last_drop, .. } = self;
        let Some(endpoint) = endpoints.at(slot) else {
            // Read before the endpoint was let go, taken after.
            self.cell.drops.count(DropReason::Shutdown);
            return;
        };
        let packet_bytes = frame.frame.len().saturating_sub(virtio_net::HEADER_BYTES);
        let cell = &endpoint.cell;
        let (traffic, last) = match frame.side {
            Side::Gwi => (&cell.from_gwi, &cell.last_from_gwi),
            Side::Gwo => (&cell.from_gwo, &cell.last_from_gwo),
        };
        traffic.count(packet_bytes);
        last.set(now);
        let find = |tuple: &FiveTuple| {
            let (key, way) = FlowKey::new(endpoint.endpoint, tuple);
            flows.find(&key, way, now, tally)
        };
        match plan_return(endpoint, frame, find, plan) {
            Ok(()) => cell.last_seen.set(now),
            Err(Unsent::Noise) => cell.host_noise.add(1),
            Err(Unsent::Dropped(reason)) => {
                cell.encap_drops.count(reason);
                *last_drop = Some(reason);
            }
        }
    }
}

/// Puts the header that `find` knows for the packet's flow before the packet, and plans the send.
fn plan_return(
    endpoint: &Endpoint,
    frame: Frame<'_>,
    find: impl FnOnce(&FiveTuple) -> Option<StoredHeader>,
    plan: &mut Plan,
) -> Result<(), Unsent> {
    let Frame { buffer, bytes, frame, .. } = frame;
    let header = virtio_net::Header::parse(&bytes[frame.clone()])?;
    // Segmentation was not asked for, so a frame is one packet. Its checksum may be open.
    if header.gso != virtio_net::Gso::None {
        return Err(DropReason::TunBadFrame.into());
    }
    let packet_start = frame.start + virtio_net::HEADER_BYTES;
    let packet = &mut bytes[packet_start..frame.end];
    virtio_net::complete_checksum(packet, &header)?;
    let inner = inner::parse_any(packet).map_err(|_| DropReason::TunBadFrame)?;
    let Some(stored) = find(&inner.tuple) else {
        let noise = inner::is_host_noise(packet);
        return Err(if noise { Unsent::Noise } else { DropReason::FlowUnknown.into() });
    };
    let packet_bytes = packet.len();
    if packet_bytes > INNER_BYTES_MAX {
        return Err(DropReason::Mtu.into());
    }
    let header_bytes = endpoint
        .templates
        .write_before(stored.template, stored.cookie, &mut bytes[..packet_start])
        .ok_or(DropReason::FlowUnknown)?;
    let length = |n: usize| u32::try_from(n).expect("a frame is below 64 KiB");
    let start = length(packet_start - header_bytes);
    let span = Span { buffer, start, len: length(header_bytes + packet_bytes) };
    let target = Target::Outer(stored.outer);
    let job = Job {
        endpoint: endpoint.endpoint.slot,
        target,
        packets: 1,
        packet_bytes: length(packet_bytes),
        datagram_bytes: u16::try_from(span.len).expect("an inner packet is below 9 KiB"),
    };
    plan.push(job, [span]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_datagram_of_ours_is_whole() {
        let (local, remote) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 1));
        let outer = OuterPath { local, remote, remote_port: 60_000 };
        for payload_bytes in [0, 1, 68, 8501] {
            let mut bytes = vec![0xee; 12 + payload_bytes];
            assert_eq!(prepend_udp_header(&mut bytes, 12..12 + payload_bytes, &outer), Some(4));
            assert_eq!(bytes[..4], [0xee; 4]);
            let (header, payload) = bytes[4..].split_at(8);
            assert!(payload.iter().all(|&byte| byte == 0xee));
            let header = udp::Header::new_checked(header).unwrap();
            assert_eq!((header.src_port(), header.dst_port()), (60_000, GENEVE_PORT));
            assert_eq!(usize::from(header.length_bytes()), 8 + payload_bytes);
            let addresses = Addresses::V4 { src: local.octets(), dst: remote.octets() };
            let length = header.length_bytes().into();
            let pseudo_header = checksum::pseudo_header(addresses, protocol::UDP, length);
            assert!(header.checksum_is_valid(pseudo_header, checksum::sum(payload)));
        }
    }

    #[test]
    fn what_has_no_room_or_is_too_long_is_no_datagram() {
        let local = Ipv4Addr::LOCALHOST;
        let outer = OuterPath { local, remote: local, remote_port: 60_000 };
        let mut bytes = vec![0; 70_000];
        assert_eq!(prepend_udp_header(&mut bytes, 7..100, &outer), None);
        assert_eq!(prepend_udp_header(&mut bytes, 8..65_535, &outer), Some(0));
        assert_eq!(prepend_udp_header(&mut bytes, 8..65_536, &outer), None);
        assert_eq!(prepend_udp_header(&mut bytes, 69_000..70_001, &outer), None);
    }
}
