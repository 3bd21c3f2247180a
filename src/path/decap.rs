//! From a GENEVE datagram to a frame for `gwi`.

use std::ops::Range;

use super::Path;
use super::Profile;
use super::clamp::clamp_mss;
use super::coalesce::FlowId;
use super::coalesce::Piece;
use super::endpoints::Readiness;
use super::lookup;
use super::plan::BufferId;
use super::plan::Buffers;
use super::plan::Plan;
use crate::flow::FlowKey;
use crate::flow::StoredHeader;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::EndpointSlot;
use crate::types::Moment;
use crate::types::OuterPath;
use crate::wire::gwlb;
use crate::wire::inner;

/// A datagram in a receive buffer.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// The buffer.
    pub buffer: BufferId,
    /// Where in it the datagram is.
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

/// Looks at bytes that may be several datagrams of one length, perhaps but the last, which the
/// kernel has put together. Returns that length if they are: where the first one's packet ends,
/// another one begins.
pub fn first_of_train(bytes: &[u8], profile: &Profile) -> Option<usize> {
    let meta = gwlb::parse(bytes, profile).ok()?;
    let packet = inner::parse(&bytes[meta.header_bytes..], meta.family).ok()?;
    let first = meta.header_bytes + packet.packet_bytes;
    let second = bytes.get(first..).filter(|rest| !rest.is_empty())?;
    gwlb::parse(second, profile).ok().map(|_| first)
}

impl Path {
    /// Takes a datagram that was received. It may be planned only by [`Self::end_batch`], with
    /// others of its flow.
    pub fn decap(
        &mut self,
        arrived: Arrived,
        now: Moment,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) -> Decap {
        self.cell.datagrams.count(arrived.datagram.len());
        self.cell.last_datagram.set(now);
        if let Some((slot, packet_bytes)) = self.coalescer.take_next(&arrived, buffers, plan) {
            let endpoint = self.endpoints.at(slot).expect("its packet before was delivered");
            endpoint.cell.from_gwlb.count(packet_bytes);
            endpoint.cell.last_seen.set(now);
            return Decap::Done;
        }
        let datagram = &buffers.bytes_mut(arrived.buffer)[arrived.datagram.clone()];
        let meta = match gwlb::parse(datagram, &self.profile) {
            Ok(meta) => meta,
            Err(reason) => {
                self.cell.drops.count(reason);
                self.last_drop = Some(reason);
                return Decap::Done;
            }
        };
        match self.endpoints.readiness(meta.endpoint) {
            Readiness::Active(slot) => self.deliver(slot, &meta, arrived, now, buffers, plan),
            Readiness::Wait => self.keep(meta.endpoint, datagram, arrived.outer),
            Readiness::Unknown => return Decap::Unknown(meta.endpoint),
        }
        Decap::Done
    }

    /// Takes a datagram that was held until now, in a buffer of its own.
    pub fn decap_held(
        &mut self,
        arrived: Arrived,
        now: Moment,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) {
        let datagram = &buffers.bytes_mut(arrived.buffer)[arrived.datagram.clone()];
        let meta = gwlb::parse(datagram, &self.profile).expect("it was parsed before it was held");
        let slot = self.endpoints.slot_of(meta.endpoint).expect("it is held for a served endpoint");
        self.deliver(slot, &meta, arrived, now, buffers, plan);
    }

    fn deliver(
        &mut self,
        slot: EndpointSlot,
        meta: &gwlb::Meta,
        arrived: Arrived,
        now: Moment,
        buffers: &mut impl Buffers,
        plan: &mut Plan,
    ) {
        let Arrived { buffer, datagram, outer } = arrived;
        let packet_bytes = datagram.len() - meta.header_bytes;
        let learned =
            self.learn(slot, meta, &buffers.bytes_mut(buffer)[datagram.clone()], outer, now);
        let endpoint = self.endpoints.at(slot).expect("active slots are filled");
        endpoint.cell.from_gwlb.count(packet_bytes);
        match learned {
            Ok((flow, known, header)) => {
                endpoint.cell.last_seen.set(now);
                let header_bytes = meta.header_bytes;
                let packet = datagram.start + header_bytes..datagram.end;
                if let Some(most) = self.clamp_mss {
                    clamp_mss(&mut buffers.bytes_mut(buffer)[packet.clone()], most);
                }
                let piece = Piece { buffer, packet, header_bytes };
                self.coalescer.take(flow, known, &header, piece, buffers, plan);
            }
            Err(reason) => {
                endpoint.cell.decap_drops.count(reason);
                self.last_drop = Some(reason);
            }
        }
    }

    /// Stores the datagram's header with its flow, unless this batch has done so. Returns the flow,
    /// its place in the batch if it has one, and the header.
    fn learn(
        &mut self,
        slot: EndpointSlot,
        meta: &gwlb::Meta,
        datagram: &[u8],
        outer: OuterPath,
        now: Moment,
    ) -> Result<(FlowId, Option<usize>, StoredHeader), DropReason> {
        let endpoint = self.endpoints.at(slot).expect("active slots are filled");
        let (header, packet) = datagram.split_at(meta.header_bytes);
        let tuple = inner::parse(packet, meta.family)?.tuple;
        if !self.returns {
            return Ok(self.unlearned(FlowId { slot, tuple }, meta, outer));
        }
        let template =
            endpoint.templates.intern(header, meta.cookie_at).ok_or(DropReason::OptionSetLimit)?;
        let header = StoredHeader { template, cookie: meta.cookie, outer };
        let flow = FlowId { slot, tuple };
        if let Some(place) = self.coalescer.known(&flow, &header) {
            return Ok((flow, Some(place), header));
        }
        let (key, way) = FlowKey::new(endpoint.endpoint, &tuple);
        let whose = (&self.endpoints, endpoint);
        lookup::learn(&self.flows, whose, (&key, way), &header, now, &mut self.tally)?;
        Ok((flow, None, header))
    }

    /// What [`Self::learn`] says where nothing is returned: headers only tell what may be merged.
    #[cold]
    fn unlearned(
        &mut self,
        flow: FlowId,
        meta: &gwlb::Meta,
        outer: OuterPath,
    ) -> (FlowId, Option<usize>, StoredHeader) {
        let header = StoredHeader { cookie: meta.cookie, outer, ..StoredHeader::NONE };
        (flow, self.coalescer.known(&flow, &header), header)
    }
}
