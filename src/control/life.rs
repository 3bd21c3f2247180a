//! The life of one endpoint, from the first datagram to the last link, told in order.
//!
//! Each endpoint is a task of its own; nothing in it waits for another endpoint except for the
//! turn of its hooks. The worker's view of the same life is drawn in `worker::mailbox`.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time;

use super::Control;
use super::hooks::HookAction;
use super::hooks::HookOutcome;
use super::hooks::HookRequest;
use super::netdev::LinkPair;
use super::netdev::NetdevError;
use super::registry::Phase;
use super::strangers;
use crate::flow::Templates;
use crate::log::LogEvent;
use crate::log::Value;
use crate::stats::EndpointCell;
use crate::sys;
use crate::sys::Errno;
use crate::sys::clock;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::EndpointRef;
use crate::types::LinkName;
use crate::types::Moment;
use crate::types::Side;
use crate::types::WorkerId;
use crate::worker::mailbox::Admission;
use crate::worker::mailbox::Attachment;
use crate::worker::mailbox::Command;

/// After a failure to create links, the next attempt for the same endpoint. Until then its
/// workers hold datagrams and do not ask again. And the least time from one creation to the next
/// if somebody deletes the links each time.
const BACK_OFF: Duration = Duration::from_secs(1);

/// How long links of the same names may stand in the way: those of a process that was killed go
/// when the kernel has taken its rings apart, some time after its end. Datagrams are held
/// meanwhile.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// How often that is tried.
const BUSY_STEP: Duration = Duration::from_millis(20);

/// How long workers may take to let go of an endpoint's queues before that is told. They need one
/// turn.
const DETACH_MAX: Duration = Duration::from_secs(2);

/// The least time between two looks at an idle endpoint; the clock itself is that coarse.
const IDLE_STEP: Duration = Duration::from_millis(20);

/// What others tell the task.
#[derive(Debug)]
pub(super) enum Notice {
    /// A worker let go of the queues.
    Detached(WorkerId),
    /// A worker lost a queue.
    QueueLost(WorkerId, Side, Errno),
    /// Others want its place, and it looked idle and strange.
    MakeRoom,
    /// The program is stopping.
    End,
}

/// One endpoint in one life.
pub(super) struct Life {
    pub(super) control: Rc<Control>,
    pub(super) id: EndpointId,
    pub(super) endpoint: EndpointRef,
    pub(super) notices: mpsc::Receiver<Notice>,
    /// What it lives by.
    pub(super) permit: Permit,
    /// A link is gone, or a worker cannot use it: nothing but a new life helps.
    pub(super) lost: bool,
}

