//! Datagrams that a person wrote down, each with what must become of it: the files of
//! `tests/cases/`, whose notation `tests/cases/README.txt` explains.
//!
//! Here each case goes through the oracle, the parsers and the packet path; `e2e::cases` sends all
//! of them to the program, and, if asked, to the reference program.

mod notation;
mod sequences;

use std::collections::HashSet;
use std::net::IpAddr;

use gwlbtun::path::Decap;
use gwlbtun::path::plan::Target;
use gwlbtun::types::DropReason;
use gwlbtun::types::Offload;
use gwlbtun::types::Side;

pub(crate) use notation::Case;
pub(crate) use notation::Outcome;

use crate::fuzz::agree;
use crate::fuzz::rig::Rig;
use crate::oracle;
use crate::oracle::Delivery;
use crate::oracle::Flow;

/// Every case of every file.
///
/// # Panics
/// If a file has a mistake; the message says where.
pub(crate) fn all() -> Vec<Case> {
    [
        ("geneve.txt", include_str!("cases/geneve.txt")),
        ("options.txt", include_str!("cases/options.txt")),
        ("ipv4.txt", include_str!("cases/ipv4.txt")),
        ("ipv6.txt", include_str!("cases/ipv6.txt")),
    ]
    .into_iter()
    .flat_map(|(file, text)| notation::read(file, text))
    .collect()
}

#[test]
fn there_are_enough_cases_and_no_name_twice() {
    let cases = all();
    assert!(cases.len() >= 400, "{} cases", cases.len());
    let mut names = HashSet::new();
    for case in &cases {
        assert!(names.insert(&case.name), "{} twice", case.name);
    }
}

/// Every reason that a datagram by itself can be dropped for is some case's.
#[test]
fn every_reason_is_some_case() {
    let given: HashSet<_> = all()
        .iter()
        .filter_map(|case| match &case.outcome {
            Outcome::Dropped(reason) => Some(reason.clone()),
            Outcome::Delivered | Outcome::Flow { .. } => None,
        })
        .collect();
    let first = DropReason::Short.index()..=DropReason::InnerMalformed.index();
    let by_datagram = DropReason::ALL[first].iter();
    for reason in by_datagram.filter(|reason| **reason != DropReason::OptionSetLimit) {
        assert!(given.contains(reason.name()), "no case is dropped as {reason}");
    }
}

#[test]
fn the_oracle_says_what_people_say() {
    for case in all() {
        let verdict = oracle::decide(&case.datagram);
        let is_right = match (&case.outcome, verdict) {
            (Outcome::Dropped(reason), Err(said)) => reason == said,
            (Outcome::Delivered, Ok(delivery)) => delivery.belongs.flow().is_none(),
            (Outcome::Flow { protocol, ports }, Ok(Delivery { belongs, .. })) => {
                let flow = belongs.flow();
                flow.is_some_and(|flow| (flow.protocol, flow.ports) == (*protocol, *ports))
            }
            _ => false,
        };
        assert!(is_right, "{}: {:?}, but the oracle: {verdict:?}", case.name, case.outcome);
    }
}

#[test]
fn the_parsers_say_what_the_oracle_says() {
    for case in all() {
        agree(&case.datagram);
    }
}

/// Every case alone in a path that knows the endpoint.
#[test]
fn the_path_does_what_people_say() {
    for case in all() {
        let mut rig = Rig::new(Offload::ALL);
        assert_eq!(rig.arrive(&case.datagram, 60_000), Decap::Done, "{}", case.name);
        let planned = rig.end_batch();
        match &case.outcome {
            Outcome::Dropped(name) => {
                assert!(planned.is_empty(), "{}: delivered", case.name);
                let reason = DropReason::ALL.iter().find(|reason| reason.name() == name);
                let reason = *reason.expect("a reason of the README");
                let count = rig.worker.drops.get(reason) + rig.cell.decap_drops.get(reason);
                assert_eq!((count, rig.drops()), (1, 1), "{}", case.name);
            }
            Outcome::Delivered | Outcome::Flow { .. } => {
                assert_eq!(planned.len(), 1, "{}: {} drops", case.name, rig.drops());
                let delivery = oracle::decide(&case.datagram).expect("the test before this one");
                let frame = [&[0; 10], delivery.packet].concat();
                assert_eq!(planned[0].target, Target::Gwi(None), "{}", case.name);
                assert!(planned[0].bytes == frame, "{}: other bytes", case.name);
                if let Some(flow) = delivery.belongs.flow() {
                    returns(&case, &mut rig, &delivery, flow);
                }
            }
        }
    }
}

/// The packet itself and any answer of its flow return under the header that it came in.
fn returns(case: &Case, rig: &mut Rig, delivery: &Delivery<'_>, flow: Flow) {
    for side in Side::BOTH {
        for packet in [delivery.packet, &answer(flow)] {
            rig.read(&[&[0; 10], packet].concat(), side);
            let planned = rig.end_batch();
            assert_eq!(planned.len(), 1, "{}: nothing returns to {side:?}", case.name);
            assert_eq!(planned[0].target, Target::Outer(Rig::outer(60_000)), "{}", case.name);
            let expected = [delivery.header, packet].concat();
            assert!(planned[0].bytes == expected, "{}: another header", case.name);
        }
    }
}

/// The smallest packet that answers one of a flow.
fn answer(flow: Flow) -> Vec<u8> {
    let Flow { src, dst, protocol, ports: (from, to) } = flow.reversed();
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, protocol, 0, 0];
            packet.extend([src.octets(), dst.octets()].concat());
            [packet, ports].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 4, protocol, 64];
            packet.extend([src.octets(), dst.octets()].concat());
            [packet, ports].concat()
        }
        _ => panic!("{flow:?} is of two families"),
    }
}
