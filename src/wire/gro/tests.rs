//! The one rule, on packets of every kind: cut again, a run is what it was made from.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::Addresses;
use crate::wire::gso::Segmenter;

/// What a packet is built from.
#[derive(Clone, Debug)]
struct Recipe {
    is_v6: bool,
    transport: Transport,
    tos: u8,
    ttl: u8,
    /// Flags and offset of IPv4, flow label of IPv6.
    fragment: u16,
    id: u16,
    ids_count: bool,
    sequence: u32,
    acknowledgment: u32,
    reserved: u8,
    flags: u8,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Recipe {
    fn stream(is_v6: bool, transport: Transport) -> Self {
        Self {
            is_v6,
            transport,
            tos: 0,
            ttl: 64,
            fragment: 0x4000,
            id: 0xfffd,
            ids_count: true,
            sequence: 0xffff_ff00,
            acknowledgment: 9,
            reserved: 0,
            flags: flag::ACK,
            window: 500,
            urgent: 0,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: vec![7; 100],
        }
    }

    /// What the same sender sends next.
    fn next(&self) -> Self {
        let mut next = self.clone();
        if self.ids_count {
            next.id = self.id.wrapping_add(1);
        }
        next.sequence = self.sequence.wrapping_add(u32::try_from(self.payload.len()).unwrap());
        next
    }

    /// The packet, with right checksums.
    fn build(&self) -> Vec<u8> {
        let mut transport = match self.transport {
            Transport::Tcp => self.tcp_header(),
            Transport::Udp => vec![0x12, 0x34, 0, 53, 0, 0, 0, 0],
        };
        let bytes = u16::try_from(transport.len() + self.payload.len()).unwrap();
        let payload = checksum::sum(&self.payload);
        let addresses = if self.is_v6 {
            Addresses::V6 { src: [0x20; 16], dst: [0x30; 16] }
        } else {
            Addresses::V4 { src: [10, 0, 0, 1], dst: [10, 0, 0, 2] }
        };
        let protocol = self.transport.protocol();
        let pseudo_header = checksum::pseudo_header(addresses, protocol, bytes.into());
        match self.transport {
            Transport::Tcp => tcp::Header::new_checked(&mut transport)
                .unwrap()
                .fill_checksum(pseudo_header, payload),
            Transport::Udp => {
                let mut header = udp::Header::new_checked(&mut transport).unwrap();
                header.set_length_bytes(bytes);
                header.fill_checksum(pseudo_header, payload);
            }
        }
        [self.ip_header(bytes), transport, self.payload.clone()].concat()
    }

    fn tcp_header(&self) -> Vec<u8> {
        let mut header = vec![0x12, 0x34, 0, 80];
        header.extend(self.sequence.to_be_bytes());
        header.extend(self.acknowledgment.to_be_bytes());
        let words = u8::try_from(5 + self.options.len() / 4).unwrap();
        header.extend([words << 4 | self.reserved, self.flags]);
        header.extend(self.window.to_be_bytes());
        header.extend([0, 0]);
        header.extend(self.urgent.to_be_bytes());
        header.extend(&self.options);
        header
    }

    fn ip_header(&self, bytes: u16) -> Vec<u8> {
        let protocol = self.transport.protocol();
        if self.is_v6 {
            let [label_high, label_low] = self.fragment.to_be_bytes();
            let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, label_high, label_low];
            header.extend(bytes.to_be_bytes());
            header.extend([protocol, self.ttl]);
            header.extend([[0x20; 16], [0x30; 16]].concat());
            return header;
        }
        let mut header = vec![0x45, self.tos];
        header.extend((20 + bytes).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ipv4::Header::new_checked(&mut header).unwrap().fill_checksum();
        header
    }
}

/// A run of one packet.
fn begun(first: Candidate, packet: &[u8]) -> Run {
    let mut run = Run::none();
    run.begin(first, packet);
    run
}

/// Runs over packets in order, as whoever merges them does.
fn runs(packets: &[Vec<u8>]) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut open: Option<Run> = None;
    for (number, packet) in packets.iter().enumerate() {
        let candidate = Candidate::new(packet);
        if let (Some(run), Some(next)) = (&mut open, candidate)
            && run.is_continued_by(&next, packet)
            && next.has_sender_checksums(packet)
        {
            run.append(next, packet);
            runs.last_mut().unwrap().push(number);
            continue;
        }
        open = candidate
            .filter(|first| first.has_sender_checksums(packet))
            .map(|first| begun(first, packet));
        runs.push(vec![number]);
    }
    runs
}

