//! Lowering the segment size that a TCP connection agrees on, for hosts that send more than the
//! load balancer takes and do not listen to ICMP.

use crate::types::TcpSegmentMax;
use crate::wire::Family;
use crate::wire::inner;
use crate::wire::tcp;

/// Lowers the maximum segment size that a packet offers, if it begins a TCP connection.
///
/// Neither the IP header nor the TCP checksum has to be right, and a wrong one stays as wrong.
pub(super) fn clamp_mss(packet: &mut [u8], most: TcpSegmentMax) {
    // Bytes behind the end of the packet are none of it.
    let Ok(packet_bytes) = inner::parse_any(packet).map(|inner| inner.packet_bytes) else {
        return;
    };
    let packet = &mut packet[..packet_bytes];
    let Some((family, start)) = inner::tcp_start(packet) else {
        return;
    };
    let most_bytes = match family {
        Family::V4 => most.v4_bytes(),
        Family::V6 => most.v6_bytes(),
    };
    if let Some(mut header) = tcp::Header::new_checked(&mut packet[start..]) {
        header.clamp_mss(most_bytes);
    }
}
