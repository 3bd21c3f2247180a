//! The host takes something away, or stands still, and gives it back: open files, locked memory,
//! processors, the clock, time itself. Scenarios R22, R23 and R28 to R30.

use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::support::clock::Deadline;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_for;
use crate::support::clock::wait_until;
use crate::support::engine::Answer;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::engine::PROGRAM;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::packets::pattern;
use crate::support::process::finish;
use crate::support::process::ordinary_user;
use crate::support::process::run;

pub(super) fn ping_both(injector: &mut Injector, endpoint: usize, sequence: u16) {
    for path in [V4, V6] {
        injector.exchange(endpoint_id(endpoint), &packets::ping(path, sequence, b"alive"));
    }
}

/// So many flows of an endpoint, over as many source ports of the load balancer as it has.
fn use_ports(injector: &mut Injector, endpoint: usize, ports: std::ops::Range<u16>) {
    for port in ports {
        injector.exchange(endpoint_id(endpoint), &packets::udp(V4, (port, 53), b"port"));
    }
}

/// Requires a page without a drop, a warning, or a reason for a 503.
pub(super) fn expect_quiet_page(engine: &Engine) {
    let page = engine.status();
    assert_eq!(page["healthy"], true, "{page}");
    for list in ["warnings", "reasons"] {
        assert_eq!(page[list].as_array().map(Vec::len), Some(0), "{page}");
    }
    assert_eq!(page["drops"].as_object().map(serde_json::Map::len), Some(0), "{page}");
}

#[test]
fn r22_without_descriptors_endpoints_go_on_and_new_ones_come_when_there_are_some() {
    let lab = Lab::new(0, Config { port_count: 64, ..Config::default() });
    let engine = (0..20).find_map(|_| {
        let engine = Engine::passthrough(&lab, &["--workers", "2"]);
        let mut injector = lab.injector();
        ping_both(&mut injector, 0, 0);
        ping_both(&mut injector, 1, 0);
        assert_eq!(engine.health("/").status, 200);
        // Some are kept for what needs one for a moment.
        engine.limit_descriptors(16).then_some(engine)
    });
    let engine = engine.expect("an engine without gaps");
    let mut injector = lab.injector();
    let page = || {
        // For a moment the last descriptor may be somebody else's; the status is there even then.
        let answer = engine.health("/");
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap_or_default()
    };
    wait_until("a new endpoint is refused, and told", || {
        injector.send(endpoint_id(2), &packets::ping(V4, 1, b"in vain"));
        let page = page();
        let refused = page["drops"]["endpoint_failed"].as_u64() > Some(0);
        refused && page["warnings"].to_string().contains("LimitNOFILE")
    });
    // Existing ones go on, from new ports too.
    use_ports(&mut injector, 0, 1000..1200);
    use_ports(&mut injector, 1, 2000..2200);
    let before = engine.cpu_ticks();
    let over = Deadline::after(Duration::from_secs(3));
    wait_until("new ones are asked for all the time", || {
        injector.send(endpoint_id(2), &packets::ping(V4, 1, b"in vain"));
        assert_eq!(engine.health("/").status, 200);
        over.is_over()
    });
    let ticks = engine.cpu_ticks() - before;
    assert!(ticks < 150, "{ticks} ticks in 3 s: something spins");
    let told = engine.log().matches("Too many open files").count();
    assert!((1..=3).contains(&told), "once for each reason, not {told} times: {}", engine.log());
    let pid = engine.pid().to_string();
    run(&lab.topology.target(), "prlimit", &["--pid", &pid, "--nofile=4096:"]);
    wait_for("the new endpoint is there", || {
        injector.send(endpoint_id(2), &packets::ping(V4, 1, b"at last"));
        injector.receive(Duration::from_millis(10))
    });
    while injector.receive(Duration::from_millis(100)).is_some() {}
    for endpoint in 0..3 {
        ping_both(&mut injector, endpoint, 2);
    }
    let page = engine.status();
    assert_eq!(page["warnings"].as_array().map(Vec::len), Some(0), "{page}");
    assert_eq!(page["drops"]["send_error"], serde_json::Value::Null, "{page}");
    injector.assert_clean();
}

