//! Limits of the process and of the host.

use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;
use nix::sys::sysinfo::sysinfo;

use super::Error;

/// Raises the limit on open files to the hard limit, and returns it.
///
/// The size of a ring's table of registered files is bound by this limit too.
///
/// # Errors
/// When the kernel refuses, as a seccomp filter could make it.
pub fn raise_open_files() -> Result<u64, Error> {
    let fail = |call| move |errno| Error::new(call, "RLIMIT_NOFILE", errno);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fail("getrlimit"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(fail("setrlimit"))?;
    }
    Ok(hard)
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

    #[test]
    fn limits_are_plausible() {
        let files = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (files, files));
        assert!(memory_bytes().unwrap() > 64 << 20);
    }
}
