//! Programs in namespaces: run to the end with a time-out, or in the background.

use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::clock::wait_for;
use crate::sim::netns::Namespace;

/// Seconds after which a program that should have ended is killed.
const TIMEOUT_SECS: &str = "120";

/// What goes before a command to run it as an ordinary user with `CAP_NET_ADMIN` alone. The TUN
/// device of this machine may be root's; here it is everybody's, as udev makes it.
pub(crate) fn ordinary_user(uid: u32) -> Vec<String> {
    let script = "mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 200 && \
                  chmod 666 /dev/net/tun && exec \"$@\"";
    let user = format!("--reuid={uid}");
    let words = ["unshare", "--mount", "sh", "-c", script, "sh", "setpriv", &user];
    let rights = [
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
    ];
    words.iter().chain(&rights).map(|&word| word.to_owned()).collect()
}

/// Runs a program inside and returns what it printed.
///
/// # Panics
/// If it fails or takes too long, with its output.
pub(crate) fn run(namespace: &Namespace, program: &str, args: &[&str]) -> String {
    let mut command = namespace.command("timeout");
    finish(command.args(["-k", "5", TIMEOUT_SECS, program]).args(args))
}

/// Runs a command to its end and returns what it printed.
///
/// # Panics
/// If it fails, with its output.
pub(crate) fn finish(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Background(Child);

impl Background {
    /// Starts a program inside, silently.
    pub(crate) fn start(namespace: &Namespace, program: &str, args: &[&str]) -> Self {
        let mut command = namespace.command(program);
        let child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self(child)
    }

    /// Asks it to end, as Ctrl-C does, and waits until it has.
    pub(crate) fn interrupt(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("kill");
        wait_for("a program ends", || self.0.try_wait().expect("wait"));
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
