//! Hooks: the operator's commands in the life of an endpoint, off the packet path.
//!
//! A hook is `sh -c '<command> CREATE gwi-<X> gwo-<X> <id>'`, as `system(3)` runs it for the
//! reference program, so a command with words or shell syntax works as before; a command that is
//! the path of a file is that file, blanks or not. The four words come from fixed alphabets;
//! nothing a packet carries reaches a shell as syntax. [`check`] refuses at the start what could
//! never run.
//!
//! - One at a time, in order, because the scripts in use edit shared files; more at a time on
//!   request. The next starts when one before it ended, or after 5 s: one that hangs delays, but
//!   does not stop, the others.
//! - Killed with its process group after 30 s: a new flow's first answer must reach the load
//!   balancer within 30 s anyway.
//! - It gets descriptors 0 to 2 and no more: `/dev/null`, and a pipe whose lines go to the log, at
//!   most 64 KiB and 500 lines of them. A daemon that it leaves behind keeps the pipe and delays
//!   nothing.
//! - Its environment is ours, less what a service manager meant for us alone, plus `GWLBTUN_*`.
//!   Its limit on open files is the one that we were started with: programs that use select(2)
//!   break above 1,024. The shell sets it, because a function between fork and exec would keep the
//!   standard library from `posix_spawn(3)`, and a real fork of this process makes every worker
//!   fault on its buffers.
//!
//! [`HookRequest`] and [`HookOutcome`] are plain data, so that another process may do the running
//! one day.

mod check;
mod output;
mod tally;

pub use check::HookCommand;
pub use check::HookCommands;
pub use check::HookError;
pub use check::check;
pub use tally::HookTally;

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time;

use crate::log::Log;
use crate::sys::clock;
use crate::types::EndpointId;
use crate::types::LinkName;
use output::Output;
use output::Reads;

/// Hooks that wait for their turn; control asks for one per endpoint at a time.
const QUEUE: usize = 4096;

/// How long a killed hook is waited for.
const DEATH_MAX: Duration = Duration::from_secs(1);

/// Which event of an endpoint's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookAction {
    /// Both links are up; no packet has been written to them yet.
    Create,
    /// Both links are still up; no packet is written to them any more.
    Destroy,
}

impl fmt::Display for HookAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "CREATE",
            Self::Destroy => "DESTROY",
        })
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRequest {
    /// The first argument.
    pub action: HookAction,
    /// The command as the operator wrote it, and what it is.
    pub command: HookCommand,
    /// The endpoint, which gives the other arguments.
    pub id: EndpointId,
    /// Whether it has a `gwo`; the third argument is `none` otherwise.
    pub returns: bool,
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookOutcome {
    /// By itself, with this exit status.
    Exited(i32),
    /// By a signal that was not ours.
    Signalled(i32),
    /// It ran too long and was killed with its process group.
    TimedOut,
    /// The program is stopping: it was never started, or killed at a second request to stop.
    Skipped,
    /// When its turn came, it was not wanted any more.
    NotWanted,
    /// It could not be started, for this reason.
    NotStarted(String),
}

impl HookOutcome {
    /// Whether the hook did what it was there for, as far as anybody can tell.
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl fmt::Display for HookOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with exit status {status}"),
            Self::Signalled(signal) => write!(f, "was ended by signal {signal}"),
            Self::TimedOut => f.write_str("ran too long and was killed"),
            Self::Skipped => f.write_str("was skipped or cut short: the program is stopping"),
            Self::NotWanted => f.write_str("was not needed any more"),
            Self::NotStarted(reason) => write!(f, "could not be started: {reason}"),
        }
    }
}

/// Bounds on the hooks.
#[derive(Clone, Copy, Debug)]
pub struct HookLimits {
    /// How many run at a time, at least 1.
    pub jobs: u16,
    /// How long one hook holds up the next.
    pub next_after: Duration,
    /// How long a hook may run.
    pub kill_after: Duration,
    /// Bytes of output that reach the log.
    pub output_bytes: usize,
    /// Lines of output that reach the log, whose queue all others share.
    pub output_lines: usize,
    /// A hook's soft limit on open files, if it is not to be ours.
    pub open_files: Option<u64>,
}

