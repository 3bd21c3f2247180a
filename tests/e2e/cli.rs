//! The command line, as unit files and hands type it: what starts, what is refused, what is said.

use std::process::Command;
use std::process::Output;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PROGRAM;
use crate::support::lab::Lab;
use crate::support::process::run as run_in;

/// The answer to `--help`.
const HELP: &str = include_str!("help.txt");

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().expect("the program")
}

/// Flags that need no start: help and refusals, on stderr with status 1 as the reference has it.
#[test]
fn the_help_word_for_word_on_stderr_with_status_1() {
    for spelling in [&["--help"][..], &["-h"], &["-?"], &["-jh"], &["-p80", "stray", "--help"]] {
        let output = run(spelling);
        assert_eq!(output.status.code(), Some(1), "{spelling:?}");
        assert!(output.stdout.is_empty(), "{spelling:?}");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(stderr, HELP, "{spelling:?}; if that is meant: tests/e2e/help.txt");
    }
}

#[test]
fn the_help_fits_a_terminal() {
    for line in HELP.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn what_cannot_be_understood_is_one_line_with_status_1() {
    for (args, said) in [
        (&["--nonsense"][..], "unexpected argument '--nonsense' found"),
        (&["-z"], "unexpected argument '-z' found"),
        (&["--h"], "--h"),
        (&["-p"], "--port <PORT> needs a value"),
        (&["-p", "99999"], "--port <PORT>: \"99999\": 99999 is not in 0..=65535"),
        (&["--udpthreads", "-1"], "--udpthreads <N>: \"-1\""),
        (&["--udpthreads", "257"], "257 workers asked for, but a TUN has at most 256 queues"),
        (&["--udpaffinity", "0,,1"], "--udpaffinity \"0,,1\""),
        (&["--tunaffinity", "1-0"], "--tunaffinity \"1-0\": the range 1-0 ends before it starts"),
        (&["--compat", "4"], "--compat <VERSION>: \"4\""),
        (&["--reserve", "1"], "--reserve \"1\": it has 1 numbers, not six"),
        (&["-j=yes"], "unexpected argument '-=' found"),
    ] {
        let output = run(args);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr:?}");
        assert!(stderr.starts_with("gwlbtun: ") && stderr.contains(said), "{args:?}: {stderr}");
    }
}

/// What 3.2 has, and what becomes of it.
#[test]
fn receive_queue_and_busy_polling_are_the_programs_own() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["--rcvbuf", "3", "--workers", "1"]);
    let sockets = run_in(&lab.topology.target(), "ss", &["-lunm", "sport", "=", "6081"]);
    // The kernel keeps twice of what was asked for.
    assert!(sockets.contains(&format!("rb{}", 2 * (3 << 20))), "{sockets}");
    drop(engine);
    let engine = Engine::start(&lab, &["--busypoll", "50", "--kernel-floor"]);
    wait_until("it is told", || engine.log().contains("--busypoll is without effect"));
}
