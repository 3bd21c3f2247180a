//! One io_uring instance: set-up by probing, submission, completion.
#![expect(unsafe_code, reason = "pushing an entry hands the kernel pointers")]

use std::time::Duration;

use io_uring::IoUring;
use io_uring::Probe;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::CancelBuilder;
use io_uring::types::Napi;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;

use crate::sys::Errno;
use crate::sys::Error;

/// How long the end of a ring waits for its operations: they end at once, unless the kernel is
/// stuck.
const CANCEL_MAX: Duration = Duration::from_secs(1);

/// What the running kernel's io_uring can do for us. Found by trying, at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Completions are worked off when the worker asks for them, not by interrupting it
    /// (`IORING_SETUP_DEFER_TASKRUN`, since 6.1).
    pub defer_taskrun: bool,
    /// A TUN is read by one multishot operation (since 6.7); else by poll and plain reads.
    pub read_multishot: bool,
    /// The ring can poll network interfaces before it sleeps (`IORING_REGISTER_NAPI`, since 6.9).
    pub busy_poll: bool,
}

impl Features {
    /// Tries what the kernel has.
    ///
    /// # Errors
    /// `EPERM` where a seccomp filter or `kernel.io_uring_disabled` forbids io_uring, `ENOSYS`
    /// where there is none; `EOPNOTSUPP` where it lacks what no substitute exists for: multishot
    /// receive and provided buffer rings (both since 6.0).
    pub fn probe() -> Result<Self, Error> {
        let (ring, defer_taskrun) = match build(8, 16, true) {
            // The kernel knows io_uring but not all of these flags.
            Err(error) if error.errno == Errno::EINVAL => (build(8, 16, false)?, false),
            deferred => (deferred?, true),
        };
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(|error| Error::from_io("io_uring_register PROBE", "io_uring", &error))?;
        // Multishot receive has no opcode of its own; SEND_ZC came in the same release, 6.0.
        if !probe.is_supported(opcode::SendZc::CODE) {
            let subject = "multishot receive, Linux 6.0";
            return Err(Error::new("io_uring probe", subject, Errno::EOPNOTSUPP));
        }
        Ok(Self {
            defer_taskrun,
            read_multishot: probe.is_supported(opcode::ReadMulti::CODE),
            busy_poll: set_busy_poll(&ring, 0).is_ok(),
        })
    }

    /// What is left of these on Linux 6.1, the oldest kernel that the program is made for.
    #[must_use]
    pub fn floor(self) -> Self {
        Self { read_multishot: false, busy_poll: false, ..self }
    }
}

/// Makes waits on the ring poll the interfaces of its sockets for so many microseconds first.
fn set_busy_poll(ring: &IoUring, microseconds: u32) -> Result<(), Error> {
    ring.submitter()
        .register_napi(&mut Napi::new().set_busy_poll_timeout(microseconds))
        .map_err(|error| Error::from_io("io_uring_register NAPI", "io_uring", &error))
}

fn build(entries: u32, completions: u32, defer_taskrun: bool) -> Result<IoUring, Error> {
    let mut builder = IoUring::builder();
    builder.setup_submit_all().setup_cqsize(completions);
    if defer_taskrun {
        builder.setup_single_issuer().setup_defer_taskrun();
    } else {
        builder.setup_coop_taskrun();
    }
    builder.build(entries).map_err(|error| Error::from_io("io_uring_setup", "io_uring", &error))
}

/// A ring that belongs to one thread: the one that made it.
pub(super) struct Ring {
    uring: IoUring,
}

impl Ring {
    /// A ring for `entries` submissions per call and `completions` outstanding results.
    pub(super) fn new(entries: u32, completions: u32, features: Features) -> Result<Self, Error> {
        build(entries, completions, features.defer_taskrun).map(|uring| Self { uring })
    }

    /// Makes waits poll the interfaces of the ring's sockets for so many microseconds first.
    pub(super) fn set_busy_poll(&self, microseconds: u32) -> Result<(), Error> {
        set_busy_poll(&self.uring, microseconds)
    }

    /// Cancels everything that is in flight and waits until the kernel is done with it, so that
    /// the memory it was told about may go.
    pub(super) fn cancel_everything(&self) {
        let patience = Timespec::from(CANCEL_MAX);
        // There is nobody left to tell, and nothing else that could be done.
        let _ = self.uring.submitter().register_sync_cancel(Some(patience), CancelBuilder::any());
    }

    /// Lets go of all registered files, and is done when they are closed. The end of a ring does
    /// that too, but in the background and after the end of the process: until then its sockets
    /// would take datagrams that are meant for the next process.
    pub(super) fn close_files(&mut self) {
        // What was cancelled gives its file back when its completion is worked off.
        let _ = self.enter(1, Duration::ZERO);
        let _ = self.uring.submitter().unregister_files();
    }

    /// Queues an operation. Where the queue is full, what is in it is submitted first.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid, and untouched by us where the kernel may write
    /// it, until the operation's last completion has been taken.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), Error> {
        // SAFETY: the caller's promise is the one that this call asks for.
        if unsafe { self.uring.submission().push(entry) }.is_ok() {
            return Ok(());
        }
        self.submit()?;
        // SAFETY: as above.
        unsafe { self.uring.submission().push(entry) }
            .map_err(|_| Error::new("io_uring_enter", "submission queue", Errno::EBUSY))
    }

    /// Hands the queue to the kernel without waiting for anything.
    fn submit(&mut self) -> Result<(), Error> {
        match self.uring.submit() {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(Error::from_io("io_uring_enter", "submit", &error)),
        }
    }

    /// Hands the queue to the kernel and waits for `wanted` completions, `patience` at most.
    pub(super) fn enter(&mut self, wanted: usize, patience: Duration) -> Result<(), Error> {
        let patience = Timespec::from(patience);
        let args = SubmitArgs::new().timespec(&patience);
        match self.uring.submitter().submit_with_args(wanted, &args) {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(Error::from_io("io_uring_enter", "wait", &error)),
        }
    }

    /// Takes the next completion.
    pub(super) fn complete(&mut self) -> Option<cqueue::Entry> {
        self.uring.completion().next()
    }

    /// Calls that register something with this ring.
    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.uring.submitter()
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

/// Errors of `io_uring_enter` after which the next turn simply goes on: the wait timed out, a
/// signal came, or completions must be taken before more is submitted.
fn is_transient(error: &std::io::Error) -> bool {
    [Errno::ETIME, Errno::EINTR, Errno::EBUSY, Errno::EAGAIN]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno as i32))
}
