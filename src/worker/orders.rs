//! What control asks for, and the end of a worker.

use std::os::fd::AsFd;
use std::time::Duration;

use super::Phase;
use super::Worker;
use super::count_unsent;
use super::finish;
use super::mailbox::Attachment;
use super::mailbox::Command;
use super::mailbox::Event;
use super::mailbox::Policy;
use crate::flow::Ttl;
use crate::path::Endpoint;
use crate::types::DropReason;
use crate::types::EndpointRef;
use crate::types::EndpointSlot;
use crate::types::Side;
use crate::uring::Operation;

/// How long a stopping worker goes on reading its TUNs while there is something to read.
const DRAIN_MAX: Duration = Duration::from_millis(200);

/// How long a stopping worker waits for the kernel to give its operations back.
const STOP_MAX: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) fn on_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(attachment) => self.on_attach(*attachment),
                Command::Closing(endpoint) => self.path.closing(endpoint),
                Command::Detach(endpoint) => self.on_detach(endpoint),
                Command::Forget(id, reason) => self.path.forget(id, reason),
                Command::StopMerging => self.stop_merging(),
                Command::Policy(policy) => {
                    self.path.set_ttl(ttl(&policy));
                    self.path.set_clamp_mss(policy.clamp_mss);
                    self.sampler.set_wish(policy.samples);
                }
                Command::Stop => self.begin_to_stop(),
            }
        }
    }

    fn on_attach(&mut self, attachment: Attachment) {
        let Attachment { id, endpoint, templates, cell, queues: fds } = attachment;
        let gwi = fds[Side::Gwi.index()].as_fd();
        if let Err(error) = self.driver.register_gwi(endpoint.slot, gwi) {
            let lost = Event::QueueLost(self.id, endpoint, Side::Gwi, error.errno);
            self.outbox.push_back(lost);
        }
        self.queues.attach(endpoint, fds);
        self.path.attach(Endpoint { id, endpoint, templates, cell });
        self.replaying.push_back(endpoint);
        // At once, so that this turn's datagrams find room behind what is held.
        self.replay_held();
    }

    /// Begins to let go of an endpoint's queues. What still waits for room in a send socket would
    /// hold them for as long as the socket is full: it is dropped.
    fn on_detach(&mut self, endpoint: EndpointRef) {
        if self.queues.detach(&mut self.driver, endpoint) {
            self.abandon_sends(Some(endpoint.slot), DropReason::SendFull);
        }
    }

    /// Drops what waits for room in a send socket: of one endpoint, or of all.
    pub(super) fn abandon_sends(&mut self, slot: Option<EndpointSlot>, reason: DropReason) {
        let Self { senders, driver, queues, path, .. } = self;
        senders.abandon(|token| {
            let over = slot.is_none_or(|slot| driver.endpoint_of(token) == Some(slot));
            if over && let Some(ended) = finish(driver, queues, token) {
                count_unsent(path, &ended, reason);
            }
            over
        });
    }

    fn begin_to_stop(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Draining(self.now.after(DRAIN_MAX));
            if self.receive.stop() {
                self.driver.cancel(Operation::Receive, 0, 0);
            }
        }
    }

    /// Goes on from draining to stopping when nothing more comes, or it took too long.
    pub(super) fn advance_phase(&mut self, quiet: bool) {
        let Phase::Draining(until) = self.phase else {
            return;
        };
        if !quiet && self.now < until {
            return;
        }
        self.phase = Phase::Stopping(self.now.after(STOP_MAX));
        self.path.drop_all_held();
        self.queues.stop_all(&mut self.driver);
        if self.wake_stream.stop() {
            self.driver.cancel(Operation::Wake, 0, 0);
        }
        self.abandon_sends(None, DropReason::Shutdown);
    }

    pub(super) fn is_stopped(&self) -> bool {
        let Phase::Stopping(until) = self.phase else {
            return false;
        };
        let returned = self.arrivals.is_empty()
            && self.receive.is_stopped()
            && self.wake_stream.is_stopped()
            && self.queues.all_stopped()
            && self.driver.in_flight() == 0;
        returned || self.now >= until
    }
}

fn ttl(policy: &Policy) -> Ttl {
    let secs = |idle: Duration| u32::try_from(idle.as_secs()).unwrap_or(u32::MAX);
    Ttl { tcp_secs: secs(policy.tcp_idle), other_secs: secs(policy.other_idle) }
}
