//! Packets that have no flow of their own: fragments, ICMP errors, and those above 8,500 bytes.

use std::time::Duration;

use super::*;
use crate::path::waiting::FRAGMENTS_MAX;
use crate::path::waiting::WAIT_MAX;
use crate::wire::inner;
use crate::wire::protocol;
use crate::wire::too_big;

const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// Which part of a packet: its identification, offset in bytes, and whether more follow.
#[derive(Clone, Copy, Default)]
struct Cut {
    id: u8,
    offset: u8,
    more: bool,
}

fn first(id: u8) -> Cut {
    Cut { id, offset: 0, more: true }
}

fn last(id: u8) -> Cut {
    Cut { id, offset: 8, more: false }
}

/// A packet between host 1 and host 2 of this protocol, with this payload.
fn packet(
    family: Family,
    (src, dst): (u8, u8),
    number: u8,
    cut: Option<Cut>,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = match family {
        Family::V4 => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, number, 0, 0];
            if let Some(Cut { id, offset, more }) = cut {
                header[5] = id;
                header[6..8].copy_from_slice(&[if more { 0x60 } else { 0x40 }, offset / 8]);
            }
            header.extend([10, 0, 0, src, 10, 0, 0, dst]);
            header
        }
        Family::V6 => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, number, 64];
            header
                .extend([&[0x20, 1][..], &[0; 13], &[src], &[0x20, 1], &[0; 13], &[dst]].concat());
            if let Some(Cut { id, offset, more }) = cut {
                header[6] = protocol::FRAGMENT;
                header.extend([number, 0, 0, offset | u8::from(more), 0, 0, 0, id]);
            }
            header
        }
    };
    packet.extend(payload);
    let length = packet.len();
    let (at, length) = match family {
        Family::V4 => (2, length),
        Family::V6 => (4, length - 40),
    };
    packet[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet
}

/// UDP from host 1, port 4660, to host 2, port 53; all of it or its first part.
fn question(family: Family, cut: Option<Cut>) -> Vec<u8> {
    packet(family, (1, 2), protocol::UDP, cut, &[0x12, 0x34, 0, 53, 0, 16, 0, 0])
}

/// UDP from host 1, port 2313, to host 2, port 53: another flow than that of [`question`].
fn other_question(family: Family, cut: Option<Cut>) -> Vec<u8> {
    packet(family, (1, 2), protocol::UDP, cut, &[9, 9, 0, 53, 0, 16, 0, 0])
}

/// A later part of either.
fn rest(family: Family, cut: Cut) -> Vec<u8> {
    // What a program that does not look at the offset takes for other ports.
    packet(family, (1, 2), protocol::UDP, Some(cut), &[0xff, 0xff, 0xee, 0xee, 1, 2, 3, 4])
}

/// Its answer.
fn answer(family: Family, cut: Option<Cut>) -> Vec<u8> {
    packet(family, (2, 1), protocol::UDP, cut, &[0, 53, 0x12, 0x34, 0, 16, 0, 0])
}

/// An ICMP error from `from` about a packet, to `to`.
fn icmp_error(family: Family, from: u8, to: u8, about: &[u8]) -> Vec<u8> {
    let (number, kind) = match family {
        Family::V4 => (protocol::ICMP, 11),
        Family::V6 => (protocol::ICMPV6, 3),
    };
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], about].concat();
    packet(family, (from, to), number, None, &message)
}

impl Bench {
    /// The load balancer sends a packet under this cookie, from this port.
    fn sends(&mut self, family: Family, cookie: [u8; 4], port: u16, packet: &[u8]) {
        let header = gwlb::Repr { endpoint: ID, attachment: 0, cookie, family }.emit();
        self.arrive(&[&header[..], packet].concat(), outer(port));
        assert_eq!(self.planned().1[10..], *packet, "it is delivered as it came");
    }

    /// The host emits a packet. Returns the cookie and port under which it goes back, if it does.
    fn emits(&mut self, packet: &[u8]) -> Option<([u8; 4], u16)> {
        self.emits_at(NOW, packet)
    }

