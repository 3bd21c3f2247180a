//! Every case of `tests/cases/` through real sockets: what enters gwi, what returns, what is
//! counted. And the same to the reference program, if the environment names one.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;

use crate::cases;
use crate::cases::Case;
use crate::cases::Outcome;
use crate::fuzz::rig::ENDPOINT;
use crate::oracle;
use crate::oracle::Delivery;
use crate::sim::gwlb::Config;
use crate::sim::layout;
use crate::sim::layout::Outer;
use crate::sim::wire::Wire;
use crate::support::books::silence_kernel;
use crate::support::clock::Deadline;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::lab::Lab;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::sniffer::Sniffer;

/// Cases that share an endpoint: one keeps no more than so many distinct option sets.
const CASES_PER_ENDPOINT: usize = 48;

/// The source port of the load balancer's node.
const PORT: u16 = 60_000;

/// What a program did with a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Packets that entered gwi.
    delivered: Vec<Vec<u8>>,
    /// UDP payloads that came back.
    returned: Vec<Vec<u8>>,
}

/// A load balancer's node, and an ear at each gwi.
struct Ends<'a> {
    lab: &'a Lab,
    wire: Wire,
    sniffer: Option<Sniffer>,
    links: HashSet<String>,
}

impl<'a> Ends<'a> {
    fn new(lab: &'a Lab) -> Self {
        let wire = lab.topology.open_wire().expect("the wire");
        Self { lab, wire, sniffer: None, links: HashSet::new() }
    }

    fn send(&self, payload: &[u8]) {
        let Config { nodes, target, .. } = &self.lab.config;
        let outer = Outer { node: nodes[0], target: *target, port: PORT };
        self.wire.send(&layout::datagram(outer, &[payload], true)).expect("sending on the wire");
    }

    /// The next UDP payload that came back to the node, if one has.
    fn returned(&mut self) -> Option<Vec<u8>> {
        let (packet, is_ready) = self.wire.receive().expect("the wire")?;
        let back = layout::returned(packet, is_ready).ok()?;
        let Config { nodes, target, .. } = &self.lab.config;
        let ends = (back.src, back.dst, back.src_port, back.dst_port);
        assert_eq!(ends, (*target, nodes[0], PORT, layout::GENEVE_PORT));
        Some(back.payload.to_vec())
    }

    /// Waits for the wire.
    fn wait(&self, deadline: Deadline) {
        let mut fds = [PollFd::new(self.wire.as_fd(), PollFlags::POLLIN)];
        let left = PollTimeout::try_from(deadline.left()).expect("less than weeks");
        let _ = poll(&mut fds, left);
    }

    /// Makes an endpoint, and listens at its gwi.
    fn open_endpoint(&mut self, engine: &Engine, id: u64) {
        let marker = marker(id, 0);
        self.send(&marker);
        wait_until("the first packet of an endpoint returns", || {
            self.returned().is_some_and(|payload| payload == marker)
        });
        let links = engine.links().into_iter().filter(|link| link.starts_with("gwi-"));
        let new = links.filter(|link| self.links.insert(link.clone())).last();
        let new = new.expect("an endpoint has a link");
        self.sniffer = Some(Sniffer::open(&self.lab.topology.target(), &new));
    }

    /// Sends a datagram and a marker behind it; what happened until the marker was back is the
    /// datagram's doing.
    ///
    /// # Panics
    /// If the marker is lost.
    fn see(&mut self, datagram: &[u8], marker: &[u8]) -> Seen {
        self.send(datagram);
        self.send(marker);
        let mut seen = Seen::default();
        let deadline = Deadline::after(PATIENCE);
        loop {
            match self.returned() {
                Some(payload) if payload == marker => break,
                Some(payload) => seen.returned.push(payload),
                None if deadline.is_over() => panic!("lost behind {datagram:02x?}"),
                None => self.wait(deadline),
            }
        }
        let sniffer = self.sniffer.as_mut().expect("an endpoint was opened");
        let delivered = std::iter::from_fn(|| sniffer.next());
        seen.delivered = delivered.filter(|packet| !marker.ends_with(packet)).collect();
        seen
    }
}