/// A permit; it goes back when this is dropped.
pub(super) struct Permit(pub(super) Arc<Admission>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Life {
    /// Lives it.
    pub(super) async fn run(mut self) {
        let control = Rc::clone(&self.control);
        let queues = control.workers.len();
        let created = tokio::select! {
            created = create(&control, self.id, queues) => Some(created),
            () = ended(&mut self.notices) => None,
        };
        match created {
            Some(Ok(pair)) => {
                control.status.borrow_mut().set_no_device(None);
                control.status.borrow_mut().set_made(self.id);
                self.serve(pair).await;
            }
            Some(Err(error)) => self.give_up(&error).await,
            None => control.forget(self.id, DropReason::Shutdown),
        }
        drop(self.permit);
        control.life_ended(self.id, self.endpoint, self.lost);
    }

    /// Both links are there.
    async fn serve(&mut self, pair: LinkPair) {
        let control = Rc::clone(&self.control);
        let [gwi, gwo] = LinkName::of_endpoint(self.id, self.control.settings.returns);
        let id = self.id;
        let called = control.called(id);
        let cells: Vec<_> = control.workers.iter().map(|_| Arc::default()).collect();
        control.add_to_status(id, cells.clone());
        control.log.line(
            LogEvent::EndpointCreated,
            &links(&id, &gwi, &gwo),
            format_args!("New interface {gwi} and {gwo} for {called} created."),
        );
        if let Some(error) = &pair.unsteered {
            control.log.event(
                LogEvent::EndpointUnsteered,
                &[("endpoint", Value::Text(&id)), ("reason", Value::Text(error))],
                format_args!("{called}: the kernel chooses the queues of its interfaces: {error}."),
            );
        }
        let created = self.hook(HookAction::Create, || true).await;
        let removing = move |control: &Control| {
            control.log.line(
                LogEvent::EndpointRemoved,
                &links(&id, &gwi, &gwo),
                format_args!("Removing interface {gwi} and {gwo} for {called}."),
            );
        };
        if control.stopping.get() {
            control.forget(id, DropReason::Shutdown);
            if created == HookOutcome::Skipped {
                // There is nothing to undo where CREATE never began.
                removing(&control);
            } else {
                let ending = Rc::clone(&control);
                let on_turn = move || {
                    removing(&ending);
                    true
                };
                self.hook(HookAction::Destroy, on_turn).await;
            }
        } else {
            self.serve_until_removed(&pair, cells, removing).await;
        }
        // At the end of the program the workers stop as a whole, and the links go in one request.
        if !control.stopping.get() {
            self.detach().await;
            if let Err(error) = control.netdev.destroy(pair).await {
                self.complain(LogEvent::LinkRemovalFailed, format_args!("removing links: {error}"));
            }
        }
        control.status.borrow_mut().remove_endpoint(id);
    }

    /// Serves it until its DESTROY hook has run. Other endpoints' hooks may come first: until its
    /// own turn this one is served, and goes on if it is idle no more then, unless a link is lost.
    async fn serve_until_removed(
        &mut self,
        pair: &LinkPair,
        cells: Vec<Arc<EndpointCell>>,
        removing: impl Fn(&Control) + Copy + 'static,
    ) {
        let endpoint = self.endpoint;
        let attached = clock::now();
        let cells = Rc::new(cells);
        self.attach(pair, &cells);
        loop {
            let makes_room = self.until_over(attached, &cells).await;
            let (control, cells) = (Rc::clone(&self.control), Rc::clone(&cells));
            let lost = self.lost;
            let on_turn = move || {
                let is_due = control.stopping.get()
                    || lost
                    || idle_left(&control, attached, &cells) == Some(Duration::ZERO)
                    || makes_room && is_idle_stranger(&control, attached, &cells);
                if is_due {
                    control.post_all(|_| Command::Closing(endpoint));
                    removing(&control);
                }
                is_due
            };
            if self.hook(HookAction::Destroy, on_turn).await != HookOutcome::NotWanted {
                return;
            }
            self.control.registry.borrow_mut().stays(self.id);
        }
    }

    /// Hands every worker its queues. What it holds for the endpoint goes first.
    fn attach(&self, pair: &LinkPair, cells: &[Arc<EndpointCell>]) {
        let templates = Arc::new(Templates::default());
        self.control.set_phase(self.id, Phase::Serving);
        self.control.post_all(|index| {
            Command::Attach(Box::new(Attachment {
                id: self.id,
                endpoint: self.endpoint,
                templates: Arc::clone(&templates),
                cell: Arc::clone(&cells[index]),
                queues: pair.queues[index].clone(),
            }))
        });
    }

    /// Waits for the end of the program, of the endpoint's traffic, or of one of its links.
    /// Returns whether it is to make room for others.
    async fn until_over(&mut self, attached: Moment, cells: &[Arc<EndpointCell>]) -> bool {
        loop {
            let left = idle_left(&self.control, attached, cells);
            if left == Some(Duration::ZERO) {
                return false;
            }
            tokio::select! {
                notice = self.notices.recv() => match notice {
                    Some(Notice::End) | None => return false,
                    Some(Notice::MakeRoom) => return true,
                    Some(Notice::QueueLost(worker, side, errno)) => {
                        self.queue_lost(worker, side, errno);
                        let early = BACK_OFF.saturating_sub(clock::now().since(attached));
                        let _ = time::timeout(early, ended(&mut self.notices)).await;
                        return false;
                    }
                    Some(Notice::Detached(_)) => {}
                },
                () = sleep(left) => {}
            }
        }
    }

    /// Takes the queues from the workers again. Does not return, but at the end of the program,
    /// while one of them still has some: a slot that is used again under a worker that turns no
    /// more would mix up two endpoints.
    async fn detach(&mut self) {
        let control = Rc::clone(&self.control);
        control.set_phase(self.id, Phase::Leaving);
        let mut attached: HashSet<_> = control.workers.iter().map(|worker| worker.id).collect();
        for worker in control.post_all(|_| Command::Detach(self.endpoint)) {
            attached.remove(&worker);
        }
        let left = Cell::new(attached.len());
        let all_gone = async {
            while !attached.is_empty() {
                match self.notices.recv().await {
                    Some(Notice::Detached(worker)) => {
                        attached.remove(&worker);
                    }
                    Some(Notice::QueueLost(..) | Notice::MakeRoom) => {}
                    Some(Notice::End) | None => break,
                }
                left.set(attached.len());
            }
        };
        tokio::pin!(all_gone);
        if time::timeout(DETACH_MAX, &mut all_gone).await.is_err() {
            complain(
                &control,
                self.id,
                LogEvent::DetachLate,
                format_args!("{} workers did not let go of its queues", left.get()),
            );
            all_gone.await;
        }
    }

    /// There are no links. The workers keep what they hold, and are told after the back-off.
    async fn give_up(&mut self, error: &NetdevError) {
        let control = Rc::clone(&self.control);
        if let NetdevError::Sys(error) = error
            && is_for_all(error)
        {
            let reason = format!("no TUN link can be made: {error}");
            control.status.borrow_mut().set_no_device(Some(reason));
        }
        control.creation_failed(self.id, error);
        let stopped = time::timeout(BACK_OFF, ended(&mut self.notices)).await.is_ok();
        let reason = if stopped { DropReason::Shutdown } else { DropReason::EndpointFailed };
        control.forget(self.id, reason);
    }

    /// Runs the operator's command for `action`, if there is one. Its failure is told and counted,
    /// and changes nothing else: traffic goes on, as it did with the reference program. `on_turn`
    /// is called before it starts, or when there is none to start, and says whether it is still
    /// wanted.
    async fn hook(
        &self,
        action: HookAction,
        on_turn: impl FnOnce() -> bool + 'static,
    ) -> HookOutcome {
        let hooks = &self.control.hook_commands;
        let command = match action {
            HookAction::Create => &hooks.create,
            HookAction::Destroy => &hooks.destroy,
        };
        let Some(command) = command else {
            return if on_turn() { HookOutcome::Exited(0) } else { HookOutcome::NotWanted };
        };
        let returns = self.control.settings.returns;
        let request = HookRequest { action, command: command.clone(), id: self.id, returns };
        let number = Rc::new(Cell::new(None));
        let (control, begun, id) = (Rc::clone(&self.control), Rc::clone(&number), self.id);
        let on_turn = move || {
            let wanted = on_turn();
            if wanted {
                let mut recent = control.recent_hooks.borrow_mut();
                begun.set(Some(recent.begin(action, id, clock::now())));
            }
            wanted
        };
        let outcome = self.control.hooks.run(request, on_turn).await;
        if let Some(number) = number.get() {
            let mut recent = self.control.recent_hooks.borrow_mut();
            recent.end(number, outcome.clone(), clock::now());
        }
        if !outcome.is_success() && outcome != HookOutcome::NotWanted {
            let problem = format!("the {action} hook for vpce-{} {outcome}", self.id);
            self.control.status.borrow_mut().hook_failed(self.id, problem);
            let fields = [
                ("endpoint", Value::Text(&self.id)),
                ("action", Value::Text(&action)),
                ("outcome", Value::Text(&outcome)),
            ];
            self.control.log.line(
                LogEvent::HookFailed,
                &fields,
                format_args!("The {action} hook for {} {outcome}.", self.control.called(self.id)),
            );
        }
        outcome
    }

    fn queue_lost(&mut self, worker: WorkerId, side: Side, errno: Errno) {
        self.lost = true;
        let link = LinkName::of(self.id, side);
        let problem = if matches!(errno, Errno::EFAULT | Errno::EBADFD) {
            format!("{link} was deleted")
        } else {
            format!("worker {worker} cannot use {link}: {}", errno.desc())
        };
        self.complain(
            LogEvent::QueueLost,
            format_args!("{problem}. Both links are made again, with DESTROY and CREATE hook."),
        );
        self.control.status.borrow_mut().queue_lost(self.id, problem);
    }

    fn complain(&self, event: LogEvent, text: std::fmt::Arguments<'_>) {
        complain(&self.control, self.id, event, text);
    }
}

fn complain(control: &Control, id: EndpointId, event: LogEvent, text: std::fmt::Arguments<'_>) {
    let line = format_args!("{}: {text}", control.called(id));
    let fields = [("endpoint", Value::Text(&id)), ("reason", Value::Text(&text))];
    control.log.event(event, &fields, line);
}

/// An endpoint and its links as fields of the log.
fn links<'a>(
    id: &'a EndpointId,
    gwi: &'a LinkName,
    gwo: &'a LinkName,
) -> [(&'static str, Value<'a>); 3] {
    [("endpoint", Value::Text(id)), ("gwi", Value::Text(gwi)), ("gwo", Value::Text(gwo))]
}

