//! Which ways of handling many packets as one are in use.

/// The pieces that let one system call, and one pass through the kernel, carry many packets. Each
/// may be switched off, by the operator or because the kernel cannot, and every packet still comes
/// out byte for byte as without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Offload {
    /// The kernel merges datagrams of one outer path before we receive them (`UDP_GRO`, udp(7)).
    pub udp_gro: bool,
    /// One send carries many datagrams (`UDP_SEGMENT`, udp(7)).
    pub udp_gso: bool,
    /// The kernel hands over TCP super-packets and open checksums (`TUN_F_CSUM`, `TUN_F_TSO4`,
    /// `TUN_F_TSO6`).
    pub tun_tso: bool,
    /// The kernel hands over UDP super-packets (`TUN_F_USO4`, `TUN_F_USO6`, since 6.2).
    pub tun_uso: bool,
    /// TCP segments are merged into super-packets before they are written to `gwi`.
    pub tcp_coalescing: bool,
    /// UDP datagrams are merged into super-packets before they are written to `gwi`.
    pub udp_coalescing: bool,
}

impl Offload {
    /// Everything.
    pub const ALL: Self = Self {
        udp_gro: true,
        udp_gso: true,
        tun_tso: true,
        tun_uso: true,
        tcp_coalescing: true,
        udp_coalescing: true,
    };

    /// Nothing: every packet by itself.
    pub const NONE: Self = Self {
        udp_gro: false,
        udp_gso: false,
        tun_tso: false,
        tun_uso: false,
        tcp_coalescing: false,
        udp_coalescing: false,
    };

    /// What is in use both here and there.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            udp_gro: self.udp_gro && other.udp_gro,
            udp_gso: self.udp_gso && other.udp_gso,
            tun_tso: self.tun_tso && other.tun_tso,
            tun_uso: self.tun_uso && other.tun_uso,
            tcp_coalescing: self.tcp_coalescing && other.tcp_coalescing,
            udp_coalescing: self.udp_coalescing && other.udp_coalescing,
        }
    }

    /// What is left without the piece that the kernel has refused.
    #[must_use]
    pub const fn without(self, refused: Downgrade) -> Self {
        match refused {
            Downgrade::UdpGso => Self { udp_gso: false, ..self },
            Downgrade::TcpCoalescing => Self { tcp_coalescing: false, ..self },
            Downgrade::UdpCoalescing => Self { udp_coalescing: false, ..self },
        }
    }

    /// What is left on Linux 6.1: TUNs know no UDP super-packets there.
    #[must_use]
    pub const fn floor(self) -> Self {
        Self { tun_uso: false, udp_coalescing: false, ..self }
    }

    /// Each piece by name, and whether it is in use.
    pub const fn pieces(self) -> [(&'static str, bool); 6] {
        [
            ("udp-gro", self.udp_gro),
            ("udp-gso", self.udp_gso),
            ("tun-tso", self.tun_tso),
            ("tun-uso", self.tun_uso),
            ("tcp-coalescing", self.tcp_coalescing),
            ("udp-coalescing", self.udp_coalescing),
        ]
    }
}

/// A piece that the kernel refused in traffic, although it had taken it at the start: whoever met
/// that goes on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Downgrade {
    /// A send was not cut.
    UdpGso,
    /// A TCP super-packet was not taken by `gwi`.
    TcpCoalescing,
    /// A UDP super-packet was not taken by `gwi`.
    UdpCoalescing,
}
