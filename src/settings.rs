//! What the command line means on this host: checked once, never changed afterwards.
//!
//! The four thread options of the reference program describe two sets of threads; here one
//! worker does both jobs, so they are joined into one set:
//!
//! | given | workers |
//! |---|---|
//! | any list of cores | one per core of the union of all lists, pinned to it; counts ignored |
//! | `--workers` | so many |
//! | counts for both sets of threads | the larger (0 counts as 1, as the reference has it) |
//! | less | the same; a set without a count has one thread per core that this process may use |
//!
//! Without a list, workers are spread over the cores of the process in turn.

mod cpu_list;
mod lists;
mod reserve;

pub use cpu_list::CpuListError;
pub use cpu_list::parse as parse_cpu_list;
pub use lists::SourcesError;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use crate::cli::Args;
pub use crate::cli::Compat;
use crate::cli::LogFormat;
use crate::cli::MaxFrame;
use crate::cli::Number;
pub use crate::cli::Profile;
pub use crate::cli::Steer;
use crate::log::Format;
use crate::log::Level;
use crate::log::Thresholds;
use crate::types::EndpointId;
use crate::types::Offload;
use crate::types::SourceList;
use crate::types::TcpSegmentMax;
use crate::types::WorkerId;
use reserve::ReserveError;

/// Most workers: a TUN has at most 256 queues (`MAX_TAP_QUEUES`, drivers/net/tun.c), and each
/// worker owns one.
pub const WORKERS_MAX: usize = 256;

/// Bytes of memory that one flow is reckoned with when the limit on flows is derived from the
/// size of the memory: its entry and its share of the index.
const FLOW_BYTES: u64 = 72;

/// Idle time of a TCP flow, seconds: the load balancer's own default.
const TCP_IDLE_SECS: u32 = 350;

/// An endpoint that was made up is not used for so long once its maker has gone. One of a customer
/// who is that quiet loses nothing but the time of its hooks.
const STRANGER_IDLE: Duration = Duration::from_mins(1);

/// Most flows that can be asked for.
pub const FLOWS_MAX: u32 = 100_000_000;

/// Longest receive queue without being asked for: the reference program's default since 3.2.
const RECEIVE_QUEUE_BYTES_MAX: usize = 128 << 20;

/// What settings must know about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores that this process may run on, ascending; at least one.
    pub cpus: Vec<usize>,
    /// Size of the memory in bytes.
    pub ram_bytes: u64,
}

/// The checked settings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Settings {
    /// Commands to run in an endpoint's life.
    pub hooks: Hooks,
    /// Time without a packet after which an endpoint is removed, if ever.
    pub tunnel_idle: Option<Duration>,
    /// Time after which an idle TCP flow is forgotten.
    pub tcp_idle: Duration,
    /// The health port, if there is one.
    pub health: Option<HealthSettings>,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Whose words the log and the health page speak.
    pub compat: Compat,
    /// Which lines are logged.
    pub thresholds: Thresholds,
    /// The form of the log.
    pub log_format: Format,
    /// Whether samples of packets are logged as hex dumps.
    pub hex_dump: bool,
    /// Length of each receive socket's queue in bytes; 0 leaves it at the kernel's default.
    pub receive_queue_bytes: usize,
    /// How long a worker polls the network interface before it sleeps, microseconds; 0 is never.
    pub busy_poll_us: u32,
    /// Whether to use only what the oldest supported kernel offers.
    pub kernel_floor: bool,
    /// Which ways of handling many packets as one may be used.
    pub offload: Offload,
    /// Whether checksums may be added up with vector instructions.
    pub vector_checksum: bool,
    /// The workers, numbered from 0; 1 to [`WORKERS_MAX`] of them.
    pub workers: Vec<WorkerSpec>,
    /// What decides which worker gets a datagram; means nothing with one worker.
    pub steer: Steer,
    /// Whether a program is to choose the queues of TUNs, so that a packet comes back to its
    /// worker.
    pub tun_steering: bool,
    /// What TCP connections may agree on as their largest segment, if that is limited.
    pub clamp_mss: Option<TcpSegmentMax>,
    /// Flows to remember at most; none where nothing is returned.
    pub flows_max: u32,
    /// Whether a known flow is taught by the source alone that taught it first.
    pub pin_source: bool,
    /// Whose load balancer sends.
    pub profile: Profile,
    /// Whether packets of the host go back to the load balancer.
    pub returns: bool,
    /// Endpoints to serve at most, 1 to 4096.
    pub endpoints_max: u16,
    /// How many may be new at once, at least 1; nothing if as many as there may be at all.
    pub endpoint_burst: Option<u16>,
    /// And how many then in a second, at least 1.
    pub endpoint_rate: u16,
    /// The endpoints to serve, in ascending order; nothing if any.
    pub endpoints_allowed: Option<Vec<EndpointId>>,
    /// Who may send datagrams; nothing if anybody.
    pub sources_allowed: Option<SourceList>,
    /// Where there is no room for an endpoint: how long another one must have been idle to go for
    /// it.
    pub stranger_idle: Duration,
    /// What the operator should know about these settings; each is one line for the log.
    pub warnings: Vec<String>,
    /// Flags that were typed, by their long names.
    pub given: Vec<String>,
}

