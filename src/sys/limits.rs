//! Limits of the process and of the host.

use nix::sys::resource::RLIM_INFINITY;
use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;
use nix::sys::sysinfo::sysinfo;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;

use super::Error;

/// The limit on open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// What it is now.
    pub limit: u64,
    /// The soft limit before it was raised, if it was.
    pub before: Option<u64>,
}

/// Raises the soft limit on open files to the hard limit.
///
/// The size of a ring's table of registered files is bound by this limit too.
///
/// # Errors
/// When the kernel does not tell the limit, as a seccomp filter could make it.
pub fn raise_open_files() -> Result<OpenFiles, Error> {
    let (soft, limit) = raise(Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE", setrlimit)?;
    Ok(OpenFiles { limit, before: (soft < limit).then_some(soft) })
}

/// The soft limit on open files as it is now: it may be changed from outside (prlimit(1)).
///
/// # Errors
/// As [`raise_open_files`].
pub fn open_files() -> Result<u64, Error> {
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    limits.map(|(soft, _)| soft).map_err(|errno| Error::new("getrlimit", "RLIMIT_NOFILE", errno))
}

/// Raises a soft limit to the hard limit; what it was, and what it is now. It stays where `set` is
/// refused: the kernel does so where the hard limit on open files is above `fs.nr_open`, which was
/// lowered later.
fn raise(
    resource: Resource,
    name: &'static str,
    set: impl FnOnce(Resource, u64, u64) -> nix::Result<()>,
) -> Result<(u64, u64), Error> {
    let (soft, hard) = getrlimit(resource).map_err(|errno| Error::new("getrlimit", name, errno))?;
    let is_raised = soft < hard && set(resource, hard, hard).is_ok();
    Ok((soft, if is_raised { hard } else { soft }))
}

/// Raises the limit on locked memory to the hard limit, and returns it in bytes. Nothing where it
/// does not bind this process: it is infinite, or the process has `CAP_IPC_LOCK`.
///
/// The memory of io_uring's rings counts against it, per user (`io_uring/memmap.c`,
/// `io_create_region`, since Linux 6.14).
///
/// # Errors
/// When the kernel does not tell the limit, as a seccomp filter could make it.
pub fn raise_locked_memory() -> Result<Option<u64>, Error> {
    let (_, limit) = raise(Resource::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK", setrlimit)?;
    Ok((limit != RLIM_INFINITY && !has_capability(Capability::IpcLock)).then_some(limit))
}

/// A capability, by its number (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// To bind ports below 1024.
    NetBindService = 10,
    /// To make interfaces, and queues of any length.
    NetAdmin = 12,
    /// To send from any port.
    NetRaw = 13,
    /// To lock any amount of memory.
    IpcLock = 14,
    /// To do almost anything.
    SysAdmin = 21,
    /// To load programs into the kernel.
    Bpf = 39,
}

/// Whether a capability is effective, as `/proc/self/status` tells it; not, if that cannot be
/// read.
pub fn has_capability(capability: Capability) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (capability as u8) & 1 == 1)
}

/// Size of a page, bytes: 4 KiB on `x86_64`; on aarch64 the kernel may have 16 or 64 KiB.
///
/// # Panics
/// Never on Linux: every system has pages.
pub fn page_bytes() -> u64 {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().expect("memory has pages");
    u64::try_from(bytes).expect("a size is positive")
}

/// Main memory of the host, bytes.
///
/// # Errors
/// When the kernel refuses the call.
pub fn memory_bytes() -> Result<u64, Error> {
    sysinfo()
        .map(|info| info.ram_total())
        .map_err(|errno| Error::new("sysinfo", "main memory", errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn limits_are_plausible() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        let refused = raise(Resource::RLIMIT_NOFILE, "", |_, _, _| Err(Errno::EPERM));
        assert_eq!(refused, Ok((hard - 1, hard - 1)), "it is used as it is");
        let raised = |before| Ok(OpenFiles { limit: hard, before });
        assert_eq!(raise_open_files(), raised(Some(hard - 1)));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(raise_open_files(), raised(None));
        assert!(memory_bytes().unwrap() > 64 << 20);
        assert!(page_bytes().is_power_of_two() && page_bytes() >= 4096);
        if has_capability(Capability::IpcLock) {
            assert_eq!(raise_locked_memory(), Ok(None));
        }
    }
}