    /// The same, at another moment.
    fn emits_at(&mut self, now: Moment, packet: &[u8]) -> Option<([u8; 4], u16)> {
        self.read_at(now, &frame(packet), Side::Gwo);
        if self.plan.is_empty() {
            return None;
        }
        let (cookie, port, sent) = self.sent();
        assert_eq!(sent, packet, "it goes back as it is");
        Some((cookie, port))
    }

    /// The only datagram that is planned: cookie, port, packet.
    fn sent(&mut self) -> ([u8; 4], u16, Vec<u8>) {
        let (target, bytes) = self.planned();
        let Target::Outer(path) = target else { panic!("{target:?}") };
        (*bytes[36..].first_chunk().unwrap(), path.remote_port, bytes[40..].to_vec())
    }

    /// What is sent of the fragments that wait.
    fn waited(&mut self, now: Moment) -> Vec<(u16, Vec<u8>)> {
        assert!(self.path.has_room(&self.plan, WAITING_MAX));
        self.path.send_waiting(now, &mut self.buffers, &mut self.plan);
        self.path.end_batch(&mut self.buffers, &mut self.plan);
        let mut all = Vec::new();
        for (job, spans) in self.plan.jobs() {
            let Target::Outer(path) = job.target else { panic!("{job:?}") };
            let bytes = self.buffers.gather(spans);
            let size = usize::from(job.datagram_bytes);
            all.extend(bytes.chunks(size).map(|it| (path.remote_port, it[40..].to_vec())));
        }
        self.plan.clear();
        all
    }

    fn lost(&self, reason: DropReason) -> u64 {
        self.endpoint.encap_drops.get(reason)
    }
}

#[test]
fn fragments_from_the_load_balancer_go_back_each_under_its_header() {
    for family in BOTH {
        let mut bench = Bench::attached();
        // Two flows between the same hosts, cut alike; and a load balancer that does not know that
        // a later fragment belongs to either.
        let other = other_question(family, Some(first(2)));
        bench.sends(family, *b"one.", 1, &question(family, Some(first(1))));
        bench.sends(family, *b"two.", 2, &other);
        bench.sends(family, *b"one.", 1, &rest(family, last(1)));
        bench.sends(family, *b"rest", 3, &rest(family, last(2)));
        for _ in 0..2 {
            assert_eq!(bench.emits(&rest(family, last(2))), Some((*b"rest", 3)));
            assert_eq!(bench.emits(&rest(family, last(1))), Some((*b"one.", 1)));
            assert_eq!(bench.emits(&other), Some((*b"two.", 2)));
            assert_eq!(bench.emits(&question(family, Some(first(1)))), Some((*b"one.", 1)));
        }
        // Put together between the links, too.
        assert_eq!(bench.emits(&question(family, None)), Some((*b"one.", 1)));
        assert_eq!(bench.emits(&answer(family, None)), Some((*b"one.", 1)));
    }
}

#[test]
fn fragments_that_the_host_makes_follow_their_first_one() {
    for family in BOTH {
        let mut bench = Bench::attached();
        bench.sends(family, *b"one.", 1, &question(family, None));
        for id in 1..=3 {
            let middle = Cut { id, offset: 8, more: true };
            let end = Cut { id, offset: 16, more: false };
            assert_eq!(bench.emits(&question(family, Some(first(id)))), Some((*b"one.", 1)));
            for cut in [middle, end] {
                assert_eq!(bench.emits(&rest(family, cut)), Some((*b"one.", 1)));
            }
        }
        let stranger = Cut { id: 4, offset: 8, more: true };
        assert_eq!(bench.emits(&rest(family, stranger)), None, "not of a packet seen");
        // The identification is used again, by another flow between these hosts.
        let other = other_question(family, None);
        bench.sends(family, *b"two.", 2, &other);
        let first = other_question(family, Some(first(1)));
        assert_eq!(bench.emits(&first), Some((*b"two.", 2)));
        assert_eq!(bench.emits(&rest(family, last(1))), Some((*b"two.", 2)));
    }
}

