//! What this process uses of the host: `/proc/self` (`proc(5)`).

use std::time::Duration;

use procfs::ProcResult;
use procfs::process::LimitValue;
use procfs::process::Process;

use crate::types::ProcessUsage;
use crate::types::ThreadUsage;

/// What the process uses now; nothing where `/proc` does not tell.
pub fn usage() -> Option<ProcessUsage> {
    read_usage().ok()
}

fn read_usage() -> ProcResult<ProcessUsage> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = procfs::ticks_per_second();
    let span = |count: u64| Duration::from_millis(count.saturating_mul(1000) / ticks.max(1));
    let max_fds = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
        LimitValue::Value(limit) => Some(limit),
        LimitValue::Unlimited => None,
    });
    Ok(ProcessUsage {
        cpu: span(stat.utime + stat.stime),
        resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
        virtual_bytes: stat.vsize,
        open_fds: process.fd_count().ok().map(|count| count as u64),
        max_fds,
        started: procfs::boot_time_secs()
            .ok()
            .map(|boot| Duration::from_secs(boot) + span(stat.starttime)),
    })
}

/// What a thread of this process got of the processors; nothing where there is no such thread, or
/// the kernel does not count that (`CONFIG_SCHED_INFO`).
pub fn thread_usage(thread_id: u32) -> Option<ThreadUsage> {
    let thread_id = i32::try_from(thread_id).ok()?;
    let task = Process::myself().and_then(|process| process.task_from_tid(thread_id)).ok()?;
    let times = task.schedstat().ok()?;
    Some(ThreadUsage {
        ran: Duration::from_nanos(times.sum_exec_runtime),
        waited: Duration::from_nanos(times.run_delay),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::affinity;

    #[test]
    fn a_running_process_uses_something() {
        let usage = usage().unwrap();
        assert!(usage.resident_bytes > 100_000 && usage.virtual_bytes >= usage.resident_bytes);
        assert!(usage.open_fds.unwrap() >= 3 && usage.max_fds.unwrap() >= usage.open_fds.unwrap());
        assert!(usage.started.unwrap() > Duration::from_secs(1_600_000_000));
        assert!(thread_usage(affinity::thread_id()).unwrap().ran > Duration::ZERO);
        assert_eq!(thread_usage(u32::MAX), None);
        assert_eq!(thread_usage(1), None, "it is another process's");
    }
}
