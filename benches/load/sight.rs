//! A look at the packets themselves, once the figures are taken: did the load consist of what its
//! name claims, and did each packet come back as its own flow's?
//!
//! A packet socket in the sender's namespace sees what leaves through vA and what comes in, before
//! the sink drops it. It costs time of both cores, so it is open only after the measured span, and
//! at a reduced rate ([`PPS`]), so that what it does not see can be told from what it missed.

use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::AsRawFd;
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
use crate::packet::GENEVE_BYTES;
use crate::packet::INNER_PORT_FIRST;
use crate::packet::inner_port_at;
use crate::workload::Shape;
use crate::workload::share;

/// Rate of the load while it is looked at: any target and this socket keep up with it.
pub(crate) const PPS: u64 = 10_000;

/// Fewest returned packets that are looked at.
const PACKETS_MIN: usize = 3000;

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
const BUFFER_BYTES: usize = 9216;

/// What has been seen.
#[derive(Debug, Default)]
struct Sight {
    returned: usize,
    flows: HashSet<u16>,
    ports: HashSet<u16>,
    /// How many inner packets of each size.
    sizes: HashMap<u16, usize>,
    sent: usize,
    sent_without_checksum: usize,
}

/// Looks at the running load until every flow came back.
///
/// # Errors
/// What was seen is not `shape`, or a packet came back under another flow's header or port.
pub(crate) fn verify(lab: &Arc<Lab>, shape: &Shape) -> Result<(), Failure> {
    let (lab, shape) = (Arc::clone(lab), shape.clone());
    thread::spawn(move || {
        lab.enter(Host::Sender)?;
        let sight = look(&shape)?;
        sight.compare(&shape).map_err(|what| format!("not the load it claims: {what}").into())
    })
    .join()
    .map_err(|_| "the thread that looks at the packets panicked")?
}

fn look(shape: &Shape) -> Result<Sight, Failure> {
    // Datagram: the packet starts with its IP header.
    let tap =
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), SockProtocol::EthAll)?;
    setsockopt(&tap, sockopt::RcvBufForce, &(64 << 20))?;
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
    let mut sight = Sight::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    let deadline = now() + LIMIT;
    while now() < deadline && !sight.is_enough(shape) {
        match recv(tap.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(bytes) => sight.add(&buffer[..bytes], shape)?,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(format!("recv of a packet socket: {error}").into()),
        }
    }
    Ok(sight)
}

impl Sight {
    fn is_enough(&self, shape: &Shape) -> bool {
        self.returned >= PACKETS_MIN && self.flows.len() >= usize::from(shape.flows)
    }

    fn add(&mut self, packet: &[u8], shape: &Shape) -> Result<(), Failure> {
        // ARP, and whatever else is no GENEVE datagram of ours.
        if packet.len() <= DATAGRAM_AT + GENEVE_BYTES || packet[0] != 0x45 || packet[9] != 17 {
            return Ok(());
        }
        if packet[OUTER_SOURCE_AT..OUTER_SOURCE_AT + 4] == lab::SENDER.octets() {
            self.sent += 1;
            self.sent_without_checksum += usize::from(u16_at(packet, OUTER_CHECKSUM_AT) == 0);
            return Ok(());
        }
        let datagram = &packet[DATAGRAM_AT..];
        let inner = &datagram[GENEVE_BYTES..];
        let outer_port = u16_at(packet, OUTER_PORT_AT);
        let flow = u16_at(inner, inner_port_at(inner[0])).wrapping_sub(INNER_PORT_FIRST);
        let cookie = (COOKIE_FIRST | u32::from(flow)).to_be_bytes();
        if datagram[COOKIE_AT..GENEVE_BYTES] != cookie
            || outer_port != OUTER_PORT_FIRST + flow % shape.ports
        {
            let seen = &datagram[COOKIE_AT..GENEVE_BYTES];
            let what = format!("flow {flow} came back from port {outer_port}, cookie {seen:x?}");
            return Err(what.into());
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
        let without = if shape.has_checksum { 0 } else { self.sent };
        if self.sent == 0 || self.sent_without_checksum != without {
            return Err(format!(
                "{} of {} datagrams without outer checksum",
                self.sent_without_checksum, self.sent
            ));
        }
        Ok(())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