#[test]
fn fragments_that_the_host_makes_are_nobody_s_teaching() {
    let elsewhere = OuterPath { remote: Ipv4Addr::new(10, 9, 0, 3), ..outer(2) };
    for (family, sources) in
        BOTH.into_iter().flat_map(|it| [Sources::Any, Sources::Pinned].map(|sources| (it, sources)))
    {
        let plan = TablePlan { sources, ..TablePlan::new(1000, 1) };
        let flows = Arc::new(FlowTable::new(plan, HashSeed::fixed(1)));
        let mut bench = Bench::changed(|path| Path { flows, ..path });
        bench.sends(family, *b"one.", 1, &question(family, None));
        let header = gwlb::Repr { endpoint: ID, attachment: 0, cookie: *b"two.", family }.emit();
        bench.arrive(&[&header[..], &other_question(family, None)].concat(), elsewhere);
        bench.plan.clear();
        // The identification of the one flow's packet is used again by the other flow, which came
        // from another node of the load balancer.
        assert_eq!(bench.emits(&question(family, Some(first(1)))), Some((*b"one.", 1)));
        assert_eq!(bench.emits(&other_question(family, Some(first(1)))), Some((*b"two.", 2)));
        assert_eq!(bench.emits(&rest(family, last(1))), Some((*b"two.", 2)), "{sources:?}");
        bench.path.publish();
        assert_eq!(bench.worker.flows_retaught.get(), 0, "{sources:?}");
    }
}

#[test]
fn fragments_that_the_host_makes_are_not_taken_for_older_ones_of_the_load_balancer() {
    for family in BOTH {
        let mut bench = Bench::attached();
        bench.sends(family, *b"one.", 1, &question(family, Some(first(1))));
        bench.sends(family, *b"one.", 1, &rest(family, last(1)));
        bench.sends(family, *b"two.", 2, &other_question(family, None));
        // A proxy has put the question together, and sends a packet of its own from that address:
        // the same identification, by chance.
        let later = NOW.after(Duration::from_secs(2));
        let own = other_question(family, Some(first(1)));
        assert_eq!(bench.emits_at(later, &own), Some((*b"two.", 2)));
        assert_eq!(bench.emits_at(later, &rest(family, last(1))), Some((*b"two.", 2)));
        bench.sends(family, *b"one.", 1, &rest(family, last(1)));
        assert_eq!(bench.emits_at(later, &rest(family, last(1))), Some((*b"one.", 1)));
    }
}

/// What stands in the place of both ports is the same then, whichever way the packet goes.
#[test]
fn fragments_whose_identification_is_their_protocol_have_two_ways_too() {
    let mut bench = Bench::attached();
    let id = protocol::UDP;
    let family = Family::V4;
    let back = packet(family, (2, 1), protocol::UDP, Some(last(id)), &[1, 2, 3, 4]);
    bench.sends(family, *b"toto", 1, &question(family, Some(first(id))));
    bench.sends(family, *b"from", 2, &answer(family, Some(first(id))));
    bench.sends(family, *b"from", 2, &back);
    assert_eq!(bench.emits(&question(family, Some(first(id)))), Some((*b"toto", 1)));
    assert_eq!(bench.emits(&back), Some((*b"from", 2)));
    assert_eq!(bench.emits(&rest(family, last(id))), Some((*b"toto", 1)));
}

#[test]
fn a_fragment_that_is_early_waits_for_its_first_one() {
    for family in BOTH {
        let mut bench = Bench::attached();
        bench.sends(family, *b"one.", 1, &question(family, None));
        let early = [Cut { id: 1, offset: 16, more: false }, Cut { id: 1, offset: 8, more: true }]
            .map(|cut| rest(family, cut));
        for fragment in &early {
            assert_eq!(bench.emits(fragment), None);
        }
        assert!(bench.path.has_waiting());
        assert_eq!(bench.waited(NOW), []);
        assert_eq!(bench.emits(&question(family, Some(first(1)))), Some((*b"one.", 1)));
        assert_eq!(bench.waited(NOW), early.map(|fragment| (1, fragment)), "in their order");
        assert!(!bench.path.has_waiting());
        assert_eq!(bench.endpoint.from_gwo.packets.get(), 3);
        assert_eq!(bench.lost(DropReason::FragmentUnmatched), 0);
    }
}

