//! What the simulator counted, and its one-line form.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// How many breaches are described in words; the rest is only counted.
const DESCRIBED_MAX: usize = 20;

/// Declares the breaches with their printed names from one table.
macro_rules! breaches {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// A rule that a returned datagram broke. It was not delivered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Breach { $($(#[doc = $doc])+ $variant,)+ }

        impl Breach {
            /// Every breach, in the order of declaration.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The `CloudWatch` metric's name, or ours where AWS documents no metric.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

breaches! {
    /// Outer addresses not swapped, another destination port, or no valid GENEVE header.
    InvalidGeneveTunnel => "PacketsDroppedCount_InvalidGeneveTunnel",
    /// No endpoint of this load balancer.
    InvalidGwlbEndpointId => "PacketsDroppedCount_InvalidGwlbEndpointId",
    /// Not the cookie of the flow.
    InvalidGwlbFlowCookie => "PacketsDroppedCount_InvalidGwlbFlowCookie",
    /// No flow that was ever sent to the target.
    MissingFlowEntry => "PacketsDroppedCount_MissingFlowEntry",
    /// The outer IPv4 header or a length is wrong, or the packet is a fragment.
    BadOuterHeader => "Simulator_BadOuterHeader",
    /// The outer UDP checksum is neither zero nor right.
    BadUdpChecksum => "Simulator_BadUdpChecksum",
    /// Not the UDP source port that the load balancer used for the flow.
    WrongSourcePort => "Simulator_WrongSourcePort",
    /// The GENEVE header is not byte for byte one that was sent for the flow.
    HeaderNotEqual => "Simulator_HeaderNotEqual",
    /// The inner packet is above 8,500 bytes.
    InnerTooLarge => "Simulator_InnerTooLarge",
}

/// What a node thinks of the target, in AWS's words, and its health checks since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeReport {
    pub(crate) node: Ipv4Addr,
    pub(crate) state: &'static str,
    /// Empty if healthy.
    pub(crate) reason: &'static str,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// Counters of one simulator since its start, in packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Packets of hosts that were encapsulated.
    pub(crate) encapsulated: u64,
    /// Returned packets that kept every rule.
    pub(crate) returned: u64,
    /// Of those, how many carried the header of the flow's other direction although the target
    /// had one of their own direction.
    pub(crate) other_direction: u64,
    /// Link-local and multicast packets of hosts, which no endpoint routes, and non-IP frames.
    pub(crate) host_noise: u64,
    /// Packets of hosts above 8,500 bytes, or above what the link to the target takes with its
    /// headers: gone without a word, as with AWS.
    pub(crate) too_large: u64,
    /// Returned packets that no host took: its link is down, or it has none.
    pub(crate) undelivered: u64,
    /// Packets from the target that are not UDP.
    pub(crate) foreign: u64,
    /// Flows that exist.
    pub(crate) flows: u64,
    /// Packets of hosts that the other target sent back.
    pub(crate) by_other_target: u64,
    /// Packets of hosts for which there was no target.
    pub(crate) without_target: u64,
    /// What each node thinks of the target; empty before the first health check.
    pub(crate) nodes: Vec<NodeReport>,
    counts: [u64; Breach::ALL.len()],
    described: Vec<String>,
}

impl Report {
    /// Counts a breach and keeps its description if there is room.
    pub(crate) fn breach(&mut self, breach: Breach, describe: impl FnOnce() -> String) {
        self.counts[breach as usize] += 1;
        if self.described.len() < DESCRIBED_MAX {
            self.described.push(format!("{}: {}", breach.name(), describe()));
        }
    }

    /// How often a rule was broken.
    pub(crate) fn count(&self, breach: Breach) -> u64 {
        self.counts[breach as usize]
    }

    /// How often any rule was broken.
    pub(crate) fn breaches(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The first breaches in words.
    pub(crate) fn described(&self) -> &[String] {
        &self.described
    }

    /// One line of JSON.
    pub(crate) fn to_json(&self) -> String {
        let mut line = format!(
            "{{\"encapsulated\":{},\"returned\":{},\"otherDirection\":{},\"hostNoise\":{},\
             \"tooLarge\":{},\"undelivered\":{},\"foreign\":{},\"flows\":{},\"byOtherTarget\":{},\
             \"withoutTarget\":{},\"breaches\":{{",
            self.encapsulated,
            self.returned,
            self.other_direction,
            self.host_noise,
            self.too_large,
            self.undelivered,
            self.foreign,
            self.flows,
            self.by_other_target,
            self.without_target,
        );
        for (place, &breach) in Breach::ALL.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let _ = write!(line, "{comma}\"{}\":{}", breach.name(), self.count(breach));
        }
        line.push_str("},\"described\":[");
        for (place, text) in self.described.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            // Descriptions are ASCII without control characters, where Rust's quoting is JSON's.
            let _ = write!(line, "{comma}{text:?}");
        }
        line.push_str("],\"health\":[");
        for (place, node) in self.nodes.iter().enumerate() {
            let NodeReport { node, state, reason, passed, failed } = node;
            let comma = if place == 0 { "" } else { "," };
            let _ = write!(
                line,
                "{comma}{{\"node\":\"{node}\",\"state\":\"{state}\",\"reason\":\"{reason}\",\
                 \"passed\":{passed},\"failed\":{failed}}}"
            );
        }
        line.push_str("]}");
        line
    }
}
