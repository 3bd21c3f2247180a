//! What stands before each packet on a TUN with `IFF_VNET_HDR`: `struct virtio_net_hdr`
//! (`include/uapi/linux/virtio_net.h`).
//!
//! ```text
//!  byte  0        1          2         4          6            8             10
//!        ┌────────┬──────────┬─────────┬──────────┬────────────┬─────────────┬─────────
//!        │ flags  │ gso_type │ hdr_len │ gso_size │ csum_start │ csum_offset │ packet
//!        └────────┴──────────┴─────────┴──────────┴────────────┴─────────────┴─────────
//! ```
//!
//! The 16-bit fields are in the machine's byte order, because we never ask a TUN for another
//! (`TUNSETVNETLE`, `TUNSETVNETBE`). Offsets count from the start of the packet.
//!
//! Not kept: `VIRTIO_NET_HDR_F_DATA_VALID`, which says that the kernel trusts a checksum that
//! stands in the packet anyway, and the ECN bit of `gso_type`, which we never ask for
//! (`TUN_F_TSO_ECN`), so that the kernel segments such packets itself.

use crate::types::DropReason;
use crate::wire::checksum;

/// Bytes of the header (`TUNSETVNETHDRSZ` default).
pub const HEADER_BYTES: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const FLAG_NEEDS_CHECKSUM: u8 = 1;

/// `VIRTIO_NET_HDR_GSO_ECN`, a bit beside the type.
const GSO_ECN: u8 = 0x80;

/// Offset of the checksum in a UDP header, and in no other header that a kernel offloads: TCP
/// has it at 16.
const UDP_CHECKSUM_AT: u16 = 6;

/// How a packet larger than its path has to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// Not at all: it is one packet.
    #[default]
    None,
    /// Into TCP segments over IPv4.
    TcpV4,
    /// Into TCP segments over IPv6.
    TcpV6,
    /// Into UDP datagrams of either family (`VIRTIO_NET_HDR_GSO_UDP_L4`, Linux 6.2).
    UdpL4,
}

impl Gso {
    /// Number on the wire: `VIRTIO_NET_HDR_GSO_…`.
    const fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::TcpV4 => 1,
            Self::TcpV6 => 4,
            Self::UdpL4 => 5,
        }
    }

    /// The kinds that we ever ask a TUN for; UDP fragmentation (3) and tunnels are not.
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::TcpV4),
            4 => Some(Self::TcpV6),
            5 => Some(Self::UdpL4),
            _ => None,
        }
    }
}

/// The header of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The transport checksum is not complete: [`complete_checksum`] says how it becomes so.
    pub needs_checksum: bool,
    /// How the packet has to be cut.
    pub gso: Gso,
    /// A hint about the length of the headers. From the kernel it may cover payload too, so it
    /// says nothing about where the payload begins.
    pub header_bytes: u16,
    /// Payload bytes of each segment but the last, 0 for [`Gso::None`].
    pub gso_bytes: u16,
    /// Where the transport header begins.
    pub checksum_start: u16,
    /// Where the checksum stands, from the transport header.
    pub checksum_offset: u16,
}