#[test]
fn a_first_fragment_seen_by_another_worker_lets_the_rest_go() {
    let mut bench = Bench::attached();
    bench.sends(Family::V4, *b"one.", 1, &question(Family::V4, None));
    assert_eq!(bench.emits(&rest(Family::V4, last(1))), None);
    let flows = Arc::clone(&bench.path.flows);
    let mut other = Bench::attached();
    other.path = Path::new(flows, Arc::default(), 8, (1, 2), Offload::ALL);
    other.attach();
    assert_eq!(other.emits(&question(Family::V4, Some(first(1)))), None, "its templates differ");
    assert_eq!(bench.waited(NOW), [(1, rest(Family::V4, last(1)))]);
}

#[test]
fn fragments_do_not_wait_for_ever_nor_without_bound() {
    let mut bench = Bench::attached();
    for id in 0..u8::try_from(FRAGMENTS_MAX).unwrap() + 3 {
        assert_eq!(bench.emits(&rest(Family::V4, last(id))), None);
    }
    assert_eq!(bench.lost(DropReason::FragmentUnmatched), 3, "no room");
    let shortly_before = WAIT_MAX.checked_sub(Duration::from_nanos(1)).unwrap();
    assert_eq!(bench.waited(NOW.after(shortly_before)), []);
    assert_eq!(bench.lost(DropReason::FragmentUnmatched), 3);
    assert_eq!(bench.waited(NOW.after(WAIT_MAX)), []);
    assert_eq!(bench.lost(DropReason::FragmentUnmatched), 3 + FRAGMENTS_MAX as u64);
    assert!(!bench.path.has_waiting());
}

#[test]
fn a_fragment_that_waits_where_no_buffer_is_free_waits_on() {
    let mut bench = Bench::attached();
    bench.sends(Family::V4, *b"one.", 1, &question(Family::V4, None));
    bench.emits(&rest(Family::V4, last(1)));
    bench.emits(&question(Family::V4, Some(first(1))));
    bench.buffers = TestBuffers::without_scratch();
    assert_eq!(bench.waited(NOW), []);
    assert!(bench.path.has_waiting());
    assert_eq!(bench.waited(NOW.after(WAIT_MAX)), []);
    assert_eq!(bench.lost(DropReason::NoBuffer), 1);
    assert!(!bench.path.has_waiting());
}

#[test]
fn fragments_that_wait_are_counted_when_their_endpoint_or_the_program_ends() {
    let mut bench = Bench::attached();
    bench.emits(&rest(Family::V4, last(1)));
    bench.path.closing(LIFE);
    let _ = bench.path.detach(LIFE);
    assert_eq!(bench.waited(NOW), []);
    assert_eq!(bench.worker.drops.get(DropReason::Shutdown), 1);
    bench.attach();
    bench.emits(&rest(Family::V4, last(1)));
    bench.path.drop_all_held();
    assert_eq!(bench.lost(DropReason::Shutdown), 1);
    assert!(!bench.path.has_waiting());
}

