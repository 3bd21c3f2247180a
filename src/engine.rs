//! The composition root: proves that the host can carry the program, builds every part, starts
//! the threads, and takes them down in order.
//!
//! Start-up fails in one place with one line: [`StartError`] says what is missing, the likely
//! cause, and what to do; its exit code tells a supervisor which kind it is.

mod budget;
mod facts;
mod offload;
mod spreading;
mod start_error;
mod strangers;
pub mod trial;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;

use crate::control;
use crate::control::Parts;
use crate::control::WorkerLink;
use crate::control::health;
use crate::control::health::Ports;
use crate::control::hooks;
use crate::control::hooks::HookCommands;
use crate::control::netdev;
use crate::control::spread::Queues;
use crate::control::spread::Spreading;
use crate::flow::FlowTable;
use crate::flow::HashSeed;
use crate::flow::Sources;
use crate::flow::TablePlan;
use crate::log::Format;
use crate::log::Journal;
use crate::log::Log;
use crate::log::LogEvent;
use crate::log::LogThread;
use crate::log::Value;
use crate::settings;
use crate::settings::Settings;
use crate::settings::WorkerSpec;
use crate::stats::WorkerCell;
use crate::stats::report::Facts;
use crate::sys;
use crate::sys::Errno;
use crate::sys::EventFd;
use crate::sys::affinity;
use crate::sys::clock;
use crate::sys::limits;
use crate::sys::service_manager::ServiceManager;
use crate::sys::udp;
use crate::types::Offload;
use crate::types::Side;
use crate::uring::DriverPlan;
use crate::uring::Features;
use crate::uring::GroupPlan;
use crate::uring::received;
use crate::wire::checksum;
use crate::wire::gwlb;
use crate::wire::udp as wire_udp;
use crate::wire::virtio_net;
use crate::worker::OPERATIONS_MAX;
use crate::worker::Worker;
use crate::worker::WorkerParts;
use crate::worker::mailbox::Admission;
use crate::worker::mailbox::AdmissionPlan;
use crate::worker::mailbox::Mailbox;
use budget::Budget;
use budget::RingSizes;
pub use start_error::StartError;
use start_error::no_health_port;
use start_error::no_metrics_port;
use start_error::no_tun;
use strangers::Guard;

/// Longest datagram and frame, bytes, where none are merged: an EC2 interface's MTU is 9,001 at
/// most.
const PACKET_BYTES_MAX: usize = 9216;

/// Room for the longest GENEVE header, 260 bytes, and a UDP header before a packet that is read
/// from a TUN; its virtio header gives some of it. Whole cache lines, for the frame's alignment.
const HEADROOM_BYTES: usize = 320;

/// Buffers of either kind that the kernel has at a time, and all of them, per worker.
const BUFFERS_OFFERED: u16 = 256;
const BUFFERS: u16 = 512;

/// Packets for the log that wait for it.
const SAMPLES: usize = 256;

/// How long sockets of a process that was killed may be in the way, and how often that is looked
/// at.
const PORT_WAIT_MAX: Duration = Duration::from_secs(1);
const PORT_WAIT_STEP: Duration = Duration::from_millis(5);

/// How long the threads may take to end.
const END_MAX: Duration = Duration::from_secs(2);

/// What the host has shown to be able to do.
struct Proven {
    hook_commands: HookCommands,
    /// The soft limit on open files at the start, if it was raised.
    open_files_before: Option<u64>,
    driver: DriverPlan,
    spreading: Spreading,
    guard: Guard,
    ports: Ports,
    facts: Facts,
}

/// Runs the program until it is told to stop, and tells the service manager, if there is one.
///
/// # Errors
/// When it cannot start, or a part that it cannot do without has failed.
pub fn run(
    mut settings: Settings,
    ram_bytes: u64,
    service_manager: Option<Arc<ServiceManager>>,
) -> Result<(), StartError> {
    let proven = prove(&mut settings, ram_bytes)?;
    let (log, log_thread) = start_log(&settings)?;
    announce_features(proven.driver, settings.offload, &log);
    spreading::announce(&proven.spreading, &log);
    strangers::announce(&settings, &proven.guard, &log);
    let result = run_proven(settings, proven, service_manager, &log);
    if result.is_ok() {
        log.line(LogEvent::Stopped, &[], format_args!("Shutdown complete."));
    }
    LogThread::finish(log_thread);
    result
}

