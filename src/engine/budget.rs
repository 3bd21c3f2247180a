//! What the limits on open files and on locked memory carry.
//!
//! Every worker has a queue of both links of every endpoint, and a daemon that an endpoint's hook
//! leaves behind keeps the pipe of its output. A program that finds out in the middle of work that
//! there is no descriptor left serves some endpoints and not others; this one looks at the start
//! what there is, and says what to set.
//!
//! A send socket has no descriptor: it is closed as soon as it is registered with its worker's
//! ring. But the table of a ring's registered files may not be longer than the limit.
//!
//! Likewise the workers' rings: their memory is locked.

/// Send sockets that a worker has at most. Each is 6.7 KB of the kernel's memory, and every worker
/// has its own: for all 16,384 ports that would be 110 MB a worker, to save a tenth of the CPU time
/// that a packet takes which leaves through the raw sender instead (`udp18-16k` in benches/load).
const SENDERS_MAX: u64 = 1024;

/// Descriptors of the program as a whole: log, control, the health port and the metrics port with
/// all their clients, and some to spare.
const FIXED: u64 = 200;

/// Descriptors of one worker: ring, eventfd, receive socket, and one for a send socket that is
/// about to be registered: it is kept, for a time when there is no other.
const PER_WORKER: u64 = 4;

/// Descriptors of one hook: both handles on the reading end of its pipe, which a daemon keeps, and
/// one on its process.
const PER_HOOK: u64 = 3;

/// Registered files of a worker besides send sockets and endpoints' queues: the raw sender.
const REGISTERED_FIXED: u64 = 1;

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
    /// Divides `limit` descriptors among `workers` workers and up to `endpoints_max` endpoints,
    /// which may have hooks.
    ///
    /// # Errors
    /// The smallest limit that carries one endpoint, if this one does not.
    pub(super) fn new(
        limit: u64,
        workers: usize,
        endpoints_max: u16,
        has_hooks: bool,
    ) -> Result<Self, u64> {
        let workers = workers as u64;
        let fixed = FIXED + PER_WORKER * workers;
        let per_endpoint = 2 * workers + if has_hooks { PER_HOOK } else { 0 };
        let least = fixed + per_endpoint;
        if limit < least {
            return Err(least);
        }
        let endpoints = ((limit - fixed) / per_endpoint).min(endpoints_max.into());
        let senders = (limit - REGISTERED_FIXED - endpoints).min(SENDERS_MAX);
        let queues = per_endpoint * u64::from(endpoints_max);
        let registered = REGISTERED_FIXED + SENDERS_MAX + u64::from(endpoints_max);
        Ok(Self {
            endpoints: u16::try_from(endpoints).expect("no more than were asked for"),
            senders: u16::try_from(senders).expect("at most 1,024"),
            wanted: registered.max(fixed + queues),
        })
    }
}

/// Locked memory besides the workers' rings, pages: the ring of control, and one to probe with. A
/// ring is at least a page for each of its two parts, of 4 KiB or, on some arm64 kernels, of 64.
const LOCKED_FIXED_PAGES: u64 = 8;