/// The commands of `-c` and `-r`; words and shell syntax as typed, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Runs when an endpoint's links are up, before the first packet.
    pub create: Option<OsString>,
    /// Runs before an endpoint's links go.
    pub destroy: Option<OsString>,
    /// How many run at a time, at least 1; 1 keeps them in order.
    pub jobs: u16,
    /// Whether those may be run that any user of this host can change.
    pub insecure_allowed: bool,
}

/// The health port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// TCP port, not 0.
    pub port: u16,
    /// Whether the page is JSON rather than text.
    pub json: bool,
    /// Whether the answer has a body at all.
    pub body: bool,
    /// Whose words it speaks.
    pub compat: Compat,
}

/// One worker to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Its number.
    pub id: WorkerId,
    /// The core to pin it to; none if the core that was asked for is not there.
    pub core: Option<usize>,
    /// Whether a list of cores named it; its thread is then called `UA…` instead of `U…`.
    pub pinned_by_list: bool,
}

/// Why the settings make no sense; each is one line for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A list of cores is malformed.
    #[error("{flag} \"{list}\": {reason}; write cores and ranges like 0,2,4-7")]
    BadCpuList {
        /// The option.
        flag: &'static str,
        /// Its value.
        list: String,
        /// What is wrong with it.
        reason: CpuListError,
    },
    /// A reservation of flows is malformed.
    #[error("--reserve \"{0}\": {1}; write six numbers like 16384,16384,1024,1024,1024,1024")]
    BadReserve(String, ReserveError),
    /// A list of senders is malformed.
    #[error("--allow-source: {0}; write networks like 10.0.1.0/24,10.0.2.0/24")]
    BadSource(#[from] SourcesError),
    /// A list of endpoints is malformed.
    #[error("--allow-endpoint: \"{0}\" is no endpoint id like vpce-02b8ee1d4db0c51c4")]
    BadEndpoint(String),
    /// More workers than a TUN has queues.
    #[error("{0} workers asked for, but a TUN has at most {WORKERS_MAX} queues; ask for fewer")]
    TooManyWorkers(usize),
}

impl Settings {
    /// Works out what `args` mean on `host`.
    ///
    /// # Errors
    /// [`SettingsError`] names the option that makes no sense.
    pub fn new(args: &Args, host: &Host) -> Result<Self, SettingsError> {
        let mut warnings = odd_numbers(args);
        let workers = match cores_asked_for(args)? {
            Some(cores) => workers_on(&cores, host, &mut warnings),
            None => workers_spread(at_most_queues(count_asked_for(args, host))?, host),
        };
        at_most_queues(workers.len())?;
        if args.ebpf.is_some() || args.ebpf_interface.is_some() {
            warnings.push(
                "-e and -I are without effect: packets take the io_uring workers' way, no eBPF \
                 program"
                    .to_owned(),
            );
        }
        Ok(Self {
            thresholds: thresholds(args, &mut warnings),
            log_format: match args.log_format {
                LogFormat::Text => Format::Text,
                LogFormat::Json => Format::Json,
                LogFormat::Logfmt => Format::Logfmt,
                LogFormat::Journald => Format::Journald,
            },
            hooks: Hooks {
                create: args.cmdnew.clone().filter(|command| !command.is_empty()),
                destroy: args.cmddel.clone().filter(|command| !command.is_empty()),
                jobs: args.hook_jobs,
                insecure_allowed: args.allow_insecure_hooks,
            },
            tunnel_idle: seconds(args.timeout.or(0)),
            tcp_idle: Duration::from_secs(args.idle.or(TCP_IDLE_SECS).into()),
            health: health_port(args).map(|port| HealthSettings {
                port: port.get(),
                json: args.json,
                body: !args.status_only,
                compat: args.compat,
            }),
            metrics: args.metrics_listen,
            compat: args.compat,
            hex_dump: args.hex_dump,
            receive_queue_bytes: receive_queue_bytes(args, host, workers.len()),
            busy_poll_us: args.busypoll,
            kernel_floor: args.kernel_floor,
            offload: offload(args, workers.len()),
            workers,
            steer: args.steer,
            vector_checksum: !args.no_vector_checksum && !args.no_offload,
            tun_steering: !args.no_tun_steering,
            clamp_mss: args.clamp_mss.map(TcpSegmentMax::new),
            flows_max: flows_max(args, host, &mut warnings)?,
            pin_source: args.pin_source,
            profile: args.profile,
            returns: !args.no_return,
            endpoints_max: args.max_endpoints,
            endpoint_burst: args.endpoint_burst,
            endpoint_rate: args.endpoint_rate,
            endpoints_allowed: lists::endpoints(&args.allow_endpoint)
                .map_err(SettingsError::BadEndpoint)?,
            sources_allowed: lists::sources(&args.allow_source)?,
            stranger_idle: STRANGER_IDLE,
            warnings,
            given: args.given.clone(),
        })
    }
}