/// Starts the log in the form that was asked for.
fn start_log(settings: &Settings) -> Result<(Log, LogThread), StartError> {
    let sink: Box<dyn io::Write + Send> = match settings.log_format {
        Format::Journald => Box::new(Journal::open().map_err(|error| StartError::Missing {
            error,
            remedy: "--log-format journald needs systemd-journald; text, json and logfmt do not",
        })?),
        Format::Text | Format::Json | Format::Logfmt => Box::new(io::stdout()),
    };
    let started = Log::start(settings.thresholds, settings.log_format, sink);
    started.map_err(|error| sys::Error::from_io("clone", "log thread", &error).into())
}

/// Says what the kernel can do, and what was asked for in vain.
fn announce_features(plan: DriverPlan, offload: Offload, log: &Log) {
    let DriverPlan { features, busy_poll_us, .. } = plan;
    let Features { defer_taskrun, read_multishot, busy_poll } = features;
    log.line(
        LogEvent::IoUring,
        &[],
        format_args!(
            "io_uring: deferred task work {}, multishot TUN read {}.",
            if defer_taskrun { "yes" } else { "no" },
            if read_multishot { "yes" } else { "no: poll and read instead" },
        ),
    );
    let on: Vec<_> =
        offload.pieces().into_iter().filter_map(|(name, on)| on.then_some(name)).collect();
    log.line(
        LogEvent::Offloads,
        &[],
        format_args!(
            "Offloads: {}; checksums by {}.",
            if on.is_empty() { "none".to_owned() } else { on.join(" ") },
            checksum::Implementation::in_use(),
        ),
    );
    if busy_poll_us > 0 && !busy_poll {
        log.line(
            LogEvent::BusyPollUnavailable,
            &[],
            format_args!("--busypoll is without effect: io_uring polls devices since Linux 6.9."),
        );
    }
}

/// Tries everything that the program cannot do without, for real.
fn prove(settings: &mut Settings, ram_bytes: u64) -> Result<Proven, StartError> {
    let hook_commands = hooks::check(&settings.hooks)?;
    let open_files = limits::raise_open_files()?;
    let budget = divide_open_files(open_files.limit, settings)?;
    let locked_bytes = limits::raise_locked_memory()?;
    let workers = settings.workers.len();
    let probed = Features::probe().map_err(|error| no_ring(error, locked_bytes, workers))?;
    let features = if settings.kernel_floor { probed.floor() } else { probed };
    let offload_asked = settings.offload;
    offload::probe(settings).map_err(no_tun)?;
    if !settings.vector_checksum {
        checksum::use_scalar();
    }
    let driver = driver_plan(features, budget, locked_bytes, settings, ram_bytes)?;
    let Settings { receive_queue_bytes, offload, .. } = *settings;
    let receivers: Result<_, _> = settings
        .workers
        .iter()
        .map(|_| udp::open_receiver(receive_queue_bytes, offload.udp_gro))
        .collect();
    let receivers: Vec<_> = receivers.map_err(StartError::UdpPort)?;
    let guard = strangers::keep_out(&receivers, settings);
    wait_for_the_port(&receivers, settings);
    let spreading = spreading::set_up(receivers, settings);
    let ports = bind_ports(settings)?;
    let facts = facts::collect(settings, offload_asked, driver, &guard);
    Ok(Proven {
        hook_commands,
        open_files_before: open_files.before,
        driver,
        spreading,
        guard,
        ports,
        facts,
    })
}

/// Takes the ports that tell the state of the program.
fn bind_ports(settings: &Settings) -> Result<Ports, StartError> {
    let health = settings.health.map(|health| health::bind(health.port));
    let metrics = settings.metrics.map(health::bind_metrics);
    Ok(Ports {
        health: health.transpose().map_err(no_health_port)?,
        metrics: metrics.transpose().map_err(no_metrics_port)?,
    })
}

