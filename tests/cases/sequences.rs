//! Cases of several packets: `returns.txt` and `clamp.txt`. Each goes through the oracle's model
//! and through the packet path.

use std::time::Duration;

use gwlbtun::path::Decap;
use gwlbtun::path::plan::Target;
use gwlbtun::types::DropReason;
use gwlbtun::types::INNER_BYTES_MAX;
use gwlbtun::types::Offload;
use gwlbtun::types::Side;
use gwlbtun::types::TcpSegmentMax;

use super::notation;
use crate::fuzz::rig::Rig;
use crate::oracle;
use crate::returns;
use crate::returns::Book;
use crate::returns::Header;

const PORT: u16 = 60_000;

/// A packet, and what must become of it.
#[derive(Debug)]
struct Step {
    /// The GENEVE header, which a packet of the host has none of.
    header: Option<Vec<u8>>,
    packet: Vec<u8>,
    fate: Fate,
}

/// What must become of a packet. Steps count from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// It enters gwi.
    In,
    /// It returns under the header of this step.
    Returns(usize),
    /// It is too big, and its sender is told under the header of this step.
    Told(usize),
    Dropped(String),
}

/// A sequence; of each step the segment size that the packet must have, if it is changed.
struct Sequence {
    name: String,
    steps: Vec<(Step, Option<u16>)>,
}

fn read(file: &str, text: &str) -> Vec<Sequence> {
    let lines = notation::lines(text);
    lines.iter().enumerate().map(|(number, line)| sequence(file, number, line)).collect()
}

fn sequence(file: &str, number: usize, line: &str) -> Sequence {
    let (name, rest) = line.split_once(": ").unwrap_or_else(|| panic!("{file}: {line:?}"));
    let name = format!("{file}: {name}");
    let (steps, fates) = rest.split_once("=>").unwrap_or_else(|| panic!("{name}: no outcome"));
    let (steps, fates): (Vec<_>, Vec<_>) = (steps.split('|').collect(), fates.split(',').collect());
    assert_eq!(steps.len(), fates.len(), "{name}: as many steps as outcomes");
    let step = |(place, (text, fate)): (usize, (&&str, &&str))| {
        let (who, parts) = text.trim().split_once(": ").unwrap_or_else(|| panic!("{name}: {text}"));
        let cookie = 0xc0de_0000 | u32::try_from(number << 4 | place).expect("few");
        let mut header = notation::datagram(&format!("usual; {parts}"), cookie, &name);
        let packet = header.split_off(40);
        let (fate, mss) = match fate.trim().split_once(" mss ") {
            Some((fate, mss)) => (fate, Some(mss.parse().expect("a number"))),
            None => (fate.trim(), None),
        };
        let number = |word: &str| word.parse::<usize>().expect("a step's number") - 1;
        let fate = match fate.split_once(' ') {
            _ if fate == "in" => Fate::In,
            Some(("told", step)) => Fate::Told(number(step)),
            None if fate.starts_with(|letter: char| letter.is_ascii_digit()) => {
                Fate::Returns(number(fate))
            }
            _ => Fate::Dropped(fate.to_owned()),
        };
        (Step { header: (who == "lb").then_some(header), packet, fate }, mss)
    };
    let steps = steps.iter().zip(&fates).enumerate().map(step).collect();
    Sequence { name, steps }
}

fn all() -> [(bool, Vec<Sequence>); 2] {
    [
        (false, read("returns.txt", include_str!("returns.txt"))),
        (true, read("clamp.txt", include_str!("clamp.txt"))),
    ]
}

