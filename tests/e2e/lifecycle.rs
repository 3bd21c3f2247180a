//! Endpoints come and go: hooks in order, nothing lost for others, nothing left behind.
//!
//! A test that begins with `b` and a number is about that bug of the reference program.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::support::clock::Deadline;
use crate::support::clock::Stopwatch;
use crate::support::clock::wait_for;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::engine::tunnel_links;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::process::run;

/// Links of endpoints 0, 1 and 2 of a lab: base 60 of 2b8ee1d4db0c51c4 and the next two.
const GWI: [&str; 3] = ["gwi-5bqWvzLwwkk", "gwi-5bqWvzLwwkl", "gwi-5bqWvzLwwkm"];
const GWO: [&str; 3] = ["gwo-5bqWvzLwwkk", "gwo-5bqWvzLwwkl", "gwo-5bqWvzLwwkm"];

fn ping_through(injector: &mut Injector, endpoint: usize, sequence: u16) {
    for path in [V4, V6] {
        let inner = packets::ping(path, sequence, b"alive");
        injector.exchange(endpoint_id(endpoint), &inner);
    }
}

/// A hook that writes what it sees and does to a file, slowly, and then passes packets through.
fn recording_hook(lab: &Lab) -> (PathBuf, PathBuf) {
    let (script, log) = (lab.scratch.file("hook.sh"), lab.scratch.file("hook.log"));
    let text = format!(
        r#"#!/bin/sh
log={}
packets() {{ cat "/sys/class/net/$1/statistics/rx_packets" 2>/dev/null || echo none; }}
flags() {{ cat "/sys/class/net/$1/flags" 2>/dev/null || echo none; }}
up() {{ echo $(($(flags "$1") & $(flags "$2") & 1)); }}
state() {{ echo "packets $(packets "$1") $(packets "$2") up $(up "$1" "$2")"; }}
echo "begin $* $(state "$2" "$3")" >>"$log"
[ "$1" = CREATE ] && sleep 1
{PASSTHROUGH} "$@"
echo "end $* $(state "$2" "$3")" >>"$log"
"#,
        log.display()
    );
    std::fs::write(&script, text).unwrap();
    (script, log)
}

fn lines(log: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn hooks_get_their_arguments_in_order_and_no_packet_precedes_create() {
    let lab = Lab::new(0, Config::default());
    let (script, log) = recording_hook(&lab);
    let command = format!("sh {}", script.display());
    let mut engine = Engine::start(&lab, &["-c", &command, "-r", &command]);
    let mut injector = lab.injector();
    // Held while the hook runs, and all of them returned afterwards, in order.
    let inners: Vec<_> = (0..50).map(|number| packets::ping(V4, number, b"held")).collect();
    for inner in &inners {
        injector.send(endpoint_id(0), inner);
    }
    for inner in &inners {
        let back = wait_for("held packets return", || injector.receive(Duration::ZERO));
        assert_eq!(&back.inner, inner);
    }
    ping_through(&mut injector, 1, 1);
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    let id = |number| format!("{:017x}", endpoint_id(number));
    let mut expected = Vec::new();
    for number in 0..2 {
        let names = format!("{} {} {}", GWI[number], GWO[number], id(number));
        expected.push(format!("begin CREATE {names} packets 0 0 up 1"));
        expected.push(format!("end CREATE {names} packets 0 0 up 1"));
    }
    let lines = lines(&log);
    assert_eq!(lines.len(), 8, "{lines:#?}");
    assert_eq!(lines[..4], expected);
    let mut destroyed: Vec<_> = (0..2)
        .map(|number| format!("DESTROY {} {} {}", GWI[number], GWO[number], id(number)))
        .collect();
    // One hook at a time: each end follows its begin; which endpoint is first is open.
    for pair in lines[4..].chunks(2) {
        let place = destroyed.iter().position(|names| pair[0].contains(names.as_str()));
        let names = destroyed.remove(place.unwrap_or_else(|| panic!("{lines:#?}")));
        assert!(pair[0].starts_with("begin "), "{lines:#?}");
        assert!(pair[1].starts_with(&format!("end {names}")), "{lines:#?}");
        assert!(pair[1].ends_with(" up 1"), "DESTROY found its links up: {lines:#?}");
    }
    injector.assert_clean();
}

#[test]
fn an_idle_endpoint_goes_and_returns_while_another_loses_nothing() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["-t", "2", "--workers", "2"]);
    let mut injector = lab.injector();
    ping_through(&mut injector, 0, 0);
    ping_through(&mut injector, 1, 0);
    let both: Vec<_> = [GWI, GWO].iter().flat_map(|names| names[..2].to_vec()).collect();
    assert_eq!(engine.links(), both);
    for round in 0..2 {
        let mut sequence = 1;
        wait_until("the idle endpoint's links go", || {
            ping_through(&mut injector, 0, sequence);
            sequence += 1;
            engine.links() == [GWI[0], GWO[0]]
        });
        // Every exchange above had its answer; now the idle endpoint is used again.
        ping_through(&mut injector, 1, round);
        ping_through(&mut injector, 0, 0);
        assert_eq!(engine.links(), both);
    }
    injector.assert_clean();
}

