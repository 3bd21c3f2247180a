//! The control thread: everything that is not the way of a packet.
//!
//! | file | duty |
//! |---|---|
//! | this one | the thread itself: events of the workers, signals, the end of the program |
//! | `registry`, `slots` | which endpoints live, and where |
//! | `life` | what happens to one endpoint, in order |
//! | `strangers` | which endpoints have to make room for others |
//! | `hooks` | the operator's commands |
//! | `netdev` | the thread for whatever takes the kernel's rtnl lock |
//! | `spread` | which worker gets which datagram |
//! | `samples` | packets that workers looked at, for the log |
//! | `answers` | from where no answer can leave |
//! | `losses` | which drops are going on |
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
pub mod health;
pub mod hooks;
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
mod words;

use std::cell::Cell;
use std::cell::RefCell;
use std::cell::RefMut;
use std::collections::HashSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::Notify;
use tokio::time;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;

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
use crate::sys::udp;
use crate::types::Downgrade;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::EndpointRef;
use crate::types::Moment;
use crate::types::WorkerId;
use crate::worker::mailbox::Admission;
use crate::worker::mailbox::Command;
use crate::worker::mailbox::Event;
use crate::worker::mailbox::Mailbox;
use crate::worker::mailbox::Policy;
use crate::worker::mailbox::Refusal;
use crate::worker::mailbox::Sample;
use answers::Remedy;
use health::Board;
use health::Ports;
use hooks::HookCommands;
use hooks::HookLimits;
use hooks::HookRunner;
use life::Life;
use life::Notice;
use life::Permit;
use netdev::NetdevError;
use recent_hooks::RecentHooks;
use registry::Phase;
use registry::Registry;
use samples::Samples;
use spread::Spreading;
use status::Status;
use words::Called;

/// How often the state of the program is looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How often the allowances of the instance are looked at: the driver asks its device for them.
const ALLOWANCES_PAUSE: Duration = Duration::from_secs(5);