/// An ordinary user's limit on locked memory counts; without any the start says what to set.
#[test]
fn r23_locked_memory_is_needed_at_the_start_and_not_later() {
    let lab = Lab::new(0, Config { port_count: 64, ..Config::default() });
    let uid = 50_000 + std::process::id() % 5_000;
    let user = ordinary_user(uid);
    let program = lab.scratch.file("gwlbtun");
    std::fs::copy(PROGRAM, &program).expect("a copy");
    let program = program.to_str().expect("UTF-8");
    let mut none = lab.topology.target().command("timeout");
    none.args(["10", "prlimit", "--memlock=0:0"]).args(&user).arg(program);
    let output = none.output().expect("ip");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("set LimitMEMLOCK=") && said.lines().count() == 1, "{said}");

    let mut command = lab.topology.target().command(&user[0]);
    command.args(&user[1..]).args([program, "-p", "8080", "-j", "--workers", "2"]);
    command.args(["-c", "exec tc qdisc show #"]);
    let log = std::fs::File::create(lab.scratch.file("engine.log")).expect("a log file");
    let both = log.try_clone().expect("a second handle");
    let engine = Engine::launch(&lab, command.stdout(log).stderr(both));
    let mut injector = lab.injector();
    injector.send(endpoint_id(0), &packets::ping(V4, 1, b"before"));
    wait_until("one endpoint is there", || engine.links().len() == 2);
    let uid = format!("--reuid={uid}");
    let pid = engine.pid().to_string();
    let words =
        [&uid, "--regid=65534", "--clear-groups", "prlimit", "--pid", &pid, "--memlock=0:0"];
    run(&lab.topology.target(), "setpriv", &words);
    for endpoint in 1..4 {
        injector.send(endpoint_id(endpoint), &packets::ping(V4, 1, b"after"));
    }
    wait_until("all are", || engine.links().len() == 8);
    wait_until("each gets its packet", || {
        let page = engine.status();
        let endpoints = page["enis"].as_array().expect("enis");
        endpoints.iter().filter(|endpoint| endpoint["tunnelIn"]["pktsOut"] == 1).count() == 4
    });
    expect_quiet_page(&engine);
}

/// Moved about by taskset, as a cpuset that shrinks moves them.
#[test]
fn r28_workers_that_are_moved_to_other_cores_go_on_and_it_is_told() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--cores", "0", "--workers", "1"]);
    let mut injector = lab.injector();
    ping_both(&mut injector, 0, 0);
    expect_quiet_page(&engine);
    let worker = engine.thread_id("gwlbtun UA000").to_string();
    let target = lab.topology.target();
    for round in 0..21 {
        let cores = ["0-1", "0", "1"][round % 3];
        run(&target, "taskset", &["-p", "-c", cores, &worker]);
        for sequence in 0..10 {
            ping_both(&mut injector, 0, sequence);
        }
    }
    wait_until("it is told", || {
        engine.status()["warnings"]
            .to_string()
            .contains("not tied to their cores any more: workers 0;")
    });
    // As the kernel leaves it when the core is back.
    run(&target, "taskset", &["-p", "-c", "0-1", &worker]);
    wait_until("it is tied again, and nothing is told any more", || {
        engine.status()["warnings"].as_array().map(Vec::len) == Some(0)
    });
    expect_quiet_page(&engine);
    injector.assert_clean();
}

