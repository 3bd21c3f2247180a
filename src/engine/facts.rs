//! What was settled at the start, for whoever asks the running program about it.

use super::strangers::Guard;
use crate::log::Format;
use crate::log::Section;
use crate::settings::Compat;
use crate::settings::Profile;
use crate::settings::Settings;
use crate::settings::Steer;
use crate::stats::report::ConfigRow;
use crate::stats::report::Facts;
use crate::stats::report::FeatureRow;
use crate::sys::limits::Capability;
use crate::sys::limits::has_capability;
use crate::types::Offload;
use crate::uring::DriverPlan;

/// Puts it together. `asked` are the offloads before the kernel was.
pub(super) fn collect(
    settings: &Settings,
    asked: Offload,
    driver: DriverPlan,
    guard: &Guard,
) -> Facts {
    Facts {
        endpoints_max: settings.endpoints_max.into(),
        flows_max: settings.flows_max.into(),
        offload_asked: asked,
        offload_found: settings.offload,
        steering_asked: settings.tun_steering,
        vectors_asked: settings.vector_checksum,
        features: features(settings, driver, guard),
        config: config(settings),
        notes: settings.warnings.clone(),
    }
}

fn features(settings: &Settings, driver: DriverPlan, guard: &Guard) -> Vec<FeatureRow> {
    let found = driver.features;
    let since = |is_there: bool, release: &str| {
        let floor = if settings.kernel_floor { ", or --kernel-floor keeps it off" } else { "" };
        (!is_there).then(|| format!("Linux has it since {release}{floor}"))
    };
    let busy_poll = if settings.busy_poll_us == 0 {
        Some("not asked for, see --busypoll".to_owned())
    } else {
        since(found.busy_poll, "6.9")
    };
    let raw_sender = (!has_capability(Capability::NetRaw)).then(|| {
        "needs CAP_NET_RAW; without it a source port that another program has is no use".to_owned()
    });
    let source_filter = match guard {
        Guard::Kernel(_) => None,
        Guard::Nobody => Some("anybody may send, see --allow-source".to_owned()),
        Guard::Workers(error) => Some(format!("the workers drop strangers: {error}")),
    };
    [
        ("deferred-task-work", since(found.defer_taskrun, "6.1")),
        ("multishot-tun-read", since(found.read_multishot, "6.7")),
        ("busy-poll", busy_poll),
        ("source-filter", source_filter),
        ("raw-sender", raw_sender),
    ]
    .map(|(name, missing)| FeatureRow { name, missing })
    .into()
}

/// The settings in the order of the help, with what is in force.
fn config(settings: &Settings) -> Vec<ConfigRow> {
    let rows = commands(settings).into_iter().chain(threads(settings)).chain(limits_of(settings));
    rows.chain(switches(settings))
        .map(|(flag, value, also)| {
            let is_given = |name: &&str| settings.given.iter().any(|given| given == name);
            let given = [flag].iter().chain(also).any(is_given);
            ConfigRow { flag, value, given }
        })
        .collect()
}

