//! What went wrong in a system call: which call, on what, and the kernel's reason.

pub use nix::errno::Errno;

/// A failed system call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(clippy::error_impl_error, reason = "it is read as sys::Error")]
#[error("{call}({subject}): {}", errno.desc())]
pub struct Error {
    /// Name of the call, with the request where one call has many: `ioctl TUNSETIFF`.
    pub call: &'static str,
    /// What it was done to: a link name, an address, a path.
    pub subject: String,
    /// The kernel's reason.
    pub errno: Errno,
}

impl Error {
    /// Puts together what is known about a failed call.
    pub fn new(call: &'static str, subject: impl Into<String>, errno: Errno) -> Self {
        Self { call, subject: subject.into(), errno }
    }

    /// The same from an I/O error of the standard library.
    pub fn from_io(call: &'static str, subject: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(call, subject, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }
}
