//! Programs that the simulator runs in its namespaces: a target, a server, and a client whose end
//! is the rehearsal's.
//!
//! The target's and the server's output goes to stderr, so that stdout holds the simulator's
//! lines and the client's. What they leave running ends with the namespaces.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;

use super::options::Args;
use super::sim::gwlb::Host;
use super::sim::netns::Namespace;
use super::sim::netns::Topology;
use super::sim::os;

/// How long the target may take until it listens.
const START_MAX: Duration = Duration::from_secs(30);

/// How long the target may take to end after SIGTERM.
const END_MAX: Duration = Duration::from_secs(10);

/// `:6081` as /proc/net/udp has it.
const GENEVE_PORT_HEX: &str = ":17C1 ";

/// The programs that the command line names, as far as they were started.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    target_namespace: Namespace,
    client_namespace: Namespace,
    client_command: Vec<String>,
    start: Duration,
    target: Option<Child>,
    server: Option<Child>,
    client: Option<Child>,
}

impl Rehearsal {
    /// Starts target and server.
    pub(crate) fn start(args: &Args, topology: &Topology) -> io::Result<Self> {
        let target_namespace = topology.target();
        let shell = |namespace: &Namespace, command: &Option<String>| {
            let command = command.as_deref();
            command.map(|command| background(namespace, command)).transpose()
        };
        Ok(Self {
            target: shell(&target_namespace, &args.target)?,
            server: shell(&topology.first_server(), &args.server)?,
            target_namespace,
            client_namespace: topology.host(0, Host::Client),
            client_command: args.client.clone(),
            start: os::monotonic(),
            client: None,
        })
    }

    /// Whether the client is still to be started.
    pub(crate) fn waits(&self) -> bool {
        !self.client_command.is_empty() && self.client.is_none()
    }

    /// Whether there is a client whose end has not been seen.
    pub(crate) fn is_unfinished(&self) -> bool {
        !self.client_command.is_empty()
    }

    /// Starts the client if the target listens, and returns how it ended if it has.
    ///
    /// # Errors
    /// If a program ended that must not, or the target never listens.
    pub(crate) fn proceed(&mut self) -> io::Result<Option<ExitStatus>> {
        if let Some(client) = &mut self.client
            && let Some(status) = client.try_wait()?
        {
            return Ok(Some(status));
        }
        for (name, child) in [("target", &mut self.target), ("server", &mut self.server)] {
            let status = child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = status {
                let why = format!("the command of --{name} ended by itself: {status}");
                return Err(io::Error::other(why));
            }
        }
        if self.waits() {
            self.start_client()?;
        }
        Ok(None)
    }

    fn start_client(&mut self) -> io::Result<()> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/udp");
        if !self.target_namespace.enter(read)?.contains(GENEVE_PORT_HEX) {
            if self.target.is_some() && os::since(self.start) > START_MAX {
                let why = format!("nothing listens on UDP port 6081 after {START_MAX:?}");
                return Err(io::Error::other(format!("--target: {why}; see its output")));
            }
            return Ok(());
        }
        let mut command = self.client_namespace.command(&self.client_command[0]);
        command.args(&self.client_command[1..]);
        unblock_signals(&mut command);
        self.client = Some(command.spawn()?);
        Ok(())
    }

    /// Asks target and server to end.
    pub(crate) fn ask_to_end(&self) {
        for child in [&self.target, &self.server].into_iter().flatten() {
            // It may have ended.
            let _ = killpg(group(child), Signal::SIGTERM);
        }
    }

    /// Whether the target has ended, or had its time: its shell and what that started.
    pub(crate) fn has_ended(&mut self, asked: Duration) -> io::Result<bool> {
        let Some(target) = &mut self.target else {
            return Ok(true);
        };
        let shell_has = target.try_wait()?.is_some();
        let all_have = shell_has && killpg(group(target), None).is_err();
        Ok(all_have || os::since(asked) > END_MAX)
    }
}

/// The process group of a shell command.
fn group(shell: &Child) -> Pid {
    Pid::from_raw(i32::try_from(shell.id()).expect("a process id"))
}

/// A shell command in a process group of its own, so that a terminal's Ctrl-C does not reach it
/// before the simulator has said goodbye.
fn background(namespace: &Namespace, line: &str) -> io::Result<Child> {
    let mut command = namespace.command("sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(io::stderr()).process_group(0);
    unblock_signals(&mut command);
    command.spawn()
}

/// Lets the program that `command` starts receive signals that the calling thread blocks.
#[expect(unsafe_code, reason = "pre_exec has no safe form")]
fn unblock_signals(command: &mut Command) {
    let unblock = || SigSet::empty().thread_set_mask().map_err(io::Error::from);
    // SAFETY: between fork and exec only sigemptyset and pthread_sigmask are called, which are
    // async-signal-safe.
    unsafe { command.pre_exec(unblock) };
}
