//! How the host is read: `/proc` and `/sys`, as text. Nothing here is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The value of a sysctl, named by its path below `/proc/sys`: nothing if this kernel, or this
/// network namespace, has none.
pub(super) fn sysctl(path: &str) -> Option<String> {
    read(format!("/proc/sys/{path}"))
}

/// The same as a number.
pub(super) fn sysctl_number(path: &str) -> Option<u64> {
    sysctl(path)?.parse().ok()
}

/// A file's text without blanks around it.
pub(super) fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The names in a directory, sorted; none if there is no such directory.
pub(super) fn names_in(path: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The interfaces by which the load balancer comes: those of default routes, or, where there are
/// none, those of any IPv4 route.
pub(super) fn devices() -> Vec<String> {
    devices_in(&read("/proc/net/route").unwrap_or_default())
}

/// Of the columns of `fib_route_seq_show` (`net/ipv4/fib_trie.c`) the first is the interface, the
/// second and the eighth are destination and mask.
fn devices_in(routes: &str) -> Vec<String> {
    let mut defaults = BTreeSet::new();
    let mut all = BTreeSet::new();
    for line in routes.lines().skip(1) {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        let (Some(&device), Some(&to), Some(&mask)) =
            (columns.first(), columns.get(1), columns.get(7))
        else {
            continue;
        };
        if device == "lo" || is_of_an_endpoint(device) {
            continue;
        }
        all.insert(device.to_owned());
        if to == "00000000" && mask == "00000000" {
            defaults.insert(device.to_owned());
        }
    }
    if defaults.is_empty() { all } else { defaults }.into_iter().collect()
}

/// Whether an interface is one of ours.
pub(super) fn is_of_an_endpoint(device: &str) -> bool {
    device.starts_with("gwi-") || device.starts_with("gwo-")
}

/// The CPUs in a mask as the kernel writes it: `2,00000001` is 0 and 33.
pub(super) fn cpus_of_mask(mask: &str) -> BTreeSet<usize> {
    let mut cpus = BTreeSet::new();
    for (group, word) in mask.trim().rsplit(',').enumerate() {
        let bits = u32::from_str_radix(word, 16).unwrap_or(0);
        cpus.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| group * 32 + bit));
    }
    cpus
}

/// `0,2-4`, as short as can be.
pub(super) fn list(cpus: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let range = |(first, last): (usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.into_iter().map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_to_the_load_balancer_is_that_of_the_default_route() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n";
        let link = "eth1\t0000630A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let ours = "gwi-5bqWvzLwwkk\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(devices_in(&[head, link, ours].concat()), ["eth1"]);
        assert_eq!(devices_in(&[head, link, default, default].concat()), ["eth0"]);
        assert_eq!(devices_in(head), [""; 0]);
        assert_eq!(devices_in(""), [""; 0]);
    }

    #[test]
    fn masks_and_lists_of_cpus() {
        for (mask, text) in [
            ("0", ""),
            ("00000000,00000000\n", ""),
            ("2,00000001", "0,33"),
            ("ff", "0-7"),
            ("f0f", "0-3,8-11"),
        ] {
            assert_eq!(list(&cpus_of_mask(mask)), text, "{mask:?}");
        }
    }
}
