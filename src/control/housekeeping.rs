//! What is due every second: judging, looking at what changes by itself, and telling of it.

use std::rc::Rc;
use std::time::Duration;

use tokio::time;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;

use super::Control;
use super::console;
use super::strangers;
use crate::log::LogEvent;
use crate::log::Value;
use crate::settings::Settings;
use crate::sys::clock;
use crate::sys::udp;
use crate::types::Moment;

/// How often the state of the program is looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How often the allowances of the instance are looked at: the driver asks its device for them.
const ALLOWANCES_PAUSE: Duration = Duration::from_secs(5);

impl Control {
    /// What is due every second.
    pub(super) fn keep_house(self: &Rc<Self>) {
        let now = clock::now();
        self.try_refused_sources();
        self.status.borrow_mut().judge(&self.workers, now);
        self.look();
        self.status.borrow().ties.tie_again(&self.workers);
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

    /// Looks whether links can be made again. New endpoints would show that too, but a load
    /// balancer sends none to a target that is not healthy.
    async fn look_for_device(self: Rc<Self>) {
        if self.netdev.probe().await.is_ok() {
            self.status.borrow_mut().set_no_device(None);
        }
    }
}

/// The clock of the housekeeping. After a standstill it goes on from there, and does not make up
/// for what was missed with a burst of judgements.
pub(super) fn interval() -> Interval {
    let mut interval = time::interval(HOUSEKEEPING);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
