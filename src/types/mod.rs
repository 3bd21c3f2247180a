//! The vocabulary of the whole program: identifiers, time, directions and drop reasons.
//!
//! Everything here is a small `Copy` value with a [`Display`](std::fmt::Display) and no
//! behaviour beyond its own validity. No bare `u16` or `u64` with a meaning crosses a module
//! border: it crosses as one of these.
//!
//! This module is the lowest layer. It imports nothing of ours and makes no system call.

mod drop_reason;
mod endpoint;
mod flow_kind;
mod moment;
mod names;
mod offload;
mod process_usage;
pub mod request;
mod source_list;
mod tcp_segment_max;

pub use drop_reason::DropReason;
pub use endpoint::EndpointId;
pub use endpoint::EndpointRef;
pub use endpoint::EndpointSlot;
pub use endpoint::Generation;
pub use endpoint::ParseEndpointIdError;
pub use flow_kind::FlowKind;
pub use moment::Moment;
pub use names::LinkName;
pub use names::Side;
pub use offload::Downgrade;
pub use offload::Offload;
pub use process_usage::ProcessUsage;
pub use process_usage::ThreadUsage;
pub use source_list::Network;
pub use source_list::ParseNetworkError;
pub use source_list::SourceList;
pub use tcp_segment_max::TcpSegmentMax;

use std::fmt;
use std::net::Ipv4Addr;

/// UDP port of GENEVE (RFC 8926 §3.3), the only one a Gateway Load Balancer uses.
pub const GENEVE_PORT: u16 = 6081;

/// Lowest port that is ever bound to send from: those below belong to the host's services.
pub const SEND_PORT_MIN: u16 = 1024;

/// Send queue of one socket, bytes: a burst of a worker's turn of the largest packets.
pub const SEND_QUEUE_BYTES: usize = 4 << 20;

/// Packets that wait in a TUN queue. What one turn of a worker writes to `gwi` comes back on `gwo`
/// before anybody reads it; at the kernel's default of 500 a third of 2,000 was lost.
pub const TUN_QUEUE_PACKETS: u32 = 4096;

/// Largest inner packet, in bytes, that a Gateway Load Balancer takes back.
///
/// AWS guide, "Gateway Load Balancers", *Maximum transmission unit*: packets above 8,500 bytes
/// are dropped, without an ICMP message.
pub const INNER_BYTES_MAX: usize = 8500;

/// Number of a worker, counted from 0. It is also the number of its queue of every TUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// The worker's number as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a GENEVE datagram came from and which of our addresses it hit.
///
/// The answer swaps the addresses and keeps the ports: it leaves from `local`, source port
/// `remote_port`, to `remote`, destination port [`GENEVE_PORT`]. AWS encapsulates IPv6 in IPv4
/// too, so the outer packet is always IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OuterPath {
    /// Our address: the destination of the received datagram.
    pub local: Ipv4Addr,
    /// The load balancer node: the source of the received datagram.
    pub remote: Ipv4Addr,
    /// The UDP source port that the node used.
    pub remote_port: u16,
}

impl OuterPath {
    /// What stands where there is none yet.
    pub const NONE: Self =
        Self { local: Ipv4Addr::UNSPECIFIED, remote: Ipv4Addr::UNSPECIFIED, remote_port: 0 };
}