/// A datagram that everybody delivers and returns. What arrives together is not in order among
/// flows: TCP waits for more of its kind until all has been looked at, so nothing is behind it.
fn marker(endpoint: u64, number: usize) -> Vec<u8> {
    let path = (Ipv4Addr::new(192, 0, 2, 1).into(), V4.1);
    let number = u32::try_from(number).expect("few cases");
    let inner = packets::tcp(path, (7, 9), number, &number.to_be_bytes());
    [layout::geneve_header(endpoint, 0x00ca_fe00, &inner), inner].concat()
}

/// The cases, each with the id of an endpoint that it and some others use.
fn cases_by_endpoint() -> Vec<(u64, Case)> {
    let usual = ENDPOINT.0.to_be_bytes();
    let with_endpoint = |(number, mut case): (usize, Case)| {
        let id = ENDPOINT.0 + u64::try_from(number / CASES_PER_ENDPOINT).expect("few endpoints");
        let ids = case.datagram.windows(8).enumerate().filter(|(_, bytes)| *bytes == usual);
        let places: Vec<usize> = ids.map(|(place, _)| place).collect();
        for place in places {
            case.datagram[place..place + 8].copy_from_slice(&id.to_be_bytes());
        }
        (id, case)
    };
    cases::all().into_iter().enumerate().map(with_endpoint).collect()
}

/// What a program does with each case.
fn see_all(lab: &Lab, engine: &Engine) -> Vec<(Case, Seen)> {
    let mut ends = Ends::new(lab);
    let mut last = None;
    let mut all = Vec::new();
    for (number, (id, case)) in cases_by_endpoint().into_iter().enumerate() {
        if last.replace(id) != Some(id) {
            ends.open_endpoint(engine, id);
        }
        let seen = ends.see(&case.datagram, &marker(id, number + 1));
        all.push((case, seen));
    }
    all
}

/// What must be seen of a case.
fn expected(case: &Case) -> Seen {
    let Ok(delivery) = oracle::decide(&case.datagram) else { return Seen::default() };
    let returned = match case.outcome {
        Outcome::Flow { .. } => vec![case.datagram.clone()],
        Outcome::Delivered | Outcome::Dropped(_) => Vec::new(),
    };
    Seen { delivered: vec![delivery.packet.to_vec()], returned }
}

#[test]
fn the_program_does_what_people_say() {
    let lab = Lab::new(0, Config::default());
    silence_kernel(&lab);
    let engine = Engine::passthrough(&lab, &["--workers", "1"]);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut may_return: HashSet<Vec<u8>> = HashSet::new();
    for (case, mut seen) in see_all(&lab, &engine) {
        match &case.outcome {
            Outcome::Dropped(reason) => *reasons.entry(reason.clone()).or_default() += 1,
            Outcome::Delivered => drop(may_return.insert(case.datagram.clone())),
            Outcome::Flow { .. } => {}
        }
        seen.returned.retain(|payload| !may_return.contains(payload));
        assert!(
            seen == expected(&case),
            "{}: {seen:02x?} is not {:02x?}",
            case.name,
            case.datagram
        );
    }
    for (reason, count) in reasons {
        wait_until(&format!("{count} are counted as {reason}"), || engine.drops(&reason) == count);
    }
}

/// Environment variable with the path of the reference program.
const REFERENCE: &str = "REFERENCE_GWLBTUN";

/// Starts the reference program, again and again: one start in three ends in a crash (B1).
fn start_reference(lab: &Lab, program: &str) -> Engine {
    let mut command: Command = lab.topology.target().command("sh");
    command.args(["-c", "until \"$@\"; do :; done", "sh", program]);
    command.args(["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-j", "-p", "8080"]);
    command.args(["--udpthreads", "1", "--tunthreads", "1"]);
    Engine::launch(lab, &mut command)
}

