//! Waiting, on a tokio runtime, until a descriptor has something to read.

#![expect(
    unsafe_code,
    reason = "tokio's AsyncFd cannot know that a type keeps its descriptor open"
)]

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Error;

/// Tells when a descriptor may be read. It reads nothing itself.
#[derive(Debug)]
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Watches what `subject` refers to, through a descriptor of its own.
    ///
    /// # Errors
    /// When the process is out of descriptors, or epoll does not know this kind of file.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn of(subject: impl AsFd) -> Result<Self, Error> {
        let fail = |call| move |error| Error::from_io(call, "readiness", &error);
        let own = subject.as_fd().try_clone_to_owned().map_err(fail("fcntl F_DUPFD_CLOEXEC"))?;
        // SAFETY: the descriptor must stay open and the same while it is registered. It is
        // owned by the `AsyncFd`, whose field is private and which nobody takes apart.
        unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }
            .map(Self)
            .map_err(|error| Error::from_io("epoll_ctl", "readiness", &error.into()))
    }

    /// Waits until there may be something to read, the end included. Returns at once until
    /// [`Self::clear`] is called.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn wait(&self) -> Result<(), Error> {
        let ready = self.0.readable().await;
        ready.map(drop).map_err(|error| Error::from_io("epoll_wait", "readiness", &error))
    }

    /// Whether a read returns at once now: with bytes, or because there will never be more.
    pub fn is_readable(&self) -> bool {
        let mut watched = [PollFd::new(self.0.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut watched, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Uses up what [`Self::wait`] reported, after everything has been read. What arrives later is
    /// reported again; what arrived before this call and after the last read is too, because
    /// epoll's report of it has not been taken yet by the runtime, which is this very thread.
    pub fn clear(&self) {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(mut guard)) = self.0.poll_read_ready(&mut context) {
            guard.clear_ready();
        }
    }
}
