//! How many endpoints and send sockets the limit on open files carries.
//!
//! Every worker has a queue of both links of every endpoint, and a socket for each source port of
//! the load balancer that it answers to. A program that finds out in the middle of work that there
//! is no descriptor left serves some endpoints and not others; this one divides what there is at
//! the start, and says what to set.

/// Send sockets that a worker has at most.
const SENDERS_MAX: u64 = 1024;

/// Descriptors besides those: log, control, the health port's clients, hooks.
const FIXED: u64 = 200;

/// Descriptors of one worker: ring, eventfd, receive socket, and one to spare.
const PER_WORKER: u64 = 4;

/// What the limit carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Endpoints, no more than were asked for.
    pub(super) endpoints: u16,
    /// Send sockets of each worker.
    pub(super) senders: u16,
    /// The limit that would carry everything.
    pub(super) wanted: u64,
}

impl Budget {
    /// Divides `limit` descriptors among `workers` workers and up to `endpoints_max` endpoints.
    ///
    /// # Errors
    /// The smallest limit that carries one endpoint, if this one does not.
    pub(super) fn new(limit: u64, workers: usize, endpoints_max: u16) -> Result<Self, u64> {
        let workers = workers as u64;
        let fixed = FIXED + PER_WORKER * workers;
        let wanted = fixed + workers * (SENDERS_MAX + 2 * u64::from(endpoints_max));
        // One endpoint, and as many sockets again: a load balancer has several nodes.
        let least = fixed + 4 * workers;
        if limit < least {
            return Err(least);
        }
        let spare = limit - fixed;
        // What the endpoints leave is for sockets, and a quarter in any case.
        let queues = 2 * workers * u64::from(endpoints_max);
        let senders = spare.saturating_sub(queues).max(spare / 4) / workers;
        let senders = senders.clamp(2, SENDERS_MAX);
        let endpoints = (spare - senders * workers) / (2 * workers);
        Ok(Self {
            endpoints: u16::try_from(endpoints).unwrap_or(u16::MAX).min(endpoints_max),
            senders: u16::try_from(senders).expect("at most 1,024"),
            wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_usual_limits_carry() {
        for (limit, workers, asked, endpoints, senders) in [
            (1_048_576, 64, 1024, 1024, 1024),
            (524_288, 64, 1024, 1024, 1024),
            (65_536, 64, 1024, 381, 254),
            (65_536, 64, 100, 100, 816),
            (1024, 2, 1024, 153, 102),
            (1024, 64, 1024, 3, 2),
            (524_288, 256, 4096, 766, 510),
            (u64::MAX, 1, 4096, 4096, 1024),
        ] {
            let budget = Budget::new(limit, workers, asked).unwrap();
            let got = (budget.endpoints, budget.senders);
            assert_eq!(got, (endpoints, senders), "{limit} for {workers} workers");
        }
    }

    #[test]
    fn what_is_divided_is_there() {
        for limit in [216, 300, 1024, 4096, 65_536, 1 << 20] {
            for workers in [1, 2, 3, 64, 256] {
                let Ok(budget) = Budget::new(limit, workers, 4096) else { continue };
                let each = u64::from(budget.senders) + 2 * u64::from(budget.endpoints);
                let all = FIXED + (PER_WORKER + each) * workers as u64;
                assert!(all <= limit, "{limit} for {workers} workers: {budget:?} needs {all}");
                assert!(budget.endpoints >= 1, "{limit} for {workers} workers: {budget:?}");
            }
        }
    }

    #[test]
    fn what_is_wanted_is_enough() {
        let budget = Budget::new(1024, 64, 100).unwrap();
        let enough = Budget::new(budget.wanted, 64, 100).unwrap();
        assert_eq!((enough.endpoints, enough.senders), (100, 1024));
        let least = Budget::new(100, 2, 1024).unwrap_err();
        assert_eq!(least, 216);
        assert!(Budget::new(least, 2, 1024).is_ok());
    }
}
