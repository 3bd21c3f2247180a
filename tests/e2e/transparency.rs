//! Random traffic through the whole program: every packet back once, byte for byte, in the order of
//! its flow, under a header of its flow, as corrupt as it went in; and the counters add up.
//!
//! What is sent is in [`crate::support::streams`]: runs that a coalescer likes, and everything that
//! it must leave alone. `GWLBTUN_SEED` repeats a run.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::sim::gwlb::CookieRule;
use crate::sim::gwlb::Host;
use crate::sim::gwlb::Wrapping;
use crate::sim::layout::Outer;
use crate::sim::layout::geneve_header;
use crate::support::books;
use crate::support::books::Known;
use crate::support::clock::PATIENCE;
use crate::support::engine::Engine;
use crate::support::injector::Back;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::ledger::Ledger;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::packets::pattern;
use crate::support::random::Random;
use crate::support::segmented::SegmentedSender;
use crate::support::traffic::Outgoing;
use crate::support::traffic::Traffic;

/// Every piece that can be switched off, off by itself.
const SWITCHES: &[&[&str]] = &[
    &["--no-udp-gro"],
    &["--no-udp-gso"],
    &["--no-tun-tso"],
    &["--no-tun-uso"],
    &["--no-tcp-coalescing"],
    &["--no-udp-coalescing"],
    &["--no-vector-checksum"],
    &["--gwi-max-frame", "mtu"],
];

const ENDPOINTS: usize = 2;
const FLOWS: usize = 24;
const ROUNDS: usize = 12;

/// Packets of a round. They wait in the engine's socket, and a veth that merges holds 256.
const ROUND_PACKETS: usize = 800;
const ROUND_PACKETS_MERGED: usize = 200;

/// The way from the load balancer to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Datagrams with an outer checksum.
    Plain,
    /// Without: the kernel merges none of them.
    WithoutChecksums,
    /// A link that merges what arrives.
    Merging,
}

const LINKS: &[Link] = &[Link::Plain, Link::WithoutChecksums, Link::Merging];

#[test]
fn random_traffic_returns_unchanged() {
    for &link in LINKS {
        let (frames, packets) = expect_transparency(link, &[]);
        assert!(frames < packets, "{link:?}: {frames} frames, so nothing was merged");
    }
}

#[test]
fn random_traffic_returns_unchanged_without_offloads() {
    for &link in LINKS {
        let (frames, packets) = expect_transparency(link, &["--no-offload"]);
        assert_eq!(frames, packets, "{link:?}");
    }
}

#[test]
fn random_traffic_returns_unchanged_with_what_the_oldest_kernel_has() {
    for &link in LINKS {
        expect_transparency(link, &["--kernel-floor"]);
    }
}

#[test]
#[ignore = "takes minutes: .ci/run full"]
fn random_traffic_returns_unchanged_without_each_single_piece() {
    for arguments in SWITCHES {
        for &link in LINKS {
            expect_transparency(link, arguments);
        }
    }
}

/// Returns how many frames reached gwi, and how many packets were in them.
fn expect_transparency(link: Link, arguments: &[&str]) -> (u64, u64) {
    let mut random = Random::from_environment();
    let workers = random.pick(&[1, 1, 2, 4]);
    let config = config(link, workers, &mut random);
    eprintln!("{link:?}, {workers} workers, {arguments:?}, {config:?}");
    let lab = match link {
        Link::Plain | Link::WithoutChecksums => Lab::new(0, config.clone()),
        Link::Merging => Lab::with_gro(0, config.clone()),
    };
    books::silence_kernel(&lab);
    let count = workers.to_string();
    let engine = Engine::passthrough(&lab, &[arguments, &["--workers", &count]].concat());
    let mut run = Run {
        link,
        engine,
        injector: lab.injector(),
        segmented: SegmentedSender::new(lab.topology.gwlb()),
        ledger: Ledger::default(),
        datagrams: 0,
    };
    run.introduce_endpoints(&config);
    let mut traffic = Traffic::new(random, ENDPOINTS, FLOWS);
    for _ in 0..ROUNDS {
        run.round(&mut traffic);
    }
    let (datagrams, returned) = (run.datagrams, run.ledger.returned());
    books::expect_balance(&run.engine, Known { datagrams, returned });
    run.injector.assert_clean();
    (books::frames_written(&lab, &run.engine), books::packets_written(&run.engine))
}

/// How many outer tuples there are, and what moves between them.
fn config(link: Link, workers: usize, random: &mut Random) -> Config {
    let mut config = Config::default();
    config.nodes.truncate(random.between(1, 3));
    config.port_count = random.pick(&[1, 4, 16]);
    config.outer_checksum = link != Link::WithoutChecksums;
    config.cookies = random.pick(&[CookieRule::PerFlow, CookieRule::PerDirection]);
    // Where tuples lead to several sockets, or a link merges each by itself, packets of a flow that
    // moves may overtake each other before anybody of us sees them.
    if workers == 1 && link != Link::Merging {
        config.roam_packets = random.pick(&[0, 20]);
    }
    config.seed = random.next();
    config
}

