//! Processors and threads: which processors this process may use, and tying a thread to one.

use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use nix::unistd::gettid;

use super::Error;

/// The numbers of the processors in this process's mask, ascending.
///
/// # Errors
/// When the kernel refuses the call, as a seccomp filter could make it.
pub fn allowed() -> Result<Vec<usize>, Error> {
    let mask = sched_getaffinity(Pid::from_raw(0))
        .map_err(|errno| Error::new("sched_getaffinity", "this process", errno))?;
    Ok((0..CpuSet::count()).filter(|&core| mask.is_set(core).unwrap_or(false)).collect())
}

/// Ties the calling thread to processor `core`. Returns whether that worked: a processor that is
/// not there, or not in the mask, leaves the thread where it was.
pub fn pin_current_thread(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

/// The kernel's number of the calling thread, as `ps -L` shows it.
pub fn thread_id() -> u32 {
    gettid().as_raw().cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_tied_to_each_allowed_processor_and_to_no_other() {
        let cores = allowed().unwrap();
        assert!(!cores.is_empty());
        std::thread::spawn(move || {
            for &core in &cores {
                assert!(pin_current_thread(core));
                assert_eq!(allowed().unwrap(), [core]);
            }
            assert!(!pin_current_thread(CpuSet::count() - 1));
        })
        .join()
        .unwrap();
    }
}
