//! What is being lost of late, and what to do: counters that have just grown, as sentences.
//!
//! A number that was large yesterday tells nobody that something is wrong now. Looked at whenever a
//! page is made; what has grown since the page that somebody saw last, or a moment ago, is told.

use std::time::Duration;

use crate::stats::DropsSnapshot;
use crate::stats::EndpointRow;
use crate::stats::report::remedies::remedy;
use crate::types::DropReason;
use crate::types::Moment;
use crate::types::Side;

/// How long a loss is told for.
const RECENT: Duration = Duration::from_secs(3);

/// Endpoints that are named.
const NAMED_MAX: usize = 16;

/// A counter, and when it was last seen to have grown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    count: u64,
    grew: Option<Moment>,
}

impl Growth {
    /// Takes notice of the count now. Returns whether it grew of late, or after `shown`.
    pub(super) fn look(&mut self, count: u64, shown: Moment, now: Moment) -> bool {
        // It shrinks when an endpoint goes.
        if count > self.count {
            self.grew = Some(now);
        }
        self.count = count;
        self.grew.is_some_and(|grew| grew > shown || now.since(grew) < RECENT)
    }
}

/// What is watched of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watched {
    /// What its `gwi` dropped because it was down.
    down: Growth,
    /// What its queues dropped because they were full.
    full: [Growth; 2],
}

/// What is lost of all endpoints together.
#[derive(Debug, Default)]
pub(super) struct Losses {
    sends: Growth,
    queues: Growth,
    log_lines: Growth,
    /// In the order of [`TOLD`].
    told: [Growth; TOLD.len()],
    warnings: Vec<String>,
}

/// Drops that nobody wants, and that nothing else warns of.
const TOLD: [DropReason; 3] = [DropReason::FlowLimit, DropReason::NoBuffer, DropReason::SendFull];

/// What the whole program has lost since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) drops: DropsSnapshot,
    /// At the receive sockets.
    pub(super) socket_drops: u64,
    /// Of the log.
    pub(super) log_lines: u64,
}

