//! What this user may do; the daemon's unit may say otherwise about the daemon.

use super::Finding;
use super::Grade;
use super::host;
use crate::settings::Settings;
use crate::sys::limits::Capability;
use crate::sys::limits::has_capability;
use crate::types::SEND_QUEUE_BYTES;

pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    vec![capabilities(settings), buffers(settings)]
}

/// Those that are needed, in the order of their weight, with what is not there without them.
fn capabilities(settings: &Settings) -> Finding {
    const CHECK: &str = "capabilities";
    let low_port = settings.health.is_some_and(|health| {
        let first = host::sysctl_number("net/ipv4/ip_unprivileged_port_start").unwrap_or(1024);
        u64::from(health.port) < first
    });
    let bpf_is_closed = host::sysctl_number("kernel/unprivileged_bpf_disabled") != Some(0);
    let can_load = has_capability(Capability::Bpf) || has_capability(Capability::SysAdmin);
    let missing = [
        ("CAP_NET_ADMIN", !has_capability(Capability::NetAdmin), Grade::Fail, "no interfaces"),
        (
            "CAP_NET_BIND_SERVICE",
            low_port && !has_capability(Capability::NetBindService),
            Grade::Fail,
            "no health port below 1024",
        ),
        (
            "CAP_NET_RAW",
            !has_capability(Capability::NetRaw),
            Grade::Warn,
            "no answers from ports that others have",
        ),
        (
            "CAP_BPF",
            bpf_is_closed && !can_load,
            Grade::Warn,
            "no program that keeps a flow on one worker",
        ),
    ];
    let missing: Vec<_> = missing.into_iter().filter(|(_, is_missing, ..)| *is_missing).collect();
    let Some(grade) = missing.iter().map(|&(_, _, grade, _)| grade).max() else {
        return Finding::ok(CHECK, "this user has all that are of use");
    };
    let without: Vec<_> =
        missing.iter().map(|(name, _, _, lost)| format!("without {name} {lost}")).collect();
    let names: Vec<_> = missing.iter().map(|(name, ..)| *name).collect();
    let text = format!("of this user: {}", without.join(", "));
    let fix = format!("sudo, or in the unit AmbientCapabilities={}", names.join(" "));
    Finding::bad(grade, CHECK, text, fix)
}

/// With `CAP_NET_ADMIN` a socket gets what it asks for, without it what the limits allow.
fn buffers(settings: &Settings) -> Finding {
    const CHECK: &str = "buffers";
    let wanted = settings.receive_queue_bytes;
    if has_capability(Capability::NetAdmin) {
        let text = format!("{} MB for each receive queue, by CAP_NET_ADMIN", wanted >> 20);
        return Finding::ok(CHECK, text);
    }
    let low = [("rmem_max", wanted), ("wmem_max", SEND_QUEUE_BYTES)].map(|(name, wanted)| {
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        let limit = host::sysctl_number(&format!("net/core/{name}"))?;
        (limit < wanted).then_some((name, limit, wanted))
    });
    let low: Vec<_> = low.into_iter().flatten().collect();
    if low.is_empty() {
        return Finding::ok(CHECK, "net.core.rmem_max and wmem_max allow those of the workers");
    }
    let are = low.iter().map(|(name, limit, _)| format!("net.core.{name} is {limit}"));
    let text = format!(
        "{}, less than a worker asks for, and this user lacks CAP_NET_ADMIN",
        are.collect::<Vec<_>>().join(" and ")
    );
    let settings = low.iter().map(|(name, _, wanted)| format!("net.core.{name}={wanted}"));
    let fix = format!("sysctl -w {}", settings.collect::<Vec<_>>().join(" "));
    Finding::bad(Grade::Warn, CHECK, text, fix)
}
