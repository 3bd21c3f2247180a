//! The programs, run by the kernel: UDP sockets and TUN links in a network namespace of the test's
//! own, against the hash written down once more in Rust.

use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use proptest::prelude::any;
use proptest::prop_assert_eq;
use proptest::sample::select;
use proptest::strategy::Strategy;
use proptest::test_runner::Config;
use proptest::test_runner::TestRunner;

use super::*;
use crate::sys::link;
use crate::sys::link::LinkGroup;
use crate::sys::link::LinkIndex;
use crate::sys::link::LinkSetup;
use crate::sys::link::Netlink;
use crate::sys::tun;
use crate::sys::udp;
use crate::types::EndpointId;
use crate::types::LinkName;
use crate::types::Offload;
use crate::types::Side;

const WORKERS: usize = 4;

/// How long a test waits for a packet that must come, milliseconds.
const PATIENCE_MS: u16 = 20_000;

/// Runs `body` on a thread in a network namespace that ends with it, with loopback up.
fn in_private_namespace(body: impl FnOnce() + Send + 'static) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        shell("ip link set lo up");
        body();
    };
    std::thread::spawn(run).join().unwrap();
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap()))
}

/// The worker of an inner packet, as the module's header has it.
fn worker_of(packet: &[u8]) -> Option<usize> {
    let (addresses, protocol, ports_at): (&[u8], _, _) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let is_fragment = half(packet.get(..20)?, 6) & 0x3fff != 0;
            (&packet[12..20], packet[9], (!is_fragment).then_some(header))
        }
        6 => (packet.get(8..40)?, packet[6], Some(40)),
        _ => return None,
    };
    let sum = |sum: u32, at| sum.wrapping_add(word(addresses, at));
    let addresses = (0..addresses.len()).step_by(4).fold(0, sum);
    let mut rest = u32::from(protocol) << 16;
    if let Some(at) = ports_at.filter(|at| at + 4 <= packet.len() && [6, 17].contains(&protocol)) {
        rest += half(packet, at) + half(packet, at + 2);
    }
    let hash = (rest.wrapping_mul(0x9e37_79b1) ^ addresses).wrapping_mul(0x85eb_ca6b);
    Some((hash >> 16) as usize % WORKERS)
}

/// An inner packet in the making.
#[derive(Clone, Debug)]
struct Inner {
    is_v6: bool,
    addresses: [[u8; 16]; 2],
    protocol: u8,
    ports: [u16; 2],
    /// Words of IPv4 options.
    option_words: u8,
    /// Flags and offset of an IPv4 fragment.
    fragment: u16,
    /// What follows the IP header, both ports first, as far as there is room.
    payload_bytes: usize,
}

impl Inner {
    fn udp(is_v6: bool, port: u16) -> Self {
        let addresses = [[1; 16], [2; 16]];
        let (option_words, fragment, payload_bytes) = (0, 0, 20);
        let ports = [port, 53];
        Self { is_v6, addresses, protocol: 17, ports, option_words, fragment, payload_bytes }
    }

    fn reversed(&self) -> Self {
        let ([a, b], [c, d]) = (self.addresses, self.ports);
        Self { addresses: [b, a], ports: [d, c], ..self.clone() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut payload = self.ports.map(u16::to_be_bytes).concat();
        payload.resize(self.payload_bytes, 0);
        let mut packet = if self.is_v6 {
            let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], self.protocol, 64];
            header.extend(self.addresses.concat());
            header
        } else {
            let words = 5 + self.option_words;
            let length = u16::from(words) * 4 + u16::try_from(payload.len()).unwrap();
            let mut header = vec![0x40 | words, 0];
            header.extend(length.to_be_bytes());
            header.extend([0, 7]);
            header.extend(self.fragment.to_be_bytes());
            header.extend([64, self.protocol, 0, 0]);
            for address in self.addresses {
                header.extend(&address[..4]);
            }
            header.resize(usize::from(words) * 4, 1);
            let sum: u32 = (0..header.len()).step_by(2).map(|at| half(&header, at)).sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        };
        packet.extend(payload);
        packet
    }

    /// A datagram with so many words of GENEVE options before the packet.
    fn datagram(&self, option_words: u8) -> Vec<u8> {
        let mut datagram = vec![option_words, 0, 8, 0, 0, 0, 0, 0];
        datagram.resize(8 + 4 * usize::from(option_words), 0x4a);
        datagram.extend(self.bytes());
        datagram
    }
}

