//! The socket of the service manager, systemd's or a container engine's (`sd_notify(3)`).
//!
//! The crate sd-notify knows the words and the watchdog's variables. The socket is ours, because
//! the crate's blocks while the manager does not read, takes no abstract address, and needs a free
//! descriptor for each message: a program that has run out of them would look dead.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

pub use sd_notify::NotifyState;

use super::Errno;
use super::Error;

/// The variable with the address: a path, or `@` and the name of an abstract socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Who started this process and wants to be told how it is.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    address: SocketAddr,
    subject: String,
}

impl ServiceManager {
    /// The manager that the environment names, if it names one.
    ///
    /// # Errors
    /// `EINVAL` when it is neither a path nor an abstract socket; or the process is out of
    /// descriptors.
    pub fn of_environment() -> Result<Option<Self>, Error> {
        let value = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        value.map(|value: OsString| Self::at(&value)).transpose()
    }

    fn at(name: &OsStr) -> Result<Self, Error> {
        let subject = format!("{VARIABLE}={}", name.display());
        let fail = |call| {
            let subject = subject.clone();
            move |error: std::io::Error| Error::from_io(call, subject, &error)
        };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            [b'/', ..] => SocketAddr::from_pathname(name),
            _ => return Err(Error::new("connect", subject, Errno::EINVAL)),
        };
        // What std refuses without a system call is an address that is too long.
        let address = address.map_err(|_| Error::new("connect", &subject, Errno::ENAMETOOLONG))?;
        let socket = UnixDatagram::unbound().map_err(fail("socket"))?;
        socket.set_nonblocking(true).map_err(fail("ioctl FIONBIO"))?;
        Ok(Self { socket, address, subject })
    }

    /// Tells it all of `states` in one message, without waiting for it.
    ///
    /// # Errors
    /// `EAGAIN` when its queue is full, `ENOENT` and `ECONNREFUSED` when nobody listens.
    pub fn tell(&self, states: &[NotifyState<'_>]) -> Result<(), Error> {
        let mut message = String::new();
        for state in states {
            // Writing to a string cannot fail.
            let _ = writeln!(message, "{}", OneLine(state));
        }
        self.socket
            .send_to_addr(message.as_bytes(), &self.address)
            .map_err(|error| Error::from_io("sendto", &self.subject, &error))?;
        Ok(())
    }

    /// Tells it why this process ends.
    pub fn tell_failure(&self, text: &str, errno: Errno) {
        let number = u32::try_from(errno as i32).unwrap_or(0);
        // The exit status says the same, if less.
        let _ = self.tell(&[NotifyState::Status(text), NotifyState::Errno(number)]);
    }

    /// How long it waits for a sign of life before it restarts this process, if it watches it.
    pub fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
    }
}

/// A state without what follows a line break, which would be a state of its own.
struct OneLine<'a>(&'a NotifyState<'a>);

impl std::fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.lines().next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn both_kinds_of_address_are_reached() {
        let name = format!("gwlbtun-service-manager-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        let by_path = UnixDatagram::bind(&path).unwrap();
        for (address, socket) in
            [(format!("@{name}"), by_name), (path.to_str().unwrap().to_owned(), by_path)]
        {
            let manager = ServiceManager::at(OsStr::new(&address)).unwrap();
            manager.tell(&[NotifyState::Ready, NotifyState::Status("a\nERRNO=1")]).unwrap();
            assert_eq!(received(&socket), "READY=1\nSTATUS=a\n", "{address}");
        }
        std::fs::remove_file(&path).unwrap();
        let gone = ServiceManager::at(path.as_os_str()).unwrap();
        assert_eq!(gone.tell(&[NotifyState::Ready]).unwrap_err().errno, Errno::ENOENT);
    }

    #[test]
    fn one_that_does_not_read_holds_nothing_up() {
        let name = format!("gwlbtun-service-manager-full-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _socket = UnixDatagram::bind_addr(&address).unwrap();
        let manager = ServiceManager::at(OsStr::new(&format!("@{name}"))).unwrap();
        // The default queue holds ten (net.unix.max_dgram_qlen), and memory bounds every other.
        let refused = (0..1_000_000).find_map(|_| manager.tell(&[NotifyState::Watchdog]).err());
        assert_eq!(refused.unwrap().errno, Errno::EAGAIN);
    }

    #[test]
    fn other_addresses_are_refused() {
        let long = format!("/{}", "x".repeat(200));
        for (address, errno) in
            [("vsock:2:1", Errno::EINVAL), ("notify", Errno::EINVAL), (&long, Errno::ENAMETOOLONG)]
        {
            let error = ServiceManager::at(OsStr::new(address)).unwrap_err();
            assert_eq!(error.errno, errno, "{address}");
        }
    }
}