/// An engine, and what is on its way through it.
struct Run {
    link: Link,
    engine: Engine,
    injector: Injector,
    segmented: SegmentedSender,
    ledger: Ledger,
    /// How many were sent, good ones or not.
    datagrams: u64,
}

impl Run {
    /// Sends a packet by each outer tuple, so that every worker knows the endpoints: until it does,
    /// it holds 64 packets and no more.
    fn introduce_endpoints(&mut self, config: &Config) {
        let inner = packets::ping(V4, 1, b"hello");
        for (endpoint, node, port) in (0..ENDPOINTS).flat_map(|endpoint| {
            let ports = move |node| (0..config.port_count).map(move |port| (endpoint, node, port));
            config.nodes.iter().flat_map(ports)
        }) {
            let (id, port) = (endpoint_id(endpoint), config.port_first + port);
            let wrapping = Wrapping {
                outer: Outer { node: *node, target: config.target, port },
                header: geneve_header(id, 7, &inner),
            };
            let gwlb = &mut self.injector.gwlb;
            let packet = gwlb.encapsulate_as(id, Host::Client, wrapping, &inner);
            self.ledger.sent(id, &inner);
            self.send(&[packet.expect("an IP packet")], false);
            self.receive();
        }
    }

    /// A round of traffic, of which the engine may find everything at once.
    fn round(&mut self, traffic: &mut Traffic) {
        let packets_max = match self.link {
            Link::Plain | Link::WithoutChecksums => ROUND_PACKETS,
            Link::Merging => ROUND_PACKETS_MERGED,
        };
        let count = traffic.random.between(1, packets_max);
        let outgoing = traffic.round(count);
        let random = &mut traffic.random;
        let in_messages = self.link != Link::WithoutChecksums && random.once_in(2);
        let is_stopped = random.once_in(2);
        let with_condemned = random.once_in(3);
        if is_stopped {
            self.engine.signal(Signal::SIGSTOP);
        }
        let mut datagrams = Vec::new();
        for packet in &outgoing {
            datagrams.push(self.encapsulate(packet));
        }
        if with_condemned {
            for inner in condemned() {
                let gwlb = &mut self.injector.gwlb;
                let datagram = gwlb.encapsulate(endpoint_id(0), Host::Client, &inner);
                let place = random.below(datagrams.len() + 1);
                datagrams.insert(place, datagram.expect("an IP packet"));
            }
        }
        self.send(&datagrams, in_messages);
        if is_stopped {
            self.engine.signal(Signal::SIGCONT);
        }
        self.receive();
    }

    fn encapsulate(&mut self, packet: &Outgoing) -> Vec<u8> {
        let (id, inner) = (endpoint_id(packet.endpoint), &packet.inner);
        self.ledger.sent(id, inner);
        let gwlb = &mut self.injector.gwlb;
        if packet.new_cookie {
            gwlb.change_cookie(id, inner);
        }
        gwlb.encapsulate(id, Host::Client, inner).expect("an IP packet")
    }

    fn send(&mut self, datagrams: &[Vec<u8>], in_messages: bool) {
        self.datagrams += u64::try_from(datagrams.len()).expect("a round");
        if in_messages {
            self.segmented.send(datagrams);
            return;
        }
        for datagram in datagrams {
            self.injector.send_datagram(datagram);
        }
    }

    /// Takes back everything that is on its way.
    fn receive(&mut self) {
        while self.ledger.on_their_way() > 0 {
            let Some(back) = self.next(PATIENCE) else {
                panic!("did not come back: {}", self.ledger.missing());
            };
            self.ledger.came_back(back.endpoint, &back.inner);
        }
        let more = self.next(Duration::ZERO);
        assert_eq!(more.map(|back| back.inner), None, "more than was sent");
    }

    /// The next packet that comes back and does not tell the sender of a condemned one that it was
    /// too long, as may happen for each.
    fn next(&mut self, within: Duration) -> Option<Back> {
        loop {
            let back = self.injector.receive(within)?;
            if !is_about_condemned(&back.inner) {
                return Some(back);
            }
        }
    }
}

/// Ports of packets that nobody may see again, and of no others.
const CONDEMNED_PORTS: (u16, u16) = (9, 9);

/// Whether an IPv4 packet says "fragmentation needed" of one of [`condemned`].
fn is_about_condemned(inner: &[u8]) -> bool {
    let ports = [CONDEMNED_PORTS.0.to_be_bytes(), CONDEMNED_PORTS.1.to_be_bytes()].concat();
    inner.starts_with(&[0x45])
        && inner[9] == 1
        && inner.get(20..22) == Some(&[3, 4])
        && inner.get(48..52) == Some(&ports[..])
}

/// Packets that nobody may see again: longer than AWS takes, although they would merge; shorter
/// than they say; and of a header that is no header.
fn condemned() -> Vec<Vec<u8>> {
    let long = |number: u32| packets::tcp(V4, CONDEMNED_PORTS, 8462 * number, &pattern(1, 8462));
    let mut short = packets::udp(V6, CONDEMNED_PORTS, b"cut off");
    short.pop();
    let mut no_header = packets::udp(V4, CONDEMNED_PORTS, b"no header");
    no_header[0] = 0x44;
    vec![long(0), long(1), long(2), short, no_header]
}