/// Makes both links, as soon as their names are free.
async fn create(control: &Control, id: EndpointId, queues: usize) -> Result<LinkPair, NetdevError> {
    let start = clock::now();
    loop {
        let created = control.netdev.create(id, queues).await;
        match created {
            Err(NetdevError::Sys(ref error))
                if error.errno == Errno::EBUSY && clock::now().since(start) < BUSY_MAX =>
            {
                time::sleep(BUSY_STEP).await;
            }
            other => return other,
        }
    }
}

/// Waits until the end of the program is asked for.
async fn ended(notices: &mut mpsc::Receiver<Notice>) {
    while !matches!(notices.recv().await, Some(Notice::End) | None) {}
}

/// Whether an error of creation is no matter of one endpoint: permission or device are missing.
/// `ENODEV` of a later call only means that somebody removed that one link.
fn is_for_all(error: &sys::Error) -> bool {
    let makes_links = matches!(error.call, "open" | "ioctl TUNSETIFF");
    let is_missing =
        matches!(error.errno, Errno::EPERM | Errno::EACCES | Errno::ENOENT | Errno::ENODEV);
    error.errno == Errno::EPERM || makes_links && is_missing
}

/// How long until an endpoint is idle, zero if it is; nothing if it never will be.
fn idle_left(control: &Control, attached: Moment, cells: &[Arc<EndpointCell>]) -> Option<Duration> {
    let limit = control.settings.tunnel_idle?;
    let last = cells.iter().map(|cell| cell.last_seen.get()).max();
    let last = last.unwrap_or(Moment::ZERO).max(attached);
    Some(limit.saturating_sub(clock::now().since(last)))
}

/// Whether an endpoint may go for others.
fn is_idle_stranger(control: &Control, attached: Moment, cells: &[Arc<EndpointCell>]) -> bool {
    strangers::is_idle(cells, attached, control.settings.stranger_idle, clock::now())
}

/// Sleeps for `left`, or for ever.
async fn sleep(left: Option<Duration>) {
    match left {
        Some(left) => time::sleep(left.max(IDLE_STEP)).await,
        None => std::future::pending().await,
    }
}
