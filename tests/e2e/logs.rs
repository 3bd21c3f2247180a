//! What the log says, word for word, and how much of it.

use std::io::Read as _;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::engine::PROGRAM;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;

/// The log less the time that begins each line, which must have the reference's form.
fn lines(engine: &Engine) -> Vec<String> {
    let log = engine.log();
    let without_time = |line: &str| {
        let (time, rest) = line.split_at_checked(25).unwrap_or_else(|| panic!("{line:?}"));
        let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "0000-00-00 00:00:00.000: ", "{line}");
        rest.to_owned()
    };
    log.lines().map(without_time).collect()
}

#[test]
fn a_whole_life_word_for_word() {
    let lab = Lab::new(0, Config::default());
    let mut engine = Engine::start(&lab, &["-c", PASSTHROUGH, "-t", "1", "--workers", "2"]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"alive"));
    wait_until("it was idle", || engine.links().is_empty());
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    let features = lines(&engine).remove(1);
    assert!(features.starts_with("gwlbtun(core,info) : : io_uring: "), "{features}");
    // What they are depends on the kernel and the processor.
    let offloads = lines(&engine).remove(2);
    assert!(offloads.starts_with("gwlbtun(core,info) : : Offloads: "), "{offloads}");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        lines(&engine),
        [
            "gwlbtun Logger(core,important) : : Logging thread started. Configuration:core=info  \
             udp=info  geneve=info  tunnel=info  healthcheck=info  ",
            &features,
            &offloads,
            "gwlbtun(core,info) : : Steering: datagrams by their outer path, while that gives all \
             work, queues by a program.",
            &format!(
                "gwlbtun(core,important) : : AWS Gateway Load Balancer Tunnel Handler v{version} \
                 started."
            ),
            "gwlbtun(core,important) : : New interface gwi-5bqWvzLwwkk and gwo-5bqWvzLwwkk for \
             ENI ID 02b8ee1d4db0c51c4 created.",
            "gwlbtun(core,important) : : Removing interface gwi-5bqWvzLwwkk and gwo-5bqWvzLwwkk \
             for ENI ID 02b8ee1d4db0c51c4.",
            "gwlbtun(core,important) : : Shutting down.",
            "gwlbtun(core,important) : : Shutdown complete.",
        ]
    );
}

#[test]
fn sections_and_levels_choose_the_lines() {
    let lab = Lab::new(0, Config::default());
    let list = "all=critical,GENEVE=debug,nonsense,udp=loud";
    let engine = Engine::start(&lab, &["--logging", list]);
    let injector = lab.injector();
    injector.send_raw(&[0; 4]);
    wait_until("the drop is told", || engine.log().contains("Geneve Header not OK"));
    let told = lines(&engine);
    let from = "4 bytes from 10.99.0.11 port 60000";
    assert_eq!(
        told,
        [
            format!(
                "gwlbtun(geneve,debug) : : Received a packet of {from} sent to 10.99.0.100 port \
                 6081"
            ),
            format!(
                "gwlbtun(geneve,debug) : : Geneve Header not OK - dropping {from}. short: The \
                 datagram is shorter than a GENEVE header."
            ),
        ]
    );
    drop(engine);
    let engine = Engine::start(&lab, &["--logging", "nonsense,udp=loud"]);
    for complaint in [
        "--logging: \"nonsense\" is ignored: write section=level",
        "--logging: \"udp=loud\" is ignored: levels are critical, important, info, debug, \
         debugdetail",
    ] {
        wait_until("it is told", || engine.log().contains(complaint));
    }
}

/// Since 2023 the reference knows the flag no more; before that it was documented as it is here.
#[test]
fn hex_dumps_show_both_sides_and_are_few() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-c", PASSTHROUGH, "-x", "--workers", "1"]);
    let mut injector = lab.injector();
    for number in 0..200 {
        injector.exchange(endpoint_id(0), &packets::ping(V4, number, b"look at me"));
    }
    wait_until("the number of the others is told", || engine.log().contains("suppressed "));
    let log = engine.log();
    let came = log.matches(" sent to 10.99.0.100 port 6081").count();
    let went = log.matches(" for ENI Id:02b8ee1d4db0c51c4 from gwo-").count();
    assert!((3..100).contains(&came), "{came} packets from the load balancer in\n{log}");
    assert!((3..100).contains(&went), "{went} packets from the host in\n{log}");
    // The option class of AWS in the GENEVE header, and the payload.
    assert!(log.contains(" 0108 0102 2b8e e1d4  "), "{log}");
    assert!(log.contains("look at me"), "{log}");
}

/// B16: the reference's own text functions see percent signs of packets and names.
#[test]
fn b16_what_comes_from_outside_is_never_a_format() {
    let lab = Lab::new(0, Config::default());
    let hook = "echo '%n%s%s %1$s'; printf 'bell \\007 escape \\033[31m\\n' #";
    let engine = Engine::start(&lab, &["-c", hook, "-x"]);
    let mut injector = lab.injector();
    injector.send(endpoint_id(0), &packets::ping(V4, 1, b"%n%s%n%s%n%s"));
    wait_until("both are told", || {
        let log = engine.log();
        log.contains("escape ") && log.contains("%n%s%n%s%n%s")
    });
    let log = engine.log();
    assert!(log.contains("CREATE hook for 02b8ee1d4db0c51c4: %n%s%s %1$s\n"), "{log}");
    assert!(log.contains("bell ? escape ?[31m\n"), "{log}");
    assert_eq!(engine.health("/").status, 200);
}

/// R34 and B16: nobody reads the log, and packets go on; what is lost of it is told when somebody
/// reads again.
#[test]
fn a_log_that_nobody_reads_stops_no_packet() {
    let lab = Lab::new(0, Config::default());
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = lab.topology.target().command(PROGRAM);
    let noisy = "yes 'more than a pipe holds' | head -n 400 #";
    command.args(["-p", "8080", "-x", "-d", "-c", noisy, "-r", PASSTHROUGH, "--workers", "1"]);
    let mut engine = Engine::launch(&lab, command.stdout(writer).stderr(Stdio::null()));
    drop(command);
    let mut injector = lab.injector();
    for number in 0..20 {
        injector.send(endpoint_id(number), &packets::ping(V4, 1, b"make it talk"));
    }
    wait_until("all endpoints are there", || engine.links().len() == 40);
    assert_eq!(engine.health("/").status, 200);
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0), "nor does it stop the end");
    let mut log = String::new();
    reader.read_to_string(&mut log).expect("the log");
    assert!(log.len() >= 60_000, "a pipe full of it: {} bytes", log.len());
}