impl Default for HookLimits {
    fn default() -> Self {
        Self {
            jobs: 1,
            next_after: Duration::from_secs(5),
            kill_after: Duration::from_secs(30),
            output_bytes: 64 << 10,
            output_lines: 500,
            open_files: None,
        }
    }
}

/// The way to the runner, which ends with the last handle.
#[derive(Clone, Debug)]
pub struct HookRunner {
    queue: mpsc::Sender<Job>,
    skip: watch::Sender<Skip>,
    tally: HookTally,
    reads: Reads,
}

/// A request, and what is to happen on its way.
struct Job {
    request: HookRequest,
    on_turn: Box<dyn FnOnce() -> bool>,
    reply: oneshot::Sender<HookOutcome>,
}

/// Which hooks are left out, because the program is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    None,
    /// CREATE of endpoints that will not be served any more.
    Creations,
    All,
}

impl HookRunner {
    /// Starts the runner on the calling thread's tokio-uring runtime.
    ///
    /// # Panics
    /// Outside such a runtime.
    pub fn start(limits: HookLimits, log: Log) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let (skip, skipped) = watch::channel(Skip::None);
        let (tally, reads) = (HookTally::default(), Reads::default());
        let run = Run { limits, log, reads: reads.clone() };
        tokio_uring::spawn(run_in_turn(requests, skipped, run, tally.clone()));
        Self { queue, skip, tally, reads }
    }

    /// What hooks did so far.
    pub fn tally(&self) -> &HookTally {
        &self.tally
    }

    /// Runs a hook when its turn comes, and waits for its end. `on_turn` is called before it
    /// starts, or when it is left out, and says whether it is still wanted.
    pub async fn run(
        &self,
        request: HookRequest,
        on_turn: impl FnOnce() -> bool + 'static,
    ) -> HookOutcome {
        let (reply, outcome) = oneshot::channel();
        let job = Job { request, on_turn: Box::new(on_turn), reply };
        if let Err(refused) = self.queue.send(job).await {
            (refused.0.on_turn)();
            return HookOutcome::Skipped;
        }
        outcome.await.unwrap_or(HookOutcome::Skipped)
    }

    /// Drops the CREATE hooks that wait or are still to come; what runs, runs to its end.
    pub fn skip_creations(&self) {
        self.skip.send_replace(Skip::Creations);
    }

    /// Kills the hooks that run, and drops those that wait or are still to come.
    pub fn skip_all(&self) {
        self.skip.send_replace(Skip::All);
    }

    /// Reads no output any more. The runtime may end only after this.
    pub async fn close(&self) {
        self.reads.close().await;
    }
}

/// What each hook is run with.
#[derive(Clone, Debug)]
struct Run {
    limits: HookLimits,
    log: Log,
    reads: Reads,
}

/// Takes one request after the other, each when there is a turn free for it.
async fn run_in_turn(
    mut requests: mpsc::Receiver<Job>,
    skipped: watch::Receiver<Skip>,
    how: Run,
    tally: HookTally,
) {
    let turns = Arc::new(Semaphore::new(how.limits.jobs.max(1).into()));
    while let Some(Job { request, on_turn, reply }) = requests.recv().await {
        let turn = Arc::clone(&turns).acquire_owned().await;
        let (skipped, how, tally) = (skipped.clone(), how.clone(), tally.clone());
        let next_after = how.limits.next_after;
        let run = tokio_uring::spawn(async move {
            let outcome = if on_turn() {
                let start = clock::precise();
                tally.began();
                let outcome = run_one(&request, skipped, how).await;
                tally.ended(request.action, &outcome, clock::precise().since(start));
                outcome
            } else {
                HookOutcome::NotWanted
            };
            // Whoever asked may have stopped waiting.
            let _ = reply.send(outcome);
        });
        tokio_uring::spawn(async move {
            // When time is up, the hook goes on by itself.
            let _ = time::timeout(next_after, run).await;
            drop(turn);
        });
    }
}

