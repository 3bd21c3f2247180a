//! What is read while a target works, and from where; and the arithmetic on it.
//!
//! | value | source |
//! |---|---|
//! | packets and bytes returned | nft counter at the sink |
//! | CPU time of the target | `/proc/<pid>/task/*/schedstat`, nanoseconds |
//! | CPU time of others on its core | the same of every other task that ran there last |
//! | how the cores spent their time | `/proc/stat`, in ticks: a hint where a core is half idle |
//! | receives, sends and frames | `/proc/<pid>/net/snmp` and `dev` |
//! | memory of the target | `VmRSS` of `/proc/<pid>/status` |
//!
//! Where the kernel does not account interrupts apart (`CONFIG_IRQ_TIME_ACCOUNTING`), a softirq
//! that runs inside a system call of the target counts as the target's time.

use std::collections::HashMap;
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
    others: Others,
    core: CoreTicks,
    moves: Moves,
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
            others: Others::read(pid)?,
            core: CoreTicks::read(TARGET_CORE)?,
            moves: Moves::read(pid)?,
        })
    }
}

/// What one run measured.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Packets that came back.
    pub(crate) returned: u64,
    /// The same per second.
    pub(crate) returned_per_sec: f64,
    /// Bits of the inner packets that came back, per nanosecond.
    pub(crate) gbits_per_sec: f64,
    /// Mean bytes of the inner packets that came back.
    pub(crate) inner_bytes: f64,
    /// Packets sent, per second.
    pub(crate) sent_per_sec: f64,
    /// Share of the sent packets that did not come back, in percent.
    pub(crate) loss_percent: f64,
    /// How many packets each receive, frame and send of the target held.
    pub(crate) merged: Merged,
    /// CPU time of the target per returned packet.
    pub(crate) cpu_ns_per_packet: f64,
    /// CPU time of the target per second, in percent of one core.
    pub(crate) target_percent: f64,
    /// CPU time of others, and what the host took, on the target's core, in percent of it.
    pub(crate) others_percent: f64,
    /// Resident memory of the target at the end.
    pub(crate) rss_kib: u64,
    /// User, system, softirq and idle share of the target's core, in percent of all its time.
    pub(crate) core_percent: [f64; 4],
}

impl Outcome {
    /// The difference of two samples, and memory at the end.
    pub(crate) fn between(first: &Sample, last: &Sample, rss_kib: u64) -> Result<Self, Failure> {
        let secs = last.at.duration_since(first.at).as_secs_f64();
        let returned = float(last.returned.packets - first.returned.packets)?;
        let bytes = float(last.returned.inner_bytes - first.returned.inner_bytes)?;
        let sent = float(last.sent - first.sent)?;
        if returned == 0.0 {
            return Err("nothing came back: nothing was measured".into());
        }
        let cpu_secs = last.cpu.saturating_sub(first.cpu).as_secs_f64();
        let (core_percent, stolen_percent) = last.core.percent_since(&first.core)?;
        Ok(Self {
            returned: last.returned.packets - first.returned.packets,
            returned_per_sec: returned / secs,
            gbits_per_sec: bytes * 8.0 / secs / 1e9,
            inner_bytes: bytes / returned,
            sent_per_sec: sent / secs,
            loss_percent: (1.0 - returned / sent) * 100.0,
            merged: Merged::between(&first.moves, &last.moves)?,
            cpu_ns_per_packet: cpu_secs * 1e9 / returned,
            target_percent: cpu_secs / secs * 100.0,
            others_percent: last.others.since(&first.others).as_secs_f64() / secs * 100.0
                + stolen_percent,
            rss_kib,
            core_percent,
        })
    }