/// Merges packets that make a run, and cuts the super-packet again.
fn merged_and_cut(packets: &[&Vec<u8>]) -> Vec<Vec<u8>> {
    let candidates: Vec<_> = packets.iter().map(|packet| Candidate::new(packet).unwrap()).collect();
    let mut run = begun(candidates[0], packets[0]);
    for (candidate, packet) in candidates.iter().zip(packets).skip(1) {
        run.append(*candidate, packet);
    }
    let mut merged = packets[0].clone();
    for (candidate, packet) in candidates.iter().zip(packets).skip(1) {
        merged.extend(&packet[candidate.headers_bytes()..]);
    }
    assert_eq!(merged.len(), run.packet_bytes());
    let header = run.finish(&mut merged);
    assert_is_offered_right(&merged, &header);
    let segmenter = Segmenter::new(&merged, &header).unwrap();
    let segment = |number| {
        let payload = &merged[segmenter.payload(number)];
        let mut headers = vec![0; segmenter.headers_bytes()];
        segmenter.write(number, checksum::sum(payload), &mut headers);
        [&headers[..], payload].concat()
    };
    let segments = (0..segmenter.segments()).map(segment).collect();
    run.restore(&mut merged);
    assert_eq!(merged[..packets[0].len()], packets[0][..], "what was patched is mended");
    segments
}

/// The checksum of a super-packet is the one to be completed: as for any frame that is handed on.
fn assert_is_offered_right(merged: &[u8], header: &virtio_net::Header) {
    let mut whole = merged.to_vec();
    virtio_net::complete_checksum(&mut whole, header).unwrap();
    let packet = crate::wire::inner::parse_any(&whole).unwrap();
    assert_eq!(packet.packet_bytes, whole.len());
    let transport = &whole[usize::from(header.checksum_start)..];
    let length = u32::try_from(transport.len()).unwrap();
    let sum = checksum::pseudo_header(packet.tuple.addresses, packet.tuple.protocol, length);
    assert!((sum + checksum::sum(transport)).is_valid());
    if whole[0] >> 4 == 4 {
        assert!(ipv4::Header::new_checked(&whole).unwrap().checksum_is_valid());
    }
}

fn streams() -> impl Strategy<Value = Recipe> {
    let ids = prop::sample::select(vec![0_u16, 1, 7, 0xfffe, 0xffff]);
    let transports = prop::sample::select(vec![Transport::Tcp, Transport::Udp]);
    let options = prop::sample::select(vec![0_usize, 12, 40]);
    (any::<bool>(), transports, ids, any::<bool>(), options).prop_map(
        |(is_v6, transport, id, dont_fragment, options)| {
            let mut recipe = Recipe::stream(is_v6, transport);
            recipe.id = id;
            recipe.ids_count = id != 0 || !dont_fragment;
            recipe.fragment = if dont_fragment { 0x4000 } else { 0 };
            recipe.options = vec![1; options];
            recipe
        },
    )
}

/// One way in which a sender, or somebody on the way, may depart from the stream.
#[derive(Clone, Debug)]
enum Oddity {
    None,
    Payload(u8),
    Flags(u8),
    Field(u8, u8),
    Bit(u16),
    AllOnes,
    NoChecksum,
    Trailing,
    Repeat,
    Skip,
}

fn oddities() -> impl Strategy<Value = Oddity> {
    prop_oneof![
        8 => Just(Oddity::None),
        2 => (0..130_u8).prop_map(Oddity::Payload),
        1 => any::<u8>().prop_map(Oddity::Flags),
        2 => (0..9_u8, any::<u8>()).prop_map(|(field, value)| Oddity::Field(field, value)),
        2 => any::<u16>().prop_map(Oddity::Bit),
        1 => Just(Oddity::AllOnes),
        1 => Just(Oddity::NoChecksum),
        1 => Just(Oddity::Trailing),
        1 => Just(Oddity::Repeat),
        1 => Just(Oddity::Skip),
    ]
}

