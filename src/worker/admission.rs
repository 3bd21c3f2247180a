//! Who may become an endpoint: the operator's list, a limit on their number, and a rate.
//!
//! Decided twice. A worker that sees an id for the first time asks [`Admission::announce`], which
//! takes one atomic, so that a flood of ids costs control next to nothing. Every worker may see the
//! same endpoint first: for each creation there may be as many announcements as there are workers.
//! Control, which knows what is new, asks [`Admission::begin`], and has the last word.

use std::time::Duration;

use crate::sync::AtomicBool;
use crate::sync::AtomicU32;
use crate::sync::AtomicU64;
use crate::sync::Ordering;
use crate::sync::Pace;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::Moment;

/// What the operator allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionPlan {
    /// Workers that may announce an endpoint.
    pub workers: u32,
    /// Endpoints at a time.
    pub endpoints_max: u32,
    /// Endpoints at once, at least 1.
    pub burst: u32,
    /// Then one per this time.
    pub interval: Duration,
    /// These, in ascending order, and no others; nothing if any may come.
    pub allowed: Option<Vec<EndpointId>>,
}

/// The state of admission, for all workers and control.
#[derive(Debug)]
pub struct Admission {
    allowed: Option<Vec<EndpointId>>,
    announcing: Pace,
    creating: Pace,
    free: AtomicU32,
    limit: u32,
    refused: AtomicBool,
    /// Somebody was refused for want of room since control has asked.
    is_room_wanted: AtomicBool,
    /// The first id that was not on the list, or [`NOBODY`].
    denied: AtomicU64,
}

/// One id of 2⁶⁴, the denial of which is not told.
const NOBODY: u64 = u64::MAX;

impl Admission {
    /// Nobody is there yet.
    pub fn new(plan: AdmissionPlan) -> Self {
        let AdmissionPlan { workers, endpoints_max, burst, interval, allowed } = plan;
        Self {
            allowed,
            announcing: Pace::new(burst.saturating_mul(workers), interval / workers.max(1)),
            creating: Pace::new(burst, interval),
            free: AtomicU32::new(endpoints_max),
            limit: endpoints_max,
            refused: AtomicBool::new(false),
            is_room_wanted: AtomicBool::new(false),
            denied: AtomicU64::new(NOBODY),
        }
    }

    /// For a worker: whether it may tell control of an endpoint that it does not know.
    ///
    /// # Errors
    /// Why not: [`DropReason::EndpointDenied`], [`DropReason::EndpointLimit`] or
    /// [`DropReason::EndpointRate`].
    pub fn announce(&self, id: EndpointId, now: Moment) -> Result<(), DropReason> {
        if let Some(allowed) = &self.allowed
            && allowed.binary_search(&id).is_err()
        {
            if self.denied.load(Ordering::Relaxed) == NOBODY {
                self.denied.store(id.0, Ordering::Relaxed);
            }
            return Err(DropReason::EndpointDenied);
        }
        if self.announcing.take(now) {
            return Ok(());
        }
        let is_full = self.free.load(Ordering::Relaxed) == 0;
        Err(self.refuse(if is_full { DropReason::EndpointLimit } else { DropReason::EndpointRate }))
    }

    /// For control: takes a permit for a new endpoint, to be given back with [`Self::release`].
    ///
    /// # Errors
    /// [`DropReason::EndpointLimit`] or [`DropReason::EndpointRate`]; nothing is taken then.
    pub fn begin(&self, now: Moment) -> Result<(), DropReason> {
        if self.free.load(Ordering::Relaxed) == 0 {
            return Err(self.refuse(DropReason::EndpointLimit));
        }
        if !self.creating.take(now) {
            return Err(self.refuse(DropReason::EndpointRate));
        }
        // Control alone takes and gives.
        self.free.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a permit back.
    pub fn release(&self) {
        let before = self.free.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before < self.limit, "a permit was given back twice");
    }

    fn refuse(&self, reason: DropReason) -> DropReason {
        self.refused.store(true, Ordering::Relaxed);
        if reason == DropReason::EndpointLimit {
            self.is_room_wanted.store(true, Ordering::Relaxed);
        }
        reason
    }

