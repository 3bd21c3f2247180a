//! The socket of systemd-journald, as a sink: each write is one datagram, one entry.
//!
//! Crates that do this bring hashes and a second `nix` along (`libsystemd`), or know the five
//! levels of the `log` crate only (`systemd-journal-logger`); what is left to do is to send a
//! datagram. Events are far shorter than a datagram may be (the longest, dumps of packets, have a
//! few KiB), so that the protocol's memory files for longer ones are not needed.

use std::io;
use std::io::Write;
use std::os::unix::net::UnixDatagram;

use crate::sys::Error;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// A socket that sends to journald. It is not connected: journald may be started anew.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// A socket, and a look whether somebody listens.
    ///
    /// # Errors
    /// When nobody does, or may be reached.
    pub fn open() -> Result<Self, Error> {
        let fail = |call| move |error: io::Error| Error::from_io(call, SOCKET, &error);
        let probe = UnixDatagram::unbound().map_err(fail("socket"))?;
        probe.connect(SOCKET).map_err(fail("connect"))?;
        UnixDatagram::unbound().map(Self).map_err(fail("socket"))
    }
}

impl Write for Journal {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        self.0.send_to(entry, SOCKET)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
