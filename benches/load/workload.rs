//! The workloads by name: what a load consists of, and what must be seen of it at the sink.
//!
//! | name | inner packets | flows / outer ports |
//! |---|---|---|
//! | `udp18` | UDP, 18 bytes of payload | 64 / 64, neighbours of different flows |
//! | `udp18-16k` | the same | 16,384 / 16,384 |
//! | `bulk1400` | TCP, 1,400 bytes of payload, in sequence | 1 / 1 |
//! | `bulk1400x64` | the same | 64 / 4, flows of a port take turns every 8 packets |
//! | `bulk1400x64-1port` | the same | 64 / 1 |
//! | `bulk1400x64-64ports` | the same | 64 / 64 |
//! | `bulk8400` | TCP, 8,400 bytes of payload, in sequence | 1 / 1 |
//! | `acks` | TCP without payload, bursts of 32, the acknowledged number rises | 1 / 1 |
//! | `imix` | UDP, 40, 576 and 1,500 bytes with header, 7 : 4 : 1 | 64 / 64 |
//! | `bulk1400-v6` | as `bulk1400`, inner IPv6 | 1 / 1 |

use crate::packet::ENDPOINT_FIRST;
use crate::packet::Inner;

/// Most flows, and most outer source ports: the rest of the range from 49,152 up.
pub(crate) const FLOWS_MAX: u16 = 16_384;

/// Most bytes of one UDP send (RFC 768 over IPv4), which is what one segmented send may hold.
const SEND_BYTES_MAX: usize = 65_507;

/// Most messages of one `sendmmsg` (the kernel's limit is 1,024).
pub(crate) const BATCH_MAX: usize = 64;

/// Most datagrams of one segmented send. The kernel's own limit is 64 in older versions.
const SEGMENTS_MAX: usize = 48;

/// IMIX, as UDP payloads in an order that spreads the large ones: 7 × 40, 4 × 576, 1 × 1,500 bytes
/// of inner packet.
const IMIX: &[u16] = &[12, 548, 12, 12, 548, 12, 1472, 12, 548, 12, 548, 12];

/// A load by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Small UDP, 64 flows.
    #[value(name = "udp18")]
    Udp18,
    /// Small UDP, 16,384 flows and outer ports.
    #[value(name = "udp18-16k")]
    Udp18Of16k,
    /// One TCP download.
    #[value(name = "bulk1400")]
    Bulk1400,
    /// 64 TCP downloads, interleaved.
    #[value(name = "bulk1400x64")]
    Bulk1400x64,
    /// The same over one outer port.
    #[value(name = "bulk1400x64-1port")]
    Bulk1400x64On1Port,
    /// The same over 64 outer ports.
    #[value(name = "bulk1400x64-64ports")]
    Bulk1400x64On64Ports,
    /// One TCP download with jumbo packets.
    #[value(name = "bulk8400")]
    Bulk8400,
    /// What goes the other way of a download.
    #[value(name = "acks")]
    Acks,
    /// The usual mix of sizes.
    #[value(name = "imix")]
    Imix,
    /// One TCP download over IPv6.
    #[value(name = "bulk1400-v6")]
    Bulk1400V6,
}

impl Workload {
    /// Name in tables and in JSON, the same as on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Udp18 => "udp18",
            Self::Udp18Of16k => "udp18-16k",
            Self::Bulk1400 => "bulk1400",
            Self::Bulk1400x64 => "bulk1400x64",
            Self::Bulk1400x64On1Port => "bulk1400x64-1port",
            Self::Bulk1400x64On64Ports => "bulk1400x64-64ports",
            Self::Bulk8400 => "bulk8400",
            Self::Acks => "acks",
            Self::Imix => "imix",
            Self::Bulk1400V6 => "bulk1400-v6",
        }
    }

    /// What it sends. With `has_checksum` the outer UDP checksum is filled, else it is 0.
    pub(crate) fn shape(self, has_checksum: bool) -> Shape {
        let small = Shape {
            inner: Inner::Udp,
            payloads: vec![18],
            flows: 64,
            ports: 64,
            endpoints: 1,
            burst: 1,
            rounds: 1,
            is_segmented: false,
            has_checksum,
        };
        let bulk = Shape {
            inner: Inner::Tcp4,
            payloads: vec![1400],
            flows: 1,
            ports: 1,
            burst: 43,
            rounds: 1,
            is_segmented: true,
            ..small.clone()
        };
        let interleaved = Shape { flows: 64, burst: 8, rounds: 5, ..bulk.clone() };
        match self {
            Self::Udp18 => small,
            Self::Udp18Of16k => Shape { flows: FLOWS_MAX, ports: FLOWS_MAX, ..small },
            Self::Bulk1400 => bulk,
            Self::Bulk1400x64 => Shape { ports: 4, ..interleaved },
            Self::Bulk1400x64On1Port => interleaved,
            Self::Bulk1400x64On64Ports => Shape { ports: 64, ..interleaved },
            Self::Bulk8400 => Shape { payloads: vec![8400], burst: 7, ..bulk },
            Self::Acks => Shape { payloads: vec![0], burst: 32, ..bulk },
            Self::Imix => Shape { payloads: IMIX.to_vec(), rounds: 12, ..small },
            Self::Bulk1400V6 => Shape { inner: Inner::Tcp6, ..bulk },
        }
    }
}

