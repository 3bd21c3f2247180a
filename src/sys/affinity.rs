//! Processors and threads: which processors this process may use, and tying a thread to one.

use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
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

/// Where a thread may run that was tied to a processor: masks are changed from outside, and the
/// kernel widens one when the last processor in it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There, and nowhere else.
    Tied,
    /// There too.
    Loose,
    /// Not there.
    Elsewhere,
}

/// Where the thread with this number may run, seen from `core`. Nothing if the kernel does not
/// tell.
pub fn place_of(thread_id: u32, core: usize) -> Option<Place> {
    let mask = sched_getaffinity(pid(thread_id)).ok()?;
    let is_set = |core| mask.is_set(core).unwrap_or(false);
    let count = (0..CpuSet::count()).filter(|&other| is_set(other)).count();
    Some(match (is_set(core), count) {
        (true, 1) => Place::Tied,
        (true, _) => Place::Loose,
        (false, _) => Place::Elsewhere,
    })
}

/// Ties a thread to a processor again. One that is offline leaves it where it was.
pub fn tie(thread_id: u32, core: usize) {
    let mut mask = CpuSet::new();
    if mask.set(core).is_ok() {
        // Refused while the processor is not there: the caller looks again.
        let _ = sched_setaffinity(pid(thread_id), &mask);
    }
}

fn pid(thread_id: u32) -> Pid {
    Pid::from_raw(thread_id.cast_signed())
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
                assert_eq!(place_of(thread_id(), core), Some(Place::Tied));
                assert_eq!(place_of(thread_id(), core + 1), Some(Place::Elsewhere));
            }
            assert_eq!(place_of(u32::MAX, cores[0]), None);
            let mut all = CpuSet::new();
            for &core in &cores {
                all.set(core).unwrap();
            }
            sched_setaffinity(pid(thread_id()), &all).unwrap();
            if cores.len() > 1 {
                assert_eq!(place_of(thread_id(), cores[0]), Some(Place::Loose));
            }
            tie(thread_id(), cores[0]);
            assert_eq!(place_of(thread_id(), cores[0]), Some(Place::Tied));
            assert!(!pin_current_thread(CpuSet::count() - 1));
        })
        .join()
        .unwrap();
    }
}
