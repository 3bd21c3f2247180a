//! What the limits on open files and on locked memory carry.
//!
//! Every worker has a queue of both links of every endpoint, and a socket for each source port of
//! the load balancer that it answers to. A program that finds out in the middle of work that there
//! is no descriptor left serves some endpoints and not others; this one divides what there is at
//! the start, and says what to set. Likewise the workers' rings: their memory is locked.

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

/// Locked memory besides the workers' rings, bytes: the ring of control, and one to probe with.
const LOCKED_FIXED: u64 = 32 << 10;

/// Locked memory of one worker besides the ring's own queues, bytes: its rings of buffers, and
/// what is rounded up to pages.
const LOCKED_PER_WORKER: u64 = 20 << 10;

/// Sizes of a ring's queues, in entries. The completion queue may be shorter than what can be
/// outstanding: the kernel keeps what finds no place (`IORING_FEAT_NODROP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingSizes {
    pub(super) submissions: u32,
    pub(super) completions_max: u32,
}

impl RingSizes {
    /// Where nothing limits them.
    const FULL: Self = Self { submissions: 1024, completions_max: u32::MAX };

    /// The largest queues that `limit` bytes of locked memory carry for `workers` workers, of
    /// which each may have `outstanding` completions at a time.
    ///
    /// # Errors
    /// The smallest limit that will do, if this one does not.
    pub(super) fn new(limit: Option<u64>, workers: usize, outstanding: u32) -> Result<Self, u64> {
        let Some(limit) = limit else { return Ok(Self::FULL) };
        let mut needed = 0;
        for submissions in [1024, 512, 256, 128, 64] {
            let completions = outstanding.next_power_of_two().min(4 * submissions);
            // A submission takes 64 bytes and an index, a completion 16 bytes.
            let queues = u64::from(submissions) * 68 + u64::from(completions) * 16;
            needed = LOCKED_FIXED + (LOCKED_PER_WORKER + queues) * workers as u64;
            if needed <= limit {
                return Ok(Self { submissions, completions_max: completions });
            }
        }
        Err(needed)
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

    #[test]
    fn rings_fit_into_what_may_be_locked() {
        let sizes = |limit, workers| RingSizes::new(Some(limit), workers, 4096);
        let of = |submissions, completions_max| Ok(RingSizes { submissions, completions_max });
        assert_eq!(RingSizes::new(None, 256, 4096), Ok(RingSizes::FULL));
        // What systemd gives every service, and what it gave before.
        assert_eq!(sizes(8 << 20, 2), of(1024, 4096));
        assert_eq!(sizes(8 << 20, 64), of(512, 2048));
        assert_eq!(sizes(8 << 20, 192), of(128, 512));
        assert_eq!(sizes(64 << 10, 1), of(64, 256));
        assert_eq!(sizes(64 << 10, 2), Err((32 << 10) + 2 * ((20 << 10) + 64 * 68 + 256 * 16)));
        assert_eq!(RingSizes::new(Some(8 << 20), 2, 100), of(1024, 128));
    }
}
