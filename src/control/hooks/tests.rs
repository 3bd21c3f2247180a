//! The runner against a real shell.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use super::*;
use crate::log::Format;
use crate::log::LogThread;
use crate::log::Thresholds;
use crate::log::page::Page;
use crate::sys::clock;

/// A log and what it wrote.
struct Paper {
    log: Log,
    thread: LogThread,
    page: Page,
}

impl Paper {
    fn new() -> Self {
        let page = Page::default();
        let (log, thread) = Log::start(Thresholds::default(), Format::Text, page.clone()).unwrap();
        Self { log, thread, page }
    }

    /// The hook's lines, without what stands before them.
    fn lines(self) -> Vec<String> {
        self.thread.finish();
        let text = self.page.text();
        text.lines()
            .filter_map(|line| Some(line.split_once("0123456789abcdef: ")?.1.to_owned()))
            .collect()
    }
}

fn request(command: &str) -> HookRequest {
    HookRequest {
        action: HookAction::Create,
        command: HookCommand::Shell(command.into()),
        id: EndpointId(0x0123_4567_89ab_cdef),
        returns: true,
    }
}

/// Limits that a test can reach.
fn short() -> HookLimits {
    HookLimits {
        next_after: Duration::from_millis(200),
        kill_after: Duration::from_millis(600),
        output_bytes: 1000,
        ..HookLimits::default()
    }
}

/// Something with a runner, which is closed at the end as by the program.
fn with_runner<T>(
    limits: HookLimits,
    paper: &Paper,
    scene: impl AsyncFnOnce(HookRunner) -> T,
) -> T {
    tokio_uring::start(async {
        let runner = HookRunner::start(limits, paper.log.clone());
        let outcome = scene(runner.clone()).await;
        runner.close().await;
        outcome
    })
}

/// Runs one hook; its outcome and its lines in the log.
fn run(command: &str, limits: HookLimits) -> (HookOutcome, Vec<String>) {
    let paper = Paper::new();
    let run = async |runner: HookRunner| runner.run(request(command), || true).await;
    let outcome = with_runner(limits, &paper, run);
    (outcome, paper.lines())
}

fn is_alive(pid: &str) -> bool {
    // A killed process may wait for its parent to reap it: that one is dead too.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// Waits for the death of a killed process: only the hook itself is waited for, and the rest of
/// its group may need a moment longer.
fn dies(pid: &str) -> bool {
    let start = clock::now();
    while is_alive(pid) && clock::now().since(start) < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    !is_alive(pid)
}

#[test]
fn arguments_and_exit_status() {
    let limits = HookLimits::default();
    // What the reference's system(3) makes of it: the words stand behind the command, and the
    // shell has no arguments of its own.
    let (outcome, lines) = run("echo \"$0:$#:$*\"; exit 7; :", limits);
    assert_eq!(outcome, HookOutcome::Exited(7));
    assert!(!outcome.is_success());
    assert_eq!(lines, ["sh:0:"]);
    let (_, lines) = run("set -- a b; echo $#", limits);
    assert_eq!(lines, ["2 CREATE gwi-887epl1uMf gwo-887epl1uMf 00123456789abcdef"]);
    let (outcome, lines) = run("echo one two", limits);
    assert!(outcome.is_success());
    assert_eq!(lines, ["one two CREATE gwi-887epl1uMf gwo-887epl1uMf 00123456789abcdef"]);
    let (outcome, lines) = run("/nonexistent/hook", limits);
    assert_eq!(outcome, HookOutcome::Exited(127));
    assert!(lines[0].contains("/nonexistent/hook"), "{lines:?}");
    let (outcome, _) = run("kill -9 $$;", limits);
    assert_eq!(outcome, HookOutcome::Signalled(9));
}

#[test]
fn a_path_with_blanks_is_run_as_it_is() {
    let template = std::env::temp_dir().join("gwlbtun hook $HOME XXXXXX");
    let (file, path) = nix::unistd::mkstemp(&template).unwrap();
    drop(file);
    std::fs::write(&path, "#!/bin/sh\necho \"$# $1\"; ulimit -S -n\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&path, mode).unwrap();
    let paper = Paper::new();
    let limits = HookLimits { open_files: Some(99), ..HookLimits::default() };
    let file = HookRequest { command: HookCommand::File(path.clone().into()), ..request("") };
    let run = async |runner: HookRunner| runner.run(file, || true).await;
    let outcome = with_runner(limits, &paper, run);
    std::fs::remove_file(path).unwrap();
    assert_eq!((outcome.is_success(), paper.lines()), (true, vec!["4 CREATE".into(), "99".into()]));
}

#[test]
fn descriptors_and_standard_input() {
    crate::sys::fds::close_all_on_exec().unwrap();
    let script = "echo /proc/self/fd/*; readlink /proc/self/fd/0; cat; :";
    let (outcome, lines) = run(script, HookLimits::default());
    assert!(outcome.is_success());
    let numbers: Vec<_> =
        lines[0].split(' ').map(|path| path.rsplit('/').next().unwrap()).collect();
    // The shell's own handle on the directory it lists is the only other one, and is closed by
    // the time the names are printed: dash lists 3, bash 3.
    let strangers: Vec<_> = numbers.iter().filter(|n| !["0", "1", "2", "3"].contains(n)).collect();
    assert!(strangers.is_empty(), "{lines:?}");
    assert_eq!(lines[1], "/dev/null");
    let (_, lines) = run("for n in 3 4 5 6 7 8 9; do readlink /proc/$$/fd/$n; done; :", short());
    assert_eq!(lines, [""; 0], "the hook's shell has 0 to 2 alone");
}

#[test]
fn environment() {
    for (name, ours) in [
        ("LD_PRELOAD", true),
        ("NOTIFY_SOCKET", true),
        ("LISTEN_FDS", true),
        ("WATCHDOG_USEC", true),
        ("PATH", false),
        ("NOTIFY_SOCKETS", false),
        ("MY_LD_PATH", false),
    ] {
        assert_eq!(is_ours_alone(OsStr::new(name)), ours, "{name}");
    }
    let script = "echo $GWLBTUN_ACTION $GWLBTUN_GWI $GWLBTUN_GWO $GWLBTUN_ENDPOINT ${PATH:+path} \
                  ${LD_LIBRARY_PATH:-clean};:";
    let (_, lines) = run(script, HookLimits::default());
    assert_eq!(lines, ["CREATE gwi-887epl1uMf gwo-887epl1uMf vpce-00123456789abcdef path clean"]);
}

/// Fields of a `/proc/<pid>/status`.
fn fields(status: &str) -> HashMap<&str, &str> {
    status.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k, v.trim())).collect()
}

