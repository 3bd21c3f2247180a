//! What the service manager is told: ready, how it goes, alive, stopping.
//!
//! - *Ready* is when every part works: ports are bound and hooks are checked before control begins,
//!   so what is left is that every worker has ended a turn.
//! - *Alive* it is told at half the time that it waits for that, and only when every worker has
//!   turned since the last time. Idle workers turn four times a second. A worker that hangs stops
//!   that, and the manager restarts the program; the health page says 503 long before.
//! - A message that does not get through is repeated, or too old to be.

use std::rc::Rc;
use std::time::Duration;

use tokio::time;

use super::Control;
use super::WorkerLink;
use crate::log::LogEvent;
use crate::log::Value;
use crate::sys::clock;
use crate::sys::service_manager::NotifyState;
use crate::sys::service_manager::ServiceManager;
use crate::types::Moment;

/// How often the state is told.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// How long until another look where workers have not turned, and another try where the manager
/// did not take a message.
const RETRY: Duration = Duration::from_millis(100);

impl Control {
    /// Starts to tell the manager, if there is one.
    pub(super) fn report_to_service_manager(self: &Rc<Self>) {
        if self.service_manager.is_none() {
            return;
        }
        tokio_uring::spawn(Rc::clone(self).report());
        if let Some(limit) = ServiceManager::watchdog() {
            tokio_uring::spawn(Rc::clone(self).feed_watchdog(limit / 2));
        }
    }

    /// The end has begun.
    pub(super) fn report_stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("Stopping: DESTROY hooks run")]);
    }

    async fn report(self: Rc<Self>) {
        let mut heartbeats = Heartbeats::new(self.workers.len());
        while !heartbeats.have_moved(&self.workers) {
            time::sleep(RETRY).await;
        }
        let mut is_ready = false;
        let mut rate = Rate { datagrams: 0, at: clock::now() };
        while !self.stopping.get() {
            let line = self.status_line(&mut rate);
            let status = NotifyState::Status(&line);
            let told = if is_ready {
                self.tell(&[status])
            } else {
                self.tell(&[NotifyState::Ready, status])
            };
            is_ready |= told;
            time::sleep(if told { STATUS_INTERVAL } else { RETRY }).await;
        }
    }

    async fn feed_watchdog(self: Rc<Self>, interval: Duration) {
        let mut heartbeats = Heartbeats::new(self.workers.len());
        loop {
            let fed = heartbeats.have_moved(&self.workers) && self.tell(&[NotifyState::Watchdog]);
            time::sleep(if fed { interval } else { RETRY.min(interval) }).await;
        }
    }

    /// The state of the program in one line.
    fn status_line(&self, rate: &mut Rate) -> String {
        let now = clock::now();
        let per_second = rate.since_last(&self.workers, now);
        let status = self.status.borrow();
        let endpoints = status.endpoint_count();
        format!(
            "{}; endpoints: {endpoints}; packets/s from the load balancer: {per_second}",
            status.headline(&self.workers, now),
        )
    }

    /// Returns whether the manager got the message. If not, the log has it.
    fn tell(&self, states: &[NotifyState<'_>]) -> bool {
        let Some(manager) = &self.service_manager else { return false };
        let outcome = manager.tell(states);
        if let Err(error) = &outcome {
            self.log.event(
                LogEvent::ServiceManagerUnreachable,
                &[("reason", Value::Text(error))],
                format_args!("The service manager cannot be told: {error}."),
            );
        }
        outcome.is_ok()
    }
}

/// The workers' turns when they had all moved last.
struct Heartbeats(Vec<Moment>);

impl Heartbeats {
    fn new(workers: usize) -> Self {
        Self(vec![Moment::ZERO; workers])
    }

    /// Whether every worker has turned since this was last true.
    fn have_moved(&mut self, workers: &[WorkerLink]) -> bool {
        let turns: Vec<_> = workers.iter().map(|worker| worker.cell.last_turn.get()).collect();
        let moved = turns.iter().zip(&self.0).all(|(now, before)| now > before);
        if moved {
            self.0 = turns;
        }
        moved
    }
}

/// How many datagrams there were when somebody last asked.
struct Rate {
    datagrams: u64,
    at: Moment,
}

impl Rate {
    /// Datagrams a second since the last call; 0 if that was less than a millisecond ago.
    fn since_last(&mut self, workers: &[WorkerLink], now: Moment) -> u64 {
        let counts = workers.iter().map(|worker| worker.cell.datagrams.packets.get());
        let datagrams = counts.sum();
        let more = datagrams - std::mem::replace(&mut self.datagrams, datagrams);
        let millis = now.since(std::mem::replace(&mut self.at, now)).as_millis();
        let per_second = (u128::from(more) * 1000).checked_div(millis).unwrap_or(0);
        u64::try_from(per_second).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::stats::WorkerCell;

    use crate::sys::EventFd;
    use crate::types::WorkerId;
    use crate::worker::mailbox::Mailbox;

    fn workers() -> [WorkerLink; 2] {
        [0, 1].map(|number| WorkerLink {
            id: WorkerId(number),
            thread_id: u32::MAX,
            mailbox: Mailbox::new(1, Arc::new(EventFd::new().unwrap())).0,
            cell: Arc::new(WorkerCell::default()),
        })
    }

    #[test]
    fn one_worker_that_stands_still_is_enough() {
        let workers = workers();
        let turn =
            |worker: usize, secs| workers[worker].cell.last_turn.set(Moment::from_secs(secs));
        let mut heartbeats = Heartbeats::new(2);
        assert!(!heartbeats.have_moved(&workers), "none has begun");
        turn(0, 5);
        assert!(!heartbeats.have_moved(&workers), "one has not begun");
        turn(1, 5);
        assert!(heartbeats.have_moved(&workers));
        assert!(!heartbeats.have_moved(&workers), "neither has turned since");
        turn(0, 6);
        assert!(!heartbeats.have_moved(&workers));
        turn(1, 6);
        assert!(heartbeats.have_moved(&workers));
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let workers = workers();
        let mut rate = Rate { datagrams: 0, at: Moment::from_secs(10) };
        workers[0].cell.datagrams.count_many(700, 0);
        workers[1].cell.datagrams.count_many(300, 0);
        assert_eq!(rate.since_last(&workers, Moment::from_secs(20)), 100);
        assert_eq!(rate.since_last(&workers, Moment::from_secs(20)), 0);
        workers[1].cell.datagrams.count_many(9, 0);
        assert_eq!(rate.since_last(&workers, Moment::from_secs(23)), 3);
    }
}
