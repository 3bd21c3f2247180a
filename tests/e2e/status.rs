//! `gwlbtun status` and `gwlbtun show`: what they say of a running program, how they end, and who
//! may ask.

use std::io;
use std::io::Read;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::sim::gwlb::Config;
use crate::sim::netns::Namespace;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PROGRAM;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;

/// Runs the program's sub-command in a namespace, with `wrapper` before it.
fn run_under(namespace: &Namespace, wrapper: &[&str], args: &[&str]) -> Output {
    let words = [&["timeout", "60"], wrapper, &[PROGRAM], args].concat();
    namespace.command(words[0]).args(&words[1..]).output().expect("ip")
}

/// The same in the target's namespace; exit status, standard output and standard error.
fn ask(lab: &Lab, args: &[&str]) -> (i32, String, String) {
    parts(&run_under(&lab.topology.target(), &[], args))
}

fn parts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let status = output.status.code().expect("no signal");
    (status, text(&output.stdout), text(&output.stderr))
}

/// The answer in JSON, and the exit status.
fn ask_json(lab: &Lab, args: &[&str]) -> (i32, Value) {
    let (status, text, errors) = ask(lab, &[args, &["--json"]].concat());
    assert_eq!(text.lines().count(), 1, "{text}{errors}");
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}")))
}

/// What fits the smallest terminal.
fn expect_small(text: &str) {
    assert!(text.lines().count() <= 24, "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

/// A connection to the control socket, on which reading has a time-out.
fn connect(lab: &Lab) -> io::Result<UnixStream> {
    let connect = || UnixStream::connect_addr(&SocketAddr::from_abstract_name("gwlbtun")?);
    let stream = lab.topology.target().enter(connect)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[test]
fn a_program_that_is_well_is_ok_with_status_0() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "1", "--max-endpoints", "7"]);
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"status"));
    wait_until("its flow shows", || {
        let json = ask_json(&lab, &["status"]).1;
        json["hooks"]["last"]["state"] == "succeeded" && json["flows"]["count"] == 1
    });
    let (status, json) = ask_json(&lab, &["status"]);
    assert_eq!(status, 0, "{json}");
    assert_eq!((&json["schema_version"], &json["condition"]), (&1.into(), &"OK".into()), "{json}");
    assert_eq!(json["process_id"], engine.pid());
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["problems"], Value::Array(vec![]));
    assert_eq!(json["workers"], serde_json::json!({ "count": 1, "healthy": 1 }));
    assert_eq!(json["endpoints"], serde_json::json!({ "count": 1, "max": 7 }));
    assert_eq!(json["flows"]["count"], 1);
    assert_eq!((&json["hooks"]["runs"], &json["hooks"]["failures"]), (&1.into(), &0.into()));
    assert!(json["open_files"]["count"].as_u64() > Some(10), "{json}");

    let (status, text, errors) = ask(&lab, &["status"]);
    let first = format!("OK gwlbtun {}, up ", env!("CARGO_PKG_VERSION"));
    assert!(status == 0 && text.starts_with(&first) && errors.is_empty(), "{text}{errors}");
    assert!(text.contains("serves     1 of 7 endpoints with 1 of 1 workers\n"), "{text}");
    expect_small(&text);
}

#[test]
fn a_warning_is_degraded_with_status_1_and_named() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-c", "exit 3;"]);
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"status"));
    wait_until("its hook has ended", || engine.log().contains("ended with exit status 3"));
    // A page is up to a tenth of a second old.
    wait_until("it shows", || ask_json(&lab, &["status"]).1["condition"] != "OK");
    let (status, text, _) = ask(&lab, &["status"]);
    let problem = "problem    the CREATE hook for vpce-02b8ee1d4db0c51c4 ended with exit status 3;";
    assert!(status == 1 && text.starts_with("DEGRADED "), "{status} {text}");
    assert!(text.contains(problem), "{text}");
    expect_small(&text);
    let (status, json) = ask_json(&lab, &["status"]);
    assert_eq!((status, &json["condition"]), (1, &"DEGRADED".into()), "{json}");
}

#[test]
fn a_503_is_failed_with_status_2_and_its_reason() {
    let lab = Lab::new(0, Config::default());
    // A hook keeps the program at its end, which is a 503.
    let engine = Engine::start(&lab, &["-j", "-r", "while :; do sleep 1; done; :"]);
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"status"));
    wait_until("there is an endpoint", || engine.links().len() == 2);
    engine.signal(Signal::SIGTERM);
    wait_until("it is 503", || engine.health("/").status == 503);
    let (status, text, _) = ask(&lab, &["status"]);
    assert!(status == 2 && text.starts_with("FAILED "), "{status} {text}");
    assert!(text.contains("problem    the program is stopping\n"), "{text}");
    assert_eq!(ask_json(&lab, &["show", "hooks"]).1["hooks"][0]["state"], "running");
}