impl Losses {
    /// Looks at the counters of a page.
    /// `refusals` says that it is known already why sends fail, `shown` when the last page was made
    /// that somebody saw.
    pub(super) fn look<'a>(
        &mut self,
        endpoints: impl Iterator<Item = (&'a EndpointRow, &'a mut Watched)>,
        sums: &Sums,
        refusals: bool,
        shown: Moment,
        now: Moment,
    ) {
        self.warnings.clear();
        let mut send_errors = 0;
        for (row, watched) in endpoints {
            send_errors += row.counters.encap_drops.get(DropReason::SendError);
            let lost = row.counters.decap_drops.get(DropReason::TunDown);
            // Of a link that is gone something else is told.
            if watched.down.look(lost, shown, now) && row.healthy && self.warnings.len() < NAMED_MAX
            {
                let gwi = row.link(Side::Gwi);
                self.warnings.push(format!(
                    "{gwi} is down, and its packets are dropped: ip link set {gwi} up"
                ));
            }
            for side in Side::BOTH {
                let dropped = row.queue_drops[side.index()];
                let is_full = watched.full[side.index()].look(dropped, shown, now);
                if is_full && self.warnings.len() < NAMED_MAX {
                    let link = row.link(side);
                    self.warnings.push(format!(
                        "Linux drops what this host sends into {link}, because a queue is full: \
                         give the workers more cores"
                    ));
                }
            }
        }
        if self.sends.look(send_errors, shown, now) && !refusals {
            self.warnings.push(
                "Linux refuses to send to the load balancer: look at ip route get to its \
                 address, at ip addr, and at the firewall's output rules"
                    .to_owned(),
            );
        }
        if self.queues.look(sums.socket_drops, shown, now) {
            self.warnings.push(
                "Linux drops datagrams because a receive queue is full: give the workers more \
                 cores, or a longer queue with --rcvbuf"
                    .to_owned(),
            );
        }
        for (reason, growth) in TOLD.into_iter().zip(&mut self.told) {
            if growth.look(sums.drops.get(reason), shown, now) {
                self.warnings.push(format!("packets are dropped as {reason}: {}", remedy(reason)));
            }
        }
        if self.log_lines.look(sums.log_lines, shown, now) {
            self.warnings.push(
                "lines of the log are lost: its reader is too slow, its disk is full, or journald \
                 is gone"
                    .to_owned(),
            );
        }
    }

    /// What an operator should look at.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::EndpointCell;
    use crate::types::EndpointId;

    #[test]
    fn what_grows_is_told_and_what_has_grown_is_not() {
        let cells = [EndpointCell::default()].map(std::sync::Arc::new);
        let (mut losses, mut watched) = (Losses::default(), Watched::default());
        let mut shown = Moment::ZERO;
        let mut look = |secs: u64, (sockets, queues): (u64, u64), healthy: bool| {
            let now = Moment::from_secs(100 + secs);
            let mut row = EndpointRow::new(EndpointId(9), Moment::ZERO, now, &cells);
            row.healthy = healthy;
            row.queue_drops[1] = queues;
            let sums = Sums { socket_drops: sockets, ..Sums::default() };
            losses.look([(&row, &mut watched)].into_iter(), &sums, false, shown, now);
            shown = now;
            losses.warnings().map(|text| text[..10].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(look(0, (0, 0), true), [""; 0]);
        cells[0].decap_drops.add(DropReason::TunDown, 5);
        assert_eq!(look(1, (0, 0), true), ["gwi-9 is d"]);
        assert_eq!(look(2, (0, 0), false), [""; 0], "it is deleted");
        assert_eq!(look(3, (0, 0), true), ["gwi-9 is d"]);
        assert_eq!(look(4, (0, 0), true), [""; 0]);
        cells[0].encap_drops.add(DropReason::SendError, 1);
        assert_eq!(look(50, (7, 0), true), ["Linux refu", "Linux drop"]);
        assert_eq!(look(60, (7, 1), true), ["Linux drop"]);
        assert_eq!(look(70, (7, 1), true), [""; 0]);
    }

    #[test]
    fn who_looks_seldom_misses_nothing_that_others_have_seen() {
        let mut losses = Losses::default();
        let mut look = |secs: u64, socket_drops: u64, shown: u64| {
            let [shown, now] = [shown, secs].map(|secs| Moment::from_secs(100 + secs));
            let sums = Sums { socket_drops, ..Sums::default() };
            losses.look(std::iter::empty(), &sums, false, shown, now);
            losses.warnings().count()
        };
        assert_eq!(look(0, 0, 0), 0);
        assert_eq!((look(2, 5, 2), look(4, 5, 4), look(6, 5, 6)), (1, 1, 0), "for the live page");
        assert_eq!(look(10, 5, 0), 1, "for a health check, which saw the page at 0 s");
        assert_eq!(look(20, 5, 10), 0);
    }

    #[test]
    fn what_overload_costs_is_told_and_what_others_send_in_vain_is_not() {
        let mut losses = Losses::default();
        let mut look = |secs: u64, sums: Sums| {
            let now = Moment::from_secs(100 + secs);
            losses.look(std::iter::empty(), &sums, false, now, now);
            losses.warnings().collect::<Vec<_>>()
        };
        let cell = EndpointCell::default();
        cell.encap_drops.add(DropReason::FlowUnknown, 7);
        let sums = || Sums { drops: (&cell.encap_drops).into(), ..Sums::default() };
        assert_eq!(look(0, sums()), [""; 0]);
        cell.encap_drops.add(DropReason::FlowLimit, 1);
        assert_eq!(look(1, sums()), ["packets are dropped as flow_limit: raise --max-flows"]);
        let sums = Sums { log_lines: 1, ..sums() };
        assert!(look(10, sums)[0].starts_with("lines of the log are lost: "));
        assert_eq!(look(20, sums), [""; 0]);
    }
}
