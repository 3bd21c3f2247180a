//! There and back without a kernel: what is written to `gwi` is read from `gwo` as it is, and every
//! packet comes back byte for byte, in the order of its flow, under its own header.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::Addresses;
use crate::wire::checksum;
use crate::wire::ipv4;
use crate::wire::protocol;
use crate::wire::tcp;
use crate::wire::udp;
use crate::wire::virtio_net;

/// A packet of one of a few flows.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an oddity of its own")]
struct Step {
    flow: u8,
    is_tcp: bool,
    payload_bytes: u16,
    push: bool,
    corrupt: bool,
    /// Whether it is a fragment, and then whether it is not the first one.
    fragment: Option<bool>,
    /// Which of two outer paths and cookies.
    other_header: bool,
    /// Whether the datagram stands in a buffer of its own, or behind the last one.
    new_buffer: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = prop_oneof![4 => Just(1000_u16), 2 => Just(20), 1 => 0..8400_u16];
    let odd = || prop::bool::weighted(0.05);
    let step = (0..4_u8, any::<bool>(), sizes, (odd(), odd(), odd(), odd()), any::<bool>());
    let step = step.prop_map(|(flow, is_tcp, payload_bytes, odd, new_buffer)| Step {
        flow,
        is_tcp,
        payload_bytes,
        push: odd.0,
        corrupt: odd.1,
        fragment: odd.2.then_some(new_buffer),
        other_header: odd.3,
        new_buffer,
    });
    vec(step, 1..120)
}

/// What each flow sends next.
#[derive(Default)]
struct Senders(HashMap<(u8, bool), (u32, u16)>);