fn inners() -> impl Strategy<Value = Inner> {
    let protocols = select(vec![1, 6, 6, 17, 17, 44, 50, 58, 132]);
    let fragments = select(vec![0, 0, 0x4000, 0x2000, 0x2001, 1]);
    let parts = (any::<bool>(), any::<[[u8; 16]; 2]>(), protocols, any::<[u16; 2]>());
    (parts, 0_u8..=10, fragments, 0_usize..40).prop_map(
        |((is_v6, addresses, protocol, ports), option_words, fragment, payload_bytes)| Inner {
            is_v6,
            addresses,
            protocol,
            ports,
            option_words,
            fragment,
            payload_bytes,
        },
    )
}

/// Requires that `place` says where the hash sends random packets. The second argument is a
/// length of GENEVE options, in words.
fn expect_the_hash(place: impl Fn(Inner, u8) -> usize) {
    let config = Config { failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&(inners(), 0_u8..=63), |(inner, words)| {
        let expected = worker_of(&inner.bytes());
        prop_assert_eq!(Some(place(inner, words)), expected);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Which of some descriptors has something to read; it is read.
fn readable(fds: &[OwnedFd]) -> (usize, Vec<u8>) {
    let mut polled: Vec<_> =
        fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    let count = poll(&mut polled, PollTimeout::from(PATIENCE_MS)).unwrap();
    assert!(count > 0, "nothing came");
    let place = polled.iter().position(|fd| fd.any() == Some(true)).unwrap();
    let mut bytes = vec![0; 65_536];
    let filled = nix::unistd::read(&fds[place], &mut bytes).unwrap();
    bytes.truncate(filled);
    (place, bytes)
}

// ---- receive sockets ------------------------------------------------------------------------

struct Receivers(Vec<OwnedFd>);

impl Receivers {
    fn new() -> Self {
        Self((0..WORKERS).map(|_| udp::open_receiver(0, false).unwrap()).collect())
    }

    /// Which socket gets a datagram.
    fn place_of(&self, from: &UdpSocket, datagram: &[u8]) -> usize {
        from.send_to(datagram, (Ipv4Addr::LOCALHOST, 6081)).unwrap();
        let (place, received) = readable(&self.0);
        assert_eq!(received, datagram);
        place
    }
}

fn node(port: u16) -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap()
}

#[test]
fn both_directions_of_a_flow_reach_one_socket_whatever_the_header() {
    in_private_namespace(|| {
        let receivers = Receivers::new();
        receivers::steer_by_flow(&receivers.0).unwrap();
        let nodes = [node(60_000), node(60_001)];
        expect_the_hash(|inner, option_words| {
            let there = receivers.place_of(&nodes[0], &inner.datagram(option_words));
            let back = receivers.place_of(&nodes[1], &inner.reversed().datagram(8));
            assert_eq!(there, back, "{inner:?}");
            there
        });
    });
}

#[test]
fn flows_of_one_outer_path_spread_over_all_sockets() {
    in_private_namespace(|| {
        const FLOWS: u16 = 400;
        let (receivers, node) = (Receivers::new(), node(60_000));
        let spread = |is_v6| {
            let mut counts = [0; WORKERS];
            for flow in 0..FLOWS {
                let datagram = Inner::udp(is_v6, 40_000 + flow).datagram(8);
                counts[receivers.place_of(&node, &datagram)] += 1;
            }
            counts
        };
        let one = spread(false);
        assert!(one.contains(&FLOWS), "the kernel's hash is of the outer path: {one:?}");
        receivers::steer_by_flow(&receivers.0).unwrap();
        for counts in [spread(false), spread(true)] {
            assert!(counts.iter().all(|&count| count > FLOWS / 8), "{counts:?}");
        }
        receivers::steer_by_outer_path(&receivers.0).unwrap();
        assert_eq!(spread(true), one, "as before");
        receivers::steer_by_outer_path(&receivers.0).unwrap();
    });
}

#[test]
fn what_is_too_short_or_garbage_goes_where_the_kernel_s_hash_says() {
    in_private_namespace(|| {
        let receivers = Receivers::new();
        // So many that none of the sockets is left out, but in one run of ten million.
        let nodes: Vec<_> = (60_000..60_064).map(node).collect();
        let by_hash: Vec<_> = nodes.iter().map(|node| receivers.place_of(node, b"x")).collect();
        assert!((0..WORKERS).all(|place| by_hash.contains(&place)), "{by_hash:?}");
        receivers::steer_by_flow(&receivers.0).unwrap();
        for (is_v6, header) in [(false, 20), (true, 40)] {
            let whole = Inner::udp(is_v6, 4000).datagram(8);
            let mut garbage: Vec<_> = (0..40 + header).map(|len| whole[..len].to_vec()).collect();
            garbage.push(vec![0xff; 1000]);
            garbage.push([&[0x3f][..], &[0x45; 259]].concat());
            garbage.push([&[0; 8][..], &[0x55; 100]].concat());
            for datagram in garbage {
                for (node, &expected) in nodes.iter().zip(&by_hash) {
                    assert_eq!(receivers.place_of(node, &datagram), expected, "{datagram:02x?}");
                }
            }
            // Ports are cut off, but the flow's addresses are there.
            for len in 40 + header..40 + header + 4 {
                let expected = worker_of(&whole[40..len]).unwrap();
                assert_eq!(receivers.place_of(&nodes[0], &whole[..len]), expected);
            }
        }
    });
}

// ---- links ----------------------------------------------------------------------------------

/// An endpoint's links with [`WORKERS`] queues each, and one link that is somebody else's.
struct Links {
    gwi: Vec<OwnedFd>,
    gwo: Vec<OwnedFd>,
    other: Vec<OwnedFd>,
}

impl Links {
    fn new() -> Self {
        Self::with(Offload::NONE)
    }

    /// What is for 10.0.0.0/8 is routed to gwo.
    fn with(offload: Offload) -> Self {
        for (path, value) in [("ipv4/ip_forward", "1"), ("ipv4/conf/default/rp_filter", "0")] {
            std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
        }
        let make = |id: u64, side| {
            let name = LinkName::of(EndpointId(id), side);
            let queues = tun::create(name, WORKERS, offload).unwrap();
            shell(&format!("ip link set {name} addrgenmode none"));
            let setup =
                LinkSetup { mtu_bytes: 8500, queue_packets: 4096, group: LinkGroup(1 << 30) };
            let index = link::index_of(name).unwrap();
            Netlink::open().unwrap().bring_up(index, setup).unwrap();
            (queues, index)
        };
        let (gwi, gwi_index) = make(1, Side::Gwi);
        let (gwo, _) = make(1, Side::Gwo);
        let (other, _) = make(2, Side::Gwi);
        Self::steer(gwi_index, &gwi, &gwo);
        shell("ip route add 10.0.0.0/8 dev gwo-1");
        Self { gwi, gwo, other }
    }

    fn steer(index: LinkIndex, gwi: &[OwnedFd], gwo: &[OwnedFd]) {
        let program = links::load(index, WORKERS).unwrap();
        for queue in [&gwi[0], &gwo[0]] {
            tun::set_steering(queue, &program).unwrap();
        }
    }

    /// Redirects all that comes in by `from` to `to`, as the passthrough hook does.
    fn redirect(from: &str, to: &str) {
        shell(&format!(
            "tc qdisc add dev {from} clsact
             tc filter add dev {from} ingress protocol all u32 match u32 0 0 \
                 action mirred egress redirect dev {to}"
        ));
    }
}

const PLAIN: [u8; 10] = [0; 10];

fn write(queue: &OwnedFd, virtio: [u8; 10], packet: &[u8]) {
    let frame = [&virtio[..], packet].concat();
    assert_eq!(nix::unistd::write(queue, &frame), Ok(frame.len()));
}

/// The queue at which a packet comes out that is like `packet` but for TTL and checksums.
fn queue_of(queues: &[OwnedFd], packet: &[u8]) -> usize {
    let (place, frame) = readable(queues);
    assert_eq!(frame.len(), 10 + packet.len());
    assert_eq!(frame[10 + 12..10 + 20], packet[12..20], "addresses");
    place
}

#[test]
fn what_is_redirected_stays_in_its_queue() {
    in_private_namespace(|| {
        let links = Links::new();
        Links::redirect("gwi-1", "gwo-1");
        for flow in 0..40 {
            let packet = Inner::udp(flow % 2 == 0, 4000 + flow).bytes();
            for (queue, writer) in links.gwi.iter().enumerate() {
                write(writer, PLAIN, &packet);
                assert_eq!(queue_of(&links.gwo, &packet), queue);
            }
        }
    });
}

#[test]
fn what_leaves_by_gwi_stays_in_its_queue_too() {
    in_private_namespace(|| {
        let links = Links::new();
        Links::redirect("gwi-1", "gwi-1");
        for flow in 0..40 {
            let packet = Inner::udp(flow % 2 == 0, 4000 + flow).bytes();
            for (queue, writer) in links.gwi.iter().enumerate() {
                write(writer, PLAIN, &packet);
                assert_eq!(queue_of(&links.gwi, &packet), queue);
            }
        }
    });
}

/// A TCP segment of 10.1.0.1 to 10.1.0.2 with `payload_bytes` of payload.
fn tcp(port: u16, payload_bytes: usize) -> Vec<u8> {
    let mut inner = Inner { protocol: 6, ..Inner::udp(false, port) };
    inner.addresses[0][..4].copy_from_slice(&[10, 1, 0, 1]);
    inner.addresses[1][..4].copy_from_slice(&[10, 1, 0, 2]);
    inner.payload_bytes = 20 + payload_bytes;
    let mut packet = inner.bytes();
    packet[32] = 0x50;
    packet[33] = 0x10;
    packet
}

/// Forwards single and super-packets; `segments` are the packets as which one of the latter leaves.
fn expect_forwarded_in_its_queue(offload: Offload, segments: &[usize]) {
    let links = Links::with(offload);
    shell(
        "nft add table ip t
         nft add chain ip t c '{ type filter hook forward priority 0; }'
         nft add rule ip t c ct state new,established counter accept",
    );
    // Virtio: a checksum is to be filled in; and TCP over IPv4 in segments of 1000 bytes.
    let single = [1, 0, 0, 0, 0, 0, 20, 0, 16, 0];
    let super_packet = [1, 1, 40, 0, 0xe8, 3, 20, 0, 16, 0];
    for flow in 0..40 {
        for (queue, writer) in links.gwi.iter().enumerate() {
            let packet = tcp(4000 + flow, 100);
            write(writer, single, &packet);
            assert_eq!(queue_of(&links.gwo, &packet), queue);
            write(writer, super_packet, &tcp(4000 + flow, segments.iter().sum()));
            for &payload_bytes in segments {
                assert_eq!(queue_of(&links.gwo, &tcp(4000 + flow, payload_bytes)), queue);
            }
        }
    }
    let counted = Command::new("nft").args(["list", "table", "ip", "t"]).output().unwrap();
    let counted = String::from_utf8(counted.stdout).unwrap();
    assert!(counted.contains("packets 320 "), "single and super-packets: {counted}");
}

#[test]
fn what_is_forwarded_and_tracked_stays_in_its_queue() {
    in_private_namespace(|| expect_forwarded_in_its_queue(Offload::ALL.floor(), &[5000]));
}

#[test]
fn segments_of_a_super_packet_stay_in_its_queue() {
    in_private_namespace(|| expect_forwarded_in_its_queue(Offload::NONE, &[1000; 5]));
}

#[test]
fn what_comes_from_elsewhere_is_hashed_the_same_both_ways() {
    in_private_namespace(|| {
        let links = Links::new();
        Links::redirect("gwi-2", "gwo-1");
        expect_the_hash(|inner, _| {
            let [there, back] = [inner.bytes(), inner.reversed().bytes()].map(|packet| {
                // By whichever queue it came in there.
                write(&links.other[3], PLAIN, &packet);
                queue_of(&links.gwo, &packet)
            });
            assert_eq!(there, back, "{inner:?}");
            there
        });
    });
}

#[test]
fn what_this_host_sends_is_hashed() {
    in_private_namespace(|| {
        let links = Links::new();
        shell("ip addr add 10.9.0.1/32 dev gwo-1; ip addr add fd00::1/64 dev gwo-1 nodad");
        let mut seen = [false; WORKERS];
        let v4 = UdpSocket::bind("10.9.0.1:5000").unwrap();
        let v6 = UdpSocket::bind("[fd00::1]:5000").unwrap();
        for port in 1..100 {
            v4.send_to(&[0; 100], ("10.9.0.2", port)).unwrap();
            v6.send_to(&[0; 100], ("fd00::2", port)).unwrap();
            for _ in 0..2 {
                let (queue, frame) = readable(&links.gwo);
                assert_eq!(Some(queue), worker_of(&frame[10..]), "{frame:02x?}");
                seen[queue] = true;
            }
        }
        assert_eq!(seen, [true; WORKERS]);
        // Two fragments of one datagram.
        v4.send_to(&[0; 9000], ("10.9.0.2", 7)).unwrap();
        let [one, two] = [(); 2].map(|()| readable(&links.gwo));
        assert_eq!((one.0, Some(one.0)), (two.0, worker_of(&two.1[10..])));
    });
}

#[test]
fn the_probe_leaves_nothing() {
    in_private_namespace(|| {
        links::probe().unwrap();
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
        assert_eq!(String::from_utf8(links.stdout).unwrap().lines().count(), 1);
    });
}
