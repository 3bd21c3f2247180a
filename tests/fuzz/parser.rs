//! The parser of datagrams against the oracle.

use std::net::IpAddr;

use gwlbtun::path::first_of_train;
use gwlbtun::wire::Addresses;
use gwlbtun::wire::FiveTuple;
use gwlbtun::wire::gwlb;
use gwlbtun::wire::inner;

use crate::oracle;
use crate::oracle::Flow;
use crate::oracle::Name;

pub(crate) fn run(datagram: &[u8]) {
    agree(datagram);
    if let Some(first) = first_of_train(datagram, &gwlb::Profile::AWS) {
        let delivery = oracle::decide(datagram).expect("what begins a train can be delivered");
        assert_eq!(first, delivery.header.len() + delivery.packet_bytes);
        assert!(first < datagram.len());
    }
}

/// Requires that the program's parsers and the oracle say the same of a datagram.
pub(crate) fn agree(datagram: &[u8]) {
    let parsed = gwlb::parse(datagram, &gwlb::Profile::AWS).and_then(|meta| {
        let inner = inner::parse(&datagram[meta.header_bytes..], meta.family)?;
        Ok((meta, inner))
    });
    match (parsed, oracle::decide(datagram)) {
        (Err(reason), Err(expected)) if reason.name() == expected => {}
        (Ok((meta, inner)), Ok(delivery)) => {
            assert_eq!(meta.endpoint.0, delivery.endpoint);
            assert_eq!(meta.attachment, delivery.attachment);
            assert_eq!(meta.cookie, delivery.cookie);
            assert_eq!(datagram[meta.cookie_at..meta.cookie_at + 4], delivery.cookie);
            assert_eq!(meta.header_bytes, delivery.header.len());
            assert_eq!(inner.packet_bytes, delivery.packet_bytes);
            assert_eq!(flow_of(&inner.tuple), program_flow(delivery.belongs.name));
        }
        (parsed, expected) => panic!("{parsed:?}, but the oracle says {expected:?}"),
    }
}

/// A flow of the program in the oracle's words.
fn flow_of(tuple: &FiveTuple) -> Flow {
    let (src, dst) = match tuple.addresses {
        Addresses::V4 { src, dst } => (IpAddr::from(src), IpAddr::from(dst)),
        Addresses::V6 { src, dst } => (IpAddr::from(src), IpAddr::from(dst)),
    };
    Flow { src, dst, protocol: tuple.protocol, ports: (tuple.src_port, tuple.dst_port) }
}

/// The program knows later fragments by a flow of a protocol that has no ports, with the halves of
/// the identification in their place.
fn program_flow(name: Name) -> Flow {
    match name {
        Name::Flow(flow) => flow,
        Name::Fragments { src, dst, id } => {
            let half = |half: u32| u16::try_from(half & 0xffff).expect("16 bits");
            Flow { src, dst, protocol: 44, ports: (half(id >> 16), half(id)) }
        }
    }
}
