//! Who may send, and which endpoints there may be: set up at the start, and told.

use std::os::fd::OwnedFd;

use crate::log::Log;
use crate::log::LogEvent;
use crate::settings::Settings;
use crate::steering::sources::SourceFilter;
use crate::sys;
use crate::sys::Errno;

/// What keeps datagrams of strangers out of the receive sockets.
pub(super) enum Guard {
    /// Anybody may send.
    Nobody,
    /// A program on the sockets, and behind it the workers.
    Kernel(SourceFilter),
    /// The workers alone: the kernel takes no program, for this reason.
    Workers(sys::Error),
}

impl Guard {
    /// The program's counters, if there is one.
    pub(super) fn into_filter(self) -> Option<SourceFilter> {
        match self {
            Self::Kernel(filter) => Some(filter),
            Self::Nobody | Self::Workers(_) => None,
        }
    }
}

/// Keeps strangers out, if there are any.
pub(super) fn keep_out(receivers: &[OwnedFd], settings: &Settings) -> Guard {
    let Some(sources) = &settings.sources_allowed else { return Guard::Nobody };
    match SourceFilter::attach(receivers, sources) {
        Ok(filter) => Guard::Kernel(filter),
        Err(error) => Guard::Workers(error),
    }
}

/// Says who may send, who drops the rest, and which endpoints may come.
pub(super) fn announce(settings: &Settings, guard: &Guard, log: &Log) {
    if let Some(sources) = &settings.sources_allowed {
        let text = match guard {
            Guard::Workers(error) => format!(
                "the workers drop all others, which take room in the receive queues before: \
                 {error}{}",
                if error.errno == Errno::EPERM { "; CAP_BPF would spare that" } else { "" },
            ),
            Guard::Kernel(_) | Guard::Nobody => "the kernel drops all others".to_owned(),
        };
        let line = format_args!("Datagrams are taken from {sources}; {text}.");
        log.line(LogEvent::SourcesAllowed, &[], line);
    }
    if let Some(endpoints) = &settings.endpoints_allowed {
        let count = endpoints.len();
        let line = format_args!("Endpoints are served if they are among {count} that are allowed.");
        log.line(LogEvent::EndpointsAllowed, &[], line);
    }
}