impl Header {
    /// The header of one packet that is complete as it stands: all zero.
    pub const PLAIN: Self = Self {
        needs_checksum: false,
        gso: Gso::None,
        header_bytes: 0,
        gso_bytes: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Reads the header of a frame; the packet follows at [`HEADER_BYTES`].
    ///
    /// # Errors
    /// [`TunBadFrame`](DropReason::TunBadFrame) if the frame is shorter than a header or to be cut
    /// in a way that was never asked for.
    pub fn parse(frame: &[u8]) -> Result<Self, DropReason> {
        let header: &[u8; HEADER_BYTES] = frame.first_chunk().ok_or(DropReason::TunBadFrame)?;
        let [flags, gso, ..] = *header;
        let (words, _) = header.as_chunks();
        let word = |place: usize| u16::from_ne_bytes(words[place]);
        Ok(Self {
            needs_checksum: flags & FLAG_NEEDS_CHECKSUM != 0,
            gso: Gso::from_number(gso & !GSO_ECN).ok_or(DropReason::TunBadFrame)?,
            header_bytes: word(1),
            gso_bytes: word(2),
            checksum_start: word(3),
            checksum_offset: word(4),
        })
    }

    /// The bytes of the header.
    pub fn emit(&self) -> [u8; HEADER_BYTES] {
        let flags = if self.needs_checksum { FLAG_NEEDS_CHECKSUM } else { 0 };
        let mut header = [0; HEADER_BYTES];
        let (words, _) = header.as_chunks_mut();
        words.copy_from_slice(&[
            [flags, self.gso.number()],
            self.header_bytes.to_ne_bytes(),
            self.gso_bytes.to_ne_bytes(),
            self.checksum_start.to_ne_bytes(),
            self.checksum_offset.to_ne_bytes(),
        ]);
        header
    }
}

/// Completes the checksum of a packet that is not to be cut, if its header asks for it.
///
/// The checksum's place holds the sum of the pseudo header, so summing from the transport header
/// to the end of the packet gives the checksum (`Documentation/networking/checksum-offloads.rst`).
/// Does nothing if the header does not ask.
///
/// # Errors
/// [`TunBadFrame`](DropReason::TunBadFrame) if the place lies outside the packet.
pub fn complete_checksum(packet: &mut [u8], header: &Header) -> Result<(), DropReason> {
    if !header.needs_checksum {
        return Ok(());
    }
    let transport =
        packet.get_mut(usize::from(header.checksum_start)..).ok_or(DropReason::TunBadFrame)?;
    let total = checksum::sum(transport);
    let place = transport
        .get_mut(usize::from(header.checksum_offset)..)
        .and_then(<[u8]>::first_chunk_mut)
        .ok_or(DropReason::TunBadFrame)?;
    let checksum = match total.finish() {
        // For UDP 0 means "no checksum", and 0xffff is the same number (RFC 768).
        0 if header.checksum_offset == UDP_CHECKSUM_AT => u16::MAX,
        checksum => checksum,
    };
    *place = checksum.to_be_bytes();
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A UDP packet as the kernel hands it over: the checksum's place, bytes 26 and 27, holds
    /// the sum of the pseudo header.
    const UDP: [u8; 30] = [
        0x45, 0x00, 0x00, 0x1e, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x23, 0xc5, //
        0x0a, 0x00, 0x01, 0x05, 0x0a, 0x00, 0x02, 0x06, // 10.0.1.5 to 10.0.2.6
        0x30, 0x39, 0x00, 0x35, 0x00, 0x0a, 0x17, 0x26, // 0a00+0105+0a00+0206+0011+000a
        0x68, 0x69, // "hi"
    ];

    const UDP_HEADER: Header =
        Header { needs_checksum: true, checksum_start: 20, checksum_offset: 6, ..Header::PLAIN };

    #[test]
    fn golden_bytes() {
        let [a, b] = 0x0102_u16.to_ne_bytes();
        let bytes = [1, 0x84, a, b, b, a, 20, 0, 16, 0];
        let header = Header::parse(&bytes).unwrap();
        assert!(header.needs_checksum);
        assert_eq!(header.gso, Gso::TcpV6, "the ECN bit is no part of the type");
        assert_eq!((header.header_bytes, header.gso_bytes), (0x0102, 0x0201));
        assert_eq!(header.checksum_start, u16::from_ne_bytes([20, 0]));
        assert_eq!(header.checksum_offset, u16::from_ne_bytes([16, 0]));
        assert_eq!(Header::PLAIN.emit(), [0; HEADER_BYTES]);
        assert_eq!(Header::parse(&[0; 50]), Ok(Header::PLAIN));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for length in 0..HEADER_BYTES {
            let short = &[0; HEADER_BYTES][..length];
            assert_eq!(Header::parse(short), Err(DropReason::TunBadFrame));
        }
        for gso in [2, 3, 6, 0x20, 0x40, 0x7f] {
            let bytes = [0, gso, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Header::parse(&bytes), Err(DropReason::TunBadFrame), "{gso}");
        }
    }

    #[test]
    fn a_checksum_is_completed() {
        let mut packet = UDP;
        complete_checksum(&mut packet, &UDP_HEADER).unwrap();
        // 3039 + 0035 + 000a + 1726 + 6869 = b007, and its complement.
        assert_eq!(packet[26..28], [0x4f, 0xf8]);
        assert_eq!((&packet[..26], &packet[28..]), (&UDP[..26], &UDP[28..]));
    }

    #[test]
    fn a_packet_that_does_not_ask_stays_as_it_is() {
        let mut packet = UDP;
        complete_checksum(&mut packet, &Header::PLAIN).unwrap();
        assert_eq!(packet, UDP);
    }

    #[test]
    fn only_udp_never_gets_zero() {
        // The words add up to 0xffff, so the checksum is 0.
        let words = [0xff, 0xff, 0, 0, 0, 0, 0, 0];
        let mut packet = words;
        let udp = Header { checksum_start: 0, ..UDP_HEADER };
        complete_checksum(&mut packet, &udp).unwrap();
        assert_eq!(packet[6..], [0xff, 0xff]);
        let mut packet = words;
        let other = Header { checksum_offset: 4, ..udp };
        packet[4..6].copy_from_slice(&[0, 0]);
        complete_checksum(&mut packet, &other).unwrap();
        assert_eq!(packet, words);
    }

    #[test]
    fn a_place_outside_the_packet_is_refused() {
        for (start, offset) in [(31, 0), (30, 0), (20, 9), (20, 10), (29, 0), (65535, 65535)] {
            let header = Header { checksum_start: start, checksum_offset: offset, ..UDP_HEADER };
            let mut packet = UDP;
            let result = complete_checksum(&mut packet, &header);
            assert_eq!(result, Err(DropReason::TunBadFrame), "{start} + {offset}");
            assert_eq!(packet, UDP);
        }
        let last = Header { checksum_offset: 8, ..UDP_HEADER };
        assert_eq!(complete_checksum(&mut UDP.clone(), &last), Ok(()));
    }

    fn header() -> impl Strategy<Value = Header> {
        let gso = prop::sample::select(vec![Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::UdpL4]);
        (any::<bool>(), gso, any::<[u16; 4]>()).prop_map(|(needs_checksum, gso, fields)| Header {
            needs_checksum,
            gso,
            header_bytes: fields[0],
            gso_bytes: fields[1],
            checksum_start: fields[2],
            checksum_offset: fields[3],
        })
    }

    proptest! {
        #[test]
        fn what_was_emitted_is_parsed(header in header()) {
            prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
        }

        #[test]
        fn no_frame_makes_it_panic(mut frame in vec(any::<u8>(), 0..100)) {
            if let Ok(header) = Header::parse(&frame) {
                let _ = complete_checksum(&mut frame[HEADER_BYTES..], &header);
            }
        }
    }
}