/// Why there is no ring at all. Without memory to lock that says `ENOMEM`.
fn no_ring(error: sys::Error, locked_bytes: Option<u64>, workers: usize) -> StartError {
    if error.errno == Errno::EOPNOTSUPP {
        return StartError::Missing { error, remedy: "use Linux 6.1 or later" };
    }
    let ring_sizes = RingSizes::new(locked_bytes, workers, OPERATIONS_MAX, limits::page_bytes());
    match (error.errno, locked_bytes, ring_sizes) {
        (Errno::ENOMEM, Some(limit), Err(least)) => {
            StartError::LockedMemory { limit, workers, least }
        }
        _ => StartError::IoUring(error),
    }
}

/// Waits a little until nobody else receives on the port: sockets of a process that was killed are
/// gone soon. A program that stays is worth a warning; it may be meant, for a hand-over. Where
/// `/proc` does not tell, there is nothing to wait for.
#[expect(clippy::disallowed_methods, reason = "nothing else runs yet")]
fn wait_for_the_port(receivers: &[OwnedFd], settings: &mut Settings) {
    let start = clock::now();
    while udp::count_foreign_receivers(receivers).is_ok_and(|count| count > 0) {
        if clock::now().since(start) >= PORT_WAIT_MAX {
            settings.warnings.push(
                "Another program receives on UDP port 6081 too, and gets its share of the \
                 datagrams: see ss -lunp sport = 6081."
                    .to_owned(),
            );
            break;
        }
        thread::sleep(PORT_WAIT_STEP);
    }
}

/// Limits the endpoints to what the limit on open files carries.
fn divide_open_files(limit: u64, settings: &mut Settings) -> Result<Budget, StartError> {
    let workers = settings.workers.len();
    let has_hooks = settings.hooks.create.is_some() || settings.hooks.destroy.is_some();
    let budget = Budget::new(limit, workers, settings.endpoints_max, has_hooks)
        .map_err(|least| StartError::OpenFiles { limit, workers, least })?;
    let Budget { endpoints, wanted, .. } = budget;
    if endpoints < settings.endpoints_max {
        settings.warnings.push(format!(
            "The limit on open files, {limit}, carries {endpoints} endpoints with {workers} \
             workers, not {}: set LimitNOFILE={wanted}.",
            settings.endpoints_max
        ));
        settings.endpoints_max = endpoints;
    }
    Ok(budget)
}

fn run_proven(
    settings: Settings,
    proven: Proven,
    service_manager: Option<Arc<ServiceManager>>,
    log: &Log,
) -> Result<(), StartError> {
    let Proven { hook_commands, open_files_before, driver, spreading, guard, ports, facts } =
        proven;
    let endpoints_max = usize::from(settings.endpoints_max);
    let workers = settings.workers.len();
    let admission = Arc::new(Admission::new(admission_plan(&settings)));
    let sources = settings.sources_allowed.clone().map(Arc::new);
    let flows = Arc::new(FlowTable::new(table_plan(&settings), hash_seed()?));
    let control_wake = Arc::new(EventFd::new()?);
    let (events, inbox) =
        Mailbox::new(workers * (2 * endpoints_max + 8), Arc::clone(&control_wake));
    let (samples, samples_inbox) = Mailbox::new(SAMPLES, Arc::clone(&control_wake));
    let (netdev, netdev_thread) = netdev::spawn(
        settings.offload,
        spreading.queues == Queues::Program,
        Side::of_endpoint(settings.returns),
    )?;

    let mut started = Started::default();
    for (spec, receiver) in settings.workers.iter().zip(&spreading.receivers) {
        let wake = Arc::new(EventFd::new()?);
        let (mailbox, commands) = Mailbox::new(4 * endpoints_max + 64, Arc::clone(&wake));
        let cell = Arc::new(WorkerCell::default());
        let parts = WorkerParts {
            id: spec.id,
            workers,
            driver,
            receiver: Arc::clone(receiver),
            offload: settings.offload,
            profile: profile(settings.profile),
            returns: settings.returns,
            commands,
            wake,
            events: events.clone(),
            samples: samples.clone(),
            admission: Arc::clone(&admission),
            sources: sources.clone(),
            flows: Arc::clone(&flows),
            cell: Arc::clone(&cell),
        };
        let (thread, thread_id) = start_worker(spec, parts, log.clone())?;
        started.threads.push(thread);
        started.links.push(WorkerLink { id: spec.id, thread_id, mailbox, cell });
    }
    let result = control::run(Parts {
        settings: Arc::new(settings),
        workers: started.links,
        events: inbox,
        samples: samples_inbox,
        wake: control_wake,
        admission,
        hook_commands,
        hook_open_files: open_files_before,
        ports,
        netdev: netdev.clone(),
        spreading,
        source_filter: guard.into_filter(),
        service_manager,
        facts,
        log: log.clone(),
    });
    started.threads.into_iter().for_each(|thread| end(thread, log));
    end_netdev(netdev, netdev_thread, log);
    result.map_err(StartError::from)
}