/// What a target that merges must reach under a flood, or the load was not what its name claims:
/// far below what it does on a quiet machine, far above what a target without merging does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// Packets per frame read from gwo.
    pub(crate) frame: f64,
    /// Packets per send.
    pub(crate) send: f64,
}

impl Workload {
    /// What merging makes of this load. Nothing where it depends on how full the queues are.
    pub(crate) fn claim(self) -> Option<Claim> {
        let (frame, send) = match self {
            Self::Udp18 | Self::Udp18Of16k | Self::Imix => return None,
            Self::Bulk1400 | Self::Bulk1400V6 => (8.0, 8.0),
            Self::Bulk1400x64 | Self::Bulk1400x64On1Port | Self::Bulk1400x64On64Ports => (4.0, 4.0),
            Self::Bulk8400 => (3.0, 3.0),
            // Acknowledgements never merge, but they are equally long.
            Self::Acks => (1.0, 4.0),
        };
        Some(Claim { frame, send })
    }
}

/// What a load consists of.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Protocols of the inner packets.
    pub(crate) inner: Inner,
    /// Inner payloads in bytes, at most 8,400; each flow goes through them again and again.
    pub(crate) payloads: Vec<u16>,
    /// Inner flows, 1 to [`FLOWS_MAX`].
    pub(crate) flows: u16,
    /// Outer source ports, 1 to `flows`. Flow *f* belongs to port *f* mod `ports`.
    pub(crate) ports: u16,
    /// Endpoints, 1 to `flows`. Flow *f* belongs to endpoint *f* mod `endpoints`.
    pub(crate) endpoints: u16,
    /// Packets of one flow in a row before the port's next flow.
    pub(crate) burst: u16,
    /// Times each flow of a port has its turn in a lap of the port's packets.
    pub(crate) rounds: u16,
    /// Whether datagrams leave in sends that the kernel segments. They then reach the target's
    /// veth in one go, so that GRO can merge them, as it can behind a real card. All payloads must
    /// be equal.
    pub(crate) is_segmented: bool,
    /// Whether the outer UDP checksum is filled when a datagram reaches the target.
    pub(crate) has_checksum: bool,
}

impl Shape {
    /// The endpoint that a flow belongs to.
    pub(crate) fn endpoint_of(&self, flow: u16) -> u64 {
        ENDPOINT_FIRST + u64::from(flow % self.endpoints)
    }

    /// Whether checksums are to be cleared before the target: the kernel segments no send of a
    /// socket that leaves them out.
    pub(crate) fn clears_checksums(&self) -> bool {
        self.is_segmented && !self.has_checksum
    }

    /// Datagrams of one send, or of one `sendmmsg`: whole bursts where they fit.
    pub(crate) fn datagrams_per_send(&self) -> usize {
        if !self.is_segmented {
            return BATCH_MAX;
        }
        let largest = self.payloads.iter().copied().max().unwrap_or(0);
        let fitting = SEND_BYTES_MAX / self.inner.datagram_bytes(largest);
        let most = fitting.min(SEGMENTS_MAX);
        let burst = usize::from(self.burst).min(most);
        most / burst * burst
    }

    /// Sizes of the inner packets in bytes, each once, rising, with its share of the packets.
    pub(crate) fn sizes(&self) -> Vec<(u16, f64)> {
        let mut sizes: Vec<u16> =
            self.payloads.iter().map(|payload| self.inner.packet_bytes(*payload)).collect();
        sizes.sort_unstable();
        let all = sizes.len();
        sizes.chunk_by(PartialEq::eq).map(|equal| (equal[0], share(equal.len(), all))).collect()
    }
}

/// `part` of `all`. Both are small counts.
pub(crate) fn share(part: usize, all: usize) -> f64 {
    let float = |count| f64::from(u32::try_from(count).expect("a small count"));
    float(part) / float(all)
}