/// A flag's long name, what is in force, and other flags that say the same.
type Row = (&'static str, String, &'static [&'static str]);

fn commands(settings: &Settings) -> Vec<Row> {
    let command = |hook: &Option<std::ffi::OsString>| match hook {
        Some(command) => command.to_string_lossy().into_owned(),
        None => "none".to_owned(),
    };
    let none = || "none".to_owned();
    let seconds = |time: std::time::Duration| format!("{} s", time.as_secs());
    let health = settings.health;
    let level =
        |section: Section| format!("{}={}", section.name(), settings.thresholds.of(section).name());
    let levels = Section::ALL.map(level);
    let log_format = match settings.log_format {
        Format::Text => "text",
        Format::Json => "json",
        Format::Logfmt => "logfmt",
        Format::Journald => "journald",
    };
    vec![
        ("cmdnew", command(&settings.hooks.create), &[]),
        ("cmddel", command(&settings.hooks.destroy), &[]),
        ("timeout", settings.tunnel_idle.map_or_else(|| "never".to_owned(), seconds), &[]),
        ("idle", seconds(settings.tcp_idle), &[]),
        ("port", health.map_or_else(none, |health| health.port.to_string()), &[]),
        ("json", on_off(health.is_some_and(|health| health.json)), &[]),
        ("s", on_off(health.is_some_and(|health| !health.body)), &["status-only"]),
        ("metrics-listen", settings.metrics.map_or_else(none, |address| address.to_string()), &[]),
        ("logging", levels.join(","), &["debug"]),
        ("log-format", log_format.to_owned(), &[]),
        ("x", on_off(settings.hex_dump), &["hex-dump"]),
    ]
}

fn threads(settings: &Settings) -> Vec<Row> {
    let cores = settings.workers.iter().map(|spec| match spec.core {
        Some(core) => core.to_string(),
        None => "any".to_owned(),
    });
    let steer = match settings.steer {
        Steer::Outer => "outer",
        Steer::Inner => "inner",
        Steer::Auto => "auto",
    };
    vec![
        ("workers", settings.workers.len().to_string(), &["udpthreads", "tunthreads", "cores"]),
        ("cores", cores.collect::<Vec<_>>().join(","), &["udpaffinity", "tunaffinity"]),
        ("steer", steer.to_owned(), &[]),
        ("no-tun-steering", on_off(!settings.tun_steering), &[]),
        ("busypoll", format!("{} us", settings.busy_poll_us), &[]),
    ]
}

fn limits_of(settings: &Settings) -> Vec<Row> {
    let any = || "any".to_owned();
    let endpoints = settings.endpoints_allowed.as_ref();
    let endpoints = endpoints.map(|ids| ids.iter().map(|id| format!("vpce-{id}")));
    let endpoints = endpoints.map(|ids| ids.collect::<Vec<_>>().join(","));
    let sources = settings.sources_allowed.as_ref().map(ToString::to_string);
    let burst = settings.endpoint_burst.unwrap_or(settings.endpoints_max);
    let clamp = settings.clamp_mss.map(|most| most.v4_bytes().to_string());
    vec![
        ("max-endpoints", settings.endpoints_max.to_string(), &[]),
        ("endpoint-burst", burst.to_string(), &[]),
        ("endpoint-rate", format!("{} a second", settings.endpoint_rate), &[]),
        ("allow-endpoint", endpoints.unwrap_or_else(any), &[]),
        ("allow-source", sources.unwrap_or_else(any), &[]),
        ("max-flows", settings.flows_max.to_string(), &["reserve"]),
        ("pin-source", on_off(settings.pin_source), &[]),
        ("clamp-mss", clamp.unwrap_or_else(|| on_off(false)), &[]),
        ("rcvbuf", format!("{} MB", settings.receive_queue_bytes >> 20), &[]),
        ("hook-jobs", settings.hooks.jobs.to_string(), &[]),
        ("allow-insecure-hooks", on_off(settings.hooks.insecure_allowed), &[]),
    ]
}

fn switches(settings: &Settings) -> Vec<Row> {
    let pieces = settings.offload.pieces().into_iter();
    let pieces: Vec<_> = pieces.filter_map(|(name, on)| on.then_some(name)).collect();
    let profile = match settings.profile {
        Profile::Aws => "aws",
        Profile::Tencent => "tencent",
    };
    let compat = match settings.compat {
        Compat::V3_0 => "3.0",
        Compat::V3_2 => "3.2",
    };
    let offload = if pieces.is_empty() { "none".to_owned() } else { pieces.join(" ") };
    let switches: &[&str] = &[
        "gwi-max-frame",
        "no-offload",
        "no-udp-gro",
        "no-udp-gso",
        "no-tun-tso",
        "no-tun-uso",
        "no-tcp-coalescing",
        "no-udp-coalescing",
    ];
    vec![
        ("offloads", offload, switches),
        ("no-vector-checksum", on_off(!settings.vector_checksum), &["no-offload"]),
        ("profile", profile.to_owned(), &[]),
        ("no-return", on_off(!settings.returns), &[]),
        ("compat", compat.to_owned(), &[]),
        ("kernel-floor", on_off(settings.kernel_floor), &[]),
    ]
}

fn on_off(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Args;
    use crate::settings::Host;

    /// Flags that set nothing.
    const WITHOUT_ROW: [&str; 4] = ["help", "stray", "ebpf", "ebpf-interface"];

    fn rows(flags: &[&str]) -> Vec<ConfigRow> {
        let words = [&["gwlbtun"], flags].concat();
        let args = crate::cli::parse(words.into_iter().map(Into::into)).unwrap();
        config(&Settings::new(&args, &Host { cpus: vec![0, 1], ram_bytes: 1 << 30 }).unwrap())
    }

    #[test]
    fn every_flag_is_shown() {
        let settings = Host { cpus: vec![0], ram_bytes: 1 << 30 };
        let args = crate::cli::parse(["gwlbtun".into()]).unwrap();
        let settings = Settings::new(&args, &settings).unwrap();
        let shown =
            [commands(&settings), threads(&settings), limits_of(&settings), switches(&settings)];
        let shown: Vec<_> = shown.concat();
        for argument in Args::command().get_arguments() {
            let name = argument.get_id().as_str().replace('_', "-");
            let is_in = |(flag, _, also): &Row| *flag == name || also.contains(&name.as_str());
            let has_row = shown.iter().any(is_in) || WITHOUT_ROW.contains(&name.as_str());
            assert!(has_row, "gwlbtun show config lacks --{name}: give it a row");
        }
    }

    #[test]
    fn what_was_typed_is_told_from_defaults() {
        let rows = rows(&["--udpthreads", "4", "-s", "-p80", "-d", "--allow-source", "10.0.0.0/8"]);
        let row = |flag: &str| {
            let row = rows.iter().find(|row| row.flag == flag).unwrap();
            (row.value.as_str(), row.given)
        };
        assert_eq!(row("workers"), ("4", true));
        assert_eq!(row("cores"), ("0,1,0,1", false));
        assert_eq!((row("s"), row("json")), (("on", true), ("off", false)));
        assert_eq!(row("allow-source"), ("10.0.0.0-10.255.255.255", true));
        assert!(row("logging").0.starts_with("core=debug,") && row("logging").1);
        assert_eq!(row("max-endpoints"), ("1024", false));
    }
}