#[test]
fn an_error_made_on_the_target_returns_by_the_packet_that_it_quotes() {
    for family in BOTH {
        let mut bench = Bench::attached();
        let flow = question(family, None);
        bench.sends(family, *b"toto", 1, &flow);
        // From an address of the target, or of a router behind it: nobody has sent that.
        let error = icmp_error(family, 77, 1, &flow);
        assert_eq!(bench.emits(&error), Some((*b"toto", 1)), "the only header there is");
        bench.sends(family, *b"from", 2, &answer(family, None));
        // Later, where the batch's answers are forgotten: the other direction's header, because
        // that is the way in which the error goes.
        assert_eq!(bench.emits(&error), Some((*b"from", 2)));
        assert_eq!(
            bench.emits(&icmp_error(family, 77, 2, &answer(family, None))),
            Some((*b"toto", 1))
        );
        let short = if family == Family::V4 { 28 } else { 48 };
        assert_eq!(bench.emits(&icmp_error(family, 77, 1, &flow[..short])), Some((*b"from", 2)));

        let strange = packet(family, (1, 2), 17, None, &[7, 7, 7, 7, 0, 8, 0, 0]);
        assert_eq!(bench.emits(&icmp_error(family, 77, 1, &strange)), None);
        assert_eq!(bench.emits(&icmp_error(family, 77, 1, &flow[..19])), None);
        assert_eq!(bench.lost(DropReason::FlowUnknown), 2);
    }
}

#[test]
fn an_error_about_a_fragment_returns_too() {
    for family in BOTH {
        let mut bench = Bench::attached();
        let flow = question(family, Some(first(1)));
        bench.sends(family, *b"one.", 1, &flow);
        assert_eq!(bench.emits(&icmp_error(family, 77, 1, &flow)), Some((*b"one.", 1)));
        let later = rest(family, last(1));
        bench.sends(family, *b"rest", 2, &later);
        assert_eq!(bench.emits(&icmp_error(family, 77, 1, &later)), Some((*b"rest", 2)));
        // An error that is itself cut.
        let quote = [&[11, 0, 0, 0, 0, 0, 0, 0][..], &flow].concat();
        let (number, quote) = match family {
            Family::V4 => (protocol::ICMP, quote),
            Family::V6 => (protocol::ICMPV6, [&[3][..], &quote[1..]].concat()),
        };
        let part = packet(family, (77, 1), number, Some(first(9)), &quote);
        assert_eq!(bench.emits(&part), Some((*b"one.", 1)));
        let part = packet(family, (77, 1), number, Some(last(9)), &[1, 2, 3]);
        assert_eq!(bench.emits(&part), Some((*b"one.", 1)));
    }
}

#[test]
fn errors_from_the_load_balancer_are_delivered_and_go_back_under_their_own_header() {
    for family in BOTH {
        let mut bench = Bench::attached();
        let flow = question(family, None);
        let other = other_question(family, None);
        bench.sends(family, *b"one.", 1, &flow);
        let errors = [&flow, &other].map(|about| icmp_error(family, 99, 1, about));
        bench.sends(family, *b"err1", 2, &errors[0]);
        bench.sends(family, *b"err2", 3, &errors[1]);
        assert_eq!(bench.emits(&errors[0]), Some((*b"err1", 2)));
        assert_eq!(bench.emits(&errors[1]), Some((*b"err2", 3)));
        assert_eq!(bench.emits(&flow), Some((*b"one.", 1)), "the flow is as it was");
    }
}

/// A packet of so many bytes from host 1 to host 2, UDP.
fn of_bytes(family: Family, bytes: usize) -> Vec<u8> {
    let header_bytes = if family == Family::V4 { 20 } else { 40 };
    let mut payload = vec![0x5a; bytes - header_bytes];
    payload[..8].copy_from_slice(&[0x12, 0x34, 0, 53, 0, 0, 0, 0]);
    packet(family, (1, 2), protocol::UDP, None, &payload)
}

