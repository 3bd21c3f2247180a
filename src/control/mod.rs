//! The control thread: everything that is not the way of a packet.
//!
//! | file | duty |
//! |---|---|
//! | this one | the thread itself: its start, signals, the end of the program |
//! | `events` | what workers tell, what comes of it, and what they are told |
//! | `housekeeping` | what is due every second |
//! | `registry`, `slots` | which endpoints live, and where |
//! | `life` | what happens to one endpoint, in order |
//! | `strangers` | which endpoints have to make room for others |
//! | `hooks` | the operator's commands |
//! | `netdev` | the thread for whatever takes the kernel's rtnl lock |
//! | `spread` | which worker gets which datagram |
//! | `samples` | packets that workers looked at, for the log |
//! | `answers` | from where no answer can leave |
//! | `losses` | which drops are going on |
//! | `ties` | whether workers are still tied to their cores |
//! | `status`, `health` | the state of the program, and the ports that tell it |
//! | `service` | what the service manager is told |
//! | `civil` | points in time as metrics have them |
//! | `console`, `recent_hooks` | the socket that tells more of it, and what it says about hooks |
//! | `words` | what the log calls an endpoint |
//!
//! It runs on tokio-uring's runtime, which is tokio's with an io_uring beside it, on the thread
//! that calls [`run`]. Nothing here blocks for longer than a turn: what may block has a thread of
//! its own. Nothing here touches a ring of a worker: they talk through `worker::mailbox`.

mod answers;
mod civil;
mod console;
mod downgrades;
mod events;
pub mod health;
pub mod hooks;
mod housekeeping;
mod life;
mod losses;
pub mod netdev;
mod recent_hooks;
mod registry;
mod samples;
mod service;
mod slots;
pub mod spread;
mod status;
mod strangers;
mod ties;
mod words;

use std::cell::Cell;
use std::cell::RefCell;
use std::cell::RefMut;
use std::collections::HashSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::Notify;

use crate::log::Log;
use crate::log::LogEvent;
use crate::log::Value;
use crate::settings::Settings;
use crate::stats::EndpointCell;
use crate::stats::History;
use crate::stats::WorkerCell;
use crate::stats::report::Facts;
use crate::steering::sources::SourceFilter;
use crate::sync::Receiver;
use crate::sys;
use crate::sys::EventFd;
use crate::sys::Readiness;
use crate::sys::clock;
use crate::sys::fds;
use crate::sys::service_manager::ServiceManager;
use crate::types::EndpointId;
use crate::types::Moment;
use crate::types::WorkerId;
use crate::worker::mailbox::Admission;
use crate::worker::mailbox::Command;
use crate::worker::mailbox::Event;
use crate::worker::mailbox::Mailbox;
use crate::worker::mailbox::Policy;
use crate::worker::mailbox::Sample;
use health::Board;
use health::Ports;
use hooks::HookCommands;
use hooks::HookLimits;
use hooks::HookRunner;
use recent_hooks::RecentHooks;
use registry::Phase;
use registry::Registry;
use samples::Samples;
use spread::Spreading;
use status::Status;
use words::Called;

/// What control needs. The workers run already.
#[derive(Debug)]
pub struct Parts {
    /// The settings.
    pub settings: Arc<Settings>,
    /// The workers, by number.
    pub workers: Vec<WorkerLink>,
    /// What workers say.
    pub events: Receiver<Event>,
    /// Packets that they looked at.
    pub samples: Receiver<Sample>,
    /// What wakes control when they do.
    pub wake: Arc<EventFd>,
    /// The permits that the workers take.
    pub admission: Arc<Admission>,
    /// The settings' hooks, from [`hooks::check`].
    pub hook_commands: HookCommands,
    /// The soft limit on open files that hooks get, if it is not to be this process's.
    pub hook_open_files: Option<u64>,
    /// The health port and the metrics port, as far as the settings have them.
    pub ports: Ports,
    /// The way to the netdev thread. Keep another handle until the workers have ended: the links
    /// go with the last one.
    pub netdev: netdev::Handle,
    /// How datagrams and packets find their worker.
    pub spreading: Spreading,
    /// What keeps strangers' datagrams out of the receive sockets, if something does.
    pub source_filter: Option<SourceFilter>,
    /// Who started the program and wants to be told how it is, if anybody.
    pub service_manager: Option<Arc<ServiceManager>>,
    /// What was settled at the start.
    pub facts: Facts,
    /// The log.
    pub log: Log,
}