#[test]
fn no_program_is_status_3_and_says_where_there_is_one() {
    let lab = Lab::new(0, Config::default());
    for args in [&["status"][..], &["status", "--json"], &["show", "drops"]] {
        let (status, text, errors) = ask(&lab, args);
        assert!(status == 3 && text.is_empty(), "{args:?}: {status} {text}{errors}");
        assert!(errors.starts_with("gwlbtun: no gwlbtun runs in this network namespace"));
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    let engine = Engine::start(&lab, &[]);
    // Other tests' programs may be nearer to the beginning of /proc, so this one is asked directly.
    let inside = ["nsenter", "-t", &engine.pid().to_string(), "-n"];
    assert_eq!(run_under(&lab.topology.gwlb(), &inside, &["status"]).status.code(), Some(0));
    let (status, _, errors) = parts(&run_under(&lab.topology.gwlb(), &[], &["status"]));
    assert!(status == 3 && errors.contains("does in another one: sudo nsenter -t "), "{errors}");
    // Who may not see where that is does not say that there is none.
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let (status, _, errors) = parts(&run_under(&lab.topology.gwlb(), &nobody, &["status"]));
    assert!(status == 3 && errors.contains("only root can see in which one process"), "{errors}");
}

#[test]
fn what_is_not_understood_is_one_line_with_status_64() {
    let lab = Lab::new(0, Config::default());
    for (args, said) in [
        (&["status", "now"][..], "gwlbtun status: unexpected argument 'now' found"),
        (&["status", "--yaml"], "gwlbtun status: unexpected argument '--yaml' found"),
        (&["show"], "gwlbtun show: what? write endpoints, workers, drops, hooks, features or"),
        (&["show", "nothing"], "\"nothing\": write endpoints, workers, drops, hooks, features or"),
        (&["show", "drops", "hooks"], "gwlbtun show: unexpected argument 'hooks' found"),
    ] {
        let (status, text, errors) = ask(&lab, args);
        assert!(status == 64 && text.is_empty(), "{args:?}: {status} {text}{errors}");
        assert!(errors.lines().count() == 1 && errors.contains(said), "{args:?}: {errors}");
    }
    for name in ["status", "show"] {
        let (status, text, errors) = ask(&lab, &[name, "--help"]);
        assert!(status == 0 && errors.is_empty() && text.contains("Usage: gwlbtun "), "{text}");
    }
}

#[test]
fn another_user_is_refused_with_one_line_and_status_4() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::start(&lab, &[]);
    // Where the program was built may be closed to others.
    let program = lab.scratch.file("gwlbtun");
    std::fs::copy(PROGRAM, &program).expect("a copy");
    let mut command = lab.topology.target().command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("status");
    let (status, text, errors) = parts(&command.output().expect("ip"));
    assert!(status == 4 && text.is_empty(), "{status} {text}");
    assert_eq!(
        errors,
        "gwlbtun: user 65534 may not ask: run it with sudo, or as user 0, as which gwlbtun runs\n"
    );
}

#[test]
fn the_socket_outlasts_whoever_abuses_it() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &[]);
    let before = engine.descriptor_count();
    // More than may be at a time: the others wait for their turn.
    let idle: Vec<_> = (0..20).map(|_| connect(&lab).expect("it is taken")).collect();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"\n", b"status --json extra\n"]
    {
        let mut stream = connect(&lab).expect("it is taken");
        // It may be closed before all is written.
        let _ = stream.write_all(garbage);
        let mut text = String::new();
        // A reset comes where not all was read.
        let _ = stream.read_to_string(&mut text);
        assert!(text.is_empty() || text.starts_with("4\n"), "{garbage:?}: {text}");
    }
    let (status, _, errors) = ask(&lab, &["status"]);
    assert_eq!(status, 0, "they are gone after a while: {errors}");
    assert_eq!(engine.health("/").status, 200);
    drop(idle);
    wait_until("it lets go of them", || engine.descriptor_count() <= before);
}

#[test]
fn a_program_that_stands_still_is_status_4() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &[]);
    engine.signal(Signal::SIGSTOP);
    let (status, text, errors) = ask(&lab, &["status"]);
    engine.signal(Signal::SIGCONT);
    assert!(status == 4 && text.is_empty(), "{status} {text}");
    assert!(errors.starts_with("gwlbtun: the running gwlbtun does not answer: "), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    // For a moment it wonders itself.
    wait_until("it is well again", || ask(&lab, &["status"]).0 == 0);
}

