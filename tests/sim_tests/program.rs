//! The simulator as a program: rehearsals and their exit status, lines on stdout, nothing left.

use std::io::BufRead as _;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::mpsc;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::clock::PATIENCE;
use crate::support::clock::wait_for;
use crate::support::clock::wait_until;
use crate::support::engine::PASSTHROUGH;
use crate::support::engine::PROGRAM;
use crate::support::scratch::Scratch;
use crate::support::scratch::unique_name;
use crate::support::tools;

/// The example that Cargo built with these tests, which has no variable as programs have.
fn simulator() -> Command {
    tools::require();
    let tests = std::env::current_exe().expect("this program");
    let profile = tests.ancestors().nth(2).expect("target/debug/deps/tests");
    let path: PathBuf = profile.join("examples/gwlb-sim");
    assert!(path.exists(), "run: cargo build --example gwlb-sim");
    Command::new(path)
}

fn namespaces(prefix: &str) -> Vec<String> {
    let listing = std::fs::read_dir("/run/netns").expect("namespaces");
    let names = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("{prefix}-"))).collect()
}

/// Runs to the end in the repository's root, and requires that no namespace is left.
fn rehearse(options: &[&str], client: &[&str]) -> Output {
    let prefix = unique_name();
    let mut command = simulator();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg(&prefix).args(options);
    if !client.is_empty() {
        command.arg("--").args(client);
    }
    let output = command.stdin(Stdio::null()).output().expect("the simulator runs");
    assert_eq!(namespaces(&prefix), [""; 0], "{output:?}");
    output
}

