//! Which descriptors a child process gets.

#![expect(unsafe_code, reason = "nix has no close_range")]

use nix::errno::Errno;
use nix::libc;

use super::Error;

/// Marks every descriptor above 2 close-on-exec.
///
/// All that this program opens is marked from the start; this is for what it was started with,
/// for example descriptors that a service manager passed.
///
/// # Errors
/// On kernels before 5.11, which know no `CLOSE_RANGE_CLOEXEC`.
pub fn close_all_on_exec() -> Result<(), Error> {
    const FLAGS: libc::c_int = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: with CLOEXEC the call closes nothing and touches no memory, so no owner of a
    // descriptor notices it before an exec.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, FLAGS) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("close_range", "3 and above", errno))
}
