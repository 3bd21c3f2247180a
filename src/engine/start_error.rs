//! Why the program cannot start: what, where, and what to do, in one line, with an exit code that
//! tells a supervisor which kind it is.

use crate::control::ControlError;
use crate::control::hooks::HookError;
use crate::sys;
use crate::sys::Errno;

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A hook could not run, or any user could change it.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The health check port cannot be had.
    #[error("cannot listen for health checks: {error}; {remedy}")]
    HealthPort {
        /// What failed.
        error: sys::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The metrics port cannot be had.
    #[error("cannot listen for --metrics-listen: {error}; {remedy}")]
    MetricsPort {
        /// What failed.
        error: sys::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A capability or a permission is missing.
    #[error("{error}: {remedy}")]
    Permission {
        /// What failed.
        error: sys::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A device or a kernel feature is missing.
    #[error("{error}: {remedy}")]
    Missing {
        /// What failed.
        error: sys::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// UDP port 6081 cannot be had.
    #[error("cannot receive GENEVE: {0}; another program has the port: see ss -lunp sport = 6081")]
    UdpPort(sys::Error),
    /// The limit on open files does not carry one endpoint.
    #[error(
        "the limit on open files is {limit}, which does not carry one endpoint with {workers} \
         workers; set LimitNOFILE={least} or more, or fewer --workers"
    )]
    OpenFiles {
        /// The hard limit.
        limit: u64,
        /// How many workers there would be.
        workers: usize,
        /// The smallest limit that will do.
        least: u64,
    },
    /// The limit on locked memory does not carry the smallest rings.
    #[error(
        "the limit on locked memory is {} KiB, which does not carry the rings of {workers} \
         workers; set LimitMEMLOCK={}K or more, or give the unit CAP_IPC_LOCK, or fewer --workers",
        limit / 1024, least.div_ceil(1024)
    )]
    LockedMemory {
        /// The hard limit, bytes.
        limit: u64,
        /// How many workers there would be.
        workers: usize,
        /// The smallest limit that will do, bytes.
        least: u64,
    },
    /// `io_uring` is forbidden or fails.
    #[error(
        "cannot use io_uring: {0}; look at kernel.io_uring_disabled, at the container's seccomp \
         profile and at the limit on locked memory"
    )]
    IoUring(sys::Error),
    /// The control thread has failed, or a worker has, in the middle of work.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The host is out of something that every program needs.
    #[error("{0}")]
    Host(#[from] sys::Error),
}

impl StartError {
    /// What a service manager shows as the error.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Hook(_) => Errno::EINVAL,
            Self::OpenFiles { .. } => Errno::EMFILE,
            Self::LockedMemory { .. } => Errno::ENOMEM,
            Self::HealthPort { error, .. }
            | Self::MetricsPort { error, .. }
            | Self::Permission { error, .. }
            | Self::Missing { error, .. }
            | Self::UdpPort(error)
            | Self::IoUring(error)
            | Self::Host(error)
            | Self::Control(ControlError::Wake(error) | ControlError::WorkerFailed(_, error)) => {
                error.errno
            }
            Self::Control(ControlError::Start(error)) => {
                Errno::from_raw(error.raw_os_error().unwrap_or(0))
            }
        }
    }

    /// The exit code: 1 hook, health or metrics port, 2 permission, 3 device, kernel feature or
    /// limit, 4 UDP port, 5 `io_uring`, at start or later.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Hook(_) | Self::HealthPort { .. } | Self::MetricsPort { .. } | Self::Host(_) => 1,
            Self::Permission { .. } => 2,
            Self::Missing { .. } | Self::OpenFiles { .. } | Self::LockedMemory { .. } => 3,
            Self::UdpPort(_) => 4,
            Self::IoUring(_) | Self::Control(_) => 5,
        }
    }
}

/// Why links cannot be made: a device, a capability, or the device's own permissions.
pub(super) fn no_tun(error: sys::Error) -> StartError {
    match (error.errno, error.call) {
        (Errno::EPERM | Errno::EACCES, "open") => StartError::Permission {
            error,
            remedy: "let this user read and write the device (mode 0666 is usual), or give the \
                     unit DeviceAllow=/dev/net/tun rw",
        },
        (Errno::EPERM | Errno::EACCES, _) => StartError::Permission {
            error,
            remedy: "needs CAP_NET_ADMIN; start as root or give the unit that capability",
        },
        _ => StartError::Missing {
            error,
            remedy: "load the tun module; in a container, add --device /dev/net/tun",
        },
    }
}

pub(super) fn no_health_port(error: sys::Error) -> StartError {
    let remedy = if matches!(error.errno, Errno::EACCES | Errno::EPERM) {
        "a port below 1024 needs CAP_NET_BIND_SERVICE; give the unit that capability, or choose \
         another port with -p"
    } else {
        "choose another port with -p"
    };
    StartError::HealthPort { error, remedy }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "errno is an open set")]
pub(super) fn no_metrics_port(error: sys::Error) -> StartError {
    let remedy = match error.errno {
        Errno::EACCES | Errno::EPERM => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE; give the unit that capability, or \
             choose another port"
        }
        Errno::EADDRNOTAVAIL => "this host does not have that address; see ip address",
        _ => "choose another port",
    };
    StartError::MetricsPort { error, remedy }
}
