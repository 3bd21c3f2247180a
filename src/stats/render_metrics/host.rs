//! What the program has of its host: processors, memory, descriptors, and the network interfaces'
//! allowances.

use std::fmt;

use super::families::Families;
use crate::stats::Page;
use crate::stats::WorkerRow;
use crate::types::ProcessUsage;
use crate::types::ThreadUsage;

/// What is read when metrics are rendered, as far as the host tells.
#[derive(Debug, Default)]
pub struct HostUsage {
    /// The process.
    pub process: Option<ProcessUsage>,
    /// The workers' threads, in the order of [`Page::workers`].
    pub workers: Vec<Option<ThreadUsage>>,
}

impl HostUsage {
    pub(super) fn encode(&self, page: &Page, families: &mut Families<'_>) -> fmt::Result {
        self.workers(page, families)?;
        families.counters(
            "gwlbtun_nic_allowance_exceeded_packets",
            "Packets that AWS queued or dropped because the instance exceeded this allowance, as \
             the ENA driver tells.",
            page.nics.iter().flat_map(|nic| {
                nic.exceeded.iter().map(|(allowance, count)| {
                    ([("interface", nic.name.as_str()), ("allowance", allowance)], *count)
                })
            }),
        )?;
        self.process.as_ref().map_or(Ok(()), |usage| process(usage, families))
    }

    fn workers(&self, page: &Page, families: &mut Families<'_>) -> fmt::Result {
        let numbered = || (0..).map(|number: u16| number.to_string());
        let usages =
            || numbered().zip(&self.workers).filter_map(|(id, usage)| Some((id, (*usage)?)));
        let rows = || numbered().zip(&page.workers);
        families.counters(
            "gwlbtun_worker_cpu_seconds",
            "Time that a worker ran: its rate is how busy it is.",
            usages().map(|(id, usage)| ([("worker", id)], usage.ran.as_secs_f64())),
        )?;
        families.counters(
            "gwlbtun_worker_cpu_wait_seconds",
            "Time that a worker was ready to run while others had its core.",
            usages().map(|(id, usage)| ([("worker", id)], usage.waited.as_secs_f64())),
        )?;
        families.counters(
            "gwlbtun_worker_received_packets",
            "Datagrams that came to a worker.",
            rows().map(|(id, WorkerRow { counters, .. })| {
                ([("worker", id)], counters.datagrams.packets)
            }),
        )?;
        families.gauges(
            "gwlbtun_worker_up",
            "1 while a worker turns.",
            rows().map(|(id, row)| ([("worker", id)], u64::from(row.healthy))),
        )
    }
}

/// What every program tells, under the names that dashboards know.
fn process(usage: &ProcessUsage, families: &mut Families<'_>) -> fmt::Result {
    families.counter(
        "process_cpu_seconds",
        "CPU time of all threads, of the user and of the system.",
        usage.cpu.as_secs_f64(),
    )?;
    families.gauge("process_resident_memory_bytes", "Resident memory.", usage.resident_bytes)?;
    families.gauge("process_virtual_memory_bytes", "Address space.", usage.virtual_bytes)?;
    if let Some(count) = usage.open_fds {
        families.gauge("process_open_fds", "Open descriptors.", count)?;
    }
    if let Some(limit) = usage.max_fds {
        families.gauge("process_max_fds", "Descriptors that may be open.", limit)?;
    }
    if let Some(started) = usage.started {
        families.gauge(
            "process_start_time_seconds",
            "When the process was started, since 1970.",
            started.as_secs_f64(),
        )?;
    }
    Ok(())
}
