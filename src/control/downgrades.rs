//! Offloads that the kernel refused in traffic, although it had taken them at the start: the worker
//! goes on without, which costs CPU time and no packet, so it is a warning and no reason for a 503.

use std::collections::BTreeMap;

use crate::sys::Errno;
use crate::types::Downgrade;
use crate::types::Offload;
use crate::types::WorkerId;

/// What each worker does without.
#[derive(Debug, Default)]
pub(super) struct Downgrades {
    told: BTreeMap<(Downgrade, WorkerId), String>,
}

impl Downgrades {
    /// Takes what a worker told. Returns what it means, for the log.
    pub(super) fn add(&mut self, worker: WorkerId, downgrade: Downgrade, errno: Errno) -> &str {
        self.told.entry((downgrade, worker)).or_insert_with(|| problem(worker, downgrade, errno))
    }

    /// What an operator should look at.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.told.values().cloned()
    }

    /// What all workers still do.
    pub(super) fn left_of(&self, offload: Offload) -> Offload {
        self.told.keys().fold(offload, |left, &(refused, _)| left.without(refused))
    }
}

/// What it means, why, and what to do.
fn problem(worker: WorkerId, downgrade: Downgrade, errno: Errno) -> String {
    let (what, call, remedy) = match downgrade {
        Downgrade::UdpGso => (
            "sends every packet",
            "UDP_SEGMENT",
            "look for tx-checksumming in ethtool -k of the interface to the load balancer",
        ),
        Downgrade::TcpCoalescing => (
            "writes every TCP packet to gwi",
            "write of a TCP super-packet",
            "this kernel refuses some of them: give --no-tcp-coalescing until it has another one",
        ),
        Downgrade::UdpCoalescing => (
            "writes every UDP packet to gwi",
            "write of a UDP super-packet",
            "this kernel refuses some of them: give --no-udp-coalescing until it has another one",
        ),
    };
    let errno = errno.desc();
    format!(
        "worker {worker} {what} by itself, which takes more CPU time: {call}: {errno}: {remedy}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_with_its_cause_and_its_remedy() {
        let mut downgrades = Downgrades::default();
        let all = [Downgrade::UdpGso, Downgrade::TcpCoalescing, Downgrade::UdpCoalescing];
        for downgrade in all {
            downgrades.add(WorkerId(3), downgrade, Errno::EINVAL);
            downgrades.add(WorkerId(3), downgrade, Errno::EIO);
        }
        let expected = [
            "worker 3 sends every packet by itself, which takes more CPU time: UDP_SEGMENT: \
             Invalid argument: look for tx-checksumming in ethtool -k of the interface to the \
             load balancer",
            "worker 3 writes every TCP packet to gwi by itself, which takes more CPU time: write \
             of a TCP super-packet: Invalid argument: this kernel refuses some of them: give \
             --no-tcp-coalescing until it has another one",
            "worker 3 writes every UDP packet to gwi by itself, which takes more CPU time: write \
             of a UDP super-packet: Invalid argument: this kernel refuses some of them: give \
             --no-udp-coalescing until it has another one",
        ];
        assert_eq!(downgrades.warnings().collect::<Vec<_>>(), expected);
        let left = downgrades.left_of(Offload::ALL);
        let off = Offload { udp_gso: false, tcp_coalescing: false, ..Offload::ALL };
        assert_eq!(left, Offload { udp_coalescing: false, ..off });
    }
}
