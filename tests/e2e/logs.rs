//! What the log says, word for word, and how much of it.

use std::collections::HashMap;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::sim::gwlb::Config;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::engine::PROGRAM;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::tools::kernel_merges_udp;

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
    let started = format!(
        "gwlbtun(core,important) : : AWS Gateway Load Balancer Tunnel Handler v{version} started."
    );
    let mut expected = vec![
        "gwlbtun Logger(core,important) : : Logging thread started. Configuration:core=info  \
         udp=info  geneve=info  tunnel=info  healthcheck=info  ",
        &features,
        &offloads,
        "gwlbtun(core,info) : : Steering: datagrams by their outer path, while that gives all \
         work, queues by a program.",
        &started,
        "gwlbtun(core,important) : : New interface gwi-5bqWvzLwwkk and gwo-5bqWvzLwwkk for ENI \
         ID 02b8ee1d4db0c51c4 created.",
        "gwlbtun(core,important) : : Removing interface gwi-5bqWvzLwwkk and gwo-5bqWvzLwwkk for \
         ENI ID 02b8ee1d4db0c51c4.",
        "gwlbtun(core,important) : : Shutting down.",
        "gwlbtun(core,important) : : Shutdown complete.",
    ];
    if !kernel_merges_udp() {
        let less = "gwlbtun(core,important) : : This kernel does without tun-uso, udp-coalescing.";
        expected.insert(5, less);
    }
    assert_eq!(lines(&engine), expected);
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

/// A CREATE hook that says something with quotes, and fails.
const FAILING_HOOK: &str = r#"echo 'say "no" = \'; exit 3 #"#;

/// What the log of a run is waited for, before the program is told to end.
const EVENTFUL: [&str; 4] = ["hook_output", "hook_failed", "drop_from_gwlb", "packet_from_gwlb"];

/// A run with endpoints, a hook that talks and fails, packets and drops, and its end.
fn eventful(lab: &Lab, form: &str) -> Engine {
    let arguments =
        ["--log-format", form, "-c", FAILING_HOOK, "-r", PASSTHROUGH, "-x", "-d", "--workers", "1"];
    let mut engine = Engine::start(lab, &arguments);
    let mut injector = lab.injector();
    injector.send_raw(&[0; 4]);
    injector.send(endpoint_id(0), &packets::ping(V4, 1, b"\"quoted\" \n"));
    wait_until("all of it is told", || {
        let log = engine.log();
        EVENTFUL.iter().all(|event| log.contains(event))
    });
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    engine
}

/// Looks at the events of [`eventful`], each with its fields.
fn assert_eventful(events: &[HashMap<String, String>]) {
    let named = |id: &str| {
        let found = events.iter().find(|event| event["event"] == id);
        found.unwrap_or_else(|| panic!("no {id} in {events:#?}"))
    };
    let id = "02b8ee1d4db0c51c4";
    for event in events {
        assert!(event["time"].ends_with('Z') && event["time"].contains('T'), "{event:?}");
        assert!(event.contains_key("level") && event.contains_key("section"), "{event:?}");
        assert!(event.contains_key("thread") && !event["message"].is_empty(), "{event:?}");
    }
    assert_eq!(events[0]["event"], "log_started");
    assert_eq!(named("started")["version"], env!("CARGO_PKG_VERSION"));
    let created = named("endpoint_created");
    assert_eq!([&created["endpoint"], &created["gwi"]], [id, "gwi-5bqWvzLwwkk"]);
    assert_eq!([&created["level"], &created["section"]], ["important", "core"]);
    let said = named("hook_output");
    assert_eq!(said["message"], format!("CREATE hook for {id}: say \"no\" = \\"));
    let failed = named("hook_failed");
    assert_eq!([&failed["endpoint"], &failed["action"]], [id, "CREATE"]);
    assert_eq!(failed["outcome"], "ended with exit status 3");
    let dropped = named("drop_from_gwlb");
    assert_eq!([&dropped["reason"], &dropped["bytes"]], ["short", "4"]);
    assert_eq!([&dropped["from"], &dropped["level"]], ["10.99.0.11", "debug"]);
    let packet = named("packet_from_gwlb");
    assert!(packet["message"].contains("\n0000: "), "a dump has several lines: {packet:?}");
    assert_eq!(events.last().expect("events")["event"], "stopped");
}