/// The key of the flow hash, another one at each start.
fn hash_seed() -> Result<HashSeed, sys::Error> {
    HashSeed::random().map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        sys::Error::new("getrandom", "key of the flow hash", errno)
    })
}

/// Lets the last handle go, with which the thread ends; it deletes what links are left.
fn end_netdev(netdev: netdev::Handle, thread: JoinHandle<()>, log: &Log) {
    drop(netdev);
    if thread.join().is_err() {
        log.line(LogEvent::NetdevFailed, &[], format_args!("The netdev thread failed."));
    }
}

const fn profile(cloud: settings::Profile) -> gwlb::Profile {
    match cloud {
        settings::Profile::Aws => gwlb::Profile::AWS,
        settings::Profile::Tencent => gwlb::Profile::TENCENT,
    }
}

fn table_plan(settings: &Settings) -> TablePlan {
    TablePlan {
        endpoints_max: settings.endpoints_max.into(),
        sources: if settings.pin_source { Sources::Pinned } else { Sources::Any },
        ..TablePlan::new(settings.flows_max as usize, settings.workers.len())
    }
}

fn admission_plan(settings: &Settings) -> AdmissionPlan {
    let Settings { endpoints_max, endpoint_burst, endpoint_rate, .. } = *settings;
    AdmissionPlan {
        workers: u32::try_from(settings.workers.len()).expect("at most 256"),
        endpoints_max: endpoints_max.into(),
        burst: endpoint_burst.unwrap_or(endpoints_max).into(),
        interval: Duration::from_secs(1) / u32::from(endpoint_rate),
        allowed: settings.endpoints_allowed.clone(),
    }
}

#[derive(Default)]
struct Started {
    threads: Vec<WorkerThread>,
    links: Vec<WorkerLink>,
}

