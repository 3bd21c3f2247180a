//! A thousand endpoints that are meant, and a hundred thousand that are made up.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use gwlbtun::steering::links;
use gwlbtun::sys::link;
use gwlbtun::sys::link::LinkGroup;
use gwlbtun::sys::link::LinkSetup;
use gwlbtun::sys::link::Netlink;
use gwlbtun::sys::tun;
use gwlbtun::types::EndpointId;
use gwlbtun::types::LinkName;
use gwlbtun::types::Offload;
use gwlbtun::types::Side;

use crate::sim::gwlb::Config;
use crate::sim::layout;
use crate::sim::layout::Outer;
use crate::support::clock::Deadline;
use crate::support::clock::Stopwatch;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;

const WORKERS: usize = 2;

/// The hook of both ways to make endpoints: it costs a shell.
const HOOK: &str = ":";

/// Descriptors of an endpoint besides its queues, and its memory.
const DESCRIPTORS_MAX: usize = 2;
const RESIDENT_BYTES_MAX: u64 = 64 << 10;

/// Memory that a burst and a large health page take once, however many endpoints there are.
const FIXED_BYTES_MAX: u64 = 4 << 20;

/// How long a thousand endpoints may take on a machine that does much else.
const TOO_LONG: Duration = Duration::from_secs(200);

/// Endpoints that the log says were created.
fn created(engine: &Engine) -> usize {
    engine.log().matches("New interface gwi-").count()
}

/// Makes `count` endpoints of an engine, and requires what each may cost. Returns how long it took.
fn expect_endpoints(count: usize) -> Duration {
    let lab = Lab::new(0, Config::default());
    let workers = WORKERS.to_string();
    let engine = Engine::start(&lab, &["-j", "-c", HOOK, "--workers", &workers]);
    let mut injector = lab.injector();
    let ping = packets::ping(V4, 1, b"one of many");
    injector.send(endpoint_id(count), &ping);
    let first = Deadline::after(TOO_LONG);
    while engine.status()["enis"].as_array().map_or(0, Vec::len) < 1 {
        assert!(!first.is_over(), "the first endpoint");
    }
    let before = (engine.threads().len(), descriptors(&engine));
    engine.forget_peak();
    let resident_bytes = engine.peak_resident_bytes();

    let watch = Stopwatch::start();
    for number in 0..count {
        injector.send(endpoint_id(number), &ping);
    }
    let (too_late, mut slowest) = (Deadline::after(TOO_LONG), Duration::ZERO);
    while created(&engine) <= count {
        assert!(!too_late.is_over(), "{} of {count} after {TOO_LONG:?}", created(&engine));
        let asked = Stopwatch::start();
        assert_eq!(engine.health("/").status, 200);
        slowest = slowest.max(asked.elapsed());
        let _ = injector.receive(Duration::from_millis(20));
    }
    let took = watch.elapsed();
    let after = (engine.threads().len(), descriptors(&engine));
    let grown_bytes = engine.peak_resident_bytes() - resident_bytes;
    let grown_each = grown_bytes / u64::try_from(count).expect("few");
    let _ = writeln!(
        std::io::stderr(),
        "{count} endpoints in {took:?}, each {grown_each} bytes and {} descriptors; health \
         answered within {slowest:?}",
        (after.1 - before.1) / count,
    );
    assert_eq!(after.0, before.0, "threads");
    let descriptors_max = count * (2 * WORKERS + DESCRIPTORS_MAX);
    assert!(after.1 - before.1 <= descriptors_max, "{before:?} became {after:?}");
    let grown_max = FIXED_BYTES_MAX + u64::try_from(count).expect("few") * RESIDENT_BYTES_MAX;
    assert!(grown_bytes <= grown_max, "{grown_bytes} bytes");
    assert_eq!(engine.drops("endpoint_limit") + engine.drops("endpoint_rate"), 0);
    assert_eq!(engine.drops("not_ready"), 0);
    took
}

fn descriptors(engine: &Engine) -> usize {
    engine.descriptors().values().sum()
}

/// Makes the links of `count` endpoints with the same calls one after the other, and runs the same
/// hook.
fn bare_loop(count: usize) -> Duration {
    let lab = Lab::new(0, Config::default());
    lab.topology
        .target()
        .enter(|| {
            let mut netlink = Netlink::open().expect("netlink");
            let watch = Stopwatch::start();
            let mut all = Vec::new();
            for number in 0..count {
                let id = EndpointId(endpoint_id(number));
                let [gwi, gwo] = Side::BOTH.map(|side| {
                    let name = LinkName::of(id, side);
                    let queues = tun::create(name, WORKERS, Offload::ALL).expect("a link");
                    let index = link::index_of(name).expect("its index");
                    let setup =
                        LinkSetup { mtu_bytes: 8500, queue_packets: 4096, group: LinkGroup(1) };
                    netlink.bring_up(index, setup).expect("it comes up");
                    (queues, index)
                });
                let program = links::load(gwi.1, WORKERS).expect("a program");
                for queues in [&gwi.0, &gwo.0] {
                    tun::set_steering(&queues[0], &program).expect("it is taken");
                }
                let words = Side::BOTH.map(|side| LinkName::of(id, side).to_string());
                let script = format!("{HOOK} \"$@\"");
                let mut hook = Command::new("/bin/sh");
                hook.args(["-c", &script, "sh", "CREATE"]).args(words).arg(id.to_string());
                assert!(hook.status().expect("a shell").success());
                all.push((gwi, gwo));
            }
            let took = watch.elapsed();
            netlink.delete_group(LinkGroup(1)).expect("they go");
            Ok(took)
        })
        .expect("the namespace is there")
}

