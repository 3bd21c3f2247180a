//! An eventfd: wakes a thread that sleeps in a ring or in an event loop.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;

use nix::sys::eventfd::EfdFlags;

use super::Error;
#[cfg(gwlbtun_loom)]
use crate::sync::WakeCount;

/// A counter that makes its descriptor readable while it is not zero.
#[derive(Debug)]
pub struct EventFd {
    file: nix::sys::eventfd::EventFd,
    /// What a model counts in, where it sees every step.
    #[cfg(gwlbtun_loom)]
    count: WakeCount,
}

impl EventFd {
    /// A new counter of zero, closed on exec, never blocking.
    ///
    /// # Errors
    /// When the process or the host is out of descriptors.
    pub fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let file = nix::sys::eventfd::EventFd::from_flags(flags)
            .map_err(|errno| Error::new("eventfd2", "wake-up", errno))?;
        Ok(Self {
            file,
            #[cfg(gwlbtun_loom)]
            count: WakeCount::default(),
        })
    }

    /// Adds one: whoever waits wakes up. A counter at its limit is readable already, so the
    /// result does not matter.
    #[cfg(not(gwlbtun_loom))]
    pub fn notify(&self) {
        let _ = self.file.write(1);
    }

    /// Takes the counter back to zero. Returns whether it was above zero.
    #[cfg(not(gwlbtun_loom))]
    pub fn drain(&self) -> bool {
        self.file.read().is_ok()
    }
}

#[cfg(gwlbtun_loom)]
#[expect(missing_docs, reason = "the originals have the documentation")]
impl EventFd {
    pub fn notify(&self) {
        self.count.notify();
    }

    pub fn drain(&self) -> bool {
        self.count.drain()
    }

    /// Sleeps until the counter is above zero.
    pub fn wait(&self) {
        self.count.wait();
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_fd().as_raw_fd()
    }
}
