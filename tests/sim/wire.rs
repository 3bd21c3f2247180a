//! The simulator's end of the network towards the target.
//!
//! Outgoing packets are complete IPv4 packets on a packet socket: no field is the kernel's.
//! Incoming ones are read from the same socket before the kernel's own checks, so that a wrong
//! checksum is seen here and not silently dropped below.

use std::io;
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::ControlMessageOwned;
use nix::sys::socket::LinkAddr;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recvmsg;
use nix::sys::socket::sendto;

use super::os;

/// A link to the target.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    target: LinkAddr,
    buffer: Vec<u8>,
    control: Vec<u8>,
    /// Only there so that the kernel does not answer in our place.
    _silent: UdpSocket,
}

impl Wire {
    /// Opens `link` of the calling thread's namespace towards the target's hardware address.
    pub(crate) fn open(link: &str, target_mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self {
            socket: os::packet_socket(link)?,
            target: os::link_addr(link, target_mac)?,
            buffer: vec![0; 65536],
            control: cmsg_space!(libc::tpacket_auxdata),
            _silent: os::silent_geneve_socket()?,
        })
    }

    /// Sends a complete IPv4 packet. EMSGSIZE is that the link does not take as much. While the
    /// other end of the link is down packets are lost, as on every wire.
    pub(crate) fn send(&self, packet: &[u8]) -> nix::Result<()> {
        let fd = self.socket.as_raw_fd();
        match sendto(fd, packet, &self.target, MsgFlags::empty()) {
            Ok(sent) => assert_eq!(sent, packet.len(), "packet sockets send whole packets"),
            Err(Errno::ENOBUFS) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// The next IPv4 packet that has arrived, if any, and whether its UDP checksum is final.
    pub(crate) fn receive(&mut self) -> io::Result<Option<(&[u8], bool)>> {
        let fd = self.socket.as_raw_fd();
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<()>(fd, &mut parts, Some(&mut self.control), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let mut is_ready = true;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::Unknown(auxdata) = control {
                // struct tpacket_auxdata begins with its status (linux/if_packet.h).
                let status = auxdata.data_bytes.first_chunk().copied();
                let status = u32::from_ne_bytes(status.unwrap_or_default());
                is_ready = status & libc::TP_STATUS_CSUMNOTREADY == 0;
            }
        }
        let bytes = message.bytes;
        Ok(Some((&self.buffer[..bytes], is_ready)))
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
