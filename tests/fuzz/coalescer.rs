//! Packets that nearly follow each other: those that are merged come out of the segmenter as they
//! were, bit by bit.

use gwlbtun::wire::gro::Candidate;
use gwlbtun::wire::gro::Run;
use gwlbtun::wire::gso::Segmenter;
use gwlbtun::wire::virtio_net::Header;

use super::input::Input;
use super::segmenter::cut;
use super::stream::Stream;

/// Packets of one input at most.
const PACKETS_MAX: usize = 80;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut stream = Stream::chosen(&mut input);
    let mut run = Run::none();
    let mut merged: Vec<Vec<u8>> = Vec::new();
    for _ in 0..PACKETS_MAX {
        if input.is_empty() {
            break;
        }
        let packet = stream.next_chosen(&mut input);
        let candidate = Candidate::new(&packet).filter(|it| it.has_sender_checksums(&packet));
        let Some(candidate) = candidate else {
            expect_cut(&run, &merged);
            merged.clear();
            continue;
        };
        if !merged.is_empty() && run.is_continued_by(&candidate, &packet) {
            run.append(candidate, &packet);
        } else {
            expect_cut(&run, &merged);
            merged.clear();
            run.begin(candidate, &packet);
        }
        merged.push(packet);
    }
    expect_cut(&run, &merged);
}

/// Requires that the run stands for these packets and for nothing else.
fn expect_cut(run: &Run, packets: &[Vec<u8>]) {
    if packets.len() < 2 {
        return;
    }
    assert_eq!(run.packets() as usize, packets.len());
    let (merged, header) = merge(run, packets);
    assert_eq!(Header::parse(&header.emit()), Ok(header));
    assert_eq!(merged.len(), run.packet_bytes());
    let segmenter = Segmenter::new(&merged, &header).expect("a super-packet of ours");
    assert_eq!(segmenter.segments(), packets.len());
    for (number, packet) in packets.iter().enumerate() {
        assert_eq!(cut(&segmenter, &merged, number), *packet, "packet {number}");
    }
    let mut first = merged;
    run.restore(&mut first);
    assert_eq!(first[..packets[0].len()], packets[0], "the first one's headers come back");
}

/// The super-packet, as it would be written.
fn merge(run: &Run, packets: &[Vec<u8>]) -> (Vec<u8>, Header) {
    let candidate = Candidate::new(&packets[0]).expect("it was one");
    let mut merged = packets[0].clone();
    for packet in &packets[1..] {
        merged.extend_from_slice(&packet[candidate.headers_bytes()..]);
    }
    let header = run.finish(&mut merged);
    (merged, header)
}