impl Senders {
    fn packet(&mut self, step: &Step) -> Vec<u8> {
        let (sequence, id) =
            self.0.entry((step.flow, step.is_tcp)).or_insert((0xffff_f000, 0xfff0));
        let mut transport = vec![0x12, step.flow, 0, 80];
        if step.is_tcp {
            transport.extend(sequence.to_be_bytes());
            transport.extend([0, 0, 0, 1, 0x50, if step.push { 0x18 } else { 0x10 }]);
            transport.extend([1, 0, 0, 0, 0, 0]);
        } else {
            transport.extend([0; 4]);
        }
        let payload: Vec<u8> =
            (0..step.payload_bytes).map(|n| n.to_be_bytes()[1] ^ step.flow).collect();
        let bytes = u16::try_from(transport.len() + payload.len()).unwrap();
        let number = if step.is_tcp { protocol::TCP } else { protocol::UDP };
        let mut ip = vec![0x45, 0];
        ip.extend((20 + bytes).to_be_bytes());
        ip.extend(id.to_be_bytes());
        ip.extend(match step.fragment {
            None => [0x40, 0],
            Some(is_later) => [0x20, u8::from(is_later)],
        });
        ip.extend([64, number, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ipv4::Header::new_checked(&mut ip).unwrap().fill_checksum();
        let addresses = Addresses::V4 { src: [10, 0, 0, 1], dst: [10, 0, 0, 2] };
        let pseudo_header = checksum::pseudo_header(addresses, number, bytes.into());
        let sum = checksum::sum(&payload);
        if step.is_tcp {
            let mut header = tcp::Header::new_checked(&mut transport).unwrap();
            header.fill_checksum(pseudo_header, sum);
        } else {
            let mut header = udp::Header::new_checked(&mut transport).unwrap();
            header.set_length_bytes(bytes);
            header.fill_checksum(pseudo_header, sum);
        }
        *sequence = sequence.wrapping_add(payload.len().try_into().unwrap());
        *id = id.wrapping_add(1);
        let mut packet = [ip, transport, payload].concat();
        if step.corrupt {
            *packet.last_mut().unwrap() ^= 1;
        }
        packet
    }
}

/// What order is kept for: the flow, or a packet's later fragments, which may take another path.
type Ordered = (u8, Result<u8, u8>);

fn flow_of(packet: &[u8]) -> Ordered {
    (packet[9], if packet[7] == 0 { Ok(packet[21]) } else { Err(packet[5]) })
}

fn by_flow(packets: &[Vec<u8>]) -> HashMap<Ordered, Vec<&Vec<u8>>> {
    let mut flows: HashMap<_, Vec<_>> = HashMap::new();
    for packet in packets {
        flows.entry(flow_of(packet)).or_default().push(packet);
    }
    flows
}

/// One batch of datagrams in buffers, some of which hold several. Returns the inner packets.
fn arrive(bench: &mut Bench, steps: &[Step]) -> Vec<Vec<u8>> {
    let mut senders = Senders::default();
    let mut buffers: Vec<(Vec<u8>, Vec<Arrived>)> = Vec::new();
    let mut packets = Vec::new();
    for step in steps {
        let packet = senders.packet(step);
        let (cookie, port) = if step.other_header { (*b"wxyz", 2) } else { (*b"abcd", 1) };
        if step.new_buffer || buffers.is_empty() {
            buffers.push((vec![0; 96], Vec::new()));
        }
        let number = u16::try_from(buffers.len() - 1).unwrap();
        let (bytes, arrived) = buffers.last_mut().unwrap();
        let start = bytes.len();
        bytes.extend(header(cookie));
        bytes.extend(&packet);
        let buffer = BufferId::new(Group::Udp, number);
        arrived.push(Arrived { buffer, datagram: start..bytes.len(), outer: outer(port) });
        packets.push(packet);
    }
    let mut all = Vec::new();
    for (number, (bytes, arrived)) in (0_u16..).zip(buffers) {
        bench.buffers.put(BufferId::new(Group::Udp, number), bytes);
        all.extend(arrived);
    }
    for arrived in all {
        assert!(bench.path.has_room(&bench.plan, 1));
        let decap = bench.path.decap(arrived, NOW, &mut bench.buffers, &mut bench.plan);
        assert_eq!(decap, Decap::Done);
    }
    bench.path.end_batch(&mut bench.buffers, &mut bench.plan);
    packets
}

/// What was planned for `gwi`, as frames.
fn frames(bench: &mut Bench) -> Vec<Vec<u8>> {
    let gather = |(_, spans): (_, &[Span])| bench.buffers.gather(spans);
    let frames = bench.plan.jobs().map(gather).collect();
    bench.plan.clear();
    frames
}

/// The frames are read again, as one batch.
fn read_all(bench: &mut Bench, frames: &[Vec<u8>]) {
    bench.buffers = TestBuffers::default();
    for (number, bytes) in (1000_u16..).zip(frames) {
        let buffer = BufferId::new(Group::Tun, number);
        bench.buffers.put(buffer, [&[0xee; 320][..], bytes].concat());
        let frame = Frame { buffer, frame: 320..320 + bytes.len(), side: Side::Gwo };
        assert!(bench.path.has_room(&bench.plan, 1));
        bench.path.encap(LIFE.slot, &frame, NOW, &mut bench.buffers, &mut bench.plan);
    }
    bench.path.end_batch(&mut bench.buffers, &mut bench.plan);
}

/// The frames are read again. Returns the datagrams that leave.
fn leave(bench: &mut Bench, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    read_all(bench, frames);
    let mut datagrams = Vec::new();
    for (job, spans) in bench.plan.jobs() {
        let bytes = bench.buffers.gather(spans);
        let cut: Vec<_> = bytes.chunks(job.datagram_bytes.into()).map(<[u8]>::to_vec).collect();
        assert_eq!(cut.len(), job.packets as usize);
        assert!(bytes.len() <= plan::SEND_BYTES_MAX && cut.len() <= plan::PACKETS_MAX);
        let inner: usize = cut.iter().map(|datagram| datagram.len() - 40).sum();
        assert_eq!(inner, job.packet_bytes as usize);
        datagrams.extend(cut);
    }
    bench.plan.clear();
    datagrams
}

fn offloads() -> impl Strategy<Value = Offload> {
    any::<[bool; 6]>().prop_map(|[udp_gso, tun_tso, tun_uso, tcp, udp, all]| {
        let some = Offload {
            udp_gro: true,
            udp_gso,
            tun_tso,
            tun_uso,
            tcp_coalescing: tcp,
            udp_coalescing: udp,
        };
        if all { Offload::ALL } else { some }
    })
}

proptest! {
    #[test]
    fn every_packet_comes_back_byte_for_byte(steps in steps(), offload in offloads()) {
        let mut bench = Bench::with(offload);
        let packets = arrive(&mut bench, &steps);
        let frames = frames(&mut bench);
        for frame in &frames {
            let gso = virtio_net::Header::parse(frame).unwrap().gso;
            let is_tcp = frame[10 + 9] == protocol::TCP;
            let may_merge =
                if is_tcp { offload.tcp_coalescing } else { offload.udp_coalescing };
            prop_assert!(may_merge || gso == virtio_net::Gso::None);
        }
        let datagrams = leave(&mut bench, &frames);
        let returned: Vec<_> = datagrams.iter().map(|datagram| datagram[40..].to_vec()).collect();
        prop_assert_eq!(by_flow(&returned), by_flow(&packets));

        let cell = &bench.endpoint;
        let count = packets.len() as u64;
        let bytes = packets.iter().map(Vec::len).sum::<usize>() as u64;
        prop_assert_eq!((cell.from_gwlb.packets.get(), cell.from_gwlb.bytes.get()), (count, bytes));
        prop_assert_eq!((cell.from_gwo.packets.get(), cell.from_gwo.bytes.get()), (count, bytes));
    }
}

fn step(flow: u8, payload_bytes: u16) -> Step {
    Step {
        flow,
        is_tcp: true,
        payload_bytes,
        push: false,
        corrupt: false,
        fragment: None,
        other_header: false,
        new_buffer: true,
    }
}

/// How many packets each planned frame holds, in order.
fn merged(steps: &[Step]) -> Vec<u32> {
    let mut bench = Bench::with(Offload::ALL);
    arrive(&mut bench, steps);
    bench.plan.jobs().map(|(job, _)| job.packets).collect()
}

#[test]
fn interleaved_flows_merge_each_by_itself() {
    let steps: Vec<_> = (0..40).map(|n| step(n % 4, 1000)).collect();
    assert_eq!(merged(&steps), [10; 4]);
    let one_buffer: Vec<_> = steps.iter().map(|step| Step { new_buffer: false, ..*step }).collect();
    assert_eq!(merged(&one_buffer), [10; 4]);
}

#[test]
fn what_does_not_merge_closes_its_flow_first() {
    let acknowledgment = Step { payload_bytes: 0, ..step(1, 0) };
    assert_eq!(merged(&[step(1, 9), step(2, 9), acknowledgment, step(1, 9)]), [1, 1, 1, 1]);
    let corrupt = Step { corrupt: true, ..step(1, 9) };
    assert_eq!(merged(&[step(1, 9), step(1, 9), corrupt, step(1, 9), step(1, 9)]), [2, 1, 2]);
    assert_eq!(merged(&[corrupt, step(1, 9), step(1, 9)]), [1, 2], "the first one too");
    let fragment = |is_later| Step { fragment: Some(is_later), ..step(1, 9) };
    let before = [step(1, 9), step(2, 9), step(2, 9)];
    assert_eq!(merged(&[&before[..], &[fragment(false)]].concat()), [1, 1, 2]);
    // Of which flow it is, it does not say.
    assert_eq!(merged(&[&before[..], &[fragment(true)]].concat()), [1, 2, 1]);
}

/// A kernel that took a super-packet at the start may refuse one later.
#[test]
fn what_the_kernel_refused_is_merged_no_more() {
    let tcp = step(0, 1000);
    let steps = [tcp, tcp, Step { is_tcp: false, ..tcp }, Step { is_tcp: false, ..tcp }];
    for refused in [Transport::Tcp, Transport::Udp] {
        let mut bench = Bench::with(Offload::ALL);
        assert!(bench.path.stop_coalescing(refused), "they could have been merged");
        assert!(!bench.path.stop_coalescing(refused), "it is news only once");
        arrive(&mut bench, &steps);
        let targets = bench.plan.jobs().map(|(job, _)| (job.packets, job.target));
        let (packets, targets): (Vec<_>, Vec<_>) = targets.unzip();
        assert_eq!(packets, [1, 1, 2], "what waits for company is planned last");
        let other = if refused == Transport::Tcp { Transport::Udp } else { Transport::Tcp };
        for (packets, target) in packets.into_iter().zip(targets) {
            assert_eq!(target, Target::Gwi((packets > 1).then_some(other)));
        }
    }
}

#[test]
fn packets_under_different_headers_never_merge() {
    let other = Step { other_header: true, ..step(1, 9) };
    assert_eq!(merged(&[step(1, 9), step(1, 9), other, other, step(1, 9)]), [2, 2, 1]);
}

/// 43 packets of 1,400 bytes with headers of 40 and 40 bytes: the 44th would not fit one send.
#[test]
fn a_frame_holds_no_more_than_one_send_carries_back() {
    let steps = vec![step(1, 1400); 100];
    assert_eq!(merged(&steps), [44, 44, 12]);
    assert_eq!(merged(&vec![step(1, 8); 130]), [64, 64, 2]);
}

/// How many datagrams each send holds that these packets come back in, and of which length.
fn sends(steps: &[Step], offload: Offload) -> Vec<(u32, u16)> {
    let mut bench = Bench::with(offload);
    arrive(&mut bench, steps);
    let frames = frames(&mut bench);
    read_all(&mut bench, &frames);
    bench.plan.jobs().map(|(job, _)| (job.packets, job.datagram_bytes)).collect()
}

#[test]
fn datagrams_of_one_length_share_a_send() {
    let sizes = [100, 100, 100, 40, 100, 200, 200].map(|size| step(1, size));
    let single = Offload { tcp_coalescing: false, ..Offload::ALL };
    assert_eq!(sends(&sizes, single), [(3, 180), (1, 120), (1, 180), (2, 280)]);
    // The end of a super-packet may be shorter; segments of several make up a send.
    let sizes = [(1, 100), (1, 100), (2, 100), (2, 100), (2, 40), (1, 100), (2, 100)];
    let steps = sizes.map(|(flow, size)| step(flow, size));
    assert_eq!(sends(&steps, Offload::ALL), [(3, 180), (4, 180)]);
    let alone = Offload { udp_gso: false, ..Offload::ALL };
    assert_eq!(sends(&[step(1, 100), step(1, 100)], alone), [(1, 180); 2]);
}

/// A frame that would need more headers than there are buffers for loses the rest, counted.
#[test]
fn without_a_buffer_for_headers_the_rest_is_counted() {
    let mut bench = Bench::with(Offload::ALL);
    arrive(&mut bench, &[step(1, 100), step(1, 100), step(1, 100)]);
    let frames = frames(&mut bench);
    bench.buffers = TestBuffers::without_scratch();
    let buffer = BufferId::new(Group::Tun, 0);
    bench.buffers.put(buffer, [&[0xee; 320][..], &frames[0]].concat());
    let frame = Frame { buffer, frame: 320..320 + frames[0].len(), side: Side::Gwo };
    bench.path.encap(LIFE.slot, &frame, NOW, &mut bench.buffers, &mut bench.plan);
    bench.path.end_batch(&mut bench.buffers, &mut bench.plan);
    assert!(bench.plan.is_empty());
    assert_eq!(bench.endpoint.encap_drops.get(DropReason::NoBuffer), 3);
    assert_eq!(bench.endpoint.from_gwo.packets.get(), 3);
}

#[test]
fn more_flows_than_a_batch_remembers_lose_nothing() {
    let mut bench = Bench::with(Offload::ALL);
    let many = usize::from(coalesce::FLOWS_MAX) + 10;
    for number in 0..u16::try_from(2 * many).unwrap() {
        let flow = number % u16::try_from(many).unwrap();
        let mut packet = PACKET;
        packet[20..22].copy_from_slice(&flow.to_be_bytes());
        let bytes = [&[0; 96][..], &header(*b"abcd"), &packet].concat();
        let buffer = BufferId::new(Group::Udp, number);
        let arrived = Arrived { buffer, datagram: 96..bytes.len(), outer: outer(number) };
        bench.buffers.put(buffer, bytes);
        bench.path.decap(arrived, NOW, &mut bench.buffers, &mut bench.plan);
    }
    bench.path.end_batch(&mut bench.buffers, &mut bench.plan);
    assert_eq!(bench.plan.jobs().map(|(job, _)| job.packets as usize).sum::<usize>(), 2 * many);
}

/// A send of its own for each segment: as many jobs as segments, which the plan must have room for.
#[test]
fn frames_fit_the_plan_where_no_send_gathers() {
    let steps = vec![step(1, 1000); 47];
    for offload in [Offload { udp_gso: false, ..Offload::ALL }, Offload::ALL] {
        let mut bench = Bench::with(offload);
        arrive(&mut bench, &steps);
        let frame = frames(&mut bench).remove(0);
        bench.buffers = TestBuffers::default();
        let mut number = 0;
        while bench.path.has_room(&bench.plan, 1) {
            let buffer = BufferId::new(Group::Tun, number);
            bench.buffers.put(buffer, [&[0xee; 320][..], &frame].concat());
            let frame = Frame { buffer, frame: 320..320 + frame.len(), side: Side::Gwo };
            bench.path.encap(LIFE.slot, &frame, NOW, &mut bench.buffers, &mut bench.plan);
            number += 1;
        }
        bench.path.end_batch(&mut bench.buffers, &mut bench.plan);
        assert!(number > 5, "{number} frames of a plan");
        let packets: usize = bench.plan.jobs().map(|(job, _)| job.packets as usize).sum();
        assert_eq!(packets, usize::from(number) * 47);
    }
}
