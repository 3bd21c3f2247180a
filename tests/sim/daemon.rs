//! The loop that carries packets between hosts and target.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::unistd::read;
use nix::unistd::write;

use super::gwlb::Gwlb;
use super::gwlb::Host;
use super::gwlb::is_routable;
use super::wire::Wire;

/// Packets taken from one descriptor per turn, so that none starves the others.
const BATCH_PACKETS: usize = 64;

/// A host's TUN, which leads to one endpoint.
#[derive(Debug)]
pub(crate) struct HostLink {
    pub(crate) endpoint: u64,
    pub(crate) host: Host,
    pub(crate) tun: OwnedFd,
}

/// A load balancer between its hosts and its target.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) gwlb: Gwlb,
    wire: Wire,
    links: Vec<HostLink>,
    buffer: Vec<u8>,
}

impl Daemon {
    /// Puts the parts together.
    pub(crate) fn new(gwlb: Gwlb, wire: Wire, links: Vec<HostLink>) -> Self {
        Self { gwlb, wire, links, buffer: vec![0; 65536] }
    }

    /// Waits until something is to do and does a batch of it. Returns whether `wake` is readable,
    /// which is the caller's to read.
    pub(crate) fn turn(&mut self, wake: BorrowedFd<'_>) -> io::Result<bool> {
        let (is_woken, wire_is_ready, links_ready) = self.wait(wake)?;
        for (link, is_ready) in links_ready.into_iter().enumerate() {
            if is_ready {
                self.drain_host(link)?;
            }
        }
        if wire_is_ready {
            self.drain_wire()?;
        }
        Ok(is_woken)
    }

    fn wait(&self, wake: BorrowedFd<'_>) -> io::Result<(bool, bool, Vec<bool>)> {
        let mut fds = vec![
            PollFd::new(wake, PollFlags::POLLIN),
            PollFd::new(self.wire.as_fd(), PollFlags::POLLIN),
        ];
        for link in &self.links {
            fds.push(PollFd::new(link.tun.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let is_woken = ready.next().unwrap_or(false);
        let wire_is_ready = ready.next().unwrap_or(false);
        Ok((is_woken, wire_is_ready, ready.collect()))
    }

    fn drain_host(&mut self, link: usize) -> io::Result<()> {
        let HostLink { endpoint, host, tun } = &self.links[link];
        for _ in 0..BATCH_PACKETS {
            let bytes = match read(tun, &mut self.buffer) {
                Ok(bytes) => bytes,
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(errno) => return Err(errno.into()),
            };
            let inner = &self.buffer[..bytes];
            if !is_routable(inner) {
                self.gwlb.count_host_noise();
            } else if let Some(packet) = self.gwlb.encapsulate(*endpoint, *host, inner) {
                self.wire.send(&packet)?;
            }
        }
        Ok(())
    }

    fn drain_wire(&mut self) -> io::Result<()> {
        for _ in 0..BATCH_PACKETS {
            let Some((packet, checksum_ready)) = self.wire.receive()? else {
                break;
            };
            let Some(delivery) = self.gwlb.check(packet, checksum_ready) else {
                continue;
            };
            let to =
                |link: &&HostLink| (link.endpoint, link.host) == (delivery.endpoint, delivery.to);
            let link = self.links.iter().find(to);
            if link.is_none_or(|link| write(&link.tun, delivery.inner).is_err()) {
                self.gwlb.count_undelivered();
            }
        }
        Ok(())
    }
}