#[test]
fn r10_a_hundred_endpoints_cost_little() {
    expect_endpoints(100);
}

/// Run with `--no-capture` it prints how much longer it takes than the bare calls.
#[test]
#[ignore = "takes a minute"]
fn r10_a_thousand_endpoints() {
    let (bare, ours) = (bare_loop(1000), expect_endpoints(1000));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    let _ =
        writeln!(std::io::stderr(), "the bare calls and hooks: {bare:?}, so {ratio:.2} of that");
}

/// Sends packets of made-up endpoints as fast as it can for `time`, and among them packets of
/// endpoint 0, each of which must come back. Requires what a flood may cost.
fn expect_flood_bounded(time: Duration) {
    const ENDPOINTS_MAX: usize = 32;
    let lab = Lab::new(0, Config::default());
    // Packets of made-up endpoints end there: no load balancer would take them.
    let id = EndpointId(endpoint_id(0));
    let hook = format!("#!/bin/sh\n[ \"$4\" != {id} ] || exec {PASSTHROUGH} \"$@\"\n");
    let script = lab.scratch.file("hook.sh");
    std::fs::write(&script, hook).expect("a script");
    let hook = format!("sh {}", script.display());
    let args = ["-j", "-c", &hook, "--max-endpoints", "32", "--workers", "2"];
    let engine = Engine::start(&lab, &args);
    let mut injector = lab.injector();
    let witness = packets::udp(V4, (4000, 53), b"witness");
    let strange = packets::udp(V4, (4001, 53), b"strange");
    injector.exchange(endpoint_id(0), &witness);
    // What the first requests leave behind is not the flood's doing.
    (0..50).for_each(|_| drop(engine.health("/")));
    let threads = engine.threads().len();
    engine.forget_peak();
    let (resident_bytes, lines) = (engine.peak_resident_bytes(), engine.log().lines().count());

    let (over, watch) = (Deadline::after(time), Stopwatch::start());
    let outer =
        Outer { node: Config::default().nodes[0], target: Config::default().target, port: 0 };
    let (mut sent, mut witnesses, mut back, mut slowest) = (0_u64, 0_u64, 0_u64, Duration::ZERO);
    while !over.is_over() {
        for _ in 0..1000 {
            sent += 1;
            // Any 64 bits: multiples of an odd number do not repeat.
            let id = sent.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let header = layout::geneve_header(id, 7, &strange);
            let port = 50_000 + u16::try_from(sent % 512).expect("below 512");
            let packet = layout::datagram(Outer { port, ..outer }, &[&header, &strange], true);
            injector.send_datagram(&packet);
            if sent.is_multiple_of(100) {
                injector.send(endpoint_id(0), &witness);
                witnesses += 1;
            }
        }
        back += returned(&mut injector);
        let asked = Stopwatch::start();
        assert_eq!(engine.health("/").status, 200);
        slowest = slowest.max(asked.elapsed());
    }
    let seconds = watch.elapsed().as_secs_f64();
    wait_until("every packet of the endpoint that was there comes back", || {
        back += returned(&mut injector);
        back == witnesses
    });
    let grown_bytes = engine.peak_resident_bytes().saturating_sub(resident_bytes);
    let logged = engine.log().lines().count() - lines;
    let _ = writeln!(
        std::io::stderr(),
        "{sent} made-up ids in {seconds:.1} s, {witnesses} packets of the endpoint that was there; \
         resident memory +{} KiB, {logged} lines logged, health answered within {slowest:?}",
        grown_bytes >> 10,
    );
    assert_eq!(engine.links().len(), 2 * ENDPOINTS_MAX);
    assert_eq!(engine.threads().len(), threads, "threads");
    assert!(grown_bytes <= 16 << 20, "resident memory grew by {grown_bytes} bytes");
    // Each endpoint that was made has its line; besides, ten a second.
    let seconds = usize::try_from(time.as_secs()).expect("few");
    assert!(logged <= ENDPOINTS_MAX + 10 * seconds, "{logged} lines:\n{}", engine.log());
    injector.assert_clean();
}

/// How many packets have come back by now.
fn returned(injector: &mut Injector) -> u64 {
    std::iter::from_fn(|| injector.receive(Duration::ZERO)).map(|_| 1).sum()
}

#[test]
fn r11_a_flood_of_made_up_ids_costs_little() {
    expect_flood_bounded(Duration::from_secs(3));
}

#[test]
#[ignore = "takes a minute"]
fn r11_a_minute_s_flood_of_made_up_ids_costs_little() {
    expect_flood_bounded(Duration::from_mins(1));
}
