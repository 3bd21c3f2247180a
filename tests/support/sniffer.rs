//! What arrives on a link, as the kernel sees it before anything is done about it.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;

use crate::sim::netns::Namespace;
use crate::sim::os;

/// A packet socket on a link.
#[derive(Debug)]
pub(crate) struct Sniffer {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Sniffer {
    /// Looks at a link from now on.
    ///
    /// # Panics
    /// If there is no such link.
    pub(crate) fn open(namespace: &Namespace, link: &str) -> Self {
        let socket =
            namespace.enter(|| os::sniffer(link)).unwrap_or_else(|e| panic!("{link}: {e}"));
        Self { socket, buffer: vec![0; 65536] }
    }

    /// The next IP packet, if one has arrived.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let fd = self.socket.as_fd().as_raw_fd();
        match recv(fd, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(bytes) => Some(self.buffer[..bytes].to_vec()),
            Err(Errno::EAGAIN) => None,
            Err(errno) => panic!("reading from a packet socket: {errno}"),
        }
    }
}