#[test]
fn the_rest_of_what_a_process_inherits() {
    let (_, lines) = run("cat /proc/self/status; :", HookLimits::default());
    let (theirs, ours) = (lines.join("\n"), std::fs::read_to_string("/proc/thread-self/status"));
    let (theirs, ours) = (fields(&theirs), ours.unwrap());
    let ours = fields(&ours);
    let mask = |field| u64::from_str_radix(theirs[field], 16).unwrap();
    let sigpipe = 1 << (Signal::SIGPIPE as i32 - 1);
    assert_eq!(mask("SigBlk"), 0);
    assert_eq!(mask("SigIgn") & sigpipe, 0, "a hook's pipelines end as in any shell");
    for field in ["Umask", "Cpus_allowed_list", "Uid", "Gid", "CapBnd"] {
        assert_eq!(theirs[field], ours[field], "{field}");
    }
    let script = "pwd; nice; cat /proc/self/oom_score_adj; ulimit -S -n; ulimit -H -n; :";
    let here = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
    let here = String::from_utf8(here.stdout).unwrap();
    let (_, lines) = run(script, HookLimits::default());
    assert_eq!(lines, here.lines().collect::<Vec<_>>());
    let limits = HookLimits { open_files: Some(77), ..HookLimits::default() };
    let (_, lines) = run(script, limits);
    assert_eq!((lines[3].as_str(), here.lines().nth(4)), ("77", Some(lines[4].as_str())));
}

#[test]
fn one_that_hangs_is_killed_with_its_group() {
    let (outcome, lines) = run("echo $$; sleep 60 & echo $!; wait; :", short());
    assert_eq!(outcome, HookOutcome::TimedOut);
    assert_eq!(lines.len(), 2);
    for pid in lines {
        assert!(dies(&pid), "{pid} lives on");
    }
}

#[test]
fn one_that_hangs_delays_the_next_and_does_not_stop_it() {
    let paper = Paper::new();
    with_runner(short(), &paper, async |runner| {
        let hanging = tokio_uring::spawn({
            let runner = runner.clone();
            async move { runner.run(request("echo first; sleep 60; :"), || true).await }
        });
        tokio::task::yield_now().await;
        assert!(runner.run(request("echo second; :"), || true).await.is_success());
        assert!(!hanging.is_finished());
        assert_eq!(hanging.await.unwrap(), HookOutcome::TimedOut);
    });
    assert_eq!(paper.lines(), ["first", "second"]);
}

#[test]
fn hooks_run_one_after_the_other() {
    let paper = Paper::new();
    with_runner(HookLimits::default(), &paper, async |runner| {
        let run = |name| {
            let command = format!("echo {name} starts; sleep 0.05; echo {name} ends; :");
            let runner = runner.clone();
            async move { runner.run(request(&command), || true).await }
        };
        tokio::join!(run("a"), run("b"), run("c"));
    });
    let expected = ["a starts", "a ends", "b starts", "b ends", "c starts", "c ends"];
    assert_eq!(paper.lines(), expected);
}