/// Different reasons of failed creations that are told; each is told once.
const REASONS_TOLD_MAX: usize = 64;

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
        let mut housekeeping = housekeeping();
        loop {
            tokio::select! {
                () = signals.next() => return,
                () = self.changed.notified() => {
                    if self.failure.borrow().is_some() {
                        return;
                    }
                }
                _ = housekeeping.tick() => self.keep_house(),
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
        let mut housekeeping = housekeeping();
        while !self.registry.borrow().is_empty() {
            tokio::select! {
                () = self.changed.notified() => {}
                () = signals.next() => self.hooks.skip_all(),
                _ = housekeeping.tick() => self.keep_house(),
            }
        }
    }

    /// What is due every second.
    fn keep_house(self: &Rc<Self>) {
        let now = clock::now();
        self.try_refused_sources();
        self.status.borrow_mut().judge(&self.workers, now);
        self.look();
        self.status.borrow().tie_again(&self.workers);
        let news = self.status.borrow_mut().spread.look(&self.workers, now);
        if let Some(news) = news {
            self.log.line(LogEvent::SpreadChanged, &[], format_args!("{news}"));
        }
        if self.status.borrow().has_no_device() {
            tokio_uring::spawn(Rc::clone(self).look_for_device());
        }
        self.tell_refusals();
        self.make_room(now);
        console::open(self);
        if self.settings.metrics.is_some()
            && now.since(self.allowances_asked.get()) >= ALLOWANCES_PAUSE
        {
            self.allowances_asked.set(Moment::from_nanos(u64::MAX));
            tokio_uring::spawn(Rc::clone(self).look_at_allowances());
        }
    }

    /// Looks what AWS says of this instance's allowances.
    async fn look_at_allowances(self: Rc<Self>) {
        if let Ok(nics) = self.netdev.allowances().await {
            self.status.borrow_mut().nics = nics;
        }
        self.allowances_asked.set(clock::now());
    }

    /// Tells once who was turned away: an operator may not have meant that. Of endpoints it is told
    /// again when there was a time without.
    fn tell_refusals(&self) {
        let limit = self.settings.endpoints_max;
        let has_refused = self.told_status().has_refused();
        if has_refused && !self.refusal_told.get() {
            self.log.line(
                LogEvent::EndpointRefused,
                &[("limit", Value::Number(limit.into()))],
                format_args!(
                    "An endpoint was refused: there are {limit} already, or too many came at \
                     once. --max-endpoints and --endpoint-burst set the limits."
                ),
            );
        }
        self.refusal_told.set(has_refused);
        if let Some(id) = self.admission.first_denied()
            && !self.denial_told.replace(true)
        {
            let called = self.called(id);
            let text = format_args!("Traffic of {called} is dropped: --allow-endpoint lacks it.");
            self.log.line(LogEvent::EndpointDenied, &[("endpoint", Value::Text(&id))], text);
        }
        if let Some(source) = self.status.borrow().last_stranger(&self.workers)
            && !self.stranger_told.replace(true)
        {
            let text =
                format_args!("Datagrams from {source} are dropped: --allow-source lacks it.");
            self.log.line(LogEvent::SourceDenied, &[("source", Value::Text(&source))], text);
        }
    }

    /// Asks idle strangers to go, if an endpoint was refused for want of room.
    fn make_room(&self, now: Moment) {
        if !self.admission.is_room_wanted() {
            return;
        }
        let Settings { stranger_idle, endpoint_rate, .. } = *self.settings;
        let strangers = self.status.borrow().idle_strangers(stranger_idle, now);
        let mut registry = self.registry.borrow_mut();
        let wanted = strangers::per_second(endpoint_rate, registry.still_going());
        let asked = strangers.into_iter().filter(|&id| registry.ask_to_go(id));
        let count = asked.take(wanted).count();
        if count > 0 {
            let text = format_args!(
                "There is no room for another endpoint: {count} go that are idle and never had a \
                 flow both ways."
            );
            let fields = [("endpoints", Value::Number(count as u64))];
            self.log.line(LogEvent::EndpointsMadeRoom, &fields, text);
        }
    }

    /// Looks whether what no worker could bind can be had by now.
    fn try_refused_sources(&self) {
        let mut status = self.status.borrow_mut();
        for source in status.answers.to_try() {
            // Workers share their ports, with this socket too.
            if udp::open_sender(*source.ip(), source.port(), 0).is_ok() {
                status.answers.is_free(source);
                let again = format_args!("Can answer from UDP {source} again.");
                let fields = [("source", Value::Text(&source))];
                self.log.event(LogEvent::SendSocketUsable, &fields, again);
            }
        }
    }

    fn on_send_refused(&self, refusal: Refusal) {
        let is_news = self.status.borrow_mut().answers.refused(refusal);
        if is_news {
            let text = format_args!("Cannot {}.", Remedy(refusal));
            self.log.event(LogEvent::SendSocketRefused, &[], text);
        }
    }

    fn on_downgraded(&self, worker: WorkerId, downgrade: Downgrade, errno: sys::Errno) {
        let mut status = self.status.borrow_mut();
        let problem = status.downgrades.add(worker, downgrade, errno);
        let text = format_args!("From now on {problem}.");
        let fields = [("worker", Value::Number(worker.0.into()))];
        self.log.event(LogEvent::Downgraded, &fields, text);
    }

    /// Looks whether links can be made again. New endpoints would show that too, but a load
    /// balancer sends none to a target that is not healthy.
    async fn look_for_device(self: Rc<Self>) {
        if self.netdev.probe().await.is_ok() {
            self.status.borrow_mut().set_no_device(None);
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

    /// Listens to the workers for ever.
    async fn hear(
        self: Rc<Self>,
        wake: Readiness,
        eventfd: Arc<EventFd>,
        events: Receiver<Event>,
        samples: Receiver<Sample>,
    ) {
        while wake.wait().await.is_ok() {
            eventfd.drain();
            wake.clear();
            for event in events.try_iter() {
                self.on_event(event);
            }
            for sample in samples.try_iter() {
                self.samples.show(&sample);
            }
        }
    }

    fn on_event(self: &Rc<Self>, event: Event) {
        match event {
            Event::EndpointSeen(worker, id) => self.on_endpoint_seen(worker, id),
            Event::Detached(worker, endpoint) => {
                let registry = self.registry.borrow();
                registry.notify(endpoint, Notice::Detached(worker));
            }
            Event::QueueLost(worker, endpoint, side, errno) => {
                let registry = self.registry.borrow();
                registry.notify(endpoint, Notice::QueueLost(worker, side, errno));
            }
            Event::SendRefused(refusal) => self.on_send_refused(refusal),
            Event::Downgraded(worker, downgrade, errno) => {
                self.on_downgraded(worker, downgrade, errno);
            }
            Event::Failed(worker, error) => self.on_worker_failed(worker, error),
        }
    }

    fn on_endpoint_seen(self: &Rc<Self>, worker: WorkerId, id: EndpointId) {
        if self.stopping.get() {
            self.post(worker, Command::Forget(id, DropReason::Shutdown));
            return;
        }
        let is_new = self.registry.borrow_mut().announce(worker, id);
        if is_new {
            self.begin(id, HashSet::from([worker]));
        }
    }

    /// Begins an endpoint's life for the workers that asked for it, if there is room for one more.
    fn begin(self: &Rc<Self>, id: EndpointId, asked: HashSet<WorkerId>) {
        if let Err(reason) = self.admission.begin(clock::now()) {
            for worker in asked {
                self.post(worker, Command::Forget(id, reason));
            }
            return;
        }
        let permit = Permit(Arc::clone(&self.admission));
        let (endpoint, notices) = self.registry.borrow_mut().begin(id, asked);
        let control = Rc::clone(self);
        let life = Life { control, id, endpoint, notices, permit, lost: false };
        tokio_uring::spawn(life.run());
    }

    /// The last act of a life, which has given its permit back. If it was asked for again, it
    /// begins again. If its links were `lost`, it does in any case, if there is room.
    fn life_ended(self: &Rc<Self>, id: EndpointId, endpoint: EndpointRef, lost: bool) {
        let asked = self.registry.borrow_mut().end(id, endpoint);
        self.changed.notify_one();
        if self.stopping.get() {
            for worker in asked {
                self.post(worker, Command::Forget(id, DropReason::Shutdown));
            }
        } else if lost || !asked.is_empty() {
            self.begin(id, asked);
        }
    }

    fn on_worker_failed(&self, worker: WorkerId, error: sys::Error) {
        let failure = ControlError::WorkerFailed(worker, error);
        let fields = [("worker", Value::Number(worker.0.into()))];
        self.log.line(LogEvent::WorkerFailed, &fields, format_args!("{failure}"));
        let mut status = self.status.borrow_mut();
        status.worker_failed(worker, failure.to_string());
        self.failure.borrow_mut().get_or_insert(failure);
        self.changed.notify_one();
    }

    /// Tells the page why an endpoint could not be set up, and the log once for each reason.
    fn creation_failed(&self, id: EndpointId, error: &NetdevError) {
        let remedy = no_room(error);
        let problem =
            format!("the interfaces for {} could not be made: {error}{remedy}", self.called(id));
        self.status.borrow_mut().set_not_made(id, problem, clock::now());
        let reason = match error {
            NetdevError::Sys(error) => format!("{}: {}", error.call, error.errno.desc()),
            NetdevError::Gone => error.to_string(),
        };
        let mut told = self.reasons_told.borrow_mut();
        if told.len() < REASONS_TOLD_MAX && told.insert(reason) {
            self.log.line(
                LogEvent::EndpointFailed,
                &[("endpoint", Value::Text(&id)), ("reason", Value::Text(error))],
                format_args!(
                    "Creating the interfaces for {} failed: {error}{remedy}.",
                    self.called(id)
                ),
            );
        }
    }

    /// Tells the workers that wait for an endpoint that it will not come.
    fn forget(&self, id: EndpointId, reason: DropReason) {
        let asked = self.registry.borrow_mut().take_asked(id);
        for worker in asked {
            self.post(worker, Command::Forget(id, reason));
        }
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

    /// Leaves every worker the command that `command` makes for its place. Returns the workers
    /// that did not get it.
    fn post_all(&self, command: impl Fn(usize) -> Command) -> Vec<WorkerId> {
        let workers = self.workers.iter().enumerate();
        workers
            .filter(|(index, worker)| !self.post(worker.id, command(*index)))
            .map(|(_, worker)| worker.id)
            .collect()
    }

    /// Leaves a worker a command. One that takes none does not turn any more; its heartbeat says
    /// the same to the health page.
    fn post(&self, worker: WorkerId, command: Command) -> bool {
        let link = self.workers.get(worker.index());
        let left = link.is_some_and(|link| link.mailbox.post(command).is_ok());
        if !left {
            self.log.event(
                LogEvent::MailboxFull,
                &[("worker", Value::Number(worker.0.into()))],
                format_args!("worker {worker} takes no commands"),
            );
        }
        left
    }
}

/// What to do where links could not be made for want of descriptors.
fn no_room(error: &NetdevError) -> &'static str {
    match error {
        NetdevError::Sys(error) if error.errno == sys::Errno::EMFILE => {
            "; raise LimitNOFILE of the unit (prlimit --nofile of the process)"
        }
        NetdevError::Sys(error) if error.errno == sys::Errno::ENFILE => {
            "; raise sysctl fs.file-max"
        }
        NetdevError::Sys(_) | NetdevError::Gone => "",
    }
}

/// The clock of the housekeeping. After a standstill it goes on from there, and does not make up
/// for what was missed with a burst of judgements.
fn housekeeping() -> Interval {
    let mut housekeeping = time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    housekeeping
}

#[cfg(test)]
mod tests;
