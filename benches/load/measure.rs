//! What is read while a target works, and from where; and the arithmetic on it.
//!
//! | value | source |
//! |---|---|
//! | packets and bytes returned | nft counter at the sink |
//! | CPU time of the target | `/proc/<pid>/task/*/schedstat`, nanoseconds |
//! | how the cores spent their time | `/proc/stat` |
//! | memory of the target | `VmRSS` of `/proc/<pid>/status` |
//!
//! Where the kernel does not account interrupts apart (`CONFIG_IRQ_TIME_ACCOUNTING`), a softirq
//! that runs inside a system call of the target counts as the target's time.

use std::fs;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::lab::Failure;
use crate::lab::Lab;
use crate::lab::Returned;
use crate::lab::TARGET_CORE;

/// One look at a running target and its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    at: Instant,
    returned: Returned,
    sent: u64,
    cpu: Duration,
    core: CoreTicks,
}

impl Sample {
    /// Looks at everything now. `sent` is the generator's own count.
    pub(crate) fn take(lab: &Lab, pid: u32, sent: impl Fn() -> u64) -> Result<Self, Failure> {
        let returned = lab.returned()?;
        Ok(Self {
            at: now(),
            returned,
            sent: sent(),
            cpu: cpu_time(pid)?,
            core: CoreTicks::read(TARGET_CORE)?,
        })
    }
}

/// What one run measured.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Packets that came back, per second.
    pub(crate) returned_per_sec: f64,
    /// Bits of the inner packets that came back, per nanosecond.
    pub(crate) gbits_per_sec: f64,
    /// Mean bytes of the inner packets that came back.
    pub(crate) inner_bytes: f64,
    /// Packets sent, per second.
    pub(crate) sent_per_sec: f64,
    /// Share of the sent packets that did not come back, in percent.
    pub(crate) loss_percent: f64,
    /// Packets that were sent back per frame that the target read from gwo: 1, unless it merges.
    pub(crate) packets_per_frame: f64,
    /// CPU time of the target per returned packet.
    pub(crate) cpu_ns_per_packet: f64,
    /// CPU time of the target per second, in percent of one core. Under a flood it is 100, or
    /// somebody else took part of the core and the run is void.
    pub(crate) target_percent: f64,
    /// Resident memory of the target at the end.
    pub(crate) rss_kib: u64,
    /// User, system, softirq and idle share of the target's core, in percent of all its time.
    pub(crate) core_percent: [f64; 4],
}

impl Outcome {
    /// The difference of two samples. The rest is of the whole run.
    pub(crate) fn between(
        first: &Sample,
        last: &Sample,
        rss_kib: u64,
        packets_per_frame: f64,
    ) -> Result<Self, Failure> {
        let secs = last.at.duration_since(first.at).as_secs_f64();
        let returned = float(last.returned.packets - first.returned.packets)?;
        let bytes = float(last.returned.inner_bytes - first.returned.inner_bytes)?;
        let sent = float(last.sent - first.sent)?;
        if returned == 0.0 {
            return Err("nothing came back: nothing was measured".into());
        }
        let cpu_secs = last.cpu.saturating_sub(first.cpu).as_secs_f64();
        Ok(Self {
            returned_per_sec: returned / secs,
            gbits_per_sec: bytes * 8.0 / secs / 1e9,
            inner_bytes: bytes / returned,
            sent_per_sec: sent / secs,
            loss_percent: (1.0 - returned / sent) * 100.0,
            packets_per_frame,
            cpu_ns_per_packet: cpu_secs * 1e9 / returned,
            target_percent: cpu_secs / secs * 100.0,
            rss_kib,
            core_percent: last.core.percent_since(&first.core)?,
        })
    }

    /// The same for machines.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "returned_per_sec": self.returned_per_sec,
            "gbits_per_sec": self.gbits_per_sec,
            "inner_bytes": self.inner_bytes,
            "packets_per_frame": self.packets_per_frame,
            "sent_per_sec": self.sent_per_sec,
            "loss_percent": self.loss_percent,
            "cpu_ns_per_packet": self.cpu_ns_per_packet,
            "target_percent": self.target_percent,
            "rss_kib": self.rss_kib,
            "core_user_system_softirq_idle_percent": self.core_percent,
        })
    }
}

/// Clock ticks of one core since boot.
#[derive(Clone, Debug)]
struct CoreTicks([u64; 8]);

impl CoreTicks {
    /// `/proc/stat`, proc(5): user nice system idle iowait irq softirq steal.
    fn read(core: usize) -> Result<Self, Failure> {
        let stat = fs::read_to_string("/proc/stat")?;
        let name = format!("cpu{core} ");
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .ok_or_else(|| format!("no core {core} in /proc/stat"))?;
        let mut ticks = [0; 8];
        for (place, word) in ticks.iter_mut().zip(line.split_whitespace()) {
            *place = word.parse()?;
        }
        Ok(Self(ticks))
    }

    fn percent_since(&self, first: &Self) -> Result<[f64; 4], Failure> {
        let mut spent = [0.0; 8];
        for (place, (now, then)) in spent.iter_mut().zip(self.0.iter().zip(first.0)) {
            *place = float(now - then)?;
        }
        let all: f64 = spent.iter().sum();
        let [user, nice, system, idle, iowait, irq, softirq, _steal] =
            spent.map(|ticks| ticks * 100.0 / all);
        Ok([user + nice, system, irq + softirq, idle + iowait])
    }
}

/// CPU time of all threads of a process.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration, Failure> {
    let mut nanos = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        let on_cpu = stat.split_whitespace().next().ok_or("an empty schedstat")?;
        nanos += on_cpu.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of a process.
pub(crate) fn rss_kib(pid: u32) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Median of values in any order.
///
/// # Panics
/// If there are none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// The clock of the bench.
#[expect(clippy::disallowed_methods, reason = "a bench measures time; the rule is for src")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sleeps.
#[expect(clippy::disallowed_methods, reason = "a bench waits; the rule is for src")]
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// A count as a number to reckon with: exact up to 2^53, far above what a run counts.
pub(crate) fn float(count: u64) -> Result<f64, Failure> {
    let high = f64::from(u32::try_from(count >> 32)?);
    let low = f64::from(u32::try_from(count & 0xffff_ffff)?);
    Ok(high * 4_294_967_296.0 + low)
}
