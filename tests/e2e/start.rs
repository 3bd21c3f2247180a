//! When it cannot start: one line that says why, and an exit status that a unit file can test.

use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::process::Stdio;

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PROGRAM;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::process::ordinary_user;
use crate::support::seccomp;

/// Seconds after which `timeout` ends a program that has started although it should not.
const TIMEOUT_SECS: &str = "10";

/// Runs a command that must end with `status` and say `what` in one line on stderr.
fn expect_refusal(command: &mut Command, status: i32, what: &str) {
    let output = command.stdin(Stdio::null()).output().expect("ip");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{command:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "one line, not {stderr:?}");
    assert!(stderr.contains(what), "{what:?} is missing in {stderr:?}");
}

/// `program` with a time-out in the target's namespace, with `wrapper` before it.
fn engine(lab: &Lab, wrapper: &[&str], args: &[&str]) -> Command {
    let mut command = lab.topology.target().command("timeout");
    command.arg(TIMEOUT_SECS).args(wrapper).arg(PROGRAM).args(args);
    command
}

#[test]
fn bad_usage_is_status_1() {
    let lab = Lab::new(0, Config::default());
    for args in [
        &["--no-such-flag"][..],
        &["--workers", "0"],
        &["--workers", "257"],
        &["--workers", "many"],
        &["--cores", "1-"],
        &["-t"],
    ] {
        let output = engine(&lab, &[], args).output().expect("ip");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.lines().count(), 1, "one line, not {stderr:?}");
    }
}

#[test]
fn a_parent_that_ignores_sigchld_does_not_hide_how_hooks_end() {
    let lab = Lab::new(0, Config::default());
    let ignoring = ["sh", "-c", r#"trap "" CHLD; exec "$@""#, "ignoring"];
    let log = lab.scratch.file("log");
    let mut command = engine(&lab, &ignoring, &["-c", "exit 3;"]);
    command.stdout(std::fs::File::create(&log).expect("a log file"));
    let mut child = command.spawn().expect("ip");
    let said = |text: &str| std::fs::read_to_string(&log).unwrap_or_default().contains(text);
    wait_until("it has started", || said("started."));
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"hook"));
    wait_until("its hook has ended", || said("ended with exit status 3"));
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("timeout passes it on");
    child.wait().expect("wait");
}

#[test]
fn a_taken_health_port_is_status_1() {
    let lab = Lab::new(0, Config::default());
    let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080));
    let _taken = lab.topology.target().enter(bind).expect("port 8080");
    expect_refusal(&mut engine(&lab, &[], &["-p", "8080"]), 1, "8080");
}

#[test]
fn missing_permission_is_status_2() {
    let lab = Lab::new(0, Config::default());
    let without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    expect_refusal(&mut engine(&lab, &without, &[]), 2, "CAP_NET_ADMIN");
}

#[test]
fn too_few_open_files_are_status_3() {
    let lab = Lab::new(0, Config::default());
    let few = ["prlimit", "--nofile=100:100"];
    expect_refusal(&mut engine(&lab, &few, &[]), 3, "LimitNOFILE=");
    expect_refusal(&mut engine(&lab, &few, &["--workers", "64"]), 3, "with 64 workers");
}

#[test]
fn too_little_locked_memory_is_status_3() {
    let lab = Lab::new(0, Config::default());
    // Locked memory is counted by user: a user of its own has no other rings.
    let user = ordinary_user(60_000 + std::process::id() % 5_000);
    // Where the program was built may be closed to others.
    let program = lab.scratch.file("gwlbtun");
    std::fs::copy(PROGRAM, &program).expect("a copy");
    let said = "the limit on locked memory is 64 KiB, which does not carry the rings of 4 workers; \
                set LimitMEMLOCK=";
    let mut command = lab.topology.target().command("timeout");
    command.args([TIMEOUT_SECS, "prlimit", "--memlock=65536:65536"]);
    command.args(user).arg(program).args(["--workers", "4"]);
    expect_refusal(&mut command, 3, said);
}

#[test]
fn a_missing_tun_device_is_status_3() {
    let lab = Lab::new(0, Config::default());
    let script = r#"mount -t tmpfs none /dev/net && exec "$@""#;
    let without = ["unshare", "--mount", "sh", "-c", script, "without-tun"];
    expect_refusal(&mut engine(&lab, &without, &[]), 3, "/dev/net/tun");
}

#[test]
fn a_hook_that_cannot_run_is_status_1() {
    let lab = Lab::new(0, Config::default());
    let hook = lab.scratch.file("hook");
    let path = hook.to_str().expect("UTF-8");
    for flag in ["-c", "-r"] {
        expect_refusal(&mut engine(&lab, &[], &[flag, path]), 1, "cannot be found");
    }
    std::fs::write(&hook, "#!/bin/sh\n").expect("a hook");
    let chmod = |mode| std::fs::set_permissions(&hook, PermissionsExt::from_mode(mode));
    chmod(0o644).expect("chmod");
    let with_words = format!("{path} --verbose");
    expect_refusal(&mut engine(&lab, &[], &["-c", &with_words]), 1, "chmod +x");
    chmod(0o777).expect("chmod");
    expect_refusal(&mut engine(&lab, &[], &["-r", path]), 1, "--allow-insecure-hooks");
    drop(Engine::start(&lab, &["--allow-insecure-hooks", "-r", path]));
    let directory = format!("{path}.d");
    std::fs::create_dir(&directory).expect("a directory");
    expect_refusal(&mut engine(&lab, &[], &["-c", &directory]), 1, "is no file");
}

#[test]
fn hooks_without_a_shell_are_status_1() {
    let lab = Lab::new(0, Config::default());
    let script = r#"mount --bind /dev/null /bin/sh && exec "$@""#;
    let without = ["unshare", "--mount", "sh", "-c", script, "without-shell"];
    expect_refusal(&mut engine(&lab, &without, &["-c", "true"]), 1, "/bin/sh");
}

#[test]
fn a_taken_udp_port_is_status_4() {
    let lab = Lab::new(0, Config::default());
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6081));
    let _taken = lab.topology.target().enter(bind).expect("port 6081");
    expect_refusal(&mut engine(&lab, &[], &[]), 4, "6081");
}

#[test]
fn forbidden_io_uring_is_status_5() {
    let lab = Lab::new(0, Config::default());
    let mut command = engine(&lab, &[], &[]);
    seccomp::forbid(&mut command, libc::SYS_io_uring_setup);
    expect_refusal(&mut command, 5, "io_uring");
}

#[test]
fn a_program_that_shares_the_port_is_told_and_does_not_stop_the_start() {
    let lab = Lab::new(0, Config::default());
    let _first = Engine::start(&lab, &[]);
    let second = Engine::start_on(&lab, 8081, &[]);
    let warning = "Another program receives on UDP port 6081 too, and gets its share of the \
                   datagrams: see ss -lunp sport = 6081.";
    wait_until("it is told", || second.log().contains(warning));
}