/// The last line on stdout as JSON.
fn counters(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The last line on stderr.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_rehearsal_pings_through_the_target_and_lets_it_end() {
    let scratch = Scratch::new(&unique_name());
    let note = scratch.file("destroyed");
    let after = format!("echo done >{}", note.display());
    let target = format!("trap : TERM; {PROGRAM} -c {PASSTHROUGH} -r {PASSTHROUGH}; {after}");
    let output = rehearse(&["--target", &target], &["ping", "-c", "2", "-W", "10", "10.1.0.2"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("ready\n") && text.contains(" 2 received"), "{text}");
    assert_eq!(counters(&output)["returned"], 4);
    assert!(complaint(&output).contains("Shutdown complete."), "{output:?}");
    assert!(note.exists(), "the shell of --target lived until it had ended");
}

/// AWS's load balancer takes 8,500 bytes, and says nothing about what is above. So does a link that
/// takes less.
#[test]
fn what_is_too_large_for_the_load_balancer_is_gone() {
    let target = format!("exec {PROGRAM} -c {PASSTHROUGH}");
    for (option, mtu, bytes) in [("--inner-mtu", "9001", 8900), ("--outer-mtu", "1500", 8400)] {
        let ping =
            format!("ping -c 1 -W 10 -s 1400 10.1.0.2 && ping -c 1 -W 1 -M do -s {bytes} 10.1.0.2");
        let output = rehearse(&["--target", &target, option, mtu], &["sh", "-c", &ping]);
        let complained = complaint(&output);
        assert_eq!(output.status.code(), Some(1), "ping's: {complained}");
        assert!(!complained.starts_with("gwlb-sim:"), "{complained}");
        assert_eq!(counters(&output)["returned"], 2, "{output:?}");
        assert_ne!(counters(&output)["tooLarge"], 0, "{output:?}");
    }
}

#[test]
fn the_status_is_the_clients_unless_a_rule_is_broken() {
    let passthrough = format!("exec {PROGRAM} -c {PASSTHROUGH}");
    let output = rehearse(&["--target", &passthrough], &["sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let output = rehearse(&["--target", &passthrough], &["sh", "-c", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(128 + 9), "{output:?}");
    // A target that answers every datagram with one that is not for port 6081.
    let echo = "exec python3 -c 'import socket\n\
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                s.bind((\"\", 6081))\n\
                while True: s.sendto(*s.recvfrom(9000))'";
    let client = ["sh", "-c", "ping -c 1 -W 1 10.1.0.2; exit 0"];
    let output = rehearse(&["--target", echo], &client);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let why = complaint(&output);
    assert!(why.contains("PacketsDroppedCount_InvalidGeneveTunnel"), "{why}");
}

#[test]
fn what_cannot_work_is_one_line_and_leaves_nothing() {
    let wait = ["sleep", "1000"];
    let cases: [(&[&str], &[&str], &str); 6] = [
        (&["--target", "exit 3"], &wait, "the command of --target ended by itself"),
        (&["--server", "exit 3", "--target", "sleep 1000"], &wait, "of --server ended by itself"),
        (&["--endpoints", "0"], &wait, "there is no client"),
        (&["--health-timeout", "11"], &[], "is longer than --health-interval"),
        (&["--health-path", "health"], &[], "needs a path that begins with /"),
        (&["--outer-ports", "10000"], &[], "needs ports from 1 to 65535"),
    ];
    for (options, client, expected) in cases {
        let output = rehearse(options, client);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let why = complaint(&output);
        assert!(why.starts_with("gwlb-sim: ") && why.contains(expected), "{why}");
    }
    for wrong in [["--endpoints", "251"], ["--health-codes", "99"], ["--nodes", "0"]] {
        assert_eq!(rehearse(&wrong, &[]).status.code(), Some(2), "{wrong:?}");
    }
}

/// A simulator that runs until a signal; killed on drop.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(prefix: &str, options: &[&str]) -> Self {
        let mut command = simulator();
        let command = command.arg(prefix).args(options).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the simulator");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        // Ends with the simulator.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let running = Self { child, lines };
        assert_eq!(running.line(), "ready");
        running
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line on stdout")
    }

    /// Waits for a line that begins so.
    fn line_with(&self, prefix: &str) -> String {
        loop {
            let line = self.line();
            if line.starts_with(prefix) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("kill");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn signals_print_counters_deregister_and_end() {
    let prefix = unique_name();
    let options = ["--topology", "two-arm", "--endpoints", "2", "--health-port", "80"];
    let fast = ["--health-interval", "0.2", "--health-timeout", "0.2", "--nodes", "1"];
    let mut running = Running::start(&prefix, &[&options[..], &fast].concat());
    let guide = running.line_with(&format!("  {prefix}-internet"));
    assert!(guide.contains("198.51.100.1"), "{guide}");
    assert_eq!(namespaces(&prefix).len(), 5);
    let change = running.line_with("health: ");
    assert_eq!(change, "health: node 10.99.0.11: unhealthy Target.FailedHealthChecks");
    running.signal(Signal::SIGUSR2);
    assert_eq!(running.line(), "target: draining Target.DeregistrationInProgress");
    running.signal(Signal::SIGUSR1);
    let counters: serde_json::Value = serde_json::from_str(&running.line()).expect("JSON");
    assert_eq!(counters["health"][0]["state"], "draining");
    running.signal(Signal::SIGUSR2);
    assert!(running.line().starts_with("target: initial"));
    running.signal(Signal::SIGTERM);
    assert!(running.line_with("{").contains("\"breaches\""));
    assert!(running.child.wait().expect("wait").success());
    assert_eq!(namespaces(&prefix), [""; 0]);
}

#[test]
fn an_interrupted_rehearsal_is_no_success() {
    let prefix = unique_name();
    let target = format!("exec {PROGRAM} -c {PASSTHROUGH} >/dev/null");
    let client = ["--", "sh", "-c", "echo client; exec sleep 1000"];
    let options = [&["--target", target.as_str()], &client[..]].concat();
    let mut running = Running::start(&prefix, &options);
    assert_eq!(running.line(), "client");
    running.signal(Signal::SIGINT);
    assert_eq!(running.child.wait().expect("wait").code(), Some(1));
    assert_eq!(namespaces(&prefix), [""; 0]);
}

#[test]
fn a_simulator_that_is_killed_leaves_nothing() {
    let prefix = unique_name();
    let running = Running::start(&prefix, &["--target", "sleep 1000 & exec sleep 1001"]);
    let target = format!("{prefix}-target");
    let pids = wait_for("both sleeps run", || {
        let listed = Command::new("ip").args(["netns", "pids", &target]).output().expect("ip");
        let text = String::from_utf8(listed.stdout).expect("UTF-8");
        let pids: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        (pids.len() == 2).then_some(pids)
    });
    drop(running);
    wait_until("no namespace is left", || namespaces(&prefix).is_empty());
    wait_until("no process is left", || {
        // One that nobody has waited for has no command line.
        let line = |pid: &String| std::fs::read(format!("/proc/{pid}/cmdline"));
        pids.iter().all(|pid| line(pid).is_ok_and(|line| line.is_empty()) || line(pid).is_err())
    });
}
