//! Hooks from outside: what they get, and that one that misbehaves disturbs no other endpoint.
//!
//! Endpoint 0 is the witness: its packets go there and back all the time, and the health page is
//! asked, while the CREATE hook of endpoint 1 does its worst.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::sim::gwlb::Config;
use crate::support::clock::Deadline;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_for;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::injector::Back;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::pattern;

/// Packets that the witness sends in one go.
const BURST: usize = 20;

/// Between two looks of the witness.
const PACE: Duration = Duration::from_millis(20);

/// The program's own deadline for a hook.
const HOOK_DEADLINE: Duration = Duration::from_secs(30);

/// Memory by which the program may grow over a test, with one endpoint more.
const GROWTH_KIB_MAX: u64 = 16 << 10;

/// Writes a hook that runs `text`; its path.
fn hook(lab: &Lab, name: &str, text: &str) -> String {
    let path = lab.scratch.file(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path.into_os_string().into_string().unwrap()
}

/// A hook that passes packets through, and then runs `text` if endpoint 1 is being created.
fn bad_hook(lab: &Lab, text: &str) -> String {
    let script = format!(
        "{PASSTHROUGH} \"$@\" || exit 99\n\
         [ \"$1 $4\" = \"CREATE {:017x}\" ] || exit 0\n\
         cd {}\n{text}",
        endpoint_id(1),
        lab.scratch.file("").display()
    );
    hook(lab, "hook", &script)
}

/// The witness and the engine that it watches.
struct Scene {
    engine: Engine,
    injector: Injector,
    number: usize,
    /// What came back to endpoint 1.
    others: Vec<Back>,
}

/// The packet of endpoint 1 that waits for its hook.
fn held() -> Vec<u8> {
    packets::ping(V4, 7, b"held")
}

impl Scene {
    /// Starts an engine with this hook, and lets endpoint 1 begin under the eyes of endpoint 0.
    fn begin(lab: &Lab, hook: &str) -> Self {
        let engine = Engine::start(lab, &["-c", hook, "-r", PASSTHROUGH, "-j"]);
        let mut scene = Self { engine, injector: lab.injector(), number: 0, others: Vec::new() };
        scene.look();
        scene.injector.send(endpoint_id(1), &held());
        scene
    }

    /// A burst comes back whole and in order, and the health page is fine.
    fn look(&mut self) {
        let burst: Vec<_> = (0..BURST)
            .map(|place| {
                packets::udp(V4, (4000, 53), &pattern(self.number + place, 100 + 50 * place))
            })
            .collect();
        self.number += BURST;
        for inner in &burst {
            self.injector.send(endpoint_id(0), inner);
        }
        for inner in &burst {
            let back = loop {
                let back = self.injector.receive(PATIENCE).expect("the witness lost a packet");
                if back.endpoint == endpoint_id(0) {
                    break back;
                }
                self.others.push(back);
            };
            assert_eq!(&back.inner, inner);
        }
        let answer = self.engine.health("/");
        assert_eq!(answer.status, 200, "{answer:?}");
        self.others.extend(self.injector.receive(PACE));
    }

    /// Looks until `is_over`.
    fn look_until(&mut self, what: &str, is_over: impl Fn(&Self) -> bool) {
        let deadline = Deadline::after(PATIENCE + HOOK_DEADLINE);
        while !is_over(self) {
            assert!(!deadline.is_over(), "waited in vain: {what}");
            self.look();
        }
    }

    /// Looks until the log says so, and then until the held packet has come back, once.
    fn end(mut self, said: &str, failures: u64) -> Engine {
        self.look_until(said, |scene| scene.engine.log().contains(said));
        self.look_until("the held packet returns", |scene| !scene.others.is_empty());
        self.look();
        let back: Vec<_> = self.others.iter().map(|back| (back.endpoint, &back.inner)).collect();
        assert_eq!(back, [(endpoint_id(1), &held())]);
        wait_until("the page counts the failure", || {
            self.engine.status()["hookFailures"] == failures
        });
        self.injector.assert_clean();
        self.engine
    }
}

/// The process whose id a hook wrote to a file.
fn process(path: &Path) -> Pid {
    wait_for("a process id", || {
        let text = std::fs::read_to_string(path).ok()?;
        Some(Pid::from_raw(text.strip_suffix('\n')?.parse().ok()?))
    })
}

/// Whether a process is there and is more than a remainder that its parent must reap.
fn is_alive(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// A process that a hook left behind, killed on drop.
struct LeftBehind(Pid);

impl Drop for LeftBehind {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

#[test]
fn r7_a_hook_that_hangs_is_killed_with_its_group() {
    let lab = Lab::new(0, Config::default());
    let script = "sleep 1000 & echo $! >child; echo $$ >shell; wait";
    let scene = Scene::begin(&lab, &bad_hook(&lab, script));
    let hanging = ["shell", "child"].map(|name| process(&lab.scratch.file(name)));
    assert!(hanging.into_iter().all(is_alive));
    let _engine = scene.end("ran too long and was killed", 1);
    for pid in hanging {
        wait_until("the group dies", || !is_alive(pid));
    }
}

#[test]
fn r7_a_hook_that_fails() {
    let lab = Lab::new(0, Config::default());
    let hook = bad_hook(&lab, "exit 1");
    Scene::begin(&lab, &hook).end("ended with exit status 1", 1);
}

#[test]
fn r7_a_hook_that_is_killed() {
    let lab = Lab::new(0, Config::default());
    let hook = bad_hook(&lab, "kill -SEGV $$");
    Scene::begin(&lab, &hook).end("was ended by signal 11", 1);
}

#[test]
fn r7_a_hook_that_writes_a_gigabyte() {
    let lab = Lab::new(0, Config::default());
    let hook = bad_hook(&lab, "yes | head -c 1000000000; echo written >written");
    let engine = Engine::start(&lab, &["-c", &hook, "-j"]);
    let mut scene = Scene { engine, injector: lab.injector(), number: 0, others: Vec::new() };
    for _ in 0..50 {
        scene.look();
    }
    let before = resident_kib(&scene.engine);
    scene.injector.send(endpoint_id(1), &held());
    let written = lab.scratch.file("written");
    scene.look_until("all is written", |_| written.exists());
    let engine = scene.end("the rest of its output is not logged", 0);
    let after = resident_kib(&engine);
    assert!(after < before + GROWTH_KIB_MAX, "{before} KiB before, {after} KiB after");
    let log = engine.log();
    let said = format!("CREATE hook for {:017x}: y", endpoint_id(1));
    assert_eq!(log.lines().filter(|line| line.ends_with(&said)).count(), 500);
    assert!(!log.contains("log lines lost"), "others' lines are there");
}

/// Memory of the program that is not on disk or given back.
fn resident_kib(engine: &Engine) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn r7_a_hook_that_forks_thousands() {
    let lab = Lab::new(0, Config::default());
    let script = "i=0; while [ $i -lt 2000 ]; do (:) & i=$((i + 1)); done; wait; echo all done";
    let hook = bad_hook(&lab, script);
    Scene::begin(&lab, &hook).end("all done", 0);
}

#[test]
fn b19_a_daemon_of_a_hook_holds_neither_port() {
    let lab = Lab::new(0, Config::default());
    let hook = bad_hook(&lab, "setsid sleep 1000 & echo $! >daemon; echo left");
    let mut engine = Scene::begin(&lab, &hook).end("left", 0);
    let daemon = LeftBehind(process(&lab.scratch.file("daemon")));
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    assert!(is_alive(daemon.0), "it is not ours to kill");
    let held = std::fs::read_dir(format!("/proc/{}/fd", daemon.0)).unwrap();
    let mut held: Vec<_> = held.map(|entry| entry.unwrap().file_name()).collect();
    held.sort();
    assert_eq!(held, ["0", "1", "2"]);
    // Nor does a ring of the past, which the kernel takes down in the background.
    let sockets = || std::fs::read_to_string("/proc/thread-self/net/udp");
    let sockets = lab.topology.target().enter(sockets).unwrap();
    assert!(sockets.contains("local_address") && !sockets.contains(":17C1 "), "{sockets}");
    // It starts and answers at once, and every packet reaches it: none goes to a socket of the
    // past.
    let scene = Scene::begin(&lab, PASSTHROUGH);
    scene.end("started.", 0);
    assert!(is_alive(daemon.0));
}

#[test]
fn a_hook_gets_what_the_program_was_started_with() {
    let lab = Lab::new(0, Config::default());
    let found = lab.scratch.file("found");
    let text = format!(
        "exec >{}.part\n\
         ls /proc/$$/fd; readlink /proc/$$/fd/0\n\
         ulimit -S -n; nice; umask; pwd; echo $MINE\n\
         sed -n 's/Cpus_allowed_list:.//p' /proc/self/status\n\
         mv {0}.part {0}",
        found.display()
    );
    let started_with = "exec 9</dev/null; ulimit -S -n 700; umask 027; cd /usr; export MINE=yours";
    let command = hook(&lab, "hook", &text);
    let args = ["-c", &command, "--cores", "0"];
    let _engine =
        Engine::start_from_shell(&lab, &format!("{started_with}; renice 3 $$ >/dev/null"), &args);
    lab.injector().send(endpoint_id(0), &held());
    let said = wait_for("the hook's list", || std::fs::read_to_string(&found).ok());
    let said: Vec<_> = said.lines().collect();
    let (descriptors, rest) = said.split_at(said.len() - 7);
    // 10 is dash's own handle on the script, 255 is bash's.
    let is_stranger = |fd: &&str| !["0", "1", "2", "10", "255"].contains(fd);
    assert!(!descriptors.iter().any(is_stranger), "{descriptors:?}");
    let cpus = std::fs::read_to_string("/proc/self/status").unwrap();
    let cpus = cpus.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let expected = ["/dev/null", "700", "3", "0027", "/usr", "yours", cpus];
    assert_eq!(rest, expected);
}

#[test]
fn r8_a_path_with_blanks_and_words_for_a_shell() {
    let lab = Lab::new(0, Config::default());
    let text = format!("exec {PASSTHROUGH} \"$@\"");
    let path = hook(&lab, "my hook", &text);
    let words = format!("A=1 sh '{path}'");
    let _engine = Engine::start(&lab, &["-c", &path, "-r", &words]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &held());
    injector.assert_clean();
}

/// A hook that waits for a file before it ends, and notes its calls.
fn waiting_hook(lab: &Lab) -> (String, PathBuf, PathBuf) {
    let (calls, release) = (lab.scratch.file("calls"), lab.scratch.file("release"));
    let text = format!(
        "echo $1 $4 >>{}\nwhile [ ! -e {} ]; do sleep 0.05; done\nexec {PASSTHROUGH} \"$@\"",
        calls.display(),
        release.display()
    );
    (hook(lab, "waiting", &text), calls, release)
}

#[test]
fn r9_what_comes_before_create_ended_goes_first_and_no_more_than_there_is_room_for() {
    let lab = Lab::new(0, Config::default());
    let (command, calls, release) = waiting_hook(&lab);
    let engine = Engine::start(&lab, &["-c", &command, "-j", "--workers", "1"]);
    let mut injector = lab.injector();
    let inners: Vec<_> = (0..1030).map(|number| packets::ping(V4, number, b"early")).collect();
    for inner in &inners {
        injector.send(endpoint_id(0), inner);
    }
    wait_until("CREATE runs", || calls.exists());
    wait_until("what finds no room is counted", || engine.drops("not_ready") == 1030 - 1024);
    injector.expect_silence();
    std::fs::write(&release, "").unwrap();
    for inner in &inners[..1024] {
        assert_eq!(&injector.receive(PATIENCE).expect("a held packet").inner, inner);
    }
    injector.exchange(endpoint_id(0), &held());
    assert_eq!(engine.drops("not_ready"), 1030 - 1024);
    injector.assert_clean();
}

#[test]
fn two_hooks_run_at_a_time_if_asked_for() {
    let lab = Lab::new(0, Config::default());
    let calls = lab.scratch.file("calls");
    // Ends when there are two of its kind, or before the program would start a second one anyway.
    let text = format!(
        "log={}; echo begin >>$log; i=0\n\
         until [ $(grep -c begin $log) -ge 2 ] || [ $i -ge 40 ]; do sleep 0.1; i=$((i + 1)); done\n\
         echo end >>$log; exec {PASSTHROUGH} \"$@\"",
        calls.display()
    );
    let command = hook(&lab, "hook", &text);
    let _engine = Engine::start(&lab, &["-c", &command, "--hook-jobs", "2"]);
    let mut injector = lab.injector();
    for endpoint in 0..2 {
        injector.send(endpoint_id(endpoint), &held());
    }
    for _ in 0..2 {
        assert!(injector.receive(PATIENCE).is_some());
    }
    assert_eq!(std::fs::read_to_string(&calls).unwrap(), "begin\nbegin\nend\nend\n");
    injector.assert_clean();
}

#[test]
fn at_the_end_an_endpoint_is_served_until_its_own_destroy_begins() {
    let lab = Lab::new(0, Config::default());
    let (command, calls, release) = waiting_hook(&lab);
    let mut engine = Engine::start(&lab, &["-c", PASSTHROUGH, "-r", &command]);
    let mut injector = lab.injector();
    for endpoint in 0..2 {
        injector.exchange(endpoint_id(endpoint), &held());
    }
    engine.signal(Signal::SIGTERM);
    wait_until("the first DESTROY begins", || calls.exists());
    for number in 0..50 {
        injector.exchange(endpoint_id(1), &packets::ping(V4, number, b"still served"));
    }
    std::fs::write(&release, "").unwrap();
    assert_eq!(engine.wait().code(), Some(0));
    let expected = [0, 1].map(|number| format!("DESTROY {:017x}\n", endpoint_id(number)));
    assert_eq!(std::fs::read_to_string(&calls).unwrap(), expected.concat());
    injector.assert_clean();
}