    /// Whether an endpoint was refused since this was last asked, one that the operator has not
    /// denied.
    pub fn has_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

    /// Whether one was refused for want of room since this was last asked, and still there is none.
    pub fn is_room_wanted(&self) -> bool {
        self.is_room_wanted.swap(false, Ordering::Relaxed) && self.free.load(Ordering::Relaxed) == 0
    }

    /// The first endpoint that came and is not on the operator's list.
    pub fn first_denied(&self) -> Option<EndpointId> {
        let id = self.denied.load(Ordering::Relaxed);
        (id != NOBODY).then_some(EndpointId(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EndpointId = EndpointId(7);

    fn admission(endpoints_max: u32, burst: u32, interval: Duration) -> Admission {
        let plan = AdmissionPlan { workers: 2, endpoints_max, burst, interval, allowed: None };
        Admission::new(plan)
    }

    #[test]
    fn the_limit_counts_permits() {
        let admission = admission(2, 100, Duration::from_millis(1));
        let now = Moment::from_secs(5);
        assert_eq!(admission.begin(now), Ok(()));
        assert_eq!(admission.begin(now), Ok(()));
        assert!(!admission.has_refused() && !admission.is_room_wanted());
        assert_eq!(admission.begin(now), Err(DropReason::EndpointLimit));
        assert!(admission.has_refused() && admission.is_room_wanted());
        assert!(!admission.is_room_wanted(), "nobody has asked again");
        assert_eq!(admission.begin(now), Err(DropReason::EndpointLimit));
        admission.release();
        assert!(!admission.is_room_wanted(), "there is room by now");
        assert_eq!(admission.begin(now), Ok(()));
    }

    #[test]
    fn a_burst_then_one_per_interval() {
        let interval = Duration::from_millis(100);
        let admission = admission(1000, 3, interval);
        let mut now = Moment::from_secs(5);
        for _ in 0..3 {
            assert_eq!(admission.begin(now), Ok(()));
        }
        assert_eq!(admission.begin(now), Err(DropReason::EndpointRate));
        for _ in 0..4 {
            now = now.after(interval);
            assert_eq!(admission.begin(now), Ok(()));
            assert_eq!(admission.begin(now), Err(DropReason::EndpointRate));
        }
        now = now.after(Duration::from_mins(1));
        let begun = (0..10).filter(|_| admission.begin(now).is_ok()).count();
        assert_eq!(begun, 3, "quiet time refills the burst and no more");
    }

    /// Every worker sees a packet of every endpoint: none of them is refused, however late control
    /// hears of the first.
    #[test]
    fn all_workers_may_announce_a_whole_burst() {
        let admission = admission(3, 3, Duration::from_millis(100));
        let now = Moment::from_secs(5);
        for id in (0..3).flat_map(|id| [EndpointId(id); 2]) {
            assert_eq!(admission.announce(id, now), Ok(()));
        }
        assert!(!admission.has_refused());
        assert_eq!(admission.announce(ID, now), Err(DropReason::EndpointRate));
        assert!(admission.has_refused());
        for _ in 0..3 {
            assert_eq!(admission.begin(now), Ok(()));
        }
        assert_eq!(admission.announce(ID, now), Err(DropReason::EndpointLimit));
    }

    #[test]
    fn only_the_operator_s_own() {
        let allowed = Some(vec![EndpointId(3), EndpointId(7)]);
        let plan = AdmissionPlan {
            workers: 1,
            endpoints_max: 9,
            burst: 9,
            interval: Duration::from_secs(1),
            allowed,
        };
        let admission = Admission::new(plan);
        let now = Moment::from_secs(5);
        assert_eq!(admission.announce(ID, now), Ok(()));
        assert_eq!(admission.first_denied(), None);
        for id in [5, 8, 0] {
            let outcome = admission.announce(EndpointId(id), now);
            assert_eq!(outcome, Err(DropReason::EndpointDenied));
        }
        assert_eq!(admission.first_denied(), Some(EndpointId(5)));
        assert!(!admission.has_refused(), "that is no surprise to the operator");
    }
}
