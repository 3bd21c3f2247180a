//! A look at the packets themselves, once the figures are taken: did the load consist of what its
//! name claims, and did each packet come back as its own flow's?
//!
//! A packet socket in the sender's namespace sees what comes in through vA, before the sink drops
//! it; another one in the target's namespace what has arrived there. They cost time of both cores,
//! so they are open only after the measured span, and at a reduced rate ([`PPS`]), so that what
//! they do not see can be told from what they missed.

use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::recv;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;
use nix::sys::time::TimeVal;

use crate::blast::OUTER_PORT_FIRST;
use crate::lab;
use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::measure::now;
use crate::packet::COOKIE_AT;
use crate::packet::COOKIE_FIRST;
use crate::packet::ENDPOINT_AT;
use crate::packet::GENEVE_BYTES;
use crate::packet::INNER_PORT_FIRST;
use crate::packet::has_valid_checksums;
use crate::packet::inner_port_at;
use crate::packet::u16_at;
use crate::workload::Shape;
use crate::workload::share;

/// Rate of the load while it is looked at: any target and this socket keep up with it.
pub(crate) const PPS: u64 = 10_000;

/// Fewest returned packets that are looked at, and arrived datagrams. GRO makes one of many, so
/// that few of the latter are to be had.
const PACKETS_MIN: usize = 3000;
const ARRIVED_MIN: usize = 50;

/// How long all flows may take to be seen: many times what they take at [`PPS`].
const LIMIT: Duration = Duration::from_secs(30);

/// How far the share of a size may be from what the load claims: some packets are lost at random.
const SHARE_TOLERANCE: f64 = 0.05;

/// Where a packet socket without link header shows things: behind an IPv4 header without options.
const OUTER_SOURCE_AT: usize = 12;
const OUTER_PORT_AT: usize = 20;
const OUTER_CHECKSUM_AT: usize = 26;
const DATAGRAM_AT: usize = 28;

/// The largest packet of a 9,001-byte MTU, and some.
pub(crate) const BUFFER_BYTES: usize = 9216;

/// What has been seen.
#[derive(Debug, Default)]
struct Sight {
    returned: usize,
    flows: HashSet<u16>,
    ports: HashSet<u16>,
    /// How many inner packets of each size.
    sizes: HashMap<u16, usize>,
}

/// Looks at the running load until every flow came back.
///
/// # Errors
/// What was seen is not `shape`, or a packet came back under another flow's header or port.
pub(crate) fn verify(lab: &Arc<Lab>, shape: &Shape) -> Result<(), Failure> {
    let (lab, shape) = (Arc::clone(lab), shape.clone());
    thread::spawn(move || {
        let claimed = |what| Failure::from(format!("not the load it claims: {what}"));
        lab.enter(Host::Target)?;
        verify_checksums(&shape)?.map_err(claimed)?;
        lab.enter(Host::Sender)?;
        look(&shape)?.compare(&shape).map_err(claimed)
    })
    .join()
    .map_err(|_| "the thread that looks at the packets panicked")?
}

/// Waits until every flow has come back: then all endpoints have their links.
pub(crate) fn await_flows(lab: &Arc<Lab>, shape: &Shape) -> Result<(), Failure> {
    let (lab, shape) = (Arc::clone(lab), shape.clone());
    let seen = thread::spawn(move || {
        lab.enter(Host::Sender)?;
        look(&shape).map(|sight| (sight.is_enough(&shape), sight.flows.len()))
    });
    match seen.join().map_err(|_| "the thread that waits for flows panicked")?? {
        (true, _) => Ok(()),
        (false, flows) => Err(format!("only {flows} flows came back within {LIMIT:?}").into()),
    }
}

fn look(shape: &Shape) -> Result<Sight, Failure> {
    let tap = tap()?;
    let mut sight = Sight::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    let deadline = now() + LIMIT;
    while now() < deadline && !sight.is_enough(shape) {
        if let Some(bytes) = next_packet(&tap, &mut buffer)? {
            sight.add(&buffer[..bytes], shape)?;
        }
    }
    Ok(sight)
}

