//! Who runs where: the queues of the interface, their interrupts, and what Linux spreads by
//! software, against the workers.

use std::collections::BTreeSet;

use super::Finding;
use super::Grade;
use super::host;
use crate::settings::Settings;
use crate::settings::parse_cpu_list;
use crate::sys::ethtool;
use crate::sys::ethtool::ReceiveQueues;

/// From so many CPUs on, some of them are better left to interrupts (`tuning/tune.sh`).
const CPUS_TO_SHARE: usize = 8;

/// What does all of it.
const TUNE: &str = "tuning/tune.sh apply, which README.md beside it explains";

/// One interface, as `/sys` and `/proc` show it.
#[derive(Clone, Debug, Default)]
struct Device {
    name: String,
    /// The CPUs of each receive queue's software spreading, and of each send queue.
    rps: Vec<BTreeSet<usize>>,
    xps: Vec<BTreeSet<usize>>,
    /// What its driver says of its receive queues, if it does.
    queues: Option<ReceiveQueues>,
    /// The CPUs that take its interrupts.
    irqs: BTreeSet<usize>,
}

/// The CPUs of the host that count.
#[derive(Clone, Debug, Default)]
struct Cpus {
    online: BTreeSet<usize>,
    /// Those of the workers, if a list tied them.
    tied: Option<BTreeSet<usize>>,
    workers: usize,
}

pub(super) fn examine(settings: &Settings, devices: &[String]) -> Vec<Finding> {
    if devices.is_empty() {
        let text = "cannot be known without the interface to the load balancer";
        return ["queues", "interrupts", "rps", "xps"].map(|check| Finding::ok(check, text)).into();
    }
    let online = host::read("/sys/devices/system/cpu/online").unwrap_or_default();
    let is_tied = settings.workers.iter().any(|spec| spec.pinned_by_list);
    let cpus = Cpus {
        online: parse_cpu_list(&online).unwrap_or_default(),
        tied: is_tied.then(|| settings.workers.iter().filter_map(|spec| spec.core).collect()),
        workers: settings.workers.len(),
    };
    let devices: Vec<_> = devices.iter().map(|name| read(name)).collect();
    vec![queues(&devices, &cpus), irqs(&devices, &cpus), rps(&devices, &cpus), xps(&devices)]
}

fn read(name: &str) -> Device {
    let path = format!("/sys/class/net/{name}");
    let masks = |kind: &str, file: &str| {
        let queues = host::names_in(format!("{path}/queues"));
        let queues = queues.into_iter().filter(|queue| queue.starts_with(kind));
        let mask = |queue| host::read(format!("{path}/queues/{queue}/{file}")).unwrap_or_default();
        queues.map(mask).map(|mask| host::cpus_of_mask(&mask)).collect()
    };
    let irqs = host::names_in(format!("{path}/device/msi_irqs"));
    let cpus_of = |irq: String| {
        // The management interrupt of an ENA carries no packets.
        let handlers = host::names_in(format!("/proc/irq/{irq}"));
        let is_idle = handlers.iter().any(|name| name.contains("mgmnt"));
        let list = host::read(format!("/proc/irq/{irq}/smp_affinity_list")).unwrap_or_default();
        if is_idle { BTreeSet::new() } else { parse_cpu_list(&list).unwrap_or_default() }
    };
    Device {
        name: name.to_owned(),
        rps: masks("rx-", "rps_cpus"),
        xps: masks("tx-", "xps_cpus"),
        queues: ethtool::receive_queues(name).ok().flatten(),
        irqs: irqs.into_iter().flat_map(cpus_of).collect(),
    }
}

/// The names of devices, for the end of a sentence.
fn names(devices: &[Device]) -> String {
    let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
    names.join(" and ")
}

