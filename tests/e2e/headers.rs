//! Which header a packet returns in: the newest of its own direction, else the other one's.

use crate::sim::gwlb::Config;
use crate::sim::gwlb::CookieRule;
use crate::sim::gwlb::Host;
use crate::sim::gwlb::Wrapping;
use crate::sim::layout::Outer;
use crate::sim::layout::geneve_header;
use crate::support::clock::PATIENCE;
use crate::support::engine::Engine;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;

/// A lab in which only the newest header of a flow is right.
fn strict(config: Config) -> (Lab, Engine, Injector) {
    let config = Config { in_flight_packets: 0, ..config };
    let lab = Lab::new(0, config);
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let injector = lab.injector();
    (lab, engine, injector)
}

#[test]
fn the_newest_header_wins_at_once() {
    let (_lab, _engine, mut injector) =
        strict(Config { roam_packets: 1, port_count: 16, ..Config::default() });
    for path in [V4, V6] {
        let inner = packets::udp(path, (4000, 53), b"roaming");
        for round in 0..100 {
            if round % 10 == 9 {
                injector.gwlb.renew(endpoint_id(0), &inner);
            }
            injector.exchange(endpoint_id(0), &inner);
        }
    }
    injector.assert_clean();
}

#[test]
fn each_direction_returns_in_its_own_header() {
    let (_lab, _engine, mut injector) =
        strict(Config { cookies: CookieRule::PerDirection, ..Config::default() });
    let there = packets::udp(V4, (4000, 53), b"question");
    let back = packets::udp((V4.1, V4.0), (53, 4000), b"answer");
    for _ in 0..50 {
        injector.exchange(endpoint_id(0), &there);
        injector.exchange(endpoint_id(0), &back);
    }
    injector.assert_clean();
}

#[test]
fn any_header_returns_byte_for_byte() {
    let (_lab, _engine, mut injector) = strict(Config::default());
    let inner = packets::tcp(V4, (4000, 443), 1, b"options");
    let (id, cookie) = (endpoint_id(0), 0xc0c0_aaaa);
    let plain = geneve_header(id, cookie, &inner);
    let (fixed, options) = plain.split_at(8);
    let mut reordered = fixed.to_vec();
    reordered.extend(&options[24..]);
    reordered.extend(&options[..24]);
    let mut with_unknown = fixed.to_vec();
    with_unknown[0] += 3;
    with_unknown.extend([0x0a, 0xaa, 0x11, 0x02, 1, 2, 3, 4, 5, 6, 7, 8]);
    with_unknown.extend(options);
    let mut with_vni = plain.clone();
    with_vni[4..8].copy_from_slice(&[0xab, 0xcd, 0xef, 0x01]);
    let mut with_attachment = plain.clone();
    with_attachment[24..32].fill(0x5a);
    let mut longest = plain.clone();
    longest[0] = 63;
    while longest.len() < 260 {
        longest.extend([0x0a, 0xaa, 0x12, 0x00]);
    }
    for (number, header) in
        [plain, reordered, with_unknown, with_vni, with_attachment, longest].into_iter().enumerate()
    {
        let wrapping = Wrapping {
            outer: Outer {
                node: Config::default().nodes[number % 3],
                target: Config::default().target,
                port: 1024 + 7 * u16::try_from(number).unwrap(),
            },
            header,
        };
        let sent = injector.gwlb.encapsulate_as(id, Host::Client, wrapping, &inner);
        injector.send_datagram(&sent.unwrap());
        let back = injector.receive(PATIENCE);
        assert_eq!(back.map(|back| back.inner), Some(inner.clone()), "header {number}");
        injector.assert_clean();
    }
}