/// A worker's thread and the channel that closes when it has ended.
struct WorkerThread {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

/// Starts a worker, waits until its ring is set up, and returns its thread and thread id.
fn start_worker(
    spec: &WorkerSpec,
    parts: WorkerParts,
    log: Log,
) -> Result<(WorkerThread, u32), StartError> {
    let (ready, is_ready) = crossbeam_channel::bounded(1);
    let (ending, ended) = crossbeam_channel::bounded(0);
    let spec = *spec;
    let thread = thread::Builder::new()
        .name(thread_name(&spec))
        .spawn(move || work(&spec, parts, &ready, &ending, &log))
        .map_err(|error| sys::Error::from_io("clone", "worker thread", &error))?;
    match is_ready.recv() {
        Ok(Ok(thread_id)) => Ok((WorkerThread { thread, ended }, thread_id)),
        Ok(Err(error)) => Err(StartError::IoUring(error)),
        Err(_) => {
            let error = sys::Error::new("clone", format!("worker {}", spec.id), Errno::ECHILD);
            Err(StartError::Host(error))
        }
    }
}

/// The life of a worker's thread. `_ending` closes its channel when the thread is done.
fn work(
    spec: &WorkerSpec,
    parts: WorkerParts,
    ready: &Sender<Result<u32, sys::Error>>,
    _ending: &Sender<()>,
    log: &Log,
) {
    if let Some(core) = spec.core
        && !affinity::pin_current_thread(core)
    {
        let id = spec.id;
        let line = format_args!("Worker {id} could not be tied to core {core} and runs untied.");
        let fields = [("worker", Value::Number(id.0.into())), ("core", Value::Number(core as u64))];
        log.line(LogEvent::WorkerUntied, &fields, line);
    }
    match Worker::new(parts) {
        Ok(worker) => {
            // The engine waits for this message: it is there.
            let _ = ready.send(Ok(affinity::thread_id()));
            worker.run();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// The names that the reference gives its threads: pinned ones carry the core's number.
fn thread_name(spec: &WorkerSpec) -> String {
    match spec.core {
        Some(core) if spec.pinned_by_list => format!("gwlbtun UA{core:03}"),
        _ => format!("gwlbtun U{:03}", spec.id.0),
    }
}

/// Joins a worker that was told to stop, unless it takes too long.
fn end(worker: WorkerThread, log: &Log) {
    let name = worker.thread.thread().name().unwrap_or("worker").to_owned();
    if worker.ended.recv_timeout(END_MAX).is_err_and(|error| error.is_timeout()) {
        let fields = [("late", Value::Text(&name))];
        log.line(LogEvent::WorkerLate, &fields, format_args!("{name} did not end in time."));
        return;
    }
    if worker.thread.join().is_err() {
        let fields = [("failed", Value::Text(&name))];
        log.line(LogEvent::WorkerFailed, &fields, format_args!("{name} failed."));
    }
}

/// Sizes of a worker's ring: all workers' buffers together take 1/16 of main memory at most, and
/// all rings no more memory than may be locked.
fn driver_plan(
    features: Features,
    budget: Budget,
    locked_bytes: Option<u64>,
    settings: &Settings,
    ram_bytes: u64,
) -> Result<DriverPlan, StartError> {
    let workers = settings.workers.len();
    let Offload { udp_gro, tun_tso, tun_uso, .. } = settings.offload;
    let longest = |merged| if merged { received::DATAGRAM_BYTES_MAX } else { PACKET_BYTES_MAX };
    let (datagram_bytes, frame_bytes) = (longest(udp_gro), longest(tun_tso || tun_uso));
    let bytes_per_buffer = (2 * HEADROOM_BYTES + datagram_bytes + frame_bytes) * workers;
    let affordable = ram_bytes / 16 / u64::try_from(bytes_per_buffer).unwrap_or(u64::MAX);
    let mut count = BUFFERS;
    while count > 64 && u64::from(count) > affordable {
        count /= 2;
    }
    let offered = BUFFERS_OFFERED.min(count / 2);
    let operations_max = OPERATIONS_MAX;
    let outstanding = operations_max + 2 * u32::from(count) + 2 * u32::from(settings.endpoints_max);
    let RingSizes { submissions, completions_max } =
        RingSizes::new(locked_bytes, workers, outstanding, limits::page_bytes()).map_err(
            |least| {
                let limit = locked_bytes.unwrap_or(u64::MAX);
                StartError::LockedMemory { limit, workers, least }
            },
        )?;
    Ok(DriverPlan {
        submissions,
        completions_max,
        operations_max,
        udp: GroupPlan {
            offered,
            count,
            headroom_bytes: 0,
            filled_bytes: received::DATAGRAM_START + datagram_bytes,
        },
        tun: GroupPlan {
            offered,
            count,
            headroom_bytes: HEADROOM_BYTES,
            filled_bytes: virtio_net::HEADER_BYTES + frame_bytes,
        },
        senders_max: budget.senders,
        endpoints_max: settings.endpoints_max,
        busy_poll_us: settings.busy_poll_us,
        features,
    })
}

const _: () = assert!(
    HEADROOM_BYTES + virtio_net::HEADER_BYTES
        >= crate::flow::HEADER_BYTES_MAX + wire_udp::HEADER_BYTES,
    "any GENEVE header and a UDP header fit before a packet"
);