/// The union of all lists of cores, or nothing if none was given.
fn cores_asked_for(args: &Args) -> Result<Option<BTreeSet<usize>>, SettingsError> {
    let mut union = None;
    let given = |list: &Option<String>| list.clone().filter(|list| !list.trim().is_empty());
    for (flag, list) in [
        ("--cores", given(&args.cores)),
        ("--udpaffinity", given(&args.udpaffinity)),
        ("--tunaffinity", given(&args.tunaffinity)),
    ] {
        let Some(list) = list else { continue };
        let cores = match parse_cpu_list(&list) {
            Ok(cores) => cores,
            Err(reason) => return Err(SettingsError::BadCpuList { flag, list, reason }),
        };
        union.get_or_insert_with(BTreeSet::new).extend(cores);
    }
    Ok(union)
}

/// One worker on each core that is there, and an unpinned one for each that is not.
fn workers_on(cores: &BTreeSet<usize>, host: &Host, warnings: &mut Vec<String>) -> Vec<WorkerSpec> {
    let mut workers = Vec::with_capacity(cores.len());
    for (id, &core) in (0..).map(WorkerId).zip(cores) {
        let there = host.cpus.contains(&core);
        if !there {
            warnings.push(format!(
                "core {core} is not available to this process: worker {id} runs unpinned"
            ));
        }
        workers.push(WorkerSpec { id, core: there.then_some(core), pinned_by_list: true });
    }
    workers
}

/// The count of workers, or what the reference's two sets of threads come to: a set whose size is
/// not given has one thread per core, and 0 is its way to say 1.
fn count_asked_for(args: &Args, host: &Host) -> usize {
    if let Some(workers) = args.workers {
        return usize::try_from(workers).unwrap_or(usize::MAX);
    }
    let set = |count: &Option<Number>| {
        // Where a value was typed that is empty, the reference has 1.
        let count = count.as_ref().map(|number| number.or(1).max(1));
        count.map_or(host.cpus.len(), |count| usize::try_from(count).unwrap_or(usize::MAX))
    };
    set(&args.udpthreads).max(set(&args.tunthreads))
}

/// `count`, if a TUN has as many queues.
fn at_most_queues(count: usize) -> Result<usize, SettingsError> {
    if count > WORKERS_MAX {
        return Err(SettingsError::TooManyWorkers(count));
    }
    Ok(count)
}

/// `count` workers over the cores of the process in turn.
fn workers_spread(count: usize, host: &Host) -> Vec<WorkerSpec> {
    let cores = host.cpus.iter().cycle();
    (0..)
        .map(WorkerId)
        .zip(cores)
        .take(count)
        .map(|(id, &core)| WorkerSpec { id, core: Some(core), pinned_by_list: false })
        .collect()
}

/// What was typed that is not just a number, one sentence each.
fn odd_numbers(args: &Args) -> Vec<String> {
    let absent = Number { value: None, odd: None };
    [
        ("-t", &args.timeout, 0),
        ("-i", &args.idle, TCP_IDLE_SECS),
        ("-p", &args.port, 0),
        ("--udpthreads", args.udpthreads.as_ref().unwrap_or(&absent), 1),
        ("--tunthreads", args.tunthreads.as_ref().unwrap_or(&absent), 1),
    ]
    .into_iter()
    .filter_map(|(flag, number, default)| {
        let odd = number.odd.as_ref()?;
        Some(format!("{flag} \"{odd}\" is taken for {}", number.or(default)))
    })
    .collect()
}