/// Runs six hooks and tells how many of them had begun and not ended, at most.
fn most_at_a_time(jobs: u16) -> u32 {
    let paper = Paper::new();
    let (now, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    with_runner(HookLimits { jobs, ..HookLimits::default() }, &paper, async |runner| {
        let hooks: Vec<_> = (0..6)
            .map(|_| {
                let (runner, now, most) = (runner.clone(), Rc::clone(&now), Rc::clone(&most));
                tokio_uring::spawn(async move {
                    let begins = Rc::clone(&now);
                    let on_turn = move || {
                        begins.set(begins.get() + 1);
                        most.set(most.get().max(begins.get()));
                        true
                    };
                    let outcome = runner.run(request("sleep 0.1;:"), on_turn).await;
                    now.set(now.get() - 1);
                    outcome
                })
            })
            .collect();
        for hook in hooks {
            assert!(hook.await.unwrap().is_success());
        }
    });
    assert_eq!(now.get(), 0, "each had its turn once");
    most.get()
}

#[test]
fn as_many_at_a_time_as_there_are_jobs() {
    assert_eq!([1, 2, 4].map(most_at_a_time), [1, 2, 4]);
}

#[test]
fn a_daemon_with_the_pipe_delays_nothing_and_is_heard() {
    let paper = Paper::new();
    let limits = HookLimits::default();
    with_runner(limits, &paper, async |runner| {
        let script = "(sleep 0.3; echo late; exec sleep 60) & echo $!; :";
        assert!(runner.run(request(script), || true).await.is_success());
        time::sleep(Duration::from_millis(800)).await;
    });
    let lines = paper.lines();
    assert_eq!(lines[1..], ["late"], "{lines:?}");
    assert!(is_alive(&lines[0]), "the daemon is not ours to kill");
    let pid = Pid::from_raw(lines[0].parse().unwrap());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
}

#[test]
fn output_is_capped_and_cut_into_lines() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; printf tail 1>&2; :";
    let (outcome, lines) = run(script, HookLimits { output_bytes: 1000, ..HookLimits::default() });
    assert!(outcome.is_success(), "a hook that writes much is not stopped");
    let (last, numbers) = lines.split_last().unwrap();
    assert_eq!(last, "the rest of its output is not logged");
    let bytes: usize = numbers.iter().map(|line| line.len() + 1).sum();
    assert!((999..=1001).contains(&bytes), "{bytes}");

    let (_, lines) = run("seq 500; :", HookLimits::default());
    assert_eq!((lines.len(), lines[499].as_str()), (500, "500"));
    let (_, lines) = run("seq 501; :", HookLimits::default());
    assert_eq!((lines.len(), lines[500].as_str()), (501, "the rest of its output is not logged"));

    let (_, lines) = run("printf %1500d 5; printf '\\nx' 1>&2; :", HookLimits::default());
    let lengths: Vec<_> = lines.iter().map(String::len).collect();
    assert_eq!(lengths, [1024, 476, 1]);
}

#[test]
fn a_second_request_to_stop_ends_the_waiting() {
    let paper = Paper::new();
    let turns = Rc::new(Cell::new(0));
    with_runner(HookLimits::default(), &paper, async |runner| {
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let runner = runner.clone();
                let turns = Rc::clone(&turns);
                let on_turn = move || {
                    turns.set(turns.get() + 1);
                    true
                };
                tokio_uring::spawn(async move { runner.run(request("sleep 60;:"), on_turn).await })
            })
            .collect();
        time::sleep(Duration::from_millis(100)).await;
        assert_eq!(turns.get(), 1);
        runner.skip_all();
        for hook in waiting {
            assert_eq!(hook.await.unwrap(), HookOutcome::Skipped);
        }
        assert_eq!(turns.get(), 3, "those that are left out are told too");
        assert_eq!(runner.run(request("true"), || true).await, HookOutcome::Skipped);
    });
    assert_eq!(paper.lines(), [""; 0]);
}

#[test]
fn one_that_writes_without_end_is_killed_like_any_other() {
    let (outcome, lines) = run("yes & yes & yes & exec yes; :", short());
    assert_eq!(outcome, HookOutcome::TimedOut);
    assert_eq!(lines.last().unwrap(), "the rest of its output is not logged");
}

#[test]
fn a_daemon_that_writes_without_end_does_not_keep_the_hook_from_ending() {
    let paper = Paper::new();
    with_runner(HookLimits::default(), &paper, async |runner| {
        let run = runner.run(request("yes & yes & yes & yes & sleep 0.1; :"), || true);
        let outcome = time::timeout(Duration::from_secs(10), run).await;
        assert!(outcome.expect("the shell has ended").is_success());
    });
    // Its pipe is closed now, which ends it.
    let lines = paper.lines();
    assert!(lines.iter().any(|line| line == "y"), "{lines:?}");
}

/// A read that is under way when the program ends would write into freed memory.
#[test]
fn when_it_is_closed_nothing_is_read_any_more() {
    for _ in 0..20 {
        let paper = Paper::new();
        tokio_uring::start(async {
            let runner = HookRunner::start(HookLimits::default(), paper.log.clone());
            for _ in 0..4 {
                assert!(runner.run(request("yes & yes & :"), || true).await.is_success());
            }
            runner.close().await;
            for _ in 0..100 {
                assert_eq!(runner.reads.under_way(), 0);
                tokio::task::yield_now().await;
            }
        });
    }
}