#[test]
fn r28_a_core_that_is_not_there_is_told_and_its_worker_runs() {
    let lab = Lab::new(0, Config { port_count: 64, ..Config::default() });
    let engine = Engine::passthrough(&lab, &["--cores", "0,200"]);
    let mut injector = lab.injector();
    // Over many source ports, so that each worker has some.
    for port in 4000..4050 {
        injector.exchange(endpoint_id(0), &packets::udp(V4, (port, 53), b"each"));
    }
    let told = "core 200 is not available to this process: worker 1 runs unpinned";
    assert!(engine.log().contains(told), "{}", engine.log());
    expect_quiet_page(&engine);
    wait_until("each worker had its part", || {
        let page = engine.status();
        let workers = page["udp"]["UDPPacketReceiver"]["threads"].as_array().expect("threads");
        workers.iter().all(|worker| worker["pktsIn"].as_u64() > Some(0))
    });
    injector.assert_clean();
}

/// Processor 1 goes and comes back, of this very machine: it is back at the end in any case.
#[test]
#[ignore = "takes a processor of the machine away; .ci/run full has it"]
fn r28_a_processor_that_goes_offline_takes_no_traffic_along() {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            let _ = std::fs::write(ONLINE, "1");
        }
    }
    if !std::path::Path::new(ONLINE).exists() {
        eprintln!("{ONLINE} is not there: nothing to test");
        return;
    }
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--cores", "0,1"]);
    let mut injector = lab.injector();
    ping_both(&mut injector, 0, 0);
    for _ in 0..3 {
        let back = Back;
        if std::fs::write(ONLINE, "0").is_err() {
            eprintln!("{ONLINE} cannot be written: nothing to test");
            return;
        }
        for port in 4000..4050 {
            injector.exchange(endpoint_id(0), &packets::udp(V4, (port, 53), b"offline"));
        }
        wait_until("it is told", || {
            let warnings = engine.status()["warnings"].to_string();
            warnings.contains("not tied to their cores any more: workers 1;")
        });
        drop(back);
        wait_until("it is tied again, and nothing is told any more", || {
            engine.status()["warnings"].as_array().map(Vec::len) == Some(0)
        });
        for port in 4000..4050 {
            injector.exchange(endpoint_id(0), &packets::udp(V4, (port, 53), b"online"));
        }
    }
    assert_eq!(engine.health("/").status, 200);
    injector.assert_clean();
}

/// What does not fit into the receive queue is lost, and nothing else, and it is on the page.
#[test]
fn r30_standing_still_costs_what_the_queue_could_not_hold() {
    const SENT: u64 = 4000;
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2", "--rcvbuf", "1", "--no-offload"]);
    let mut injector = lab.injector();
    ping_both(&mut injector, 0, 0);
    assert_eq!(engine.status()["socketDrops"], 0);
    engine.signal(Signal::SIGSTOP);
    let mut waiting = engine.connect();
    waiting.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("send");
    for port in 0..SENT {
        let port = 4000 + u16::try_from(port % 64).expect("small");
        injector.send(endpoint_id(0), &packets::udp(V4, (port, 53), &pattern(1, 1000)));
    }
    // A health check has its answer within seconds, or fails.
    waiting.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
    assert!(waiting.read(&mut [0]).is_err(), "who stands still does not answer");
    engine.signal(Signal::SIGCONT);
    waiting.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    assert_eq!(Answer::read(&mut waiting).expect("an answer").status, 200);
    let mut back = 0;
    wait_until("each is back or counted", || {
        while injector.receive(Duration::from_millis(10)).is_some() {
            back += 1;
        }
        back + engine.status()["socketDrops"].as_u64().expect("a number") == SENT
    });
    assert!(back > 0 && back < SENT, "{back} of {SENT} came back");
    let page = engine.status();
    assert_eq!(page["drops"].as_object().map(serde_json::Map::len), Some(0), "{page}");
    assert!(page["warnings"].to_string().contains("--rcvbuf"), "{page}");
    let over = Deadline::after(Duration::from_secs(4));
    wait_until("the page is watched", || {
        assert_eq!(engine.health("/").status, 200);
        ping_both(&mut injector, 0, 1);
        over.is_over()
    });
    assert_eq!(engine.status()["warnings"].as_array().map(Vec::len), Some(0));
    injector.assert_clean();
}

