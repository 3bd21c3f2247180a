//! Any frame from a TUN: its segments have all of its payload, each under right headers.

use std::ops::Range;

use gwlbtun::wire::checksum;
use gwlbtun::wire::gso::Segmenter;
use gwlbtun::wire::virtio_net;
use gwlbtun::wire::virtio_net::Gso;

/// Most segments that are looked at: the rest of a frame is alike.
const LOOKED_AT: usize = 64;

pub(crate) fn run(frame: &[u8]) {
    let Ok(header) = virtio_net::Header::parse(frame) else { return };
    let packet = &frame[virtio_net::HEADER_BYTES..];
    if header.gso == Gso::None {
        complete(packet.to_vec(), &header);
        return;
    }
    let Ok(segmenter) = Segmenter::new(packet, &header) else { return };
    let segments = segmenter.segments();
    let headers_bytes = segmenter.headers_bytes();
    let mut end = headers_bytes;
    for number in 0..segments {
        let payload = segmenter.payload(number);
        assert_eq!(payload.start, end, "no byte is lost, none comes twice");
        let is_last = number + 1 == segments;
        assert!(payload.len() == usize::from(header.gso_bytes) || is_last && !payload.is_empty());
        assert!(headers_bytes + payload.len() <= segmenter.segment_bytes_max());
        end = payload.end;
    }
    assert_eq!(end, packet.len());
    assert_eq!(segmenter.segments_bytes(), packet.len() + (segments - 1) * headers_bytes);
    let last = segments.saturating_sub(1);
    for number in (0..segments.min(LOOKED_AT)).chain([last]) {
        look_at(packet, &header, &cut(&segmenter, packet, number));
    }
}

/// A segment, whole.
pub(crate) fn cut(segmenter: &Segmenter, packet: &[u8], number: usize) -> Vec<u8> {
    let payload: Range<usize> = segmenter.payload(number);
    let mut segment = vec![0xaa; segmenter.headers_bytes()];
    segmenter.write(number, checksum::sum(&packet[payload.clone()]), &mut segment);
    segment.extend_from_slice(&packet[payload]);
    segment
}

/// Lengths and checksums of a segment, added up by hand.
fn look_at(packet: &[u8], header: &virtio_net::Header, segment: &[u8]) {
    let transport_at = usize::from(header.checksum_start);
    let half = |at: usize| usize::from(u16::from_be_bytes([segment[at], segment[at + 1]]));
    let addresses = if segment[0] >> 4 == 4 {
        assert_eq!(half(2), segment.len());
        assert_eq!(fold(words(&segment[..transport_at])), 0xffff, "the IP header's checksum");
        assert_eq!(segment[12..20], packet[12..20]);
        12..20
    } else {
        assert_eq!(half(4), segment.len() - 40);
        assert_eq!(segment[6..40], packet[6..40]);
        8..40
    };
    let transport = &segment[transport_at..];
    let protocol = if header.gso == Gso::UdpL4 { 17 } else { 6 };
    if protocol == 17 {
        assert_eq!(half(transport_at + 4), transport.len());
        assert_ne!(half(transport_at + 6), 0, "no checksum, it would say");
    }
    assert_eq!(transport[..4], packet[transport_at..transport_at + 4], "the ports");
    let length = u64::try_from(transport.len()).expect("small");
    let sum = words(&segment[addresses]) + protocol + length + words(transport);
    assert_eq!(fold(sum), 0xffff, "the transport header's checksum");
}

/// A packet that is not to be cut gets its checksum, and nothing else is touched.
fn complete(mut packet: Vec<u8>, header: &virtio_net::Header) {
    let before = packet.clone();
    let place = usize::from(header.checksum_start) + usize::from(header.checksum_offset);
    let is_completed = virtio_net::complete_checksum(&mut packet, header).is_ok();
    let has_place = header.needs_checksum && place + 2 <= packet.len();
    assert_eq!(is_completed, has_place || !header.needs_checksum);
    for (at, (new, old)) in packet.iter().zip(&before).enumerate() {
        let is_place = has_place && (place..place + 2).contains(&at);
        assert!(is_place || new == old, "byte {at} was changed");
    }
}

fn words(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks(2);
    pairs.map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