#[test]
fn every_line_is_an_event_in_json() {
    let lab = Lab::new(0, Config::default());
    let engine = eventful(&lab, "json");
    let events: Vec<HashMap<String, String>> = engine
        .log()
        .lines()
        .map(|line| match serde_json::from_str(line) {
            Ok(Value::Object(object)) => object
                .into_iter()
                .map(|(name, value)| {
                    let text = value.as_str().map(str::to_owned);
                    (name, text.unwrap_or_else(|| value.to_string()))
                })
                .collect(),
            other => panic!("{other:?}: {line}"),
        })
        .collect();
    assert_eventful(&events);
}

/// Reads a line of logfmt: pairs between blanks, values with quotes as JSON has them.
fn logfmt(mut line: &str) -> HashMap<String, String> {
    let mut pairs = HashMap::new();
    while !line.is_empty() {
        let (name, rest) = line.split_once('=').unwrap_or_else(|| panic!("no value: {line}"));
        let value = if rest.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let value = values.next().expect("a value").unwrap_or_else(|e| panic!("{e}: {rest}"));
            line = &rest[values.byte_offset()..];
            value
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            line = &rest[end..];
            rest[..end].to_owned()
        };
        assert!(!name.contains([' ', '"']), "{name}");
        assert_eq!(pairs.insert(name.to_owned(), value), None, "{name} is there twice");
        line = line.strip_prefix(' ').unwrap_or(line);
    }
    pairs
}

#[test]
fn every_line_is_an_event_in_logfmt() {
    let lab = Lab::new(0, Config::default());
    let engine = eventful(&lab, "logfmt");
    assert_eventful(&engine.log().lines().map(logfmt).collect::<Vec<_>>());
}

/// Reads an entry in journald's native protocol; the program's own fields less their prefix.
fn journal_entry(mut entry: &[u8]) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|byte| b"=\n".contains(byte)).expect("a field's name");
        let name = std::str::from_utf8(&entry[..end]).expect("a name");
        let (separator, rest) = (entry[end], &entry[end + 1..]);
        let (value, rest) = if separator == b'=' {
            rest.split_at(rest.iter().position(|byte| *byte == b'\n').expect("its end"))
        } else {
            let (length, rest) = rest.split_first_chunk().expect("a length");
            rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("a length"))
        };
        let name = name.strip_prefix("GWLBTUN_").unwrap_or(name).to_ascii_lowercase();
        let value = String::from_utf8(value.to_vec()).expect("text");
        assert_eq!(fields.insert(name, value), None, "a field is there twice");
        entry = rest.strip_prefix(b"\n").expect("the end of a field");
    }
    fields
}