/// Turns a recipe into the packet with its oddity; the stream goes on from `recipe`.
fn odd_packet(recipe: &mut Recipe, oddity: &Oddity) -> Vec<u8> {
    match *oddity {
        Oddity::Payload(bytes) => recipe.payload = vec![bytes; bytes.into()],
        Oddity::Flags(flags) => recipe.flags = flags,
        Oddity::Field(field, value) => match field {
            0 => recipe.tos = value,
            1 => recipe.ttl = value,
            2 => recipe.fragment ^= u16::from(value) << 8,
            3 => recipe.id ^= u16::from(value),
            4 => recipe.acknowledgment ^= u32::from(value),
            5 => recipe.reserved = value & 0xf,
            6 => recipe.window ^= u16::from(value),
            7 => recipe.urgent = value.into(),
            _ => recipe.options.iter_mut().for_each(|byte| *byte = value),
        },
        Oddity::Skip => *recipe = recipe.next(),
        Oddity::None
        | Oddity::Bit(_)
        | Oddity::AllOnes
        | Oddity::NoChecksum
        | Oddity::Trailing
        | Oddity::Repeat => {}
    }
    let mut packet = recipe.build();
    let ip_bytes = if recipe.is_v6 { 40 } else { 20 };
    let at = ip_bytes + recipe.transport.checksum_at();
    match *oddity {
        Oddity::Bit(bit) => {
            let bit = usize::from(bit) % (packet.len() * 8);
            packet[bit / 8] ^= 1 << (bit % 8);
        }
        Oddity::AllOnes => packet[at..at + 2].fill(0xff),
        Oddity::NoChecksum => packet[at..at + 2].fill(0),
        Oddity::Trailing => packet.push(0xaa),
        Oddity::None
        | Oddity::Payload(_)
        | Oddity::Flags(_)
        | Oddity::Field(..)
        | Oddity::Repeat
        | Oddity::Skip => {}
    }
    if !matches!(oddity, Oddity::Repeat) {
        *recipe = recipe.next();
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_run_cut_again_is_what_it_was_made_from(
        recipe in streams(),
        odd in vec(oddities(), 1..40),
    ) {
        let mut recipe = recipe;
        let packets: Vec<_> = odd.iter().map(|oddity| odd_packet(&mut recipe, oddity)).collect();
        for run in runs(&packets).iter().filter(|run| run.len() > 1) {
            let run: Vec<_> = run.iter().map(|&number| &packets[number]).collect();
            prop_assert_eq!(merged_and_cut(&run), run.iter().copied().cloned().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_stream_without_oddities_is_one_run(recipe in streams(), count in 1..40_usize) {
        let mut recipe = recipe;
        let packets: Vec<_> =
            (0..count).map(|_| odd_packet(&mut recipe, &Oddity::None)).collect();
        prop_assert_eq!(runs(&packets), vec![(0..count).collect::<Vec<_>>()]);
    }

    #[test]
    fn no_packet_makes_it_panic(a in vec(any::<u8>(), 0..150), b in vec(any::<u8>(), 0..150)) {
        for first in [0x45, 0x60] {
            let (mut a, mut b) = (a.clone(), b.clone());
            for packet in [&mut a, &mut b] {
                if let Some(byte) = packet.first_mut() {
                    *byte = first;
                }
            }
            if let (Some(one), Some(two)) = (Candidate::new(&a), Candidate::new(&b)) {
                let run = begun(one, &a);
                let _ = (run.is_continued_by(&two, &b), two.has_sender_checksums(&b));
            }
        }
    }
}

/// Whether a packet that departs from the stream in this way is merged with the one before it.
fn merges(recipe: &Recipe, change: impl FnOnce(&mut Recipe)) -> bool {
    let mut next = recipe.next();
    change(&mut next);
    runs(&[recipe.build(), next.build()]).len() == 1
}

/// The fields that each of the two published rule sets forgets, and the rest.
#[test]
fn every_field_that_differs_keeps_packets_apart() {
    for is_v6 in [false, true] {
        let tcp = Recipe::stream(is_v6, Transport::Tcp);
        assert!(merges(&tcp, |_| {}));
        assert!(merges(&tcp, |next| next.flags |= flag::PSH), "it ends the run");
        assert!(merges(&tcp, |next| next.payload.truncate(99)), "it ends the run");
        assert!(!merges(&tcp, |next| next.window += 1));
        assert!(!merges(&tcp, |next| next.acknowledgment += 1));
        assert!(!merges(&tcp, |next| next.sequence += 1));
        assert!(!merges(&tcp, |next| next.sequence -= 1));
        assert!(!merges(&tcp, |next| next.urgent = 1));
        assert!(!merges(&tcp, |next| next.tos = 1), "ECN");
        assert!(!merges(&tcp, |next| next.ttl = 63));
        assert!(!merges(&tcp, |next| next.options[11] = 3));
        assert!(!merges(&tcp, |next| next.options.clear()));
        assert!(!merges(&tcp, |next| next.reserved = 1), "AE of Accurate ECN");
        assert!(!merges(&tcp, |next| next.payload.push(7)), "longer than the first");
        assert!(!merges(&tcp, |next| next.payload.clear()), "an acknowledgment");
        for flags in [flag::FIN, flag::SYN, flag::RST, flag::URG, flag::ECE, flag::CWR] {
            assert!(!merges(&tcp, |next| next.flags |= flags), "{flags:#x}");
        }
        assert!(!merges(&tcp, |next| next.fragment ^= 1), "fragment, or flow label");
        assert_eq!(merges(&tcp, |next| next.id += 1), is_v6, "there is no identification");
        let udp = Recipe::stream(is_v6, Transport::Udp);
        assert!(merges(&udp, |_| {}));
        assert!(merges(&udp, |next| next.payload.truncate(1)), "it ends the run");
        assert!(!merges(&udp, |next| next.payload.push(7)));
    }
}

#[test]
fn identifications_count_up_or_are_zero_with_df() {
    let tcp = |id, fragment| Recipe { fragment, id, ..Recipe::stream(false, Transport::Tcp) };
    let with_next = |recipe: Recipe, id| merges(&recipe, |next| next.id = id);
    assert!(with_next(tcp(0, 0x4000), 0));
    assert!(!with_next(tcp(0, 0x4000), 1), "the segmenter would write 0");
    assert!(with_next(tcp(0, 0), 1));
    assert!(!with_next(tcp(0, 0), 0));
    assert!(!with_next(tcp(5, 0x4000), 5), "constant, but not 0");
    assert!(with_next(tcp(0xffff, 0x4000), 0));
    let first = |id, fragment| {
        let packet = tcp(id, fragment).build();
        begun(Candidate::new(&packet).unwrap(), &packet).is_cut_alike_by_the_kernel()
    };
    assert!(!first(0, 0x4000) && first(0, 0) && first(1, 0x4000));
}

/// Linux 6.1.192 cuts a super-packet into segments of 8 bytes where shorter ones are asked for.
#[test]
fn what_linux_would_cut_otherwise_is_not_merged() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let of = |bytes| Recipe { payload: vec![7; bytes], ..Recipe::stream(false, transport) };
        assert!(merges(&of(8), |_| {}), "{transport:?}");
        assert!(merges(&of(8), |next| next.payload.truncate(1)), "{transport:?}");
        for bytes in 1..8 {
            assert!(!merges(&of(bytes), |_| {}), "{transport:?}: {bytes} bytes");
        }
    }
}

#[test]
fn nothing_follows_a_push_a_short_packet_or_64_kib() {
    let tcp = Recipe::stream(false, Transport::Tcp);
    for last in [
        Recipe { flags: flag::ACK | flag::PSH, ..tcp.next() },
        Recipe { payload: vec![7; 50], ..tcp.next() },
    ] {
        let packets = [tcp.build(), last.build(), last.next().build()];
        assert_eq!(runs(&packets), [vec![0, 1], vec![2]]);
    }
    let mut large = Recipe { payload: vec![7; 8000], ..tcp };
    let packets: Vec<_> = (0..9).map(|_| odd_packet(&mut large, &Oddity::None)).collect();
    assert_eq!(runs(&packets), [(0..8).collect::<Vec<_>>(), vec![8]]);
}

#[test]
fn checksums_that_no_sender_writes_travel_alone() {
    for is_v6 in [false, true] {
        let tcp = Recipe::stream(is_v6, Transport::Tcp);
        let mut zero = tcp.next();
        let at = if is_v6 { 40 } else { 20 } + 16;
        // With this window the checksum is 0, which all ones say as well.
        zero.window = (0..=u16::MAX)
            .find(|&window| {
                let packet = Recipe { window, ..zero.clone() }.build();
                packet[at..at + 2] == [0, 0]
            })
            .unwrap();
        let first = Recipe { window: zero.window, ..tcp };
        let mut packets = [first.build(), zero.build()];
        assert_eq!(packets[1][at..at + 2], [0, 0]);
        assert_eq!(runs(&packets).len(), 1);
        packets[1][at..at + 2].fill(0xff);
        assert_eq!(runs(&packets).len(), 2, "valid, but not what the segmenter writes");
    }
}