/// The segment size that a SYN asks for first, whatever stands before it.
fn mss_of(packet: &[u8]) -> u16 {
    let start = oracle::tcp_start(packet).expect("a TCP header");
    let at = packet[start + 20..].windows(2).position(|bytes| bytes == [2, 4]);
    let at = start + 22 + at.expect("the option");
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// Whether the two differ as little as a clamp makes them.
fn is_clamped(before: &[u8], after: &[u8], mss: Option<u16>) -> bool {
    let changes = before.iter().zip(after).filter(|(before, after)| before != after).count();
    before.len() == after.len()
        && match mss {
            Some(mss) => (1..=4).contains(&changes) && mss_of(after) == mss,
            None => changes == 0,
        }
}

#[test]
fn there_are_enough_sequences() {
    let counts = all().map(|(_, sequences)| sequences.len());
    assert!(counts[0] >= 50 && counts[1] >= 24, "{counts:?}");
}

/// The model that judges fuzzers says what people say.
#[test]
fn the_model_says_what_people_say() {
    for (clamps, sequences) in all() {
        for sequence in sequences {
            judge(&sequence, clamps);
        }
    }
}

fn judge(Sequence { name, steps }: &Sequence, clamps: bool) {
    let mut book = Book::default();
    let mut waiting = Vec::new();
    for (step @ Step { header, packet, fate }, mss) in steps {
        let (_, belongs) = oracle::packet(packet).expect("every step's is one");
        let mut after = packet.clone();
        if clamps {
            returns::clamp(&mut after);
        }
        assert!(is_clamped(packet, &after, *mss), "{name}: {after:02x?}");
        if let Some(header) = header {
            let cookie = header[36..].try_into().expect("4 bytes");
            book.came(&belongs, &Header { bytes: header.clone(), cookie, port: PORT });
            assert_eq!(*fate, Fate::In, "{name}");
        } else if let Some(found) = book.header(&belongs) {
            let way = returns::way_of_refusal(packet).filter(|_| packet.len() > INNER_BYTES_MAX);
            let told = way.and_then(|way| book.ask(way)).map(|header| header.bytes);
            assert!(is_right(steps, step, &found.bytes, told.as_ref()), "{name}: {found:?}");
        } else {
            waiting.push((belongs, fate));
        }
        book.batch_is_over();
    }
    // What had to wait has seen everything now.
    for (belongs, fate) in waiting {
        let found = book.header(&belongs).map(|header| header.bytes);
        match fate {
            Fate::Returns(step) => assert_eq!(found, steps[*step].0.header, "{name}"),
            Fate::In | Fate::Told(_) | Fate::Dropped(_) => assert_eq!(found, None, "{name}"),
        }
    }
}

/// Whether a packet of the host that has a header, and perhaps one to be answered under, has those
/// that it must have.
fn is_right(
    steps: &[(Step, Option<u16>)],
    Step { packet, fate, .. }: &Step,
    found: &Vec<u8>,
    told: Option<&Vec<u8>>,
) -> bool {
    let is_too_big = packet.len() > INNER_BYTES_MAX;
    match fate {
        Fate::In => false,
        Fate::Returns(step) => !is_too_big && steps[*step].0.header.as_ref() == Some(found),
        Fate::Told(step) => is_too_big && steps[*step].0.header.as_ref() == told,
        Fate::Dropped(reason) => reason == "mtu" && is_too_big && told.is_none(),
    }
}

#[test]
fn the_path_does_what_people_say_of_sequences() {
    for (clamps, sequences) in all() {
        for sequence in sequences {
            go(&sequence, clamps);
        }
    }
}

/// Every step is a batch of its own; afterwards time passes for what still waits.
fn go(Sequence { name, steps }: &Sequence, clamps: bool) {
    let mut rig = Rig::new(Offload::ALL);
    if clamps {
        rig.path.set_clamp_mss(Some(TcpSegmentMax::new(8460)));
    }
    let mut planned = Vec::new();
    for (Step { header, packet, .. }, _) in steps {
        match header {
            Some(header) => {
                let datagram = [&header[..], packet].concat();
                assert_eq!(rig.arrive(&datagram, PORT), Decap::Done);
            }
            None => rig.read(&[&[0; 10], &packet[..]].concat(), Side::Gwo),
        }
        planned.extend(rig.end_batch());
        rig.send_waiting();
        planned.extend(rig.end_batch());
    }
    rig.now = rig.now.after(Duration::from_millis(300));
    rig.send_waiting();
    planned.extend(rig.end_batch());
    let mut drops = 0;
    for (Step { packet, fate, .. }, mss) in steps {
        let header_of =
            |step: &usize| steps[*step].0.header.clone().expect("one from the balancer");
        let (target, before) = match fate {
            Fate::In => (Target::Gwi(None), vec![0; 10]),
            Fate::Returns(step) | Fate::Told(step) => {
                (Target::Outer(Rig::outer(PORT)), header_of(step))
            }
            Fate::Dropped(reason) => {
                let is_it = |known: &&DropReason| known.name() == reason;
                let reason = *DropReason::ALL.iter().find(is_it).expect("a reason");
                assert!(rig.cell.encap_drops.get(reason) > 0, "{name}: not {reason}");
                drops += 1;
                continue;
            }
        };
        let is_it = |planned: &&crate::fuzz::rig::Planned| {
            let rest = planned.bytes.strip_prefix(&before[..]);
            let is_right = rest.is_some_and(|rest| match fate {
                Fate::Told(_) => rest.len() < packet.len() && rest[0] >> 4 == packet[0] >> 4,
                Fate::In | Fate::Returns(_) | Fate::Dropped(_) => is_clamped(packet, rest, *mss),
            });
            planned.target == target && is_right
        };
        let place = planned.iter().position(|planned| is_it(&planned));
        let place = place.unwrap_or_else(|| panic!("{name}: {fate:?}, but {planned:02x?}"));
        let found = planned.swap_remove(place);
        if matches!(fate, Fate::Told(_)) {
            returns::expect_refusal(&found.bytes[before.len()..], packet);
            drops += 1;
        }
    }
    assert!(planned.is_empty(), "{name}: {planned:02x?} besides");
    assert_eq!(rig.drops(), drops, "{name}");
}
