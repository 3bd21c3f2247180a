//! The answer to a packet that is too big for the way ahead: what path MTU discovery waits for
//! (RFC 1191 §4, RFC 8201 §4).
//!
//! ```text
//!  ┌──────────────────────────┬──────────────────────────────────┬─────────────────────────┐
//!  │ IP header: the addresses │ ICMP type 3 code 4 (IPv6: type 2 │ the beginning of the    │
//!  │ of the packet, exchanged │ code 0), and the MTU             │ packet that was too big │
//!  └──────────────────────────┴──────────────────────────────────┴─────────────────────────┘
//! ```
//!
//! The source is the destination of the packet, not an address of the router: a load balancer's
//! target has none that the sender's network knows, and what comes back through a stateful firewall
//! or address translation must come from there anyway. Hosts do not look at it (RFC 1191 §6.3 has
//! them check the quoted packet).

use crate::wire::Addresses;
use crate::wire::Family;
use crate::wire::checksum;
use crate::wire::checksum::Sum;
use crate::wire::icmp;
use crate::wire::inner;
use crate::wire::ipv4;
use crate::wire::ipv6;
use crate::wire::protocol;

/// Length of the longest answer in bytes, which every IPv6 link takes (RFC 4443 §2.4 (c)).
pub const ANSWER_BYTES_MAX: usize = 1280;

/// Bytes of a packet that are quoted at most.
pub const QUOTE_BYTES_MAX: usize = ANSWER_BYTES_MAX - ipv6::HEADER_BYTES - icmp::HEADER_BYTES;

/// Length of the longest answer in IPv4 (RFC 1812 §4.3.2.3).
const ANSWER_BYTES_MAX_V4: usize = 576;

/// Hops that an answer may make.
const TTL: u8 = 64;

/// Type of service of errors: internetwork control (RFC 1812 §4.3.2.5).
const TOS: u8 = 0xc0;

/// Writes the answer to the packet that begins with `quote` to the start of `out`: packets of up to
/// `mtu_bytes` bytes pass. Returns its length.
///
/// Nothing if the packet must not be answered with an error (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)):
/// it is one itself, or a later fragment, or its addresses are not those of two hosts.
///
/// # Panics
/// If `out` is shorter than [`ANSWER_BYTES_MAX`].
pub fn emit(quote: &[u8], mtu_bytes: u16, out: &mut [u8]) -> Option<usize> {
    let (family, addresses) = addresses(quote)?;
    if inner::is_icmp_error(quote) || inner::is_later_fragment(quote) || !are_hosts(addresses) {
        return None;
    }
    let (header_bytes, most) = match family {
        Family::V4 => (ipv4::HEADER_BYTES_MIN, ANSWER_BYTES_MAX_V4),
        Family::V6 => (ipv6::HEADER_BYTES, ANSWER_BYTES_MAX),
    };
    let quote_at = header_bytes + icmp::HEADER_BYTES;
    let quote = &quote[..quote.len().min(most - quote_at)];
    let answer_bytes = quote_at + quote.len();
    let out = &mut out[..answer_bytes];
    out[..quote_at].fill(0);
    out[quote_at..].copy_from_slice(quote);
    let length = u16::try_from(answer_bytes).expect("at most 1280");
    let mtu = mtu_bytes.to_be_bytes();
    match addresses {
        Addresses::V4 { src, dst } => {
            let header = &mut out[..header_bytes];
            header[0] = 0x45;
            header[ipv4::field::TOS] = TOS;
            // Whole and not to be cut: the identification may be 0 (RFC 6864 §4.1).
            header[ipv4::field::FRAGMENT].copy_from_slice(&[0x40, 0]);
            header[ipv4::field::TTL] = TTL;
            header[ipv4::field::PROTOCOL] = protocol::ICMP;
            header[ipv4::field::SRC].copy_from_slice(&dst);
            header[ipv4::field::DST].copy_from_slice(&src);
            let mut header = ipv4::Header::new_checked(header).expect("it was written above");
            header.set_total_bytes(length);
            header.fill_checksum();
            fill_message(&mut out[header_bytes..], family, [3, 4], mtu, Sum::default());
        }
        Addresses::V6 { src, dst } => {
            let message_bytes = length - 40;
            let header = &mut out[..header_bytes];
            header[0] = 0x60;
            header[ipv6::field::PAYLOAD_BYTES].copy_from_slice(&message_bytes.to_be_bytes());
            header[ipv6::field::NEXT_HEADER] = protocol::ICMPV6;
            header[ipv6::field::HOP_LIMIT] = TTL;
            header[ipv6::field::SRC].copy_from_slice(&dst);
            header[ipv6::field::DST].copy_from_slice(&src);
            let back = Addresses::V6 { src: dst, dst: src };
            let pseudo_header =
                checksum::pseudo_header(back, protocol::ICMPV6, message_bytes.into());
            fill_message(&mut out[header_bytes..], family, [2, 0], mtu, pseudo_header);
        }
    }
    Some(answer_bytes)
}

/// Writes type, code and MTU before the quote. In both families the MTU's two bytes are the last of
/// the four behind the checksum.
fn fill_message(
    message: &mut [u8],
    family: Family,
    [kind, code]: [u8; 2],
    mtu: [u8; 2],
    pseudo_header: Sum,
) {
    message[icmp::field::KIND] = kind;
    message[icmp::field::CODE] = code;
    message[icmp::field::MTU].copy_from_slice(&mtu);
    let mut message = icmp::Message::new_checked(message, family).expect("it was written above");
    message.fill_checksum(pseudo_header);
}

