//! What workers tell, what comes of it, and what they are told.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use super::Control;
use super::ControlError;
use super::answers::Remedy;
use super::life::Life;
use super::life::Notice;
use super::life::Permit;
use super::netdev::NetdevError;
use crate::log::LogEvent;
use crate::log::Value;
use crate::sync::Receiver;
use crate::sys;
use crate::sys::EventFd;
use crate::sys::Readiness;
use crate::sys::clock;
use crate::types::Downgrade;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::EndpointRef;
use crate::types::WorkerId;
use crate::worker::mailbox::Command;
use crate::worker::mailbox::Event;
use crate::worker::mailbox::Refusal;
use crate::worker::mailbox::Sample;

/// Different reasons of failed creations that are told; each is told once.
const REASONS_TOLD_MAX: usize = 64;

impl Control {
    /// Listens to the workers for ever.
    pub(super) async fn hear(
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
    pub(super) fn life_ended(self: &Rc<Self>, id: EndpointId, endpoint: EndpointRef, lost: bool) {
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
    pub(super) fn creation_failed(&self, id: EndpointId, error: &NetdevError) {
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
    pub(super) fn forget(&self, id: EndpointId, reason: DropReason) {
        let asked = self.registry.borrow_mut().take_asked(id);
        for worker in asked {
            self.post(worker, Command::Forget(id, reason));
        }
    }

    /// Leaves every worker the command that `command` makes for its place. Returns the workers
    /// that did not get it.
    pub(super) fn post_all(&self, command: impl Fn(usize) -> Command) -> Vec<WorkerId> {
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
