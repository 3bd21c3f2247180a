//! From a GENEVE datagram to a frame for `gwi`.

use std::ops::Range;

use super::Path;
use super::count_removed;
use super::endpoints::Readiness;
use super::plan::BufferId;
use super::plan::Job;
use super::plan::Plan;
use super::plan::Span;
use super::plan::Target;
use crate::flow::FlowKey;
use crate::flow::Learned;
use crate::flow::StoredHeader;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::EndpointSlot;
use crate::types::Moment;
use crate::types::OuterPath;
use crate::wire::gwlb;
use crate::wire::inner;
use crate::wire::virtio_net;

/// A datagram in a receive buffer.
#[derive(Debug)]
pub struct Arrived<'a> {
    /// The buffer, for the plan.
    pub buffer: BufferId,
    /// All bytes of the buffer.
    pub bytes: &'a mut [u8],
    /// Where in them the datagram is.
    pub datagram: Range<usize>,
    /// Where it came from.
    pub outer: OuterPath,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decap {
    /// It is planned, held, or counted as dropped.
    Done,
    /// Its endpoint is not known: the caller asks for admission, then calls
    /// [`Path::announced`] or [`Path::refused`].
    Unknown(EndpointId),
}

impl Path {
    /// Takes a datagram that was received.
    pub fn decap(&mut self, arrived: Arrived<'_>, now: Moment, plan: &mut Plan) -> Decap {
        let datagram = &arrived.bytes[arrived.datagram.clone()];
        self.cell.datagrams.count(datagram.len());
        self.cell.last_datagram.set(now);
        let meta = match gwlb::parse(datagram) {
            Ok(meta) => meta,
            Err(reason) => {
                self.cell.drops.count(reason);
                self.last_drop = Some(reason);
                return Decap::Done;
            }
        };
        match self.endpoints.readiness(meta.endpoint) {
            Readiness::Active(slot) => self.deliver(slot, &meta, arrived, now, plan),
            Readiness::Wait => self.keep(meta.endpoint, datagram, arrived.outer),
            Readiness::Unknown => return Decap::Unknown(meta.endpoint),
        }
        Decap::Done
    }

    /// Takes a datagram that was held until now, in a buffer of its own.
    pub fn decap_held(&mut self, arrived: Arrived<'_>, now: Moment, plan: &mut Plan) {
        let meta = gwlb::parse(&arrived.bytes[arrived.datagram.clone()])
            .expect("it was parsed before it was held");
        let slot = self.endpoints.slot_of(meta.endpoint).expect("it is held for a served endpoint");
        self.deliver(slot, &meta, arrived, now, plan);
    }

    fn deliver(
        &mut self,
        slot: EndpointSlot,
        meta: &gwlb::Meta,
        arrived: Arrived<'_>,
        now: Moment,
        plan: &mut Plan,
    ) {
        let Arrived { buffer, bytes, datagram, outer } = arrived;
        let packet_start = datagram.start + meta.header_bytes;
        let packet_bytes = datagram.end - packet_start;
        let learned = self.learn(slot, meta, &bytes[datagram], outer, now);
        let endpoint = self.endpoints.at(slot).expect("active slots are filled");
        endpoint.cell.from_gwlb.count(packet_bytes);
        if let Err(reason) = learned {
            endpoint.cell.decap_drops.count(reason);
            self.last_drop = Some(reason);
            return;
        }
        endpoint.cell.last_seen.set(now);
        // The frame's header takes the place of the end of the GENEVE header, which is longer and
        // stored by now: one span, no copy.
        let start = packet_start - virtio_net::HEADER_BYTES;
        bytes[start..packet_start].copy_from_slice(&virtio_net::Header::PLAIN.emit());
        let length = |n: usize| u32::try_from(n).expect("a datagram is below 64 KiB");
        let len = length(packet_bytes + virtio_net::HEADER_BYTES);
        let span = Span { buffer, start: length(start), len };
        let job = Job {
            endpoint: slot,
            target: Target::Gwi,
            packets: 1,
            packet_bytes: length(packet_bytes),
            datagram_bytes: 0,
        };
        plan.push(job, [span]);
    }

    /// Stores the datagram's header with its flow.
    fn learn(
        &mut self,
        slot: EndpointSlot,
        meta: &gwlb::Meta,
        datagram: &[u8],
        outer: OuterPath,
        now: Moment,
    ) -> Result<(), DropReason> {
        let endpoint = self.endpoints.at(slot).expect("active slots are filled");
        let (header, packet) = datagram.split_at(meta.header_bytes);
        let inner = inner::parse(packet, meta.family)?;
        let template =
            endpoint.templates.intern(header, meta.cookie_at).ok_or(DropReason::OptionSetLimit)?;
        let header = StoredHeader { template, cookie: meta.cookie, outer };
        let (key, way) = FlowKey::new(endpoint.endpoint, &inner.tuple);
        match self.flows.learn(&key, way, &header, now, &mut self.tally) {
            Learned::Known => Ok(()),
            Learned::New { evicted } => {
                endpoint.cell.flows_added.count(key.kind());
                if let Some(evicted) = evicted {
                    count_removed(&self.endpoints, evicted);
                }
                Ok(())
            }
            Learned::Full => Err(DropReason::FlowLimit),
        }
    }
}
