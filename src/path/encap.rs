//! From a frame that was read from a TUN to a datagram for the load balancer.

use std::ops::Range;

use super::Path;
use super::endpoints::Endpoint;
use super::plan::BufferId;
use super::plan::Plan;
use super::plan::Span;
use super::plan::Target;
use crate::flow::FlowKey;
use crate::flow::StoredHeader;
use crate::types::DropReason;
use crate::types::EndpointSlot;
use crate::types::INNER_BYTES_MAX;
use crate::types::Moment;
use crate::types::Side;
use crate::wire::FiveTuple;
use crate::wire::inner;
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
    plan.push(endpoint.endpoint.slot, target, &[span], 1, length(packet_bytes));
    Ok(())
}
