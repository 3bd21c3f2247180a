//! Which descriptors a child process gets, and tables of descriptors for threads alone.

#![expect(unsafe_code, reason = "nix has no close_range, and two tables have two owners")]

use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::signal::SigSet;

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

/// How many descriptors the process has open.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn count() -> Result<u64, Error> {
    let table = "/proc/self/fd";
    let fail = |error: std::io::Error| Error::from_io("read", table, &error);
    // The size is their number since Linux 6.2 (`proc_readfd_count`, fs/proc/fd.c); 0 before.
    let size = std::fs::metadata(table).map_err(fail)?.len();
    if size > 0 {
        return Ok(size);
    }
    // One of them is for this look.
    let entries = std::fs::read_dir(table).map_err(fail)?.count();
    Ok(u64::try_from(entries).unwrap_or(u64::MAX).saturating_sub(1))
}

/// Gives the calling thread, and the threads that it starts from now on, a table of descriptors of
/// their own, with 0 to 2 and `number` in it. Whatever others open no longer takes their numbers
/// away. Returns that descriptor, which nobody else owns in this table.
///
/// These threads take no signals from now on: what a handler writes to would not be in their table,
/// and the signal would be lost for the process.
///
/// Where a seccomp filter forbids it, as those of container runtimes may, the table stays the one
/// of the process, and what is returned is a duplicate.
///
/// # Errors
/// When there is no such descriptor.
pub fn own_table_with(number: RawFd) -> Result<OwnedFd, Error> {
    SigSet::all().thread_block().map_err(|errno| Error::new("sigmask", "this thread", errno))?;
    let own = if unshare(CloneFlags::CLONE_FILES).is_ok() {
        let kept = number.cast_unsigned();
        for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, libc::c_uint::MAX)] {
            if first <= last {
                // SAFETY: the table is the calling thread's alone, and nothing in it is used here
                // but `kept`, which is in neither range. In the table that it was copied from all
                // stays open.
                unsafe { libc::close_range(first, last, 0) };
            }
        }
        number
    } else {
        // SAFETY: the call duplicates a descriptor, or finds none.
        unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }
    };
    // SAFETY: the call only asks whether there is such a descriptor.
    Errno::result(unsafe { libc::fcntl(own, libc::F_GETFD) })
        .map_err(|errno| Error::new("fcntl", format!("descriptor {number}"), errno))?;
    // SAFETY: it is open, and in this table nobody else owns the number.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::thread;

    use nix::sys::signal::Signal;

    use super::*;

    /// One restart in hundreds did not hear SIGTERM.
    #[test]
    fn an_isolated_thread_leaves_signals_to_others() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let number = null.as_raw_fd();
        let isolated = move || {
            let _own = own_table_with(number).unwrap();
            thread::spawn(|| SigSet::thread_get_mask().unwrap()).join().unwrap()
        };
        let mask = thread::spawn(isolated).join().unwrap();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
            assert!(mask.contains(signal), "{signal}");
        }
        assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
    }

    #[test]
    fn an_isolated_thread_has_what_it_kept_and_shares_no_numbers() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        let number = writer.as_raw_fd();
        let isolated = move || {
            let own = own_table_with(number).unwrap();
            let open = std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
            std::fs::File::from(own).write_all(b"kept").unwrap();
            assert!(own_table_with(1 << 20).is_err());
            open
        };
        let seen = thread::spawn(isolated).join().unwrap();
        // And that of the listing itself.
        assert!(seen <= 5, "{seen} descriptors");
        other.metadata().unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
    }
}
