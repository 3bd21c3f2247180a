//! A Unix socket without a name: nobody else can connect to it.
//!
//! It is bound in a directory that only we may enter, a handle on it is kept, and name and
//! directory are removed. From then on the handle, through `/proc/self/fd`, is the only way to it.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;
use nix::unistd::mkdtemp;

/// The way to the socket.
#[derive(Debug)]
pub(super) struct PrivateSocket {
    handle: OwnedFd,
}

impl PrivateSocket {
    /// A socket that listens, and the way to it.
    pub(super) fn listen() -> io::Result<(UnixListener, Self)> {
        let places = [std::env::temp_dir(), "/run".into(), "/dev/shm".into()];
        let mut outcome = Err(io::ErrorKind::NotFound.into());
        for place in &places {
            outcome = listen_in(place);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// The path to connect to; it leads nowhere in any other process.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into()
    }
}

fn listen_in(place: &Path) -> io::Result<(UnixListener, PrivateSocket)> {
    let directory = mkdtemp(&place.join("gwlbtun-XXXXXX"))?;
    let name = directory.join("http");
    let outcome = UnixListener::bind(&name).and_then(|listener| {
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(&name)?;
        let handle = handle.into();
        Ok((listener, PrivateSocket { handle }))
    });
    // The names are of no more use, whether that worked or not. `remove_dir_all` would need a
    // descriptor, and may be called for want of one.
    let _ = fs::remove_file(&name);
    let removed = fs::remove_dir(&directory);
    let made = outcome?;
    removed?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_handle_leads_to_the_socket_and_no_name_does() {
        let (listener, private) = PrivateSocket::listen().unwrap();
        let name = listener.local_addr().unwrap();
        let name = name.as_pathname().unwrap();
        assert!(!name.exists() && !name.parent().unwrap().exists());
        assert!(UnixStream::connect(name).is_err());

        UnixStream::connect(private.path()).unwrap().write_all(b"hello").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");

        let path = private.path();
        drop(private);
        assert!(UnixStream::connect(path).is_err());
    }
}