/// A difference that we know and want.
struct Known {
    /// Of the list of the reference's bugs, or of what is written down about its packet path.
    number: &'static str,
    why: &'static str,
    is_it: fn(&Case) -> bool,
    /// Whether it is the reference that delivers.
    they_deliver: bool,
}

const KNOWN: [Known; 6] = [
    Known {
        number: "B2",
        why: "takes what is missing, doubled or of a wrong length from wherever it finds it",
        is_it: |case| {
            let reasons =
                ["option_missing", "option_duplicate", "option_bad_length", "options_overrun"];
            reasons.iter().any(|reason| is_dropped(case, reason))
        },
        they_deliver: true,
    },
    Known {
        number: "1.8, flags",
        why: "does not look at the control bit",
        is_it: |case| is_dropped(case, "oam"),
        they_deliver: true,
    },
    Known {
        number: "1.8, options",
        why: "skips options that say that they must be understood",
        is_it: |case| is_dropped(case, "critical_option_unknown"),
        they_deliver: true,
    },
    Known {
        number: "1.8, type",
        why: "takes the version from the packet and not from the protocol type",
        is_it: |case| is_dropped(case, "inner_version_mismatch"),
        they_deliver: true,
    },
    Known {
        number: "1.8, lengths",
        why: "does not look at the lengths that the IP header claims",
        is_it: |case| {
            ["inner_truncated", "inner_malformed"].iter().any(|reason| is_dropped(case, reason))
        },
        they_deliver: true,
    },
    Known {
        number: "1.8, short packets and fragments",
        why: "drops packets without a whole transport header, also later fragments, and those of \
              20 bytes",
        is_it: |case| oracle::decide(&case.datagram).is_ok_and(|delivery| is_short(&delivery)),
        they_deliver: false,
    },
];

fn is_dropped(case: &Case, reason: &str) -> bool {
    case.outcome == Outcome::Dropped(reason.to_owned())
}

/// Whether less than a transport header stands behind an IP header without options.
fn is_short(delivery: &Delivery<'_>) -> bool {
    let packet = &delivery.packet[..delivery.packet_bytes];
    let (header_bytes, protocol) =
        if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    let transport_bytes = match protocol {
        6 => 20,
        17 => 8,
        _ => 0,
    };
    packet.len() < header_bytes + transport_bytes || packet.len() == 20
}

/// Every difference between the two programs is on the list, and the list has nothing else.
#[test]
#[ignore = "compares with another program: .ci/run differential"]
fn the_reference_differs_where_it_is_known_to() {
    let Ok(program) = std::env::var(REFERENCE) else {
        eprintln!("not asked for: {REFERENCE} does not say where the reference program is");
        return;
    };
    let sights = |start: &dyn Fn(&Lab) -> Engine| {
        let lab = Lab::new(0, Config::default());
        silence_kernel(&lab);
        let engine = start(&lab);
        see_all(&lab, &engine)
    };
    let ours = sights(&|lab| Engine::passthrough(lab, &["--workers", "1"]));
    let theirs = sights(&|lab| start_reference(lab, &program));
    let mut unknown = Vec::new();
    let mut counts = [0; KNOWN.len()];
    for ((case, mut ours), (_, mut theirs)) in ours.into_iter().zip(theirs) {
        if case.outcome == Outcome::Delivered {
            // Where answers to these go is judged elsewhere.
            ours.returned.clear();
            theirs.returned.clear();
        }
        if ours == theirs {
            continue;
        }
        let they_deliver = !theirs.delivered.is_empty();
        let known = |known: &Known| known.they_deliver == they_deliver && (known.is_it)(&case);
        match KNOWN.iter().position(known) {
            Some(place) => counts[place] += 1,
            None => unknown.push(format!("{}: ours {ours:02x?}, theirs {theirs:02x?}", case.name)),
        }
    }
    assert!(unknown.is_empty(), "\n{}", unknown.join("\n"));
    for (Known { number, why, .. }, count) in KNOWN.iter().zip(counts) {
        eprintln!("{count} cases: the reference {why} ({number})");
        assert!(count > 0, "{number} is a difference no more");
    }
}