fn addresses(packet: &[u8]) -> Option<(Family, Addresses)> {
    match packet.first()? >> 4 {
        4 => Some((Family::V4, ipv4::Header::new_checked(packet).ok()?.addresses())),
        6 => Some((Family::V6, ipv6::Header::new_checked(packet).ok()?.addresses())),
        _ => None,
    }
}

/// Whether both addresses may be those of one host each: none is a group, everybody or nobody.
fn are_hosts(addresses: Addresses) -> bool {
    match addresses {
        // This network, loopback, multicast and above: limited broadcast too (RFC 6890 §2.2.2).
        Addresses::V4 { src, dst } => {
            [src, dst].iter().all(|address| !matches!(address[0], 0 | 127 | 224..))
        }
        Addresses::V6 { src, dst } => {
            let is_host = |address: [u8; 16]| {
                let word = u128::from_be_bytes(address);
                word > 1 && address[0] != 0xff
            };
            is_host(src) && is_host(dst)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP packet of IPv4, 192.0.2.1 to 198.51.100.2, that claims 9,000 bytes.
    fn long_v4() -> Vec<u8> {
        let mut packet = vec![0xab; 9000];
        packet[..28].copy_from_slice(&[
            0x45, 0, 0x23, 0x28, 0, 7, 0x40, 0, 63, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100,
            2, //
            0x12, 0x34, 0, 53, 0x23, 0x14, 0, 0,
        ]);
        packet
    }

    /// The same in IPv6, `2001:db8::1` to `2001:db8::2`.
    fn long_v6() -> Vec<u8> {
        let mut packet = vec![0xab; 9000];
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0x23, 0x00, 17, 63]);
        for (at, last) in [(8, 1), (24, 2)] {
            packet[at..at + 16].fill(0);
            packet[at..at + 4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            packet[at + 15] = last;
        }
        packet
    }

    #[test]
    fn the_answer_in_ipv4_byte_for_byte() {
        let packet = long_v4();
        let mut out = [0xee; ANSWER_BYTES_MAX];
        assert_eq!(emit(&packet, 8500, &mut out), Some(576));
        let expected = [
            0x45, 0xc0, 0x02, 0x40, 0, 0, 0x40, 0, 64, 1, 0x4b, 0xc6, 198, 51, 100, 2, 192, 0, 2,
            1, // IPv4
            3, 4, 0, 0, 0, 0, 0x21, 0x34, // ICMP, 8500
        ];
        assert_eq!(out[..22], expected[..22]);
        assert_eq!(out[24..28], expected[24..]);
        assert_eq!(out[28..576], packet[..548]);
        assert_eq!(out[576..], [0xee; 704]);
        assert!(ipv4::Header::new_checked(&out).unwrap().checksum_is_valid());
        let message = icmp::Message::new_checked(&out[20..576], Family::V4).unwrap();
        assert!(message.checksum_is_valid(Sum::default()));
        assert_eq!(inner::quoted(&out[..576]).unwrap().dst_port, 53);
    }

    #[test]
    fn the_answer_in_ipv6_byte_for_byte() {
        let packet = long_v6();
        let mut out = [0xee; ANSWER_BYTES_MAX];
        assert_eq!(emit(&packet, 8500, &mut out), Some(1280));
        assert_eq!(out[..8], [0x60, 0, 0, 0, 0x04, 0xd8, 58, 64]);
        assert_eq!((&out[8..24], &out[24..40]), (&packet[24..40], &packet[8..24]));
        assert_eq!((&out[40..42], &out[44..48]), (&[2, 0][..], &[0, 0, 0x21, 0x34][..]));
        assert_eq!(out[48..], packet[..1232]);
        let back = ipv6::Header::new_checked(&out).unwrap().addresses();
        let pseudo_header = checksum::pseudo_header(back, protocol::ICMPV6, 1240);
        let message = icmp::Message::new_checked(&out[40..], Family::V6).unwrap();
        assert!(message.checksum_is_valid(pseudo_header));
    }

    #[test]
    fn a_short_quote_makes_a_short_answer() {
        let mut out = [0; ANSWER_BYTES_MAX];
        assert_eq!(emit(&long_v4()[..28], 8500, &mut out), Some(56));
        assert_eq!(emit(&long_v6()[..48], 8500, &mut out), Some(96));
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let mut out = [0; ANSWER_BYTES_MAX];
        let mut refused = |change: &dyn Fn(&mut Vec<u8>), packet: Vec<u8>, what: &str| {
            assert!(emit(&packet, 8500, &mut out).is_some());
            let mut changed = packet;
            change(&mut changed);
            assert_eq!(emit(&changed, 8500, &mut out), None, "{what}");
        };
        refused(&|it| it[6..8].fill(1), long_v4(), "a later fragment");
        refused(&|it| (it[9], it[20]) = (1, 3), long_v4(), "an error");
        refused(&|it| it[16] = 224, long_v4(), "to a group");
        refused(&|it| it[16..20].fill(255), long_v4(), "to everybody");
        refused(&|it| it[12..16].fill(0), long_v4(), "from nobody");
        refused(&|it| it[12] = 127, long_v4(), "from here");
        refused(&|it| (it[6], it[40]) = (58, 1), long_v6(), "an error");
        refused(&|it| (it[6], it[40], it[43]) = (44, 17, 8), long_v6(), "a later fragment");
        refused(&|it| it[24] = 0xff, long_v6(), "to a group");
        refused(&|it| it[8..24].fill(0), long_v6(), "from nobody");
        for bytes in [&[][..], &[0x45], &[0x60; 39], &[0x75; 100]] {
            assert_eq!(emit(bytes, 8500, &mut out), None);
        }
        let mut echo = long_v4();
        (echo[9], echo[20]) = (1, 8);
        assert!(emit(&echo, 8500, &mut out).is_some(), "an echo is no error");
    }
}
