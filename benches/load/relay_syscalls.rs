//! The bare relay with plain system calls: what the same work costs without `io_uring`.
//!
//! ```text
//!   poll → recvfrom → one write to gwi per packet ═ redirect ═▶
//!          read of gwo → one sendto per packet
//! ```
//!
//! It knows as little as the other relay (`relay_uring.rs`): one endpoint, fixed offsets, no check,
//! and an array by inner UDP source port for the header that each flow's packets came with.
//!
//! Ends when its standard input ends, and then prints how many datagrams it sent.

use std::fs::File;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::blast;
use crate::lab;
use crate::lab::Failure;
use crate::packet::GENEVE_BYTES;
use crate::packet::inner_port_at;
use crate::tun;
use crate::tun::VNET_BYTES;

/// Datagrams received in a row before what they caused is sent: far less than gwo's queue holds.
const BATCH: usize = 64;

/// The largest datagram of a 9,001-byte MTU, and some.
const BUFFER_BYTES: usize = 9216;

/// Receive buffer of the socket in bytes, as much as the engine asks for on a large host.
const RECEIVE_BUFFER_BYTES: usize = 128 << 20;

/// Relays until standard input ends.
pub(crate) fn run() -> Result<(), Failure> {
    blast::raise_descriptor_limit()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6081))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
    let (gwi, gwo) = tun::pair(tun::NO_OFFLOADS)?;
    let unknown = Origin { header: [0; GENEVE_BYTES], outer_port: 0 };
    let mut relay = Relay {
        socket,
        gwi,
        gwo,
        origins: vec![unknown; 1 << 16].into(),
        senders: (0..1 << 16).map(|_| None).collect(),
        buffer: vec![0; BUFFER_BYTES].into(),
        sent: 0,
    };
    writeln!(std::io::stdout(), "ready")?;
    while relay.wait()? {
        relay.receive()?;
        relay.send_back()?;
    }
    writeln!(std::io::stdout(), "{}", relay.sent)?;
    Ok(())
}

/// How a flow's packets came in, and therefore go back.
#[derive(Clone, Copy)]
struct Origin {
    header: [u8; GENEVE_BYTES],
    outer_port: u16,
}

struct Relay {
    socket: UdpSocket,
    gwi: File,
    gwo: File,
    /// By inner UDP source port.
    origins: Box<[Origin]>,
    /// By outer UDP source port.
    senders: Box<[Option<UdpSocket>]>,
    buffer: Box<[u8]>,
    sent: u64,
}

impl Relay {
    /// Waits for work. Returns false when standard input has ended.
    fn wait(&self) -> Result<bool, Failure> {
        let stdin = std::io::stdin();
        let mut files = [
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.gwo.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut files, PollTimeout::NONE)?;
        Ok(files[0].any() == Some(false))
    }

    fn receive(&mut self) -> Result<(), Failure> {
        for _ in 0..BATCH {
            let (bytes, from) = match self.socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let datagram = &mut self.buffer[..bytes];
            let header: &mut [u8; GENEVE_BYTES] = datagram.first_chunk_mut().ok_or("no header")?;
            let origin = Origin { header: *header, outer_port: from.port() };
            // The virtio header takes the place of the end of the GENEVE header.
            header[GENEVE_BYTES - VNET_BYTES..].fill(0);
            self.origins[flow_of(&datagram[GENEVE_BYTES..])] = origin;
            self.gwi.write_all(&datagram[GENEVE_BYTES - VNET_BYTES..])?;
        }
        Ok(())
    }

    fn send_back(&mut self) -> Result<(), Failure> {
        // Room before the frame, so that the GENEVE header fits before the packet.
        const FRAME_AT: usize = GENEVE_BYTES - VNET_BYTES;
        let sink = SocketAddr::V4(SocketAddrV4::new(lab::SENDER, 6081));
        loop {
            let bytes = match self.gwo.read(&mut self.buffer[FRAME_AT..]) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let flow = flow_of(&self.buffer[GENEVE_BYTES..]);
            let Origin { header, outer_port } = self.origins[flow];
            let sender = match &mut self.senders[usize::from(outer_port)] {
                Some(sender) => sender,
                place => place.insert(UdpSocket::bind((lab::TARGET, outer_port))?),
            };
            self.buffer[..GENEVE_BYTES].copy_from_slice(&header);
            sender.send_to(&self.buffer[..FRAME_AT + bytes], sink)?;
            self.sent += 1;
        }
    }
}

/// The inner source port, which numbers the flow.
fn flow_of(packet: &[u8]) -> usize {
    let at = inner_port_at(packet[0]);
    usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]))
}
