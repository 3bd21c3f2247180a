//! Names that scripts know: links, endpoint ids, threads.

use std::collections::BTreeSet;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::process::run;

/// Ids as GENEVE carries them, as the log and hooks write them, and in the names of links: what the
/// reference makes of them.
const GOLDEN: [(u64, &str, &str); 10] = [
    (0, "00000000000000000", "0"),
    (1, "00000000000000001", "1"),
    (59, "0000000000000003b", "X"),
    (60, "0000000000000003c", "10"),
    (0x77, "00000000000000077", "1X"),
    (3599, "00000000000000e0f", "XX"),
    (3600, "00000000000000e10", "100"),
    (0xdead_beef, "000000000deadbeef", "4MfVTX"),
    (0x0123_4567_89ab_cdef, "00123456789abcdef", "887epl1uMf"),
    (u64::MAX, "0ffffffffffffffff", "uur953OEv0f"),
];

#[test]
fn links_and_ids_are_those_of_the_reference() {
    let lab = Lab::new(0, Config::default());
    let notes = lab.scratch.file("notes");
    let hook = format!("note() {{ echo \"$@\" >>{}; }}; note", notes.display());
    let engine = Engine::start(&lab, &["-c", &hook]);
    let mut injector = lab.injector();
    for (id, ..) in GOLDEN {
        injector.send(id, &packets::ping(V4, 1, b"name"));
    }
    wait_until("all hooks have run", || {
        std::fs::read_to_string(&notes).is_ok_and(|text| text.lines().count() == GOLDEN.len())
    });
    let noted: BTreeSet<_> =
        std::fs::read_to_string(&notes).unwrap().lines().map(str::to_owned).collect();
    let listing = run(&lab.topology.target(), "ip", &["-d", "-o", "link"]);
    for (_, id, digits) in GOLDEN {
        assert!(noted.contains(&format!("CREATE gwi-{digits} gwo-{digits} {id}")), "{noted:?}");
        let created =
            format!("New interface gwi-{digits} and gwo-{digits} for ENI ID {id} created.");
        assert!(engine.log().contains(&created), "{created}");
        for side in ["gwi", "gwo"] {
            let start = format!(": {side}-{digits}: ");
            let link = listing.lines().find(|line| line.contains(&start)).expect("the link");
            for part in [
                "<POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP> mtu 8500 qdisc noqueue ",
                " qlen 4096",
                " link/none ",
                " tun type tun pi off ",
                " multi_queue ",
                " persist off",
            ] {
                assert!(link.contains(part), "{part} in {link}");
            }
        }
    }
}

#[test]
fn threads_are_called_as_those_of_the_reference() {
    let lab = Lab::new(0, Config::default());
    let named = |args: &[&str]| {
        let engine = Engine::start(&lab, args);
        engine.threads().iter().map(|name| name.trim_end().to_owned()).collect::<BTreeSet<_>>()
    };
    let counted = named(&["--udpthreads", "3"]);
    for name in ["gwlbtun", "gwlbtun Logger", "gwlbtun U000", "gwlbtun U001", "gwlbtun U002"] {
        assert!(counted.contains(name), "{name} in {counted:?}");
    }
    let pinned = named(&["--udpaffinity", "0-1", "--tunaffinity", "1"]);
    for name in ["gwlbtun UA000", "gwlbtun UA001"] {
        assert!(pinned.contains(name), "{name} in {pinned:?}");
    }
    assert!(!pinned.contains("gwlbtun U000"), "{pinned:?}");
}
