//! A Unix socket with an abstract name (unix(7)): no file, gone with its process, and one for each
//! network namespace. Anybody in the namespace may take the name and connect to it, so both sides
//! look at who the other is.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::UnixAddr;
use nix::sys::socket::bind;
use nix::sys::socket::connect as connect_to;
use nix::sys::socket::getsockopt;
use nix::sys::socket::listen as listen_on;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;
use nix::sys::time::TimeVal;
use nix::sys::time::TimeValLike;

use super::Errno;
use super::Error;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The process at the other end, as it was when it connected, or listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process id; 0 if it is not in our PID namespace.
    pub process_id: i32,
    /// Its effective user.
    pub user_id: u32,
}

/// Listens at `name` in the calling thread's network namespace, without ever blocking.
///
/// # Errors
/// `EADDRINUSE` when another process has the name.
pub fn listen(name: &str) -> Result<UnixListener, Error> {
    let fail = |call| move |errno| Error::new(call, subject(name), errno);
    let listener = open(SockFlag::SOCK_NONBLOCK).map_err(fail("socket"))?;
    let address = UnixAddr::new_abstract(name.as_bytes()).map_err(fail("bind"))?;
    bind(listener.as_raw_fd(), &address).map_err(fail("bind"))?;
    let backlog = Backlog::new(BACKLOG).map_err(fail("listen"))?;
    listen_on(&listener, backlog).map_err(fail("listen"))?;
    Ok(listener.into())
}

/// Connects to `name`. Neither this nor a later read or write takes longer than `patience`.
///
/// # Errors
/// `ECONNREFUSED` when nobody listens there, `EAGAIN` when somebody does and takes no connection in
/// time.
pub fn connect(name: &str, patience: Duration) -> Result<UnixStream, Error> {
    let fail = |call| move |errno| Error::new(call, subject(name), errno);
    let stream = open(SockFlag::empty()).map_err(fail("socket"))?;
    let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    let patience = TimeVal::milliseconds(millis);
    // It bounds the connect too.
    setsockopt(&stream, sockopt::SendTimeout, &patience).map_err(fail("setsockopt SO_SNDTIMEO"))?;
    setsockopt(&stream, sockopt::ReceiveTimeout, &patience)
        .map_err(fail("setsockopt SO_RCVTIMEO"))?;
    let address = UnixAddr::new_abstract(name.as_bytes()).map_err(fail("connect"))?;
    connect_to(stream.as_raw_fd(), &address).map_err(fail("connect"))?;
    Ok(stream.into())
}

/// Who is at the other end of a connection.
///
/// # Errors
/// When the file is no Unix socket.
pub fn peer(stream: &impl AsFd) -> Result<Peer, Error> {
    let fail = |errno| Error::new("getsockopt SO_PEERCRED", "Unix socket", errno);
    let credentials = getsockopt(stream, sockopt::PeerCredentials).map_err(fail)?;
    Ok(Peer { process_id: credentials.pid(), user_id: credentials.uid() })
}

fn open(flags: SockFlag) -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None)
}

fn subject(name: &str) -> String {
    format!("Unix socket @{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;

    #[test]
    fn a_name_is_taken_once_and_both_sides_know_each_other() {
        let name = format!("gwlbtun-test-{}", std::process::id());
        let patience = Duration::from_secs(30);
        let nobody = connect(&name, patience).unwrap_err();
        assert_eq!((nobody.call, nobody.errno), ("connect", Errno::ECONNREFUSED));
        let listener = listen(&name).unwrap();
        let taken = listen(&name).unwrap_err();
        assert_eq!(taken.to_string(), format!("bind(Unix socket @{name}): Address already in use"));

        let mut client = connect(&name, patience).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let us = Peer {
            process_id: i32::try_from(std::process::id()).unwrap(),
            user_id: nix::unistd::geteuid().as_raw(),
        };
        assert_eq!((peer(&client).unwrap(), peer(&server).unwrap()), (us, us));
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        drop((listener, server));
        assert!(listen(&name).is_ok(), "the name goes with its socket");
    }
}