/// One queue has one CPU for its interrupts, whatever the workers could do.
fn queues(devices: &[Device], cpus: &Cpus) -> Finding {
    const CHECK: &str = "queues";
    for Device { name, rps, queues, .. } in devices {
        let workers = u32::try_from(cpus.workers).unwrap_or(u32::MAX);
        if let Some(ReceiveQueues { kind, in_use, max }) = *queues
            && in_use < max.min(workers)
        {
            let text = format!(
                "{name} has {in_use} of {max} receive queues in use, for {workers} workers"
            );
            let fix = format!("ethtool -L {name} {kind} {}", max.min(workers));
            return Finding::bad(Grade::Warn, CHECK, text, fix);
        }
        let is_spread = rps.iter().any(|queue| !queue.is_empty());
        let (queues, workers) = (rps.len(), cpus.workers);
        if queues < workers && !is_spread {
            let text = format!(
                "{name} has too few receive queues, {queues} for {workers} workers, and no RPS"
            );
            return Finding::bad(Grade::Warn, CHECK, text, TUNE);
        }
    }
    Finding::ok(CHECK, format!("{} can keep {} workers busy", names(devices), cpus.workers))
}

fn irqs(devices: &[Device], cpus: &Cpus) -> Finding {
    const CHECK: &str = "interrupts";
    let Some(tied) = &cpus.tied else {
        if cpus.online.len() < CPUS_TO_SHARE {
            return Finding::ok(CHECK, "all CPUs do both, interrupts and workers");
        }
        let text = format!("{} CPUs all do both, interrupts and workers", cpus.online.len());
        let fix = "start gwlbtun with the --cores that tuning/tune.sh check names";
        return Finding::bad(Grade::Warn, CHECK, text, fix);
    };
    let free: BTreeSet<_> = cpus.online.difference(tied).copied().collect();
    for Device { name, irqs, .. } in devices {
        let shared: BTreeSet<_> = irqs.intersection(tied).copied().collect();
        if !shared.is_empty() && !free.is_empty() {
            let text = format!(
                "those of {name} come to CPUs {}, to which workers are tied",
                host::list(&shared)
            );
            let fix = format!("tuning/tune.sh apply --irq-cpus {}", host::list(&free));
            return Finding::bad(Grade::Warn, CHECK, text, fix);
        }
    }
    let text = format!("those of {} keep off the workers' CPUs", names(devices));
    Finding::ok(CHECK, text)
}

/// Spreading by software costs an interrupt between CPUs for each packet.
fn rps(devices: &[Device], cpus: &Cpus) -> Finding {
    const CHECK: &str = "rps";
    for Device { name, rps, .. } in devices {
        let to: BTreeSet<usize> = rps.iter().flatten().copied().collect();
        let shared = cpus.tied.iter().flatten().any(|core| to.contains(core));
        let has_free = cpus.tied.as_ref().is_some_and(|tied| !cpus.online.is_subset(tied));
        let off = format!("echo 0 | sudo tee /sys/class/net/{name}/queues/rx-*/rps_cpus");
        if !to.is_empty() && rps.len() >= cpus.online.len() {
            let text = format!("{name} has a queue for each CPU, and RPS moves packets once more");
            return Finding::bad(Grade::Warn, CHECK, text, off);
        } else if shared && has_free {
            let text = format!(
                "that of {name} uses CPUs {}, to some of which workers are tied",
                host::list(&to)
            );
            return Finding::bad(Grade::Warn, CHECK, text, TUNE);
        }
    }
    Finding::ok(CHECK, format!("as the queues of {} ask for", names(devices)))
}