/// Locked memory of one worker besides the ring's own queues, pages: its rings of buffers, and
/// what is rounded up.
const LOCKED_PER_WORKER_PAGES: u64 = 5;

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
    /// which each may have `outstanding` completions at a time, with pages of `page_bytes`.
    ///
    /// # Errors
    /// The smallest limit that will do, if this one does not.
    pub(super) fn new(
        limit: Option<u64>,
        workers: usize,
        outstanding: u32,
        page_bytes: u64,
    ) -> Result<Self, u64> {
        let Some(limit) = limit else { return Ok(Self::FULL) };
        let mut needed = 0;
        for submissions in [1024, 512, 256, 128, 64] {
            let completions = outstanding.next_power_of_two().min(4 * submissions);
            // A submission takes 64 bytes and an index, a completion 16 bytes.
            let queues = u64::from(submissions) * 68 + u64::from(completions) * 16;
            let per_worker = LOCKED_PER_WORKER_PAGES * page_bytes + queues;
            needed = LOCKED_FIXED_PAGES * page_bytes + per_worker * workers as u64;
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
            (65_536, 64, 1024, 508, 1024),
            (65_536, 64, 100, 100, 1024),
            (1024, 2, 1024, 204, 819),
            (1024, 64, 1024, 4, 1019),
            (524_288, 256, 4096, 1021, 1024),
            (u64::MAX, 1, 4096, 4096, 1024),
        ] {
            let budget = Budget::new(limit, workers, asked, false).unwrap();
            let got = (budget.endpoints, budget.senders);
            assert_eq!(got, (endpoints, senders), "{limit} for {workers} workers");
        }
        let hooks = Budget::new(1024, 2, 1024, true).unwrap();
        assert_eq!(hooks.endpoints, 816 / 7, "a daemon of each costs three");
    }

    #[test]
    fn what_is_divided_is_there() {
        for limit in [208, 216, 300, 1024, 4096, 65_536, 1 << 20] {
            for (workers, has_hooks) in
                [(1, true), (2, false), (2, true), (64, false), (64, true), (256, true)]
            {
                let Ok(budget) = Budget::new(limit, workers, 4096, has_hooks) else { continue };
                let endpoints = u64::from(budget.endpoints);
                let queues = 2 * endpoints * workers as u64;
                let pipes = PER_HOOK * endpoints * u64::from(has_hooks);
                let all = FIXED + PER_WORKER * workers as u64 + queues + pipes;
                assert!(all <= limit, "{limit} for {workers} workers: {budget:?} needs {all}");
                let registered = REGISTERED_FIXED + u64::from(budget.senders) + endpoints;
                assert!(registered <= limit, "{limit} for {workers} workers: {budget:?}");
                assert!(endpoints >= 1, "{limit} for {workers} workers: {budget:?}");
            }
        }
    }

    #[test]
    fn what_is_wanted_is_enough() {
        for (workers, asked) in [(64, 100), (1, 1), (2, 4096)] {
            let few = Budget::new(700, workers, asked, true).unwrap();
            let enough = Budget::new(few.wanted, workers, asked, true).unwrap();
            assert_eq!((enough.endpoints, enough.senders), (asked, 1024));
        }
        let least = Budget::new(100, 2, 1024, true).unwrap_err();
        assert_eq!(least, 215);
        assert!(Budget::new(least, 2, 1024, true).is_ok());
        assert!(Budget::new(least - 1, 2, 1024, true).is_err());
    }

    #[test]
    fn rings_fit_into_what_may_be_locked() {
        let sizes = |limit, workers| RingSizes::new(Some(limit), workers, 4096, 4096);
        let of = |submissions, completions_max| Ok(RingSizes { submissions, completions_max });
        assert_eq!(RingSizes::new(None, 256, 4096, 4096), Ok(RingSizes::FULL));
        // What systemd gives every service, and what it gave before.
        assert_eq!(sizes(8 << 20, 2), of(1024, 4096));
        assert_eq!(sizes(8 << 20, 64), of(512, 2048));
        assert_eq!(sizes(8 << 20, 192), of(128, 512));
        assert_eq!(sizes(64 << 10, 1), of(64, 256));
        assert_eq!(sizes(64 << 10, 2), Err((32 << 10) + 2 * ((20 << 10) + 64 * 68 + 256 * 16)));
        assert_eq!(RingSizes::new(Some(8 << 20), 2, 100, 4096), of(1024, 128));
    }

    /// Two parts of each ring, and two rings of buffers, are four pages at least.
    #[test]
    fn rings_of_a_machine_with_large_pages_take_more() {
        for workers in [1, 4, 16] {
            let parts = 4 * (64 << 10) * workers as u64;
            let least = RingSizes::new(Some(parts), workers, 4096, 64 << 10).unwrap_err();
            assert!(RingSizes::new(Some(least), workers, 4096, 64 << 10).is_ok());
            assert!(least > parts && least < 4 * parts, "{least} for {workers}");
        }
    }
}
