//! What the program logs about: a closed list of events, each with an id that never changes.
//!
//! Who reads the log by program looks for the id, not for words. The README lists all of them.

use super::Level;
use super::Section;

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal, $section:ident, $level:ident;)+) => {
        /// What a line is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum LogEvent {
            $($(#[doc = $doc])+ $name,)+
        }

        impl LogEvent {
            /// Every event, in the order of the README's list.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The id: `snake_case`, never changed, never used for something else.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)+
                }
            }

            /// The section that its lines belong to.
            pub const fn section(self) -> Section {
                match self {
                    $(Self::$name => Section::$section,)+
                }
            }

            /// How much its lines matter, unless who logs them says otherwise.
            pub const fn level(self) -> Level {
                match self {
                    $(Self::$name => Level::$level,)+
                }
            }
        }
    };
}

events! {
    /// The log begins; the first line.
    LogStarted = "log_started", Core, Important;
    /// Lines were lost, because the log's reader was too slow or writing failed.
    LogLinesLost = "log_lines_lost", Core, Important;
    /// Lines of an event that came too often were left out.
    LogLinesSuppressed = "log_lines_suppressed", Core, Important;
    /// What of `io_uring` the kernel has.
    IoUring = "io_uring", Core, Info;
    /// Which offloads are in use.
    Offloads = "offloads", Core, Info;
    /// How packets are given to workers.
    Steering = "steering", Core, Info;
    /// No program chooses the queues of any link.
    SteeringUnavailable = "steering_unavailable", Tunnel, Important;
    /// `--busypoll` was given, and the kernel has no such thing.
    BusyPollUnavailable = "busy_poll_unavailable", Udp, Important;
    /// Whose datagrams are taken.
    SourcesAllowed = "sources_allowed", Udp, Important;
    /// How many endpoints are served, of those that may come.
    EndpointsAllowed = "endpoints_allowed", Geneve, Important;
    /// A worker runs on whichever core.
    WorkerUntied = "worker_untied", Core, Important;
    /// The program serves.
    Started = "started", Core, Important;
    /// Something odd about the command line or the host.
    Warning = "warning", Core, Important;
    /// An endpoint has its links.
    EndpointCreated = "endpoint_created", Core, Important;
    /// An endpoint's links go.
    EndpointRemoved = "endpoint_removed", Core, Important;
    /// An endpoint's links could not be made.
    EndpointFailed = "endpoint_failed", Tunnel, Critical;
    /// An endpoint was refused for want of room, or because too many came at once.
    EndpointRefused = "endpoint_refused", Geneve, Critical;
    /// Traffic of an endpoint that `--allow-endpoint` lacks.
    EndpointDenied = "endpoint_denied", Geneve, Important;
    /// Endpoints that are idle go, because another one wants their place.
    EndpointsMadeRoom = "endpoints_made_room", Geneve, Important;
    /// No program chooses the queues of an endpoint's links.
    EndpointUnsteered = "endpoint_unsteered", Tunnel, Important;
    /// A hook failed.
    HookFailed = "hook_failed", Core, Important;
    /// A line that a hook wrote.
    HookOutput = "hook_output", Core, Important;
    /// A queue of a link cannot be used; both links are made again.
    QueueLost = "queue_lost", Tunnel, Critical;
    /// Workers were slow to let go of an endpoint's queues.
    DetachLate = "detach_late", Tunnel, Critical;
    /// An endpoint's links could not be removed.
    LinkRemovalFailed = "link_removal_failed", Tunnel, Critical;
    /// Datagrams from an address that `--allow-source` lacks.
    SourceDenied = "source_denied", Udp, Important;
    /// Workers have no work, or datagrams are given to them in another way now.
    SpreadChanged = "spread_changed", Udp, Important;
    /// Answers cannot leave from a port of the load balancer's.
    SendSocketRefused = "send_socket_refused", Udp, Critical;
    /// They can again.
    SendSocketUsable = "send_socket_usable", Udp, Important;
    /// The kernel refused an offload, which is not used from now on.
    Downgraded = "downgraded", Core, Important;
    /// A worker takes no commands.
    MailboxFull = "mailbox_full", Core, Critical;
    /// A worker failed; the program ends.
    WorkerFailed = "worker_failed", Core, Critical;
    /// A worker did not end in time.
    WorkerLate = "worker_late", Core, Critical;
    /// The thread of links failed.
    NetdevFailed = "netdev_failed", Tunnel, Critical;
    /// The service manager did not take a message.
    ServiceManagerUnreachable = "service_manager_unreachable", Core, Important;
    /// Somebody connected to the health port.
    HealthClient = "health_client", HealthCheck, Debug;
    /// A connection to the health port could not be accepted.
    HealthAcceptFailed = "health_accept_failed", HealthCheck, Important;
    /// The health page's server ended and was started again.
    HealthServerRestarted = "health_server_restarted", HealthCheck, Important;
    /// Another program has the name of the control socket.
    ControlSocketTaken = "control_socket_taken", Core, Important;
    /// The control socket is there, after it was not.
    ControlSocketOpen = "control_socket_open", Core, Important;
    /// A connection to the control socket could not be accepted.
    ControlAcceptFailed = "control_accept_failed", Core, Important;
    /// A datagram of the load balancer's.
    PacketFromGwlb = "packet_from_gwlb", Geneve, Debug;
    /// One that was dropped.
    DropFromGwlb = "drop_from_gwlb", Geneve, Debug;
    /// A packet that the host sends back.
    PacketFromHost = "packet_from_host", Tunnel, Debug;
    /// One that was dropped.
    DropFromHost = "drop_from_host", Tunnel, Debug;
    /// The program was told to end.
    Stopping = "stopping", Core, Important;
    /// It has; the last line.
    Stopped = "stopped", Core, Important;
}

impl LogEvent {
    /// What the text of the log calls its lines where they are left out.
    pub(super) const fn plural(self) -> &'static str {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the others go by their id")]
        match self {
            Self::HealthClient => "health check clients",
            Self::PacketFromGwlb => "packets from the load balancer",
            Self::DropFromGwlb => "drops from the load balancer",
            Self::PacketFromHost => "packets from the host",
            Self::DropFromHost => "drops from the host",
            other => other.id(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_distinct_and_in_snake_case() {
        let ids: HashSet<_> = LogEvent::ALL.iter().map(|event| event.id()).collect();
        assert_eq!(ids.len(), LogEvent::ALL.len());
        for id in ids {
            assert!(id.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{id}");
        }
    }
}