    /// What a flood of this run is worth.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.target_percent >= FULL_PERCENT {
            Verdict::Valid
        } else if self.others_percent <= 100.0 - FULL_PERCENT {
            Verdict::Starved
        } else {
            Verdict::Void
        }
    }

    /// The same for machines.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "returned_per_sec": self.returned_per_sec,
            "gbits_per_sec": self.gbits_per_sec,
            "inner_bytes": self.inner_bytes,
            "packets_per_receive": self.merged.receive,
            "packets_per_frame": self.merged.frame,
            "packets_per_send": self.merged.send,
            "sent_per_sec": self.sent_per_sec,
            "loss_percent": self.loss_percent,
            "cpu_ns_per_packet": self.cpu_ns_per_packet,
            "target_percent": self.target_percent,
            "rss_kib": self.rss_kib,
            "others_percent": self.others_percent,
            "core_user_system_softirq_idle_percent": self.core_percent,
        })
    }
}

/// Least share of its core that a target has under a flood, in percent.
const FULL_PERCENT: f64 = 97.0;

/// What a run under a flood is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The target had its core to itself and used it.
    Valid,
    /// The target had its core to itself and was idle: the generator was the limit. Its cost per
    /// packet stands, its packets/s do not.
    Starved,
    /// Others took part of the core: nothing stands.
    Void,
}

impl Verdict {
    /// Name in tables and in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Starved => "starved",
            Self::Void => "void",
        }
    }
}

/// How many of the packets that the target sent back one move held on average.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merged {
    /// Per receive from the UDP socket: more than 1 where the kernel merged what arrived. A raw
    /// socket counts none.
    pub(crate) receive: f64,
    /// Per frame read from gwo: more than 1 if the target merges.
    pub(crate) frame: f64,
    /// Per send: more than 1 if the kernel cuts what the target sends.
    pub(crate) send: f64,
}

impl Merged {
    fn between(first: &Moves, last: &Moves) -> Result<Self, Failure> {
        let sent = float(last.datagrams_sent - first.datagrams_sent)?;
        let per = |last: u64, first: u64| -> Result<f64, Failure> {
            Ok(if last == first { 0.0 } else { sent / float(last - first)? })
        };
        Ok(Self {
            receive: per(last.receives, first.receives)?,
            frame: per(last.frames_read, first.frames_read)?,
            send: per(last.sends, first.sends)?,
        })
    }
}

/// What the kernel counts in the target's namespace before it cuts and after it merges.
#[derive(Clone, Debug)]
struct Moves {
    /// What UDP sockets gave to programs (UDP-MIB, `InDatagrams`).
    receives: u64,
    /// What programs sent (IP-MIB, `OutRequests`), of whatever socket.
    sends: u64,
    /// What programs read from gwo links.
    frames_read: u64,
    /// What left through vB, each with one packet: by then the kernel has cut what it cuts.
    datagrams_sent: u64,
}

impl Moves {
    /// As the process `pid` sees its network.
    fn read(pid: u32) -> Result<Self, Failure> {
        let snmp = fs::read_to_string(format!("/proc/{pid}/net/snmp"))?;
        let links = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        // "name: " and sixteen numbers; the tenth is of transmitted packets.
        let transmitted = |name: &str| -> u64 {
            let lines = links.lines().map(str::trim_start).filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.split_whitespace().nth(10)?.parse::<u64>().ok()).sum()
        };
        Ok(Self {
            receives: snmp_counter(&snmp, "Udp:", "InDatagrams")?,
            sends: snmp_counter(&snmp, "Ip:", "OutRequests")?,
            frames_read: transmitted("gwo-"),
            datagrams_sent: transmitted("vB:"),
        })
    }
}