#[test]
fn packets_during_teardown_lose_nothing() {
    let lab = Lab::new(0, Config::default());
    // A slow DESTROY: what arrives meanwhile waits for the next CREATE.
    let command = format!("sh -c 'sleep 1; exec {PASSTHROUGH} \"$@\"' slow");
    let log = lab.scratch.file("destroyed");
    let destroy = format!("echo >>{}; {command}", log.display());
    let _engine = Engine::start(&lab, &["-c", PASSTHROUGH, "-r", &destroy, "-t", "1"]);
    let mut injector = lab.injector();
    ping_through(&mut injector, 0, 1);
    wait_until("DESTROY begins", || log.exists());
    ping_through(&mut injector, 0, 2);
    injector.assert_clean();
}

#[test]
fn an_endpoint_that_is_used_again_before_its_turn_to_go_stays() {
    let lab = Lab::new(0, Config::default());
    let (destroyed, go) = (lab.scratch.file("destroyed"), lab.scratch.file("go"));
    let destroy = format!(
        "f() {{ echo $2 >>{}; while [ ! -e {} ]; do sleep 0.1; done; }}; f",
        destroyed.display(),
        go.display()
    );
    let args = ["-c", PASSTHROUGH, "-r", &destroy, "-t", "2", "-j"];
    let mut engine = Engine::start(&lab, &args);
    let mut injector = lab.injector();
    ping_through(&mut injector, 0, 1);
    ping_through(&mut injector, 1, 1);
    wait_until("the DESTROY of one begins", || destroyed.exists());
    let first = wait_for("its name", || lines(&destroyed).into_iter().next());
    let other = usize::from(first == GWI[0]);
    wait_until("the other is idle too", || {
        let page = engine.status();
        let mut endpoints = page["enis"].as_array().into_iter().flatten();
        let number = format!("{:017x}", endpoint_id(other));
        let endpoint = endpoints.find(|endpoint| endpoint["eniStr"] == *number).expect("it is");
        endpoint["tunnelIn"]["secsSincelastPacket"].as_f64() > Some(2.5)
    });
    ping_through(&mut injector, other, 2);
    std::fs::write(&go, "").unwrap();
    wait_until("the first is gone", || {
        ping_through(&mut injector, other, 3);
        engine.links() == [GWI[other], GWO[other]]
    });
    assert_eq!(lines(&destroyed).len(), 1);
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    assert_eq!(lines(&destroyed), [first, GWI[other].to_owned()]);
    injector.assert_clean();
}

#[test]
fn descriptors_threads_and_links_are_the_same_after_endpoints_went() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["-t", "1", "--workers", "2"]);
    let mut injector = lab.injector();
    let mut cycle = || {
        // On a busy machine the first may be gone before the last one is there.
        wait_until("three endpoints, with a queue per worker and side", || {
            for endpoint in 0..3 {
                ping_through(&mut injector, endpoint, 1);
            }
            let tuns = engine.descriptors().get("/dev/net/tun").copied();
            engine.links().len() == 6 && tuns >= Some(3 * 2 * 2)
        });
        wait_until("the links go", || engine.links().is_empty());
    };
    // The first cycle opens what is kept, such as the send sockets of the outer ports.
    cycle();
    let before = wait_for("TUN descriptors are closed", || {
        let descriptors = engine.descriptors();
        (!descriptors.contains_key("/dev/net/tun")).then_some(descriptors)
    });
    let threads = engine.threads();
    cycle();
    cycle();
    wait_until("descriptors are as before", || engine.descriptors() == before);
    // Not more: the health page's pool may have shrunk since.
    wait_until("threads are as before", || engine.threads().len() <= threads.len());
    injector.assert_clean();
}

#[test]
fn b03_one_way_traffic_keeps_an_endpoint() {
    let lab = Lab::new(0, Config::default());
    // Without a hook that sends packets back, nothing is ever read from the links.
    let engine = Engine::start(&lab, &["-t", "2"]);
    let mut injector = lab.injector();
    let over = Deadline::after(Duration::from_secs(6));
    let mut sequence = 0;
    while !over.is_over() {
        sequence += 1;
        injector.send(endpoint_id(0), &packets::ping(V4, sequence, b"one way"));
        assert_eq!(injector.receive(Duration::from_millis(50)), None);
    }
    assert_eq!(engine.links(), [GWI[0], GWO[0]]);
    wait_until("silence ends it", || engine.links().is_empty());
    assert_eq!(engine.log().matches("New interface").count(), 1, "it was there all the time");
    injector.assert_clean();
}