/// A library that shifts the wall clock of the program that it is preloaded into, and no other
/// clock: by as many seconds as the file says that the variable names.
const SHIFT: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) {
    static volatile long *at;
    if (!at) at = mmap(0, 8, PROT_READ, MAP_SHARED, open(getenv("CLOCK_SHIFT"), O_RDONLY), 0);
    return *at;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *to) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (to) *to = at.tv_sec;
    return at.tv_sec;
}
"#;

const YEAR_SECS: i64 = 366 * 24 * 3600;

#[test]
fn r29_steps_of_the_wall_clock_are_seen_by_the_log_alone() {
    let lab = Lab::new(0, Config::default());
    let [source, library, file] = ["shift.c", "shift.so", "shift"].map(|n| lab.scratch.file(n));
    std::fs::write(&source, SHIFT).expect("the source");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    finish(&mut compiler);
    std::fs::write(&file, 0_i64.to_ne_bytes()).expect("no shift");
    let preload = format!("LD_PRELOAD={}", library.display());
    let shift = format!("CLOCK_SHIFT={}", file.display());
    let args = ["-p", "8080", "-j", "-c", PASSTHROUGH, "-t", "60", "--workers", "2"];
    let engine = Engine::start_under(&lab, &["env", &preload, &shift], &args);
    let mut injector = lab.injector();
    for port in 0..300 {
        injector.exchange(endpoint_id(0), &packets::udp(V4, (4000 + port, 53), b"flow"));
    }
    let flows = |engine: &Engine| {
        let page = engine.status();
        page["enis"][0]["v4FlowCache"][1][1].as_u64()
    };
    assert_eq!(flows(&engine), Some(300));
    let year = |line: &str| line.split('-').next().and_then(|year| year.parse::<i64>().ok());
    let first_year = engine.log().lines().next().and_then(year).expect("a year");
    let before = engine.cpu_ticks();
    for (round, years) in [1, -1, 2, 0].into_iter().enumerate() {
        // Not a new file: the program has this one mapped.
        let mapped = std::fs::OpenOptions::new().write(true).open(&file).expect("the file");
        mapped.write_all_at(&(years * YEAR_SECS).to_ne_bytes(), 0).expect("a step");
        // A line for the log.
        ping_both(&mut injector, 1 + round, 0);
        let last_year = engine.log().lines().last().and_then(year).expect("a year");
        assert!((last_year - first_year - years).abs() <= 1, "{last_year}, {first_year}");
        assert_eq!(years == 0, last_year == first_year, "the step is seen: {}", engine.log());
        let over = Deadline::after(Duration::from_secs(1));
        wait_until("time passes", || {
            assert_eq!(engine.health("/").status, 200);
            assert_eq!(flows(&engine), Some(300), "no flow is forgotten");
            over.is_over()
        });
    }
    let ticks = engine.cpu_ticks() - before;
    assert!(ticks < 300, "{ticks} ticks in 4 s: something spins");
    assert_eq!(engine.log().matches("Removing interface").count(), 0, "{}", engine.log());
    injector.assert_clean();
}

/// A container that was moved has such a clock.
#[test]
fn r29_a_monotonic_clock_that_began_elsewhere_is_as_good() {
    for offset in ["--monotonic=1000000000", "--monotonic=0"] {
        let lab = Lab::new(0, Config::default());
        let wrapper = ["unshare", "--time", offset, "--fork", "--kill-child"];
        let args = ["-p", "8080", "-j", "-c", PASSTHROUGH, "-t", "2", "--workers", "2"];
        let engine = Engine::start_under(&lab, &wrapper, &args);
        let mut injector = lab.injector();
        ping_both(&mut injector, 0, 0);
        expect_quiet_page(&engine);
        let age = engine.status()["enis"][0]["tunnelOut"]["secsSincelastPacket"].as_f64();
        assert!(age < Some(60.0), "{age:?}");
        wait_until("idle, it goes", || engine.links().is_empty());
        ping_both(&mut injector, 0, 1);
        injector.assert_clean();
    }
}
