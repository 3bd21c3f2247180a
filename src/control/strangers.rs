//! Which endpoints have to make room when there are as many as may be.
//!
//! Whoever reaches port 6081 can make endpoints up until there is no room for a real one, and
//! without `-t` none would ever go. So when a new one is refused for that, those go which are idle
//! and *strangers*: the load balancer was never seen to send both ways of a flow through them. An
//! endpoint of a customer who answers is none, and stays however idle it is; one that only sends
//! comes back with its next packet. Where nothing is returned (`--no-return`) flows are not known,
//! and nobody is a stranger.

use std::sync::Arc;
use std::time::Duration;

use crate::stats::EndpointCell;
use crate::types::Moment;

/// Since when a stranger is idle, if it is one: at the earliest since `since`.
pub(super) fn idle_since(cells: &[Arc<EndpointCell>], since: Moment) -> Option<Moment> {
    let is_known = cells.iter().any(|cell| cell.answered_flows.get() > 0);
    let last = cells.iter().map(|cell| cell.last_seen.get()).max();
    (!is_known).then(|| last.unwrap_or(Moment::ZERO).max(since))
}

/// How many may be asked now, once a second: half as many as may come, so that both together fill
/// no log, and hooks have time for others. Who was asked before and has not gone yet, because hooks
/// are slow, counts: more than are wanted would go.
pub(super) fn per_second(endpoint_rate: u16, still_going: usize) -> usize {
    usize::from(endpoint_rate / 2).max(1).saturating_sub(still_going)
}

/// Whether it is a stranger and has been idle for `idle`.
pub(super) fn is_idle(
    cells: &[Arc<EndpointCell>],
    since: Moment,
    idle: Duration,
    now: Moment,
) -> bool {
    idle_since(cells, since).is_some_and(|last| now.since(last) >= idle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_idle_since_their_last_packet() {
        let at = Moment::from_secs;
        let cells = [Arc::new(EndpointCell::default()), Arc::default()];
        let minute = Duration::from_mins(1);
        assert_eq!(idle_since(&cells, at(100)), Some(at(100)));
        cells[1].last_seen.set(at(150));
        assert_eq!(idle_since(&cells, at(100)), Some(at(150)));
        assert!(!is_idle(&cells, at(100), minute, at(209)));
        assert!(is_idle(&cells, at(100), minute, at(210)));
        cells[0].answered_flows.add(1);
        assert!(!is_idle(&cells, at(100), minute, at(9999)), "somebody answers there");
    }

    #[test]
    fn some_go_every_second() {
        assert_eq!([1, 2, 3, 10, 1000].map(|rate| per_second(rate, 0)), [1, 1, 1, 5, 500]);
    }

    #[test]
    fn those_that_have_not_gone_yet_count() {
        assert_eq!([0, 3, 5, 6].map(|going| per_second(10, going)), [5, 2, 0, 0]);
    }
}