/// Runs one hook to its end.
async fn run_one(
    request: &HookRequest,
    mut skipped: watch::Receiver<Skip>,
    Run { limits, log, reads }: Run,
) -> HookOutcome {
    let is_left_out = match *skipped.borrow() {
        Skip::None => false,
        Skip::Creations => request.action == HookAction::Create,
        Skip::All => true,
    };
    if is_left_out {
        return HookOutcome::Skipped;
    }
    let hook = (request.action, request.id);
    let (mut child, mut output) =
        match start(request, limits.open_files, Output::new(reads, log, hook, limits)) {
            Ok(started) => started,
            Err(error) => return HookOutcome::NotStarted(error.to_string()),
        };
    let deadline = time::sleep(limits.kill_after);
    tokio::pin!(deadline);
    let outcome = loop {
        tokio::select! {
            status = child.wait() => break ended(status),
            readable = output.readable() => if readable { output.take().await; },
            () = &mut deadline => {
                kill_group(&mut child).await;
                break HookOutcome::TimedOut;
            }
            _ = skipped.wait_for(|skip| *skip == Skip::All) => {
                kill_group(&mut child).await;
                break HookOutcome::Skipped;
            }
        }
    };
    // What the hook wrote is in the pipe: one read empties it and one meets its end. What a daemon
    // of it will write is not waited for.
    output.take().await;
    output.take().await;
    if output.is_open() {
        tokio_uring::spawn(output.take_until_closed());
    }
    outcome
}

/// Starts the hook's shell with its output going to `output`.
fn start(
    request: &HookRequest,
    open_files: Option<u64>,
    output: io::Result<(Output, Stdio, Stdio)>,
) -> io::Result<(Child, Output)> {
    let (output, stdout, stderr) = output?;
    let child = command(request, open_files)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, output))
}

/// The shell's words and environment.
fn command(request: &HookRequest, open_files: Option<u64>) -> Command {
    let HookRequest { action, command, id, returns } = request;
    let [gwi, gwo] = LinkName::of_endpoint(*id, *returns).map(|name| name.to_string());
    let words = [action.to_string(), gwi, gwo, id.to_string()];
    let mut script = OsString::new();
    if let Some(limit) = open_files {
        script.push(format!("ulimit -S -n {limit}; "));
    }
    let mut shell = Command::new(check::SHELL);
    shell.arg0("sh").arg("-c");
    match command {
        HookCommand::Shell(typed) => {
            script.push(typed);
            script.push(format!(" {}", words.join(" ")));
            shell.arg(script);
        }
        HookCommand::File(path) => {
            // In the shell's place: how it ends is then told as it is.
            script.push("exec \"$0\" \"$@\"");
            shell.arg(script).arg(path).args(&words);
        }
    }
    let [action, gwi, gwo, _] = words;
    for (name, _) in std::env::vars_os() {
        if is_ours_alone(&name) {
            shell.env_remove(name);
        }
    }
    shell
        .env("GWLBTUN_ACTION", action)
        .env("GWLBTUN_GWI", gwi)
        .env("GWLBTUN_GWO", gwo)
        .env("GWLBTUN_ENDPOINT", format!("vpce-{id}"));
    shell
}

/// Whether a variable was meant for this process alone: how to load it, and how the service
/// manager talks to it.
fn is_ours_alone(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name == b"NOTIFY_SOCKET"
        || [&b"LD_"[..], b"LISTEN_", b"WATCHDOG_"].iter().any(|prefix| name.starts_with(prefix))
}

fn ended(status: io::Result<ExitStatus>) -> HookOutcome {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => HookOutcome::Exited(code),
            (None, signal) => HookOutcome::Signalled(signal.unwrap_or(0)),
        },
        Err(error) => HookOutcome::NotStarted(error.to_string()),
    }
}

/// Kills the hook and everything of its process group, and reaps the hook if it dies soon: one that
/// waits for a dead file server does not, and is left to the runtime to reap.
async fn kill_group(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(group) = group {
        // It fails when all of them have just ended, which is as well.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = time::timeout(DEATH_MAX, child.wait()).await;
}

#[cfg(test)]
mod tests;
