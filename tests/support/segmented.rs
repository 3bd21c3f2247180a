//! Datagrams handed to the kernel in one message, which crosses the link whole: what a network card
//! with receive offload gives the target.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::ControlMessage;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::sendmsg;

use crate::sim::layout::GENEVE_PORT;
use crate::sim::layout::OUTER_BYTES;
use crate::sim::layout::u16_at;
use crate::sim::layout::u32_at;
use crate::sim::netns::Namespace;

/// What the kernel takes in one message (`UDP_MAX_SEGMENTS`, and an IPv4 packet).
const SEGMENTS_MAX: usize = 64;
const MESSAGE_BYTES_MAX: usize = 65_507;

/// Sockets of the nodes, opened when they are needed.
#[derive(Debug)]
pub(crate) struct SegmentedSender {
    namespace: Namespace,
    sockets: HashMap<(Ipv4Addr, u16), UdpSocket>,
}

impl SegmentedSender {
    /// In the load balancer's namespace.
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self { namespace, sockets: HashMap::new() }
    }

    /// Sends complete outer packets, neighbours in one message where addresses, port and length
    /// allow; only the last of a message may be shorter.
    pub(crate) fn send(&mut self, packets: &[Vec<u8>]) {
        let mut rest = packets;
        while let Some(first) = rest.first() {
            let count = segments(first, rest);
            let (now, later) = rest.split_at(count);
            self.send_message(first, now);
            rest = later;
        }
    }

    fn send_message(&mut self, first: &[u8], packets: &[Vec<u8>]) {
        let source = (Ipv4Addr::from(u32_at(first, 12)), u16_at(first, 20));
        let namespace = &self.namespace;
        let open = || {
            let bind = || UdpSocket::bind(SocketAddrV4::new(source.0, source.1));
            namespace.enter(bind).expect("a node's socket")
        };
        let socket = self.sockets.entry(source).or_insert_with(open);
        let target = SocketAddrV4::new(Ipv4Addr::from(u32_at(first, 16)), GENEVE_PORT);
        let parts: Vec<_> = packets.iter().map(|packet| IoSlice::new(payload(packet))).collect();
        let segment = u16::try_from(payload(first).len()).expect("a datagram");
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let control = if packets.len() > 1 { &control[..] } else { &[] };
        let (socket, flags) = (socket.as_raw_fd(), MsgFlags::empty());
        let sent = sendmsg(socket, &parts, control, flags, Some(&SockaddrIn::from(target)));
        sent.unwrap_or_else(|error| panic!("{} × {segment} bytes: {error}", packets.len()));
    }
}

/// How many of these packets go into one message with the first.
fn segments(first: &[u8], packets: &[Vec<u8>]) -> usize {
    let (mut count, mut bytes) = (0, 0);
    for packet in packets.iter().take(SEGMENTS_MAX) {
        // Addresses and ports.
        let is_alike = packet[12..24] == first[12..24] && packet.len() <= first.len();
        bytes += payload(packet).len();
        if !is_alike || bytes > MESSAGE_BYTES_MAX {
            break;
        }
        count += 1;
        if packet.len() < first.len() {
            break;
        }
    }
    count
}

fn payload(packet: &[u8]) -> &[u8] {
    &packet[OUTER_BYTES..]
}
