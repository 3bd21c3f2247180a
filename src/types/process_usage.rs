//! What the process and its threads use of the host.

use std::time::Duration;

/// What the process uses, as far as the host tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// CPU time of all threads.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Address space in bytes.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit on them, if there is one.
    pub max_fds: Option<u64>,
    /// When it was started, since 1970.
    pub started: Option<Duration>,
}

/// What a thread got of the processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadUsage {
    /// Time on a processor.
    pub ran: Duration,
    /// Time ready to run, while others ran.
    pub waited: Duration,
}
