//! Wire formats: pure functions and views over bytes. No socket, no clock, no allocation.
//!
//! | module | format | source |
//! |---|---|---|
//! | [`geneve`] | GENEVE header and option list | RFC 8926 §3 |
//! | [`gwlb`] | the three options of a load balancer | AWS guide, "Gateway Load Balancers" |
//! | [`inner`] | which flow an inner packet belongs to | RFC 791, 8200, 9293, 768 |
//! | [`ipv4`], [`ipv6`], [`tcp`], [`udp`], [`icmp`] | header views | the same |
//! | [`too_big`] | what a sender of packets that are too big is told | RFC 1191, 8201 |
//! | [`gro`], [`gso`] | merging packets into a super-packet, and cutting one | kernel, RFC 6864 |
//! | [`virtio_net`] | what precedes each packet on a TUN | `include/uapi/linux/virtio_net.h` |
//! | [`checksum`] | the Internet checksum | RFC 1071, 1624 |
//!
//! A datagram is parsed once, from the outside in: [`gwlb::parse`] gives the offsets and ids,
//! [`inner::parse`] gives the [`FiveTuple`]. Later stages take those values and never look at the
//! headers again. The mechanism (`geneve`) never names the product (`gwlb`).

pub mod checksum;
mod field;
pub mod geneve;
pub mod gro;
pub mod gso;
pub mod gwlb;
pub mod icmp;
pub mod inner;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod too_big;
pub mod udp;
pub mod virtio_net;

/// Version of an inner packet. Both are equals: every part of the program handles both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4, RFC 791.
    V4,
    /// IPv6, RFC 8200.
    V6,
}

/// Addresses of one inner packet, in the order in which they stand in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// Source and destination of an IPv4 packet.
    V4 {
        /// Source address.
        src: [u8; 4],
        /// Destination address.
        dst: [u8; 4],
    },
    /// Source and destination of an IPv6 packet.
    V6 {
        /// Source address.
        src: [u8; 16],
        /// Destination address.
        dst: [u8; 16],
    },
}

/// What tells one flow of an endpoint from another: addresses, protocol and ports.
///
/// Ports are zero where the protocol has none that we know (anything but TCP and UDP) and where the
/// packet is too short for them. Two kinds of packets have something else in their place
/// ([`inner`]): a later fragment what tells its packet from others, and an ICMP error the ports of
/// the packet that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// Both addresses, which also give the family.
    pub addresses: Addresses,
    /// Protocol number of the payload (IPv6: behind the extension headers).
    pub protocol: u8,
    /// Source port, or zero.
    pub src_port: u16,
    /// Destination port, or zero.
    pub dst_port: u16,
}

impl FiveTuple {
    /// IP version of the packet.
    pub const fn family(&self) -> Family {
        match self.addresses {
            Addresses::V4 { .. } => Family::V4,
            Addresses::V6 { .. } => Family::V6,
        }
    }

    /// The tuple of the packets that go the other way.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        let addresses = match self.addresses {
            Addresses::V4 { src, dst } => Addresses::V4 { src: dst, dst: src },
            Addresses::V6 { src, dst } => Addresses::V6 { src: dst, dst: src },
        };
        let Self { protocol, src_port, dst_port, .. } = *self;
        Self { addresses, protocol, src_port: dst_port, dst_port: src_port }
    }
}

/// Protocol numbers that the program knows (IANA, "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP: which IPv4 multicast groups a host listens to.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// The fragment header of IPv6. In a [`FiveTuple`](super::FiveTuple): later fragments, of
    /// either family.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}
