//! The load balancer in a test's own hands: it sends what the test says and gives what returns.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;

use super::clock::Deadline;
use super::clock::PATIENCE;
use super::simulator::assert_clean;
use crate::sim::gwlb::Config;
use crate::sim::gwlb::Gwlb;
use crate::sim::gwlb::Host;
use crate::sim::layout;
use crate::sim::layout::Outer;
use crate::sim::wire::Wire;

/// A packet that came back and kept every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Back {
    pub(crate) endpoint: u64,
    pub(crate) to: Host,
    pub(crate) inner: Vec<u8>,
    /// The whole outer packet.
    pub(crate) outer: Vec<u8>,
}

/// A load balancer without a loop of its own.
#[derive(Debug)]
pub(crate) struct Injector {
    pub(crate) gwlb: Gwlb,
    wire: Wire,
}

impl Injector {
    pub(crate) fn new(gwlb: Gwlb, wire: Wire) -> Self {
        Self { gwlb, wire }
    }

    /// Sends a packet from a client through an endpoint.
    pub(crate) fn send(&mut self, endpoint: u64, inner: &[u8]) {
        let packet = self.gwlb.encapsulate(endpoint, Host::Client, inner);
        self.send_datagram(&packet.expect("an IP packet"));
    }

    /// Sends a complete outer packet, however wrong.
    pub(crate) fn send_datagram(&self, packet: &[u8]) {
        self.wire.send(packet).expect("sending on the wire");
    }

    /// Sends a UDP payload, however wrong, as a node of the load balancer would.
    pub(crate) fn send_raw(&self, payload: &[u8]) {
        let config = Config::default();
        let outer = Outer { node: config.nodes[0], target: config.target, port: 60000 };
        self.send_datagram(&layout::datagram(outer, &[payload], true));
    }

    /// The next packet that came back within the time.
    ///
    /// # Panics
    /// If the target breaks a rule meanwhile.
    pub(crate) fn receive(&mut self, within: Duration) -> Option<Back> {
        let deadline = Deadline::after(within);
        loop {
            while let Some((packet, is_ready)) = self.wire.receive().expect("the wire") {
                if let Some(delivery) = self.gwlb.check(packet, is_ready) {
                    return Some(Back {
                        endpoint: delivery.endpoint,
                        to: delivery.to,
                        inner: delivery.inner.to_vec(),
                        outer: packet.to_vec(),
                    });
                }
                self.assert_clean();
            }
            if deadline.is_over() {
                return None;
            }
            let mut fds = [PollFd::new(self.wire.as_fd(), PollFlags::POLLIN)];
            let left = PollTimeout::try_from(deadline.left()).expect("less than weeks");
            let _ = poll(&mut fds, left);
        }
    }

    /// Sends a packet and requires that the next one to come back is the same, byte for byte.
    pub(crate) fn exchange(&mut self, endpoint: u64, inner: &[u8]) -> Back {
        self.send(endpoint, inner);
        let Some(back) = self.receive(PATIENCE) else {
            panic!("nothing came back for {} bytes {:02x?}", inner.len(), head(inner));
        };
        assert_eq!(back.endpoint, endpoint);
        assert!(
            back.inner == inner,
            "{:02x?} came back as {:02x?}",
            head(inner),
            head(&back.inner)
        );
        back
    }

    /// Requires that nothing comes back, now that the target has answered a later packet.
    pub(crate) fn expect_silence(&mut self) {
        assert_eq!(self.receive(Duration::ZERO), None);
    }

    /// Requires that the target broke no rule.
    pub(crate) fn assert_clean(&self) {
        assert_clean(&self.gwlb.report());
    }
}

fn head(packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(64)]
}