#[test]
fn a_packet_above_8500_bytes_is_answered() {
    for family in BOTH {
        let mut bench = Bench::attached();
        let large = of_bytes(family, 8501);
        bench.sends(family, *b"toto", 1, &large);
        bench.sends(family, *b"from", 2, &answer(family, None));
        bench.read(&frame(&large), Side::Gwo);
        let (cookie, port, sent) = bench.sent();
        assert_eq!((cookie, port), (*b"from", 2), "to the sender: the other direction");
        let mut expected = [0; too_big::ANSWER_BYTES_MAX];
        let bytes = too_big::emit(&large, 8500, &mut expected).unwrap();
        assert_eq!(sent, expected[..bytes]);
        assert_eq!(inner::quoted(&sent).unwrap(), inner::parse(&large, family).unwrap().tuple);
        assert_eq!(bench.lost(DropReason::Mtu), 1);
        assert_eq!(bench.endpoint.too_big_sent.get(), 1);

        assert_eq!(bench.emits(&of_bytes(family, 8500)), Some((*b"toto", 1)), "8,500 pass");
        assert_eq!(bench.endpoint.too_big_sent.get(), 1);
    }
}

#[test]
fn answers_to_large_packets_are_limited_and_the_packets_counted() {
    let mut bench = Bench::attached();
    let large = of_bytes(Family::V6, 9000);
    bench.sends(Family::V6, *b"one.", 1, &large);
    for _ in 0..60 {
        bench.read(&frame(&large), Side::Gwo);
        bench.plan.clear();
    }
    assert_eq!(bench.endpoint.too_big_sent.get(), 50);
    assert_eq!(bench.lost(DropReason::Mtu), 60);
    assert_eq!(bench.endpoint.from_gwo.packets.get(), 60);
}

#[test]
fn without_a_buffer_a_large_packet_is_counted_and_not_answered() {
    let mut bench = Bench::attached();
    let large = of_bytes(Family::V4, 9000);
    bench.sends(Family::V4, *b"one.", 1, &large);
    bench.buffers = TestBuffers::without_scratch();
    bench.read(&frame(&large), Side::Gwo);
    assert!(bench.plan.is_empty());
    assert_eq!((bench.lost(DropReason::Mtu), bench.endpoint.too_big_sent.get()), (1, 0));
}

#[test]
fn segments_above_8500_bytes_are_answered_by_the_first() {
    for family in BOTH {
        let mut bench = Bench::attached();
        let large = of_bytes(family, 3 * 8600);
        let header_bytes = if family == Family::V4 { 28 } else { 48 };
        let segment = of_bytes(family, header_bytes + 8500);
        bench.sends(family, *b"one.", 1, &segment);
        // A UDP super-packet of 8,500 bytes of payload each: VIRTIO_NET_HDR_GSO_UDP_L4 with an open
        // checksum.
        let mut super_packet = frame(&large);
        let at = u16::try_from(header_bytes).unwrap();
        super_packet[..2].copy_from_slice(&[1, 5]);
        super_packet[2..4].copy_from_slice(&at.to_ne_bytes());
        super_packet[4..6].copy_from_slice(&8500_u16.to_ne_bytes());
        super_packet[6..8].copy_from_slice(&(at - 8).to_ne_bytes());
        super_packet[8..10].copy_from_slice(&6_u16.to_ne_bytes());
        bench.read(&super_packet, Side::Gwo);
        let (.., sent) = bench.sent();
        let quote = sent.len() - if family == Family::V4 { 28 } else { 48 };
        let quoted = &sent[sent.len() - quote..];
        assert_eq!(inner::quoted(&sent).unwrap(), inner::parse(&segment, family).unwrap().tuple);
        let (length_at, length) = if family == Family::V4 { (2, 8528) } else { (4, 8508) };
        assert_eq!(quoted[length_at..length_at + 2], u16::to_be_bytes(length), "of one segment");
        assert_eq!(bench.endpoint.too_big_sent.get(), 1);
        assert_eq!(bench.lost(DropReason::Mtu), 4);
    }
}

