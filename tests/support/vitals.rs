//! What a long run may not use up, and what it may not lose: memory, descriptors and threads of the
//! program, and the packets that the kernel dropped around it.

use std::collections::BTreeMap;
use std::fs;

use super::engine::Engine;
use super::lab::Lab;
use super::process::run;
use crate::sim::netns::Namespace;

/// Mappings from this size on are made at the start, for packet buffers and flows, and never grow.
/// A worker's buffers for what it writes are 8 MiB.
const RESERVE_KIB_MIN: u64 = 8 << 10;

/// The address range of a mapping.
type Range = (u64, u64);

/// Memory that the program has reserved at its start. A page of it becomes resident when it is
/// first used, which for some takes long: a buffer of 64 KiB is seldom full.
#[derive(Clone, Debug)]
pub(crate) struct Reserves(Vec<Range>);

impl Reserves {
    /// All large mappings of now.
    pub(crate) fn of(engine: &Engine) -> Self {
        let is_large = |(start, end): &Range| (end - start) >> 10 >= RESERVE_KIB_MIN;
        Self(mappings(engine).into_iter().map(|(range, _)| range).filter(is_large).collect())
    }

    /// What counts as grown of a mapping: nothing of a reserve, but all that was added to it.
    fn outside_kib(&self, (start, end): Range, resident_kib: u64) -> u64 {
        let inside = self.0.iter().filter(|reserve| start <= reserve.0 && reserve.1 <= end);
        let reserved: u64 = inside.map(|(start, end)| end - start).sum();
        if reserved == 0 { resident_kib } else { (end - start - reserved) >> 10 }
    }
}

/// What the program holds, while it serves no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// Resident memory, reserves included.
    pub(crate) resident_kib: u64,
    /// The same without them.
    pub(crate) working_kib: u64,
    pub(crate) descriptors: BTreeMap<String, usize>,
    pub(crate) threads: Vec<String>,
}

impl Vitals {
    /// Those of now.
    pub(crate) fn take(engine: &Engine, reserves: &Reserves) -> Self {
        let mappings = mappings(engine);
        Self {
            resident_kib: mappings.iter().map(|(_, kib)| kib).sum(),
            working_kib: mappings
                .iter()
                .map(|&(range, kib)| reserves.outside_kib(range, kib))
                .sum(),
            descriptors: engine.descriptors(),
            threads: engine.threads(),
        }
    }

    /// Whether it holds the same descriptors and threads.
    pub(crate) fn holds_the_same(&self, other: &Self) -> bool {
        self.descriptors == other.descriptors && self.threads == other.threads
    }
}

/// Every mapping, and how much of it is resident, in KiB (proc(5), `smaps`).
fn mappings(engine: &Engine) -> Vec<(Range, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", engine.pid())).expect("/proc");
    let mut mappings = Vec::new();
    let mut range = None;
    for line in smaps.lines() {
        let word = line.split(' ').next().unwrap_or_default();
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        if let Some((start, end)) = word.split_once('-') {
            range = number(start).zip(number(end)).or(range);
        } else if word == "Rss:" {
            let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
            mappings.push((range.expect("a mapping"), kib.expect("a number of KiB")));
        }
    }
    mappings
}

/// Slope of the line through the points that has the least squares: y per x. 0 for one point.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = f64::from(u32::try_from(points.len()).expect("few points"));
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if variance == 0.0 { 0.0 } else { covariance / variance }
}

/// Packets that the kernel dropped between the load balancer and the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelDrops {
    /// Datagrams that no socket of the target took, most of them because its queue was full.
    pub(crate) sockets: u64,
    /// Packets on the wire, either way.
    pub(crate) wire: u64,
    /// Frames that came out of `gwi` when the hook that took them had gone, and that the target's
    /// own IP dropped: what a worker that stood still had begun to deliver before that.
    pub(crate) host: u64,
}

impl KernelDrops {
    /// Since the namespaces were made.
    pub(crate) fn read(lab: &Lab, engine: &Engine) -> Self {
        let file = |name: &str| {
            fs::read_to_string(format!("/proc/{}/net/{name}", engine.pid())).expect("/proc")
        };
        let (snmp, snmp6) = (file("snmp"), file("snmp6"));
        let sockets = counter(&snmp, "Udp:", "NoPorts") + counter(&snmp, "Udp:", "InErrors");
        let discards = snmp6.lines().find_map(|line| line.strip_prefix("Ip6InDiscards"));
        let discards: u64 = discards.map_or(0, |count| count.trim().parse().expect("a count"));
        let host = counter(&snmp, "Ip:", "InAddrErrors") + discards;
        let wire =
            link_drops(&lab.topology.target(), "eth0") + link_drops(&lab.topology.gwlb(), "gw0");
        Self { sockets, wire, host }
    }

    /// Those that are counted one by one.
    pub(crate) fn sum(&self) -> u64 {
        self.sockets + self.wire
    }
}

/// A counter of one protocol in `/proc/net/snmp`: a line of names, and a line of values.
fn counter(snmp: &str, protocol: &str, name: &str) -> u64 {
    let mut lines = snmp.lines().filter(|line| line.starts_with(protocol));
    let mut columns = || lines.next().expect("two lines").split_whitespace();
    let mut pairs = columns().zip(columns());
    let value = pairs.find_map(|(found, value)| (found == name).then_some(value));
    value.expect("a counter").parse().expect("a count")
}

/// Packets that one end of a veth has dropped on their way to the other, which may count the same
/// ones as received and dropped.
fn link_drops(namespace: &Namespace, link: &str) -> u64 {
    let text = run(namespace, "cat", &[&format!("/sys/class/net/{link}/statistics/tx_dropped")]);
    text.trim().parse().expect("a count")
}