/// A counter of `/proc/net/snmp`: a line of names is followed by one of values.
fn snmp_counter(snmp: &str, protocol: &str, name: &str) -> Result<u64, Failure> {
    let mut lines = snmp.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs
        .find(|(found, _)| *found == name)
        .ok_or_else(|| format!("no {protocol} {name} in /proc/net/snmp"))?;
    Ok(value.parse()?)
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

    /// User, system, softirq and idle time, and what the host took.
    fn percent_since(&self, first: &Self) -> Result<([f64; 4], f64), Failure> {
        let mut spent = [0.0; 8];
        for (place, (now, then)) in spent.iter_mut().zip(self.0.iter().zip(first.0)) {
            *place = float(now - then)?;
        }
        let all: f64 = spent.iter().sum();
        let [user, nice, system, idle, iowait, irq, softirq, steal] =
            spent.map(|ticks| ticks * 100.0 / all);
        Ok(([user + nice, system, irq + softirq, idle + iowait], steal))
    }
}

/// CPU time of every task but the target's, and whether it ran last on the target's core.
#[derive(Clone, Debug)]
struct Others(HashMap<u32, (Duration, bool)>);

impl Others {
    fn read(target: u32) -> Result<Self, Failure> {
        let mut tasks = HashMap::new();
        for process in numbers_in("/proc")?.filter(|pid| *pid != target) {
            // Whoever ends meanwhile is left out.
            let Ok(ids) = numbers_in(&format!("/proc/{process}/task")) else { continue };
            for id in ids {
                let task = format!("/proc/{process}/task/{id}");
                tasks.extend(task_time(&task).ok().map(|time| (id, time)));
            }
        }
        Ok(Self(tasks))
    }

    /// The time of those that are on the target's core now.
    fn since(&self, first: &Self) -> Duration {
        let here = self.0.iter().filter(|(_, (_, is_here))| *is_here);
        here.map(|(id, (time, _))| {
            time.saturating_sub(first.0.get(id).map_or(Duration::ZERO, |(before, _)| *before))
        })
        .sum()
    }
}

/// Entries of a directory that are numbers.
fn numbers_in(directory: &str) -> Result<impl Iterator<Item = u32> + use<>, Failure> {
    let entries = fs::read_dir(directory)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// CPU time of a task, and whether it ran last on the target's core (proc(5), `stat`).
fn task_time(task: &str) -> Result<(Duration, bool), Failure> {
    let stat = fs::read_to_string(format!("{task}/stat"))?;
    // The second field is a name, which may hold anything; the core is field 39.
    let (_, fields) = stat.rsplit_once(')').ok_or("a stat without a name")?;
    let core: usize = fields.split_whitespace().nth(36).ok_or("a short stat")?.parse()?;
    Ok((on_cpu(task)?, core == TARGET_CORE))
}

/// CPU time of a task.
fn on_cpu(task: &str) -> Result<Duration, Failure> {
    let stat = fs::read_to_string(format!("{task}/schedstat"))?;
    let on_cpu = stat.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(Duration::from_nanos(on_cpu.parse()?))
}

/// CPU time of all threads of a process.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration, Failure> {
    numbers_in(&format!("/proc/{pid}/task"))?
        .map(|id| on_cpu(&format!("/proc/{pid}/task/{id}")))
        .sum()
}

/// Datagrams that found the queue of their UDP socket full, in the network of a process.
pub(crate) fn socket_overflows(pid: u32) -> Result<u64, Failure> {
    let snmp = fs::read_to_string(format!("/proc/{pid}/net/snmp"))?;
    snmp_counter(&snmp, "Udp:", "RcvbufErrors")
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

/// Bounds between which the median of all such values lies with a confidence of 95 % or more,
/// whatever their distribution: the k-th least and the k-th greatest, where less than 2.5 % of all
/// series of coin tosses show fewer than k heads. None where there are too few values, below 6.
pub(crate) fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let tosses = f64::from(u16::try_from(values.len()).ok()?);
    let mut rank = 0_u16;
    let mut share = 0.5_f64.powf(tosses);
    let mut below = share;
    while below < 0.025 {
        let heads = f64::from(rank);
        share *= (tosses - heads) / (heads + 1.0);
        below += share;
        rank += 1;
    }
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let first = usize::from(rank).checked_sub(1)?;
    Some((values[first], values[values.len() - 1 - first]))
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