/// The offloads that nobody has switched off. Where flows are spread, datagrams of several must not
/// be merged.
fn offload(args: &Args, workers: usize) -> Offload {
    if args.no_offload {
        return Offload::NONE;
    }
    let super_packets = args.gwi_max_frame == MaxFrame::Largest;
    let offload = Offload {
        udp_gro: !args.no_udp_gro && (args.steer != Steer::Inner || workers == 1),
        udp_gso: !args.no_udp_gso,
        tun_tso: !args.no_tun_tso,
        tun_uso: !args.no_tun_uso,
        tcp_coalescing: !args.no_tcp_coalescing && super_packets,
        udp_coalescing: !args.no_udp_coalescing && super_packets,
    };
    if args.kernel_floor { offload.floor() } else { offload }
}

/// A time, if there is one.
fn seconds(count: u32) -> Option<Duration> {
    (count > 0).then(|| Duration::from_secs(count.into()))
}

/// The health port, if there is to be one.
fn health_port(args: &Args) -> Option<NonZeroU16> {
    u16::try_from(args.port.or(0)).ok().and_then(NonZeroU16::new)
}

/// The levels of the log.
fn thresholds(args: &Args, warnings: &mut Vec<String>) -> Thresholds {
    if args.debug {
        return Thresholds::all(Level::Debug);
    }
    let Some(list) = &args.logging else { return Thresholds::default() };
    let (thresholds, complaints) = Thresholds::parse(list);
    warnings.extend(complaints);
    thresholds
}

/// The length of a receive queue: as asked for, else 128 MiB or the worker's share of a 64th of
/// the memory, whichever is less.
fn receive_queue_bytes(args: &Args, host: &Host, workers: usize) -> usize {
    if let Some(megabytes) = args.rcvbuf {
        return usize::from(megabytes) << 20;
    }
    let share = host.ram_bytes / 64 / u64::try_from(workers).unwrap_or(u64::MAX).max(1);
    usize::try_from(share).unwrap_or(usize::MAX).min(RECEIVE_QUEUE_BYTES_MAX)
}

/// The limit on flows: as asked for, else from the memory, and then no less than is reserved.
fn flows_max(args: &Args, host: &Host, warnings: &mut Vec<String>) -> Result<u32, SettingsError> {
    let mut reserved = 0_u32;
    for list in &args.reserve {
        let flows = reserve::parse(list)
            .map_err(|problem| SettingsError::BadReserve(list.clone(), problem))?;
        reserved = reserved.saturating_add(flows);
    }
    if args.no_return {
        return Ok(0);
    }
    let Some(limit) = args.max_flows else {
        return Ok(flows_for(host.ram_bytes).max(reserved.min(FLOWS_MAX)));
    };
    if reserved > limit {
        warnings.push(format!(
            "--reserve asks for room for {reserved} flows, --max-flows {limit} wins"
        ));
    }
    Ok(limit)
}