/// One worker, as control sees it.
#[derive(Debug)]
pub struct WorkerLink {
    /// Its number, which is its place in [`Parts::workers`].
    pub id: WorkerId,
    /// Its thread id, as `ps -L` shows it.
    pub thread_id: u32,
    /// The way to it.
    pub mailbox: Mailbox<Command>,
    /// Its counters and its heartbeat.
    pub cell: Arc<WorkerCell>,
}

/// Why control ended before anybody asked for it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The runtime, a signal handler or the health server could not be started.
    #[error("control cannot start: {0}")]
    Start(#[from] io::Error),
    /// An eventfd could not be watched.
    #[error("control cannot start: {0}")]
    Wake(#[from] sys::Error),
    /// A worker has ended, which the program cannot do without.
    #[error("worker {0} has ended: {1}")]
    WorkerFailed(WorkerId, sys::Error),
}

/// What all tasks of the thread share.
struct Control {
    settings: Arc<Settings>,
    workers: Vec<WorkerLink>,
    admission: Arc<Admission>,
    netdev: netdev::Handle,
    hooks: HookRunner,
    samples: Samples,
    hook_commands: HookCommands,
    service_manager: Option<Arc<ServiceManager>>,
    log: Log,
    facts: Facts,
    started: Moment,
    board: Arc<Board>,
    status: RefCell<Status>,
    recent_hooks: RefCell<RecentHooks>,
    /// What the live page draws, if there is one.
    history: Option<RefCell<History>>,
    registry: RefCell<Registry>,
    /// The end was asked for: no endpoint begins any more.
    stopping: Cell<bool>,
    /// A worker's failure, which ends the program.
    failure: RefCell<Option<ControlError>>,
    /// Something happened that the end may have waited for.
    changed: Notify,
    /// Reasons of failed creations that the log has.
    reasons_told: RefCell<HashSet<String>>,
    refusal_told: Cell<bool>,
    denial_told: Cell<bool>,
    stranger_told: Cell<bool>,
    /// When the allowances were last asked for.
    allowances_asked: Cell<Moment>,
    /// The control socket is open.
    console_open: Cell<bool>,
}

/// Runs the program until SIGINT, SIGTERM or the failure of a worker; then every endpoint's
/// DESTROY hook has run and every worker has been told to stop. Joining the workers, and letting
/// the last netdev handle go after that, is left to the caller.
///
/// # Errors
/// See [`ControlError`]. After a failure to start, the workers have been told to stop too.
pub fn run(parts: Parts) -> Result<(), ControlError> {
    let mailboxes: Vec<_> = parts.workers.iter().map(|worker| worker.mailbox.clone()).collect();
    // Its ring is for the output of hooks only; its memory is locked, and that may be limited.
    let mut builder = tokio_uring::builder();
    let outcome = tokio_uring::Runtime::new(builder.entries(32))
        .map_err(ControlError::from)
        .and_then(|runtime| runtime.block_on(supervise(parts)));
    for mailbox in mailboxes {
        // A worker whose box is full or gone does not read; the caller's join will tell.
        let _ = mailbox.post(Command::Stop);
    }
    outcome
}

async fn supervise(parts: Parts) -> Result<(), ControlError> {
    // What this process was started with must not leak into hooks; an old kernel leaks it.
    let _ = fds::close_all_on_exec();
    let mut signals = Signals {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
    };
    // Whoever started this process may ignore SIGCHLD, which is inherited, and hides how hooks end.
    let _children = signal(SignalKind::child())?;
    let board = Arc::new(Board::default());
    let settings = parts.settings;
    let history = settings.metrics.is_some().then(RefCell::default);
    let limits = HookLimits {
        jobs: settings.hooks.jobs,
        open_files: parts.hook_open_files,
        ..HookLimits::default()
    };
    let control = Rc::new(Control {
        hooks: HookRunner::start(limits, parts.log.clone()),
        hook_commands: parts.hook_commands,
        status: RefCell::new(Status::new(
            &settings,
            parts.spreading,
            parts.source_filter,
            Arc::clone(&board),
            clock::now(),
        )),
        registry: RefCell::new(Registry::new(settings.endpoints_max, parts.workers.len())),
        samples: Samples::new(parts.log.clone(), settings.hex_dump),
        settings,
        workers: parts.workers,
        admission: parts.admission,
        netdev: parts.netdev,
        service_manager: parts.service_manager,
        log: parts.log,
        facts: parts.facts,
        started: clock::now(),
        board: Arc::clone(&board),
        recent_hooks: RefCell::default(),
        history,
        stopping: Cell::new(false),
        failure: RefCell::new(None),
        changed: Notify::new(),
        reasons_told: RefCell::default(),
        refusal_told: Cell::new(false),
        denial_told: Cell::new(false),
        stranger_told: Cell::new(false),
        allowances_asked: Cell::new(Moment::ZERO),
        console_open: Cell::new(false),
    });
    control.look();
    let refreshing = Rc::clone(&control);
    let refresh = Box::new(move || refreshing.refresh());
    health::serve(parts.ports, control.settings.health, board, refresh, &control.log)?;
    console::open(&control);
    let wake = Readiness::of(&parts.wake)?;
    tokio_uring::spawn(Rc::clone(&control).hear(wake, parts.wake, parts.events, parts.samples));
    control.greet();
    control.report_to_service_manager();
    control.work(&mut signals).await;
    control.wind_up(&mut signals).await;
    control.hooks.close().await;
    control.failure.take().map_or(Ok(()), Err)
}

/// Both ways to ask for the end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
impl Control {
    fn greet(&self) {
        let version = env!("CARGO_PKG_VERSION");
        self.log.line(
            LogEvent::Started,
            &[("version", Value::Text(&version))],
            format_args!("AWS Gateway Load Balancer Tunnel Handler v{version} started."),
        );
        for warning in &self.settings.warnings {
            self.log.line(LogEvent::Warning, &[], format_args!("{warning}"));
        }
        let samples = self.samples.wish();
        let Settings { tcp_idle, clamp_mss, .. } = *self.settings;
        let policy = Arc::new(Policy { clamp_mss, samples, ..Policy::new(tcp_idle) });
        self.post_all(|_| Command::Policy(Arc::clone(&policy)));
    }

    /// Ordinary work, until the end is asked for.
    async fn work(self: &Rc<Self>, signals: &mut Signals) {
        let mut due = housekeeping::interval();
        loop {
            tokio::select! {
                () = signals.next() => return,
                () = self.changed.notified() => {
                    if self.failure.borrow().is_some() {
                        return;
                    }
                }
                _ = due.tick() => self.keep_house(),
            }
        }
    }

    /// Ends every endpoint, with its DESTROY hook; each is served until its hook begins. A second
    /// signal ends the hooks.
    async fn wind_up(self: &Rc<Self>, signals: &mut Signals) {
        self.log.line(LogEvent::Stopping, &[], format_args!("Shutting down."));
        self.stopping.set(true);
        self.report_stopping();
        self.status.borrow_mut().set_stopping();
        self.hooks.skip_creations();
        self.registry.borrow().end_all();
        let mut due = housekeeping::interval();
        while !self.registry.borrow().is_empty() {
            tokio::select! {
                () = self.changed.notified() => {}
                () = signals.next() => self.hooks.skip_all(),
                _ = due.tick() => self.keep_house(),
            }
        }
    }

    /// Brings the pages up to date.
    fn refresh(&self) {
        self.told_status().refresh(&self.workers, clock::now());
    }

    /// The state of the program, with what others know of it.
    fn told_status(&self) -> RefMut<'_, Status> {
        let mut status = self.status.borrow_mut();
        if self.admission.has_refused() {
            status.set_refused(clock::now());
        }
        status.hooks = self.hooks.tally().row();
        status.log_lines_lost = self.log.lines_lost();
        status
    }

    /// Takes a point for the live page, if there is one and it is time.
    fn look(&self) {
        let Some(history) = &self.history else { return };
        let (mut history, now) = (history.borrow_mut(), clock::now());
        if !history.is_due(now) {
            return;
        }
        let page = self.told_status().look(&self.workers, now);
        let hooks = self.recent_hooks.borrow().rows(now);
        history.record(&page, now);
        self.board.publish_picture(history.picture(&page, &hooks, now.since(self.started)));
    }

    /// The endpoint's name in the log.
    fn called(&self, id: EndpointId) -> Called {
        Called(self.settings.compat, id)
    }

    fn add_to_status(&self, id: EndpointId, cells: Vec<Arc<EndpointCell>>) {
        let mut status = self.status.borrow_mut();
        status.add_endpoint(id, cells, clock::now());
    }

    fn set_phase(&self, id: EndpointId, phase: Phase) {
        self.registry.borrow_mut().set_phase(id, phase);
    }
}

#[cfg(test)]
mod tests;