/// A journald of our own, which the program finds where systemd's would be.
#[test]
fn journald_gets_every_event() {
    let lab = Lab::new(0, Config::default());
    let run = lab.scratch.file("run");
    let journal = format!("{}/systemd/journal", run.display());
    std::fs::create_dir_all(&journal).expect("directories");
    let socket = UnixDatagram::bind(format!("{journal}/socket")).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let script = format!("mount --bind {} /run && exec \"$@\"", run.display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "with-journal"];
    let rest = [
        "-p",
        "8080",
        "--log-format",
        "journald",
        "-c",
        FAILING_HOOK,
        "-x",
        "-d",
        "--workers",
        "1",
    ];
    let mut engine = Engine::start_under(&lab, &wrapper, &rest);
    let mut buffer = vec![0; 1 << 16];
    let mut events = Vec::new();
    let mut take_until = |wanted: &[&str]| {
        let is_there = |events: &[HashMap<_, _>], id: &str| events.iter().any(|e| e["event"] == id);
        while !wanted.iter().all(|id| is_there(&events, id)) {
            let length = socket.recv(&mut buffer).expect("an entry");
            events.push(journal_entry(&buffer[..length]));
        }
        events.clone()
    };
    let mut injector = lab.injector();
    injector.send_raw(&[0; 4]);
    injector.send(endpoint_id(0), &packets::ping(V4, 1, b"alive"));
    take_until(&EVENTFUL);
    engine.signal(Signal::SIGTERM);
    let events = take_until(&["stopped"]);
    assert_eq!(engine.wait().code(), Some(0));
    assert_eventful(&events);
    let priority = |id| &events.iter().find(|event| event["event"] == id).expect(id)["priority"];
    assert_eq!([priority("hook_failed"), priority("io_uring")], ["5", "6"]);
    assert_eq!(priority("drop_from_gwlb"), "7");
    assert!(events.iter().all(|event| event["syslog_identifier"] == "gwlbtun"));
    assert_eq!(engine.log(), "", "nothing goes elsewhere");
}

#[test]
fn without_journald_it_says_what_to_do() {
    let lab = Lab::new(0, Config::default());
    let script = "mount -t tmpfs none /run && exec \"$@\"";
    let mut command = lab.topology.target().command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", PROGRAM, "--log-format", "journald"]);
    let output = command.output().expect("it ends");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "gwlbtun: connect(/run/systemd/journal/socket): No such file or directory: --log-format \
         journald needs systemd-journald; text, json and logfmt do not\n"
    );
}

/// R34: as above, and the reader comes back: it is told how many lines it did not get.
#[test]
fn lines_lost_to_a_reader_that_paused_are_counted() {
    const HOOKS: usize = 20;
    const LINES: usize = 500;
    let lab = Lab::new(0, Config::default());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let done = lab.scratch.file("done");
    // The queue holds 4,096 lines, and the pipe some hundreds.
    let noisy = format!("yes 'a line' | head -n {LINES}; echo >>{} #", done.display());
    let mut command = lab.topology.target().command(PROGRAM);
    command.args(["-jp", "8080", "-c", &noisy, "--log-format", "json", "--workers", "1"]);
    let mut engine = Engine::launch(&lab, command.stdout(writer).stderr(Stdio::null()));
    drop(command);
    let mut injector = lab.injector();
    for number in 0..HOOKS {
        injector.send(endpoint_id(number), &packets::ping(V4, 1, b"make it talk"));
    }
    wait_until("all hooks ran", || std::fs::read(&done).is_ok_and(|lines| lines.len() == HOOKS));
    wait_until("the page tells what the log cannot", || {
        let page = engine.status();
        page["logLinesLost"].as_u64() > Some(0) && page["warnings"].to_string().contains("log are")
    });
    let (written, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for line in BufReader::new(reader).lines() {
                let line = line.expect("the log");
                let event: Value = serde_json::from_str(&line).expect("whole lines");
                if event["event"] == "hook_output" {
                    written.fetch_add(1, Ordering::Relaxed);
                } else if event["event"] == "log_lines_lost" {
                    let lines = event["lines"].as_u64().expect("a number");
                    lost.fetch_add(lines, Ordering::Relaxed);
                }
            }
        });
        // Of lines about endpoints, too, some may be among those lost.
        wait_until("each line is there or counted", || {
            let all = written.load(Ordering::Relaxed) + lost.load(Ordering::Relaxed);
            all >= (HOOKS * LINES) as u64
        });
        engine.signal(Signal::SIGTERM);
        assert_eq!(engine.wait().code(), Some(0));
    });
    let (written, lost) = (written.into_inner(), lost.into_inner());
    assert!(lost > 0, "{written} lines came");
    assert!(written + lost <= (HOOKS * (LINES + 2)) as u64, "{written} came, {lost} did not");
}