#[test]
fn b05_after_teardown_and_return_every_reply_comes_back() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["-t", "1", "--workers", "2"]);
    let mut injector = lab.injector();
    let flows: Vec<_> =
        (0..200).map(|port| packets::udp(V4, (4000 + port, 53), &port.to_be_bytes())).collect();
    for _ in 0..3 {
        for inner in &flows {
            injector.exchange(endpoint_id(0), inner);
        }
        for link in [GWI[0], GWO[0]] {
            let script = format!("ls /sys/class/net/{link}/queues");
            let queues = run(&lab.topology.target(), "sh", &["-c", &script]);
            assert_eq!(queues.split_whitespace().collect::<Vec<_>>(), QUEUES_OF_TWO);
        }
        wait_until("the links go", || engine.links().is_empty());
    }
    injector.assert_clean();
}

/// What a link of two workers has.
const QUEUES_OF_TWO: [&str; 4] = ["rx-0", "rx-1", "tx-0", "tx-1"];

/// Somebody deletes one link of an endpoint under the engine.
fn a_deleted_link_hurts_one_endpoint_only(args: &[&str]) {
    let lab = Lab::new(0, Config::default());
    let go = lab.scratch.file("go");
    let destroy = format!("while [ ! -e {} ]; do sleep 0.1; done;", go.display());
    let engine = Engine::start(&lab, &[&["-c", PASSTHROUGH, "-r", &destroy], args].concat());
    let mut injector = lab.injector();
    ping_through(&mut injector, 0, 0);
    ping_through(&mut injector, 1, 0);
    run(&lab.topology.target(), "ip", &["link", "del", GWO[0]]);
    // More than a worker writes to a pair before it insists on reading it.
    for sequence in 0..3000 {
        injector.send(endpoint_id(0), &packets::ping(V4, sequence, b"lost"));
        if sequence % 100 == 0 {
            ping_through(&mut injector, 1, sequence);
        }
    }
    std::fs::write(&go, "").unwrap();
    wait_until("it is made again", || engine.log().matches("New interface").count() == 3);
    // Some of what came meanwhile was held, and comes back once the hook has run.
    wait_until("it serves", || {
        injector.send(endpoint_id(0), &packets::ping(V4, 1, b"back?"));
        injector.receive(Duration::from_millis(100)).is_some()
    });
    while injector.receive(Duration::from_millis(500)).is_some() {}
    ping_through(&mut injector, 0, 1);
    ping_through(&mut injector, 1, 1);
    assert_eq!(engine.links().len(), 4);
    injector.assert_clean();
}

#[test]
fn a_deleted_link_hurts_one_endpoint_only_with_multishot_reads() {
    a_deleted_link_hurts_one_endpoint_only(&[]);
}

#[test]
fn a_deleted_link_hurts_one_endpoint_only_with_polled_reads() {
    a_deleted_link_hurts_one_endpoint_only(&["--kernel-floor"]);
}

fn a_signal_ends_it_cleanly(signal: Signal) {
    let lab = Lab::new(0, Config::default());
    let (script, log) = recording_hook(&lab);
    let command = format!("sh {}", script.display());
    let mut engine = Engine::start(&lab, &["-c", PASSTHROUGH, "-r", &command]);
    let mut injector = lab.injector();
    for endpoint in 0..3 {
        ping_through(&mut injector, endpoint, 1);
    }
    assert_eq!(engine.links().len(), 6);
    engine.signal(signal);
    assert_eq!(engine.wait().code(), Some(0));
    let lines = lines(&log);
    for (gwi, gwo) in GWI.iter().zip(GWO) {
        let names = format!("DESTROY {gwi} {gwo}");
        let count = lines.iter().filter(|line| line.contains(&names)).count();
        assert_eq!(count, 2, "begin and end of {names}: {lines:#?}");
    }
    let left = tunnel_links(&lab.topology.target());
    assert!(left.is_empty(), "{left:?}");
    injector.assert_clean();
}

#[test]
fn b18_sigterm_runs_destroy_once_and_ends_it_cleanly() {
    a_signal_ends_it_cleanly(Signal::SIGTERM);
}

#[test]
fn sigint_runs_destroy_once_and_ends_it_cleanly() {
    a_signal_ends_it_cleanly(Signal::SIGINT);
}

