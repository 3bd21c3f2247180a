//! An eventfd: wakes a thread that sleeps in a ring or in an event loop.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;

use nix::sys::eventfd::EfdFlags;

use super::Error;

/// A counter that makes its descriptor readable while it is not zero.
#[derive(Debug)]
pub struct EventFd(nix::sys::eventfd::EventFd);

impl EventFd {
    /// A new counter of zero, closed on exec, never blocking.
    ///
    /// # Errors
    /// When the process or the host is out of descriptors.
    pub fn new() -> Result<Self, Error> {
        nix::sys::eventfd::EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(Self)
            .map_err(|errno| Error::new("eventfd2", "wake-up", errno))
    }

    /// Adds one: whoever waits wakes up. A counter at its limit is readable already, so the
    /// result does not matter.
    pub fn notify(&self) {
        let _ = self.0.write(1);
    }

    /// Takes the counter back to zero. Returns whether it was above zero.
    pub fn drain(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