/// Whether the datagrams that arrive have the outer checksum that is claimed, or have none.
fn verify_checksums(shape: &Shape) -> Result<Result<(), String>, Failure> {
    let tap = tap()?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut arrived, mut without) = (0, 0);
    let deadline = now() + LIMIT;
    while now() < deadline && arrived < ARRIVED_MIN {
        let Some(bytes) = next_packet(&tap, &mut buffer)? else { continue };
        let packet = &buffer[..bytes];
        if is_geneve(packet) && packet[OUTER_SOURCE_AT..][..4] == lab::SENDER.octets() {
            arrived += 1;
            without += usize::from(u16_at(packet, OUTER_CHECKSUM_AT) == 0);
        }
    }
    let claimed = if shape.has_checksum { 0 } else { arrived };
    if arrived < ARRIVED_MIN || without != claimed {
        return Ok(Err(format!("{without} of {arrived} datagrams without outer checksum")));
    }
    Ok(Ok(()))
}

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// To the target.
    Sent,
    /// Back from it.
    Returned,
}

/// The inner packet of what a packet socket shows at vA; none if it is no datagram of the load.
pub(crate) fn inner_packet(packet: &[u8]) -> Option<(Seen, &[u8])> {
    if !is_geneve(packet) {
        return None;
    }
    let is_sent = packet[OUTER_SOURCE_AT..][..4] == lab::SENDER.octets();
    let seen = if is_sent { Seen::Sent } else { Seen::Returned };
    Some((seen, &packet[DATAGRAM_AT + GENEVE_BYTES..]))
}

/// A packet socket of the current namespace.
pub(crate) fn tap() -> Result<OwnedFd, Failure> {
    // Datagram: the packet starts with its IP header.
    let tap =
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), SockProtocol::EthAll)?;
    setsockopt(&tap, sockopt::RcvBufForce, &(64 << 20))?;
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
    Ok(tap)
}

/// The length of the next packet, of which the start is in `buffer`; none for a while.
fn next_packet(tap: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, Failure> {
    match recv(tap.as_raw_fd(), buffer, MsgFlags::empty()) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(format!("recv of a packet socket: {error}").into()),
    }
}

/// Not ARP, and not whatever else is no GENEVE datagram of ours.
fn is_geneve(packet: &[u8]) -> bool {
    packet.len() > DATAGRAM_AT + GENEVE_BYTES && packet[0] == 0x45 && packet[9] == 17
}

impl Sight {
    fn is_enough(&self, shape: &Shape) -> bool {
        self.returned >= PACKETS_MIN && self.flows.len() >= usize::from(shape.flows)
    }

    fn add(&mut self, packet: &[u8], shape: &Shape) -> Result<(), Failure> {
        if !is_geneve(packet) || packet[OUTER_SOURCE_AT..][..4] == lab::SENDER.octets() {
            return Ok(());
        }
        let datagram = &packet[DATAGRAM_AT..];
        let inner = &datagram[GENEVE_BYTES..];
        let outer_port = u16_at(packet, OUTER_PORT_AT);
        let flow = u16_at(inner, inner_port_at(inner[0])).wrapping_sub(INNER_PORT_FIRST);
        let cookie = (COOKIE_FIRST | u32::from(flow)).to_be_bytes();
        if datagram[COOKIE_AT..GENEVE_BYTES] != cookie
            || datagram[ENDPOINT_AT..][..8] != shape.endpoint_of(flow).to_be_bytes()
            || outer_port != OUTER_PORT_FIRST + flow % shape.ports
        {
            let seen = &datagram[COOKIE_AT..GENEVE_BYTES];
            let what = format!("flow {flow} came back from port {outer_port}, cookie {seen:x?}");
            return Err(what.into());
        }
        if !has_valid_checksums(inner) {
            return Err(format!("a packet of flow {flow} came back with a wrong checksum").into());
        }
        self.returned += 1;
        self.flows.insert(flow);
        self.ports.insert(outer_port);
        *self.sizes.entry(u16::try_from(inner.len())?).or_default() += 1;
        Ok(())
    }

    fn compare(&self, shape: &Shape) -> Result<(), String> {
        let (flows, ports) = (self.flows.len(), self.ports.len());
        if flows != usize::from(shape.flows) || ports != usize::from(shape.ports) {
            let (wanted_flows, wanted_ports) = (shape.flows, shape.ports);
            return Err(format!(
                "{flows} of {wanted_flows} flows, {ports} of {wanted_ports} outer ports, in {} \
                 packets",
                self.returned
            ));
        }
        let sizes = shape.sizes();
        let is_as_claimed = |(bytes, wanted): &(u16, f64)| {
            let seen = self.sizes.get(bytes).copied().unwrap_or(0);
            (share(seen, self.returned) - wanted).abs() < SHARE_TOLERANCE
        };
        if self.sizes.len() != sizes.len() || !sizes.iter().all(is_as_claimed) {
            return Err(format!("inner sizes {:?}, not {sizes:?}", self.sizes));
        }
        Ok(())
    }
}