/// Ends a program with 100 endpoints and tells how long that took; nothing is left of it.
fn a_hundred_endpoints_end(what: &str, destroy: Option<&str>) {
    let lab = Lab::new(0, Config::default());
    let log = lab.scratch.file("destroyed");
    let hook = destroy.map(|command| format!("echo >>{}; {command}", log.display()));
    let args = hook.as_ref().map_or_else(Vec::new, |hook| vec!["-r", hook.as_str()]);
    let mut engine = Engine::start(&lab, &args);
    let mut injector = lab.injector();
    for endpoint in 0..100 {
        injector.send(endpoint_id(endpoint), &packets::ping(V4, 1, b"begin"));
    }
    wait_until("all links", || engine.log().matches("New interface").count() == 100);
    let watch = Stopwatch::start();
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    eprintln!("100 endpoints, {what}: ended after {:?}", watch.elapsed());
    assert_eq!(lines(&log).len(), if destroy.is_some() { 100 } else { 0 });
    assert!(tunnel_links(&lab.topology.target()).is_empty());
    injector.assert_clean();
}

#[test]
fn b17_a_hundred_endpoints_end_without_a_hook() {
    a_hundred_endpoints_end("no hook", None);
}

#[test]
fn b17_a_hundred_endpoints_end_with_a_quick_hook() {
    a_hundred_endpoints_end("a quick hook", Some(":"));
}

#[test]
fn b17_a_hundred_endpoints_end_with_a_hook_of_50_ms() {
    a_hundred_endpoints_end("a hook of 50 ms", Some("sleep 0.05;"));
}

#[test]
fn a_failing_hook_stops_no_packet() {
    let lab = Lab::new(0, Config::default());
    let create = format!("{PASSTHROUGH} \"$@\"; false");
    let create = format!("sh -c '{create}' failing");
    let _engine = Engine::start(&lab, &["-c", &create, "-j"]);
    let mut injector = lab.injector();
    ping_through(&mut injector, 0, 1);
    injector.assert_clean();
}

#[test]
fn b08_a_hook_that_hangs_and_chatters_disturbs_nobody_else() {
    let lab = Lab::new(0, Config::default());
    let (script, release) = (lab.scratch.file("hook.sh"), lab.scratch.file("release"));
    // For endpoint 1 it hangs, leaves a daemon, forks and writes; the others it serves at once.
    let text = format!(
        r#"#!/bin/sh
case "$1 $2" in "CREATE {}")
    sleep 1000 &
    for i in $(seq 100); do (sleep 1; yes | head -c 1000000) & done
    while [ ! -e {} ]; do sleep 0.1; done
esac
exec {PASSTHROUGH} "$@"
"#,
        GWI[1],
        release.display()
    );
    std::fs::write(&script, text).unwrap();
    let command = format!("sh {}", script.display());
    let mut engine = Engine::start(&lab, &["-c", &command, "-r", PASSTHROUGH]);
    let mut injector = lab.injector();
    ping_through(&mut injector, 0, 0);
    injector.send(endpoint_id(1), &packets::ping(V4, 7, b"held"));
    wait_until("its links are there", || engine.links().len() == 4);
    let over = Deadline::after(Duration::from_secs(4));
    let mut sequence = 0;
    while !over.is_over() {
        sequence += 1;
        ping_through(&mut injector, 0, sequence);
        assert_eq!(engine.health("/").status, 200);
    }
    std::fs::write(&release, "").unwrap();
    let back = wait_for("the held packet returns", || injector.receive(Duration::ZERO));
    assert_eq!(back.endpoint, endpoint_id(1));
    // Neither the daemon nor what it holds is in the way of the end, or of the next start.
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    let _next = Engine::passthrough(&lab, &[]);
    ping_through(&mut injector, 1, 1);
    injector.assert_clean();
}

/// The kernel takes a ring apart after the process has ended. Until then the receive sockets of
/// the old process were among those of port 6081, and a datagram of the new one could end there.
#[test]
fn a_restart_at_once_finds_the_port_for_itself() {
    restarts_at_once(Signal::SIGTERM);
}

#[test]
fn a_restart_after_a_kill_finds_the_port_for_itself() {
    restarts_at_once(Signal::SIGKILL);
}

fn restarts_at_once(signal: Signal) {
    let lab = Lab::new(0, Config::default());
    let mut injector = lab.injector();
    for _ in 0..20 {
        let mut engine = Engine::passthrough(&lab, &["--workers", "2"]);
        for endpoint in 0..2 {
            ping_through(&mut injector, endpoint, 1);
        }
        engine.signal(signal);
        let status = engine.wait();
        assert_eq!(status.code(), (signal == Signal::SIGTERM).then_some(0), "{status}");
    }
    injector.assert_clean();
}
