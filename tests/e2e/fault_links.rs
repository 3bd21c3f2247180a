//! What may happen to an endpoint's links under the program: deleted, renamed, moved, set down,
//! with another MTU, without addresses. Scenario R26.

use std::time::Duration;

use super::faults::expect_quiet_page;
use super::faults::ping_both;
use crate::sim::gwlb::Config;
use crate::support::clock::Deadline;
use crate::support::clock::Stopwatch;
use crate::support::clock::wait_for;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::process::run;

const GWI: &str = "gwi-5bqWvzLwwkk";
const GWO: &str = "gwo-5bqWvzLwwkk";

fn ip(lab: &Lab, line: &str) {
    let words: Vec<_> = line.split(' ').collect();
    run(&lab.topology.target(), "ip", &words);
}

/// Sends until something comes back; what was sent before may be lost.
fn until_back(injector: &mut Injector, endpoint: usize) {
    let watch = Stopwatch::start();
    let mut sequence = 0;
    let back = wait_for("traffic is back", || {
        sequence += 1;
        injector.send(endpoint_id(endpoint), &packets::ping(V4, sequence, b"back?"));
        injector.receive(Duration::from_millis(10))
    });
    assert_eq!(back.endpoint, endpoint_id(endpoint));
    eprintln!("traffic is back after {:?}", watch.elapsed());
    while injector.receive(Duration::from_millis(50)).is_some() {}
}

/// Requires that the program takes less than half of one core for a while: a thread that spins
/// takes all of one.
fn expect_no_spin(engine: &Engine) {
    let (before, over) = (engine.cpu_ticks(), Deadline::after(Duration::from_secs(2)));
    wait_until("time passes", || over.is_over());
    let ticks = engine.cpu_ticks() - before;
    eprintln!("{ticks} ticks of CPU time in 2 s");
    assert!(ticks < 100, "{ticks} ticks of CPU time in 2 s: something spins");
}

/// Hooks that write down their arguments and do as passthrough.
fn recorded(lab: &Lab) -> String {
    let log = lab.scratch.file("hooks");
    format!("f() {{ echo $1 $2 >>{}; {PASSTHROUGH} \"$@\"; }}; f", log.display())
}

