//! The loop that carries packets between hosts and target, and takes the outcomes of health
//! checks.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::unistd::read;
use nix::unistd::write;

use super::gwlb::Forwarding;
use super::gwlb::Gwlb;
use super::gwlb::Host;
use super::layout::INNER_BYTES_MAX;
use super::layout::is_routable;
use super::netns::Topology;
use super::os;
use super::prober::Probers;
use super::wire::Wire;

/// Packets taken from one descriptor per turn, so that none starves the others.
const BATCH_PACKETS: usize = 64;

/// How long to wait at most while something depends on the time.
const TICK_MS: u8 = 100;

/// A host's TUN, which leads to one endpoint.
#[derive(Debug)]
pub(crate) struct HostLink {
    pub(crate) endpoint: u64,
    pub(crate) host: Host,
    pub(crate) tun: OwnedFd,
}

/// Links of all hosts that a topology has behind its endpoints, whose ids follow `first_id`.
pub(crate) fn host_links(
    topology: &Topology,
    first_id: u64,
    inner_mtu: u16,
) -> io::Result<Vec<HostLink>> {
    let mut links = Vec::new();
    for (number, endpoint) in (0..topology.endpoints()).zip(first_id..) {
        for &host in topology.hosts() {
            let tun = topology.host_tun(number, host, inner_mtu)?;
            links.push(HostLink { endpoint, host, tun });
        }
    }
    Ok(links)
}

/// A load balancer between its hosts and its target.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) gwlb: Gwlb,
    wire: Wire,
    links: Vec<HostLink>,
    probers: Option<Probers>,
    start: Duration,
    buffer: Vec<u8>,
}

impl Daemon {
    /// Puts the parts together.
    pub(crate) fn new(
        gwlb: Gwlb,
        wire: Wire,
        links: Vec<HostLink>,
        probers: Option<Probers>,
    ) -> Self {
        Self { gwlb, wire, links, probers, start: os::monotonic(), buffer: vec![0; 65536] }
    }

    /// Waits until something is to do and does a batch of it; if `ticks`, for a moment at most.
    /// Returns whether `wake` is readable, which is the caller's to read.
    pub(crate) fn turn(&mut self, wake: BorrowedFd<'_>, ticks: bool) -> io::Result<bool> {
        let (is_woken, wire_is_ready, links_ready) = self.wait(wake, ticks)?;
        self.gwlb.advance(os::since(self.start));
        while let Some((node, outcome)) = self.probers.as_ref().and_then(Probers::next) {
            self.gwlb.probed(node, outcome);
        }
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

    /// Sends a packet from a client that is not there.
    pub(crate) fn inject(&mut self, endpoint: u64, inner: &[u8]) -> io::Result<()> {
        match self.gwlb.encapsulate(endpoint, Host::Client, inner) {
            Some(packet) => Ok(self.wire.send(&packet)?),
            None => Ok(()),
        }
    }

    fn wait(&self, wake: BorrowedFd<'_>, ticks: bool) -> io::Result<(bool, bool, Vec<bool>)> {
        let mut fds = vec![
            PollFd::new(wake, PollFlags::POLLIN),
            PollFd::new(self.wire.as_fd(), PollFlags::POLLIN),
        ];
        for link in &self.links {
            fds.push(PollFd::new(link.tun.as_fd(), PollFlags::POLLIN));
        }
        if let Some(probers) = &self.probers {
            fds.push(PollFd::new(probers.as_fd(), PollFlags::POLLIN));
        }
        let has_deadline = ticks || self.gwlb.waits_for_time();
        match poll(&mut fds, if has_deadline { TICK_MS.into() } else { PollTimeout::NONE }) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
        let is_woken = ready.next().unwrap_or(false);
        let wire_is_ready = ready.next().unwrap_or(false);
        Ok((is_woken, wire_is_ready, ready.take(self.links.len()).collect()))
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
                self.gwlb.counters().host_noise += 1;
                continue;
            }
            if bytes > INNER_BYTES_MAX && !self.gwlb.lets_large_in() {
                self.gwlb.counters().too_large += 1;
                continue;
            }
            match self.gwlb.forward(*endpoint, *host, inner) {
                Forwarding::ToTarget(packet) => match self.wire.send(&packet) {
                    Err(Errno::EMSGSIZE) => self.gwlb.counters().too_large += 1,
                    sent => sent?,
                },
                Forwarding::ByOtherTarget => {
                    if !deliver(&self.links, *endpoint, host.other(), inner) {
                        self.gwlb.counters().undelivered += 1;
                    }
                }
                Forwarding::Dropped => {}
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
            if !deliver(&self.links, delivery.endpoint, delivery.to, delivery.inner) {
                self.gwlb.counters().undelivered += 1;
            }
        }
        Ok(())
    }
}

/// Hands a packet to a host; returns whether it took it.
fn deliver(links: &[HostLink], endpoint: u64, to: Host, inner: &[u8]) -> bool {
    let is_it = |link: &&HostLink| (link.endpoint, link.host) == (endpoint, to);
    links.iter().find(is_it).is_some_and(|link| write(&link.tun, inner).is_ok())
}