/// Without it a driver may send everything by its first queue, which AWS limits by itself.
fn xps(devices: &[Device]) -> Finding {
    const CHECK: &str = "xps";
    for Device { name, xps, .. } in devices {
        if xps.len() > 1 && xps.iter().all(BTreeSet::is_empty) {
            let text = format!(
                "{name} has {} send queues, and no CPU has its own: answers may share the first",
                xps.len()
            );
            return Finding::bad(Grade::Warn, CHECK, text, TUNE);
        }
    }
    Finding::ok(CHECK, format!("each CPU has its send queue of {}", names(devices)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> BTreeSet<usize> {
        parse_cpu_list(text).unwrap_or_default()
    }

    fn device(rps: &[&str], xps: &[&str], irqs: &str) -> Device {
        let sets = |list: &[&str]| list.iter().map(|text| set(text)).collect();
        let (rps, xps) = (sets(rps), sets(xps));
        Device { name: "eth0".to_owned(), rps, xps, queues: None, irqs: set(irqs) }
    }

    fn cpus(online: &str, tied: Option<&str>, workers: usize) -> Cpus {
        Cpus { online: set(online), tied: tied.map(set), workers }
    }

    #[test]
    fn fewer_queues_than_workers_need_rps() {
        let grade = |rps: &[&str]| queues(&[device(rps, &[], "")], &cpus("0-3", None, 4)).grade;
        assert_eq!(grade(&["", "", "", ""]), Grade::Ok);
        assert_eq!(grade(&[""]), Grade::Warn);
        assert_eq!(grade(&["0-3"]), Grade::Ok);
    }

    #[test]
    fn queues_that_are_not_in_use_are_named() {
        let look = |in_use, max, workers| {
            let found = Some(ReceiveQueues { kind: "combined", in_use, max });
            let queues_in_use = vec!["0-3"; in_use as usize];
            let device = Device { queues: found, ..device(&queues_in_use, &[], "") };
            queues(&[device], &cpus("0-15", None, workers))
        };
        assert_eq!(
            look(4, 8, 16).to_string(),
            "WARN queues: eth0 has 4 of 8 receive queues in use, for 16 workers; fix: ethtool -L \
             eth0 combined 8"
        );
        assert_eq!(look(2, 8, 4).fix.unwrap(), "ethtool -L eth0 combined 4");
        assert_eq!(look(4, 8, 4).grade, Grade::Ok);
        assert_eq!(look(8, 8, 16).grade, Grade::Ok, "software spreads the rest");
    }

    #[test]
    fn interrupts_keep_off_tied_workers() {
        let look = |irqs_on: &str, cpus: Cpus| irqs(&[device(&[""], &[], irqs_on)], &cpus);
        assert_eq!(look("0-3", cpus("0-3", None, 4)).grade, Grade::Ok, "there are few");
        assert_eq!(look("0-15", cpus("0-15", None, 16)).grade, Grade::Warn);
        assert_eq!(look("0-3", cpus("0-15", Some("4-15"), 12)).grade, Grade::Ok);
        let shared = look("0-5", cpus("0-15", Some("4-15"), 12));
        assert_eq!(shared.text, "those of eth0 come to CPUs 4-5, to which workers are tied");
        assert_eq!(shared.fix.unwrap(), "tuning/tune.sh apply --irq-cpus 0-3");
        assert_eq!(look("0-3", cpus("0-3", Some("0-3"), 4)).grade, Grade::Ok, "none is free");
    }

    #[test]
    fn software_spreads_where_the_hardware_cannot() {
        let look = |queues: &[&str], cpus: Cpus| rps(&[device(queues, &[], "")], &cpus).grade;
        assert_eq!(look(&["", ""], cpus("0-1", None, 2)), Grade::Ok);
        assert_eq!(look(&["0", "1"], cpus("0-1", None, 2)), Grade::Warn, "needless");
        assert_eq!(look(&["0-3"], cpus("0-3", None, 4)), Grade::Ok);
        assert_eq!(look(&["0-3"], cpus("0-3", Some("2-3"), 2)), Grade::Warn, "shared");
        assert_eq!(look(&["0-1"], cpus("0-3", Some("2-3"), 2)), Grade::Ok);
    }

    #[test]
    fn several_send_queues_have_their_cpus() {
        let look = |queues: &[&str]| xps(&[device(&[], queues, "")]).grade;
        assert_eq!(look(&[""]), Grade::Ok);
        assert_eq!(look(&["", ""]), Grade::Warn);
        assert_eq!(look(&["0", "1"]), Grade::Ok);
    }
}