fn hooks_run(lab: &Lab) -> Vec<String> {
    let text = std::fs::read_to_string(lab.scratch.file("hooks")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn r26_a_deleted_link_is_made_again_with_its_hooks() {
    for floor in [&[][..], &["--kernel-floor"]] {
        let lab = Lab::new(0, Config::default());
        let hook = recorded(&lab);
        let args = [&["-j", "--workers", "2", "-c", &hook, "-r", &hook], floor].concat();
        let engine = Engine::start(&lab, &args);
        let mut injector = lab.injector();
        ping_both(&mut injector, 0, 0);
        ping_both(&mut injector, 1, 0);
        let before = engine.descriptor_count();
        for (round, link) in [GWO, GWI].into_iter().enumerate() {
            ip(&lab, &format!("link del {link}"));
            // Nothing has to come for that.
            wait_until("both links are there again", || {
                ping_both(&mut injector, 1, 1);
                hooks_run(&lab).len() == 4 + 2 * round && engine.links().len() == 4
            });
            until_back(&mut injector, 0);
            ping_both(&mut injector, 0, 2);
            let told = format!("{link} was deleted");
            assert_eq!(engine.log().matches(&told).count(), 1, "{}", engine.log());
        }
        let (create, destroy) = (format!("CREATE {GWI}"), format!("DESTROY {GWI}"));
        let of_it: Vec<_> =
            hooks_run(&lab).into_iter().filter(|line| line.ends_with(GWI)).collect();
        assert_eq!(of_it, [&create, &destroy, &create, &destroy, &create].map(String::as_str));
        wait_until("descriptors are as before", || engine.descriptor_count() <= before);
        assert_eq!(engine.health("/").status, 200);
        wait_until("nothing is left to warn of", || {
            engine.status()["warnings"].as_array().map(Vec::len) == Some(0)
        });
        injector.assert_clean();
    }
}

#[test]
#[ignore = "takes a minute; .ci/run full has it"]
fn r26_links_are_made_again_each_time() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let mut injector = lab.injector();
    ping_both(&mut injector, 0, 0);
    ping_both(&mut injector, 1, 0);
    let (descriptors, threads) = (engine.descriptor_count(), engine.threads().len());
    for round in 0..50 {
        ip(&lab, &format!("link del {}", [GWI, GWO][round % 2]));
        wait_until("both are made again", || {
            ping_both(&mut injector, 1, 1);
            engine.log().matches("New interface").count() == 3 + round
        });
        until_back(&mut injector, 0);
        ping_both(&mut injector, 0, 2);
    }
    wait_until("descriptors are as before", || engine.descriptor_count() <= descriptors);
    wait_until("threads are as before", || engine.threads().len() <= threads);
    expect_no_spin(&engine);
    assert_eq!(engine.health("/").status, 200);
    injector.assert_clean();
}

#[test]
fn r26_a_link_that_is_down_is_counted_and_told_and_nothing_spins() {
    for floor in [&[][..], &["--kernel-floor"]] {
        let lab = Lab::new(0, Config::default());
        let engine = Engine::passthrough(&lab, &[floor, &["--workers", "2"]].concat());
        let mut injector = lab.injector();
        ping_both(&mut injector, 0, 0);
        ip(&lab, &format!("link set {GWI} down"));
        for sequence in 0..100 {
            injector.send(endpoint_id(0), &packets::ping(V4, sequence, b"lost"));
        }
        wait_until("each is counted", || engine.drops("tun_down") == 100);
        expect_no_spin(&engine);
        let page = engine.status();
        assert_eq!(page["healthy"], true, "{page}");
        let warnings = page["warnings"].to_string();
        assert!(warnings.contains(&format!("{GWI} is down")), "{page}");
        ip(&lab, &format!("link set {GWI} up"));
        until_back(&mut injector, 0);
        ping_both(&mut injector, 0, 1);
        ip(&lab, &format!("link set {GWO} down"));
        for sequence in 0..100 {
            injector.send(endpoint_id(0), &packets::ping(V4, sequence, b"lost"));
        }
        expect_no_spin(&engine);
        ip(&lab, &format!("link set {GWO} up"));
        until_back(&mut injector, 0);
        ping_both(&mut injector, 0, 1);
        injector.assert_clean();
    }
}

#[test]
fn r26_a_renamed_link_goes_on_and_ends() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2", "-t", "2"]);
    let mut injector = lab.injector();
    ping_both(&mut injector, 0, 0);
    ip(&lab, &format!("link set {GWI} name inside"));
    ip(&lab, &format!("link set {GWO} name outside"));
    ping_both(&mut injector, 0, 1);
    expect_quiet_page(&engine);
    wait_until("idle, it goes", || {
        let links = run(&lab.topology.target(), "ip", &["-o", "link"]);
        !links.contains("inside") && !links.contains("outside")
    });
    ping_both(&mut injector, 0, 2);
    injector.assert_clean();
}

#[test]
fn r26_links_that_moved_to_another_namespace_go_on() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2", "-t", "4"]);
    let mut injector = lab.injector();
    ping_both(&mut injector, 0, 0);
    // Any other namespace does.
    let other = lab.topology.gwlb();
    for link in [GWI, GWO] {
        ip(&lab, &format!("link set {link} netns {}", other.0));
        run(&other, "ip", &["link", "set", link, "up"]);
    }
    run(&other, PASSTHROUGH, &["CREATE", GWI, GWO, "02b8ee1d4db0c51c4"]);
    ping_both(&mut injector, 0, 1);
    expect_quiet_page(&engine);
    wait_until("idle, they go", || {
        let links = run(&other, "ip", &["-o", "link"]);
        !links.contains(GWI) && !links.contains(GWO)
    });
    // The next life is in the program's own namespace.
    ping_both(&mut injector, 0, 2);
    assert_eq!(engine.links().len(), 2);
    injector.assert_clean();
}

#[test]
fn r26_mtu_addresses_and_flags_change_under_traffic() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let mut injector = lab.injector();
    ping_both(&mut injector, 0, 0);
    for round in 0..50 {
        for link in [GWI, GWO] {
            ip(&lab, &format!("link set {link} mtu {}", 1280 + 100 * (round % 3)));
            ip(&lab, &format!("addr add 10.77.{round}.1/24 dev {link}"));
            ping_both(&mut injector, 0, 1);
            ip(&lab, &format!("addr flush dev {link}"));
            ip(&lab, &format!("link set {link} txqueuelen {}", 1000 + round));
            ping_both(&mut injector, 0, 2);
            ip(&lab, &format!("link set {link} down"));
            ip(&lab, &format!("link set {link} up"));
            ping_both(&mut injector, 0, 3);
        }
    }
    expect_quiet_page(&engine);
    injector.assert_clean();
}