/// The default limit on flows: a 64th of the memory, between 65,536 and 4 million flows.
fn flows_for(ram_bytes: u64) -> u32 {
    let flows = (ram_bytes / 64 / FLOW_BYTES).clamp(65_536, 4_000_000);
    u32::try_from(flows).expect("at most 4 million")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &str, cpus: &[usize]) -> Result<Settings, String> {
        let words = std::iter::once("gwlbtun").chain(line.split_whitespace());
        let args = crate::cli::parse(words.map(OsString::from)).unwrap();
        let host = Host { cpus: cpus.to_vec(), ram_bytes: 1 << 30 };
        Settings::new(&args, &host).map_err(|error| error.to_string())
    }

    fn cores(settings: &Settings) -> Vec<Option<usize>> {
        settings.workers.iter().map(|worker| worker.core).collect()
    }

    #[test]
    fn where_nothing_returns_no_flow_is_remembered() {
        let plain = settings("", &[0]).unwrap();
        assert!(plain.returns && !plain.pin_source && plain.flows_max > 0);
        let settings = settings("--no-return --max-flows 1000 --pin-source", &[0]).unwrap();
        assert_eq!((settings.returns, settings.flows_max, settings.pin_source), (false, 0, true));
    }

    #[test]
    fn nothing_typed() {
        let plain = settings("", &[0, 1]).unwrap();
        assert_eq!(cores(&plain), [Some(0), Some(1)]);
        assert!(plain.workers.iter().all(|worker| !worker.pinned_by_list));
        assert_eq!(plain.tunnel_idle, None);
        assert_eq!(plain.tcp_idle, Duration::from_secs(350));
        assert_eq!(plain.health, None);
        assert_eq!((&plain.hooks.create, &plain.hooks.destroy), (&None, &None));
        assert_eq!((plain.hooks.jobs, plain.hooks.insecure_allowed), (1, false));
        assert_eq!(plain.receive_queue_bytes, 8 << 20, "1 GiB / 64 / 2 workers");
        assert_eq!((plain.thresholds, plain.hex_dump), (Thresholds::default(), false));
        assert_eq!(
            (plain.endpoints_max, plain.endpoint_burst, plain.endpoint_rate),
            (1024, None, 10)
        );
        assert_eq!((plain.endpoints_allowed, plain.sources_allowed), (None, None));
        assert!(plain.warnings.is_empty());
    }

    #[test]
    fn one_worker_set_from_four_thread_options() {
        for (line, expected) in [
            ("--udpthreads 3", &[Some(4), Some(6), Some(4)][..]),
            ("--udpthreads 1 --tunthreads 2", &[Some(4), Some(6)]),
            ("--udpthreads 1", &[Some(4), Some(6)]),
            ("--tunthreads 1", &[Some(4), Some(6)]),
            ("--udpthreads 0 --tunthreads 0", &[Some(4)]),
            ("--workers 1 --udpthreads 4", &[Some(4)]),
            ("--workers 1", &[Some(4)]),
            ("--udpaffinity 4", &[Some(4)]),
            ("--udpaffinity 4 --tunaffinity 4,6", &[Some(4), Some(6)]),
            ("--cores 6 --udpthreads 9", &[Some(6)]),
            ("--cores 6,7", &[Some(6), None]),
        ] {
            assert_eq!(cores(&settings(line, &[4, 6]).unwrap()), expected, "{line}");
        }
        let numbers = settings("--workers 3", &[0]).unwrap().workers;
        assert_eq!(numbers.iter().map(|w| w.id.0).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_core_that_is_not_there_is_a_warning() {
        let odd = settings("--udpaffinity 0,3", &[0, 1]).unwrap();
        assert_eq!(cores(&odd), [Some(0), None]);
        assert!(odd.workers.iter().all(|worker| worker.pinned_by_list));
        assert_eq!(
            odd.warnings,
            ["core 3 is not available to this process: worker 1 runs unpinned"]
        );
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let all: Vec<_> = (0..300).collect();
        for (line, needle) in [
            ("--workers 257", "257 workers"),
            ("--udpthreads 4000000000", "4000000000 workers"),
            ("--cores 0-299", "300 workers"),
            ("", "300 workers"),
            ("--tunaffinity 3abc", "--tunaffinity \"3abc\""),
            ("--cores 1-0", "--cores \"1-0\""),
            (
                "--workers 1 --allow-source 10.0.0.0/40",
                "--allow-source: \"10.0.0.0/40\" is no IPv4 network;",
            ),
            ("--workers 1 --allow-source=", "--allow-source: \"\""),
            (
                "--workers 1 --allow-endpoint vpce-12",
                "--allow-endpoint: \"vpce-12\" is no endpoint id",
            ),
        ] {
            let text = settings(line, &all).unwrap_err();
            assert!(text.contains(needle) && !text.contains('\n'), "{line}: {text}");
        }
        assert_eq!(settings("--workers 256", &all).unwrap().workers.len(), 256);
    }

    #[test]
    fn health_and_hooks() {
        let page = settings("-p 80 -js -c hook.sh -t 5", &[0]).unwrap();
        let health = page.health.unwrap();
        assert_eq!((health.port, health.json, health.body), (80, true, false));
        assert_eq!(page.hooks.create.unwrap(), "hook.sh");
        assert_eq!(page.hooks.destroy, None);
        assert_eq!(page.tunnel_idle, Some(Duration::from_secs(5)));
    }

    #[test]
    fn odd_numbers_are_told() {
        let odd = settings("-t 5s -i 60s -p 8080abc --udpthreads 1x --tunthreads=", &[0]).unwrap();
        assert_eq!(odd.tunnel_idle, Some(Duration::from_secs(5)));
        assert_eq!(odd.tcp_idle, Duration::from_mins(1));
        assert_eq!(odd.health.unwrap().port, 8080);
        assert_eq!(
            odd.warnings,
            [
                "-t \"5s\" is taken for 5",
                "-i \"60s\" is taken for 60",
                "-p \"8080abc\" is taken for 8080",
                "--udpthreads \"1x\" is taken for 1",
                "--tunthreads \"\" is taken for 1",
            ]
        );
        let never = settings("-i 0", &[0]).unwrap();
        assert_eq!(never.tcp_idle, Duration::from_secs(350));
        assert_eq!(never.warnings, ["-i \"0\" is taken for 350"]);
        let empty = settings("--udpaffinity= --cores= -t= -i=", &[0, 1]).unwrap();
        assert_eq!(cores(&empty), [Some(0), Some(1)]);
        assert_eq!((empty.tunnel_idle, empty.tcp_idle), (None, Duration::from_secs(350)));
    }

    #[test]
    fn levels_of_the_log() {
        assert_eq!(settings("-d", &[0]).unwrap().thresholds, Thresholds::all(Level::Debug));
        let odd = settings("--logging all=debug,x", &[0]).unwrap();
        assert_eq!(odd.thresholds, Thresholds::all(Level::Debug));
        assert_eq!(odd.warnings, ["--logging: \"x\" is ignored: write section=level"]);
    }

    #[test]
    fn flags_of_later_versions() {
        let asked = settings("--rcvbuf 3 --busypoll 50 --compat 3.2 -x -p 1", &[0]).unwrap();
        assert_eq!((asked.receive_queue_bytes, asked.busy_poll_us), (3 << 20, 50));
        assert_eq!((asked.compat, asked.health.unwrap().compat), (Compat::V3_2, Compat::V3_2));
        assert!(asked.hex_dump && asked.warnings.is_empty());
        let bpf = settings("-e prog.o -I eth0", &[0]).unwrap();
        assert!(bpf.warnings[0].starts_with("-e and -I are without effect"), "{bpf:?}");
        assert_eq!(settings("--rcvbuf 0", &[0]).unwrap().receive_queue_bytes, 0);
    }

    #[test]
    fn steering() {
        let plain = settings("", &[0, 1]).unwrap();
        assert_eq!((plain.steer, plain.tun_steering), (Steer::Auto, true));
        let asked = settings("--steer inner --no-tun-steering", &[0, 1]).unwrap();
        assert_eq!((asked.steer, asked.tun_steering), (Steer::Inner, false));
        assert!(plain.offload.udp_gro && !asked.offload.udp_gro && asked.offload.udp_gso);
        assert!(settings("--steer inner", &[0]).unwrap().offload.udp_gro, "one worker has all");
    }

    #[test]
    fn who_may_come() {
        let line = "--allow-source 10.0.1.0/24 --allow-source 10.0.9.0/24,10.0.8.0/24 \
                    --allow-endpoint vpce-02b8ee1d4db0c51c4 --endpoint-burst 5 --endpoint-rate 1";
        let asked = settings(line, &[0]).unwrap();
        assert_eq!(
            asked.sources_allowed.unwrap().to_string(),
            "10.0.1.0-10.0.1.255, 10.0.8.0-10.0.9.255"
        );
        assert_eq!(asked.endpoints_allowed, Some(vec![EndpointId(0x2b8e_e1d4_db0c_51c4)]));
        assert_eq!((asked.endpoint_burst, asked.endpoint_rate), (Some(5), 1));
    }

    #[test]
    fn reserved_flows_find_room() {
        let line = "--reserve 200000,200000,1,1,1,1 --reserve vpce-0ab:100000,0,0,0,0,0";
        assert_eq!(settings(line, &[0]).unwrap().flows_max, 500_004);
        assert_eq!(settings("--reserve 1,1,1,1,1,1", &[0]).unwrap().flows_max, 233_016);
        let less = settings(&format!("{line} --max-flows 1000"), &[0]).unwrap();
        assert_eq!(less.flows_max, 1000);
        assert_eq!(
            less.warnings,
            ["--reserve asks for room for 500004 flows, --max-flows 1000 wins"]
        );
        let odd = settings("--reserve 1,2,x", &[0]).unwrap_err();
        assert!(odd.starts_with("--reserve \"1,2,x\": "), "{odd}");
    }

    #[test]
    fn the_limit_on_flows_follows_the_memory() {
        assert_eq!(flows_for(1 << 30), 233_016);
        assert_eq!(flows_for(0), 65_536);
        assert_eq!(flows_for(u64::MAX), 4_000_000);
        let asked = settings("--max-flows 12", &[0]).unwrap();
        assert_eq!(asked.flows_max, 12);
    }
}
