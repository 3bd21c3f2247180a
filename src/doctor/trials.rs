//! What the start of the program tries is tried here in the same way, so that it is known before.

use super::Finding;
use super::Grade;
use super::host;
use crate::control::hooks;
use crate::engine::StartError;
use crate::engine::trial;
use crate::settings::Settings;
use crate::steering;

/// The oldest kernel that the program is made for.
const KERNEL_MIN: (u32, u32, u32) = (6, 1, 0);

/// From the first to the last of these, sends of several datagrams are mangled.
const GSO_BROKEN: std::ops::RangeInclusive<(u32, u32, u32)> = (7, 0, 0)..=(7, 1, 4);

pub(super) fn examine(settings: &Settings, ram_bytes: u64) -> Vec<Finding> {
    let release = host::sysctl("kernel/osrelease").unwrap_or_default();
    let mut findings = vec![kernel(&release, settings), hook_commands(settings)];
    findings.extend(limits_and_rings(settings, ram_bytes));
    let tun = tun(settings);
    // Without interfaces there is none to give a program to.
    let is_steered = tun.grade == Grade::Ok && settings.workers.len() > 1;
    findings.push(tun);
    findings.extend(is_steered.then(steering_program));
    findings
}

/// `6.1.0-28-cloud-amd64` is 6.1.0.
fn version(release: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

fn kernel(release: &str, settings: &Settings) -> Finding {
    const CHECK: &str = "kernel";
    match version(release) {
        Some(version) if version < KERNEL_MIN => {
            let text = format!("Linux {release} is older than 6.1");
            Finding::bad(Grade::Fail, CHECK, text, "boot Linux 6.1 or later")
        }
        Some(version) if GSO_BROKEN.contains(&version) && settings.offload.udp_gso => {
            let text = format!("Linux {release} mangles sends of several datagrams");
            Finding::bad(Grade::Warn, CHECK, text, "start gwlbtun with --no-udp-gso")
        }
        Some(_) | None => Finding::ok(CHECK, format!("Linux {release}")),
    }
}

fn hook_commands(settings: &Settings) -> Finding {
    const CHECK: &str = "hooks";
    match hooks::check(&settings.hooks) {
        Err(error) => {
            let line = error.to_string();
            let (text, fix) = line.split_once("; ").unwrap_or((&line, "correct it"));
            Finding::bad(Grade::Fail, CHECK, text, fix)
        }
        Ok(commands) if commands.create.is_none() && commands.destroy.is_none() => {
            Finding::ok(CHECK, "none were given: gwlbtun doctor takes the flags of gwlbtun")
        }
        Ok(_) => Finding::ok(CHECK, "they can run, and nobody else can change them"),
    }
}

/// What the start would say: what is wrong, and behind the last semicolon what to do.
pub(super) fn failure(check: &'static str, error: &StartError) -> Finding {
    let line = error.to_string();
    match error {
        StartError::Permission { error, remedy }
        | StartError::Missing { error, remedy }
        | StartError::MetricsPort { error, remedy } => {
            Finding::bad(Grade::Fail, check, error.to_string(), *remedy)
        }
        StartError::Hook(_)
        | StartError::HealthPort { .. }
        | StartError::UdpPort(_)
        | StartError::OpenFiles { .. }
        | StartError::LockedMemory { .. }
        | StartError::IoUring(_)
        | StartError::Control(_)
        | StartError::Host(_) => {
            let parts = line.rsplit_once("; ");
            let (text, fix) = parts.unwrap_or((&line, "see README.md, Exit status"));
            Finding::bad(Grade::Fail, check, text, fix)
        }
    }
}

fn limits_and_rings(settings: &Settings, ram_bytes: u64) -> Vec<Finding> {
    let mut settings = settings.clone();
    settings.warnings.clear();
    if let Err(error) = trial::open_files(&mut settings) {
        return vec![failure("open-files", &error)];
    }
    let files = if let Some(warning) = settings.warnings.pop() {
        let (text, fix) = warning.rsplit_once(": ").unwrap_or((&warning, "raise it"));
        Finding::bad(Grade::Warn, "open-files", text, fix.trim_end_matches('.'))
    } else {
        let endpoints = settings.endpoints_max;
        Finding::ok("open-files", format!("the limit carries {endpoints} endpoints"))
    };
    let rings = match trial::rings(&settings, ram_bytes) {
        Err(error) => vec![failure("io-uring", &error)],
        Ok(rings) => vec![io_uring(&rings), locked_memory(&rings)],
    };
    [vec![files], rings].concat()
}

fn io_uring(rings: &trial::Rings) -> Finding {
    let trial::Rings { features, .. } = rings;
    let parts = [
        ("deferred task work", features.defer_taskrun, "6.1"),
        ("multishot reads of interfaces", features.read_multishot, "6.7"),
        ("busy polling", features.busy_poll, "6.9"),
    ];
    let text = parts.map(|(name, is_there, since)| {
        if is_there { name.to_owned() } else { format!("no {name} before Linux {since}") }
    });
    Finding::ok("io-uring", format!("it works: {}", text.join(", ")))
}

fn locked_memory(rings: &trial::Rings) -> Finding {
    const CHECK: &str = "locked-memory";
    match rings.locked_bytes {
        Some(limit) if rings.are_small => {
            let text = format!("{} KiB make the rings of the workers smaller", limit / 1024);
            let fix = "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited";
            Finding::bad(Grade::Warn, CHECK, text, fix)
        }
        Some(limit) => Finding::ok(CHECK, format!("{} KiB are enough", limit / 1024)),
        None => Finding::ok(CHECK, "without limit"),
    }
}

/// The device, the right to make interfaces, and the offloads.
fn tun(settings: &Settings) -> Finding {
    const CHECK: &str = "interfaces";
    let mut settings = settings.clone();
    settings.warnings.clear();
    if let Err(error) = trial::offload(&mut settings) {
        return failure(CHECK, &error);
    }
    let lacks = settings.warnings.pop();
    let offloads = lacks.unwrap_or_else(|| "this kernel has all offloads.".to_owned());
    Finding::ok(CHECK, format!("they can be made; {}", offloads.trim_end_matches('.')))
}

fn steering_program() -> Finding {
    const CHECK: &str = "steering";
    match steering::links::probe() {
        Ok(()) => Finding::ok(CHECK, "a program keeps each flow on one worker"),
        Err(error) => {
            let text = format!("no program can keep a flow on one worker: {error}");
            let fix =
                "give the unit CAP_BPF; where it has that, --no-tun-steering spares the trial";
            Finding::bad(Grade::Warn, CHECK, text, fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Host;
    use crate::sys::Errno;
    use crate::sys::Error;

    fn settings(flags: &[&str]) -> Settings {
        let words = [&["gwlbtun"], flags].concat();
        let args = crate::cli::parse(words.into_iter().map(Into::into)).unwrap();
        Settings::new(&args, &Host { cpus: vec![0], ram_bytes: 1 << 30 }).unwrap()
    }

    #[test]
    fn kernels_are_judged_by_their_version() {
        let grade = |release: &str, flags: &[&str]| kernel(release, &settings(flags)).grade;
        assert_eq!(grade("5.10.0-28-cloud-amd64", &[]), Grade::Fail);
        assert_eq!(grade("6.0.19", &[]), Grade::Fail);
        assert_eq!(grade("6.1.0-28-cloud-amd64", &[]), Grade::Ok);
        assert_eq!(grade("6.12.22-27.96.amzn2023.x86_64", &[]), Grade::Ok);
        assert_eq!(grade("7.0", &[]), Grade::Warn);
        assert_eq!(grade("7.1.4", &[]), Grade::Warn);
        assert_eq!(grade("7.1.4", &["--no-udp-gso"]), Grade::Ok);
        assert_eq!(grade("7.1.5-arch1", &[]), Grade::Ok);
        assert_eq!(grade("", &[]), Grade::Ok, "nobody is judged unheard");
    }

    #[test]
    fn what_the_start_says_is_cut_where_its_remedy_begins() {
        let parts = |error| {
            let Finding { grade, text, fix, .. } = failure("x", &error);
            assert_eq!(grade, Grade::Fail);
            (text, fix.unwrap())
        };
        let (text, fix) = parts(StartError::OpenFiles { limit: 100, workers: 2, least: 300 });
        assert!(text.starts_with("the limit on open files is 100, "), "{text}");
        assert_eq!(fix, "set LimitNOFILE=300 or more, or fewer --workers");
        let error = Error::new("open", "/dev/net/tun", Errno::ENOENT);
        let missing = StartError::Missing { error: error.clone(), remedy: "load it; or not" };
        assert_eq!(parts(missing), (error.to_string(), "load it; or not".to_owned()));
        let (_, fix) = parts(StartError::Host(error));
        assert_eq!(fix, "see README.md, Exit status");
    }
}
