//! A service manager as far as the program sees one: the socket that `NOTIFY_SOCKET` names.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use super::clock::Deadline;
use super::clock::PATIENCE;
use super::lab::Lab;

/// Hears what the program says of itself.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    socket: UnixDatagram,
    address: String,
}

impl ServiceManager {
    /// One at a path, as systemd's own is.
    pub(crate) fn at_a_path(lab: &Lab) -> Self {
        let path = lab.scratch.file("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Self { socket, address: path.to_str().expect("UTF-8").to_owned() }
    }

    /// One with an abstract name, which is known in the target's namespace alone.
    pub(crate) fn with_a_name(lab: &Lab) -> Self {
        let bind = || UnixDatagram::bind_addr(&SocketAddr::from_abstract_name("manager")?);
        let socket = lab.topology.target().enter(bind).expect("a socket");
        Self { socket, address: "@manager".to_owned() }
    }

    /// Gives a command the environment that makes it tell this one.
    pub(crate) fn supervise(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.address);
    }

    /// The lines of the next message, if one comes within `time`.
    pub(crate) fn hears(&self, time: Duration) -> Option<Vec<String>> {
        self.socket.set_read_timeout(Some(time)).expect("a time-out above zero");
        let mut bytes = [0; 4096];
        let count = match self.socket.recv(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            count => count.expect("a message"),
        };
        let text = std::str::from_utf8(&bytes[..count]).expect("UTF-8");
        Some(text.lines().map(str::to_owned).collect())
    }

    /// The next message.
    pub(crate) fn next(&self) -> Vec<String> {
        self.hears(PATIENCE).expect("a message of the program")
    }

    /// Waits for a message with a line that begins so; returns the messages up to it, all lines.
    pub(crate) fn until(&self, beginning: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let deadline = Deadline::after(PATIENCE);
        while !lines.iter().any(|line: &String| line.starts_with(beginning)) {
            assert!(!deadline.is_over(), "no {beginning} in {lines:#?}");
            lines.extend(self.next());
        }
        lines
    }

    /// Everything that has come and was not looked at yet.
    pub(crate) fn heard(&self) -> Vec<String> {
        std::iter::from_fn(|| self.hears(Duration::from_millis(1))).flatten().collect()
    }
}