/// No kernel makes that; whoever writes frames with headers of their own may.
#[test]
fn a_super_packet_that_is_a_later_fragment_does_not_wait() {
    for (gso_bytes, packets) in [(8, 2), (100, 1)] {
        let mut bench = Bench::attached();
        let cut = Cut { id: 1, offset: 8, more: false };
        let udp = [&[0x12, 0x34, 0, 53, 0, 24, 0, 0][..], &[7; 16]].concat();
        let mut super_packet = frame(&packet(Family::V4, (1, 2), protocol::UDP, Some(cut), &udp));
        super_packet[..2].copy_from_slice(&[1, 5]);
        super_packet[2..4].copy_from_slice(&28_u16.to_ne_bytes());
        super_packet[4..6].copy_from_slice(&u16::to_ne_bytes(gso_bytes));
        super_packet[6..8].copy_from_slice(&20_u16.to_ne_bytes());
        super_packet[8..10].copy_from_slice(&6_u16.to_ne_bytes());
        bench.read(&super_packet, Side::Gwo);
        assert!(!bench.path.has_waiting());
        assert_eq!(bench.endpoint.from_gwo.packets.get(), packets);
        assert_eq!(bench.lost(DropReason::FlowUnknown), packets);
    }
}

/// A TCP packet from host 1 to host 2 with these flags and one option, an MSS.
fn syn(family: Family, flags: u8, mss: u16) -> Vec<u8> {
    let mut payload = vec![0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, flags, 0, 0, 0, 0, 0, 0];
    payload.extend([2, 4]);
    payload.extend(mss.to_be_bytes());
    packet(family, (1, 2), protocol::TCP, None, &payload)
}

#[test]
fn a_segment_size_is_lowered_both_ways() {
    for family in BOTH {
        let mut bench = Bench::attached();
        bench.path.set_clamp_mss(Some(TcpSegmentMax::new(1400)));
        let most = if family == Family::V4 { 1400 } else { 1380 };
        let header = gwlb::Repr { endpoint: ID, attachment: 0, cookie: *b"abcd", family }.emit();
        for (flags, mss, expected) in [
            (0x02, 8960, most),
            (0x12, 8960, most),
            (0x02, most, most),
            (0x02, 500, 500),
            (0x10, 8960, 8960), // no SYN
        ] {
            let sent = syn(family, flags, mss);
            let mss_of = |packet: &[u8]| {
                let at = packet.len() - 2;
                u16::from_be_bytes([packet[at], packet[at + 1]])
            };
            bench.arrive(&[&header[..], &sent].concat(), outer(1));
            let (_, delivered) = bench.planned();
            assert_eq!(mss_of(&delivered), expected, "{flags:x} {mss}");
            bench.read(&frame(&sent), Side::Gwo);
            let (.., returned) = bench.sent();
            assert_eq!(mss_of(&returned), expected, "{flags:x} {mss}");
        }
        // Nothing else is looked at: UDP with the same bytes, a later fragment.
        let mut udp = syn(family, 0x02, 8960);
        udp[if family == Family::V4 { 9 } else { 6 }] = protocol::UDP;
        bench.sends(family, *b"abcd", 1, &udp);
        let later = packet(family, (1, 2), 6, Some(last(1)), &syn(family, 0x02, 8960)[20..]);
        bench.sends(family, *b"abcd", 1, &later);
    }
}

/// What tells an endpoint that is used from one that somebody has made up.
#[test]
fn a_flow_is_answered_once_the_load_balancer_has_sent_both_ways() {
    for family in BOTH {
        let mut bench = Bench::attached();
        bench.sends(family, *b"one.", 1, &question(family, None));
        bench.sends(family, *b"one.", 1, &question(family, Some(first(1))));
        // Whatever comes back from this host is no answer, and later fragments have no ways.
        assert_eq!(bench.emits(&question(family, Some(first(1)))), Some((*b"one.", 1)));
        bench.sends(family, *b"one.", 1, &rest(family, last(1)));
        assert_eq!(bench.emits(&rest(family, last(1))), Some((*b"one.", 1)));
        assert_eq!(bench.emits(&answer(family, None)), Some((*b"one.", 1)));
        assert_eq!(bench.endpoint.answered_flows.get(), 0);
        for _ in 0..2 {
            bench.sends(family, *b"one.", 1, &answer(family, None));
        }
        assert_eq!(bench.endpoint.answered_flows.get(), 1);
    }
}