#[test]
fn a_name_that_is_taken_is_a_warning_and_no_end() {
    let lab = Lab::new(0, Config::default());
    let bind = || UnixListener::bind_addr(&SocketAddr::from_abstract_name("gwlbtun")?);
    let taken = lab.topology.target().enter(bind).expect("the name is free");
    let engine = Engine::start(&lab, &["-j"]);
    let said = "gwlbtun status and show cannot reach this process: bind(Unix socket @gwlbtun): \
                Address already in use";
    assert!(engine.log().contains(said), "{}", engine.log());
    wait_until("the page warns", || engine.status()["warnings"].to_string().contains(said));
    // Whoever has the name may say what it likes; a terminal obeys none of it.
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = taken.accept().expect("a client");
        stream.write_all(b"0\nOK \x1b[2J all is well\n").expect("it listens");
    });
    let (status, text, _) = ask(&lab, &["status"]);
    answer.join().expect("it was asked");
    assert_eq!((status, text.as_str()), (0, "OK ?[2J all is well\n"));
    // The name is free now: a predecessor that was ending may have had it.
    wait_until("it answers", || ask(&lab, &["show", "config"]).0 == 0);
    wait_until("the page warns no more", || engine.status()["warnings"] == Value::Array(vec![]));
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure_and_a_reader_who_goes_is_none() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::start(&lab, &[]);
    let target = lab.topology.target();
    for asked in ["status", "show config --json", "doctor", "show --help"] {
        let script = format!("{PROGRAM} {asked} >/dev/full");
        let output = target.command("sh").args(["-c", &script]).output().expect("sh");
        let (status, _, errors) = parts(&output);
        let said = "gwlbtun: the answer could not be written: No space left on device";
        assert!(status == 74 && errors.starts_with(said), "{asked}: {status} {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    // The pipe has no reader by the time of the answer.
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let mut command = lab.topology.target().command(PROGRAM);
    let output = command.arg("status").stdout(writer).stderr(Stdio::piped()).output();
    let (status, _, errors) = parts(&output.expect("the program"));
    assert_eq!((status, errors.as_str()), (0, ""));
}

#[test]
fn whoever_answers_for_ever_is_not_heard_for_ever() {
    let lab = Lab::new(0, Config::default());
    let bind = || UnixListener::bind_addr(&SocketAddr::from_abstract_name("gwlbtun")?);
    let taken = lab.topology.target().enter(bind).expect("the name is free");
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = taken.accept().expect("a client");
        stream.write_all(b"0\nOK").expect("it listens");
        // Each byte comes in time, until it listens no more.
        while stream.write_all(b" ").is_ok() {
            std::thread::park_timeout(Duration::from_millis(500));
        }
    });
    let (status, text, errors) = ask(&lab, &["status"]);
    answer.join().expect("it was asked");
    assert_eq!((status, text.as_str()), (4, ""));
    assert!(errors.contains("does not answer: 5 seconds have passed"), "{errors}");
}

#[test]
fn every_topic_is_shown_to_people_and_to_programs() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2", "-i", "77", "--no-udp-gso"]);
    let mut injector = lab.injector();
    injector.send(endpoint_id(0), &packets::ping(V4, 1, b"status"));
    injector.send_raw(b"short");
    wait_until("it is dropped", || engine.drops("short") == 1);
    wait_until("the hook has ended", || {
        ask_json(&lab, &["show", "hooks"]).1["hooks"][0]["state"] == "succeeded"
    });
    for (topic, head, row) in [
        ("endpoints", "ENDPOINT", "vpce-02b8ee1d4db0c51c4  gwi-5bqWvzLwwkk  yes"),
        ("workers", "WORKER", "1"),
        ("drops", "REASON", "short"),
        ("hooks", "HOOK", "CREATE  vpce-02b8ee1d4db0c51c4"),
        ("features", "FEATURE", "udp-gso"),
        ("config", "FLAG", "idle"),
    ] {
        let (status, text, errors) = ask(&lab, &["show", topic]);
        assert!(status == 0 && errors.is_empty(), "{topic}: {errors}");
        assert!(text.starts_with(head), "{topic}: {text}");
        assert!(text.lines().any(|line| line.trim_start().starts_with(row)), "{topic}: {text}");
        let (status, json) = ask_json(&lab, &["show", topic]);
        assert_eq!((status, &json["schema_version"]), (0, &1.into()), "{topic}");
        let rows = json[topic].as_array().map(Vec::len);
        assert_eq!(rows, Some(text.lines().count() - 1), "{topic}: {text}");
    }
    let row = |topic: &str, key: &str, name: &str| {
        let json = ask_json(&lab, &["show", topic]).1;
        let rows = json[topic].as_array().expect("rows");
        rows.iter().find(|row| row[key] == name).unwrap_or_else(|| panic!("{json}")).clone()
    };
    let idle = serde_json::json!({ "flag": "idle", "value": "77 s", "origin": "command line" });
    assert_eq!(row("config", "flag", "idle"), idle);
    assert_eq!(row("config", "flag", "hook-jobs")["origin"], "default");
    assert_eq!(row("features", "feature", "udp-gso")["in_use"], false);
    assert_eq!(row("drops", "reason", "short")["packets"], 1);
    assert_eq!(row("endpoints", "endpoint", "vpce-02b8ee1d4db0c51c4")["well"], true);
}
