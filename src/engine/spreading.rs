//! Which worker gets which packet, as it is set up at the start.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::control::spread::Queues;
use crate::control::spread::Spreading;
use crate::log::Log;
use crate::log::LogEvent;
use crate::log::Value;
use crate::settings::Settings;
use crate::settings::Steer;
use crate::steering;
use crate::sys::Errno;

/// Sets up which worker gets which packet. None of it is needed: what the kernel refuses costs
/// speed, and is told.
pub(super) fn set_up(receivers: Vec<OwnedFd>, settings: &mut Settings) -> Spreading {
    let receivers: Vec<_> = receivers.into_iter().map(Arc::new).collect();
    let asked = settings.steer;
    if receivers.len() < 2 {
        return Spreading { receivers, ..Spreading::of_one_worker() };
    }
    let by_flow = asked == Steer::Inner;
    let steered = if by_flow {
        steering::receivers::steer_by_flow(&receivers)
    } else {
        steering::receivers::steer_by_outer_path(&receivers)
    };
    if let Err(error) = &steered
        && by_flow
    {
        settings.warnings.push(format!("--steer inner is without effect: {error}."));
    }
    let queues = match settings.tun_steering.then(steering::links::probe) {
        None => Queues::Kernel,
        Some(Ok(())) => Queues::Program,
        Some(Err(error)) => Queues::Refused(error),
    };
    Spreading { receivers, asked, by_flow: by_flow && steered.is_ok(), queues }
}

/// Says which worker gets which packet, and what the kernel refused of it.
pub(super) fn announce(spreading: &Spreading, log: &Log) {
    let Spreading { receivers, asked, by_flow, queues } = spreading;
    if receivers.len() > 1 {
        let by = if *by_flow { "flow inside" } else { "outer path" };
        let may_change = if *asked == Steer::Auto { ", while that gives all work" } else { "" };
        let by_program = if *queues == Queues::Program { "a program" } else { "the kernel" };
        log.line(
            LogEvent::Steering,
            &[],
            format_args!("Steering: datagrams by their {by}{may_change}, queues by {by_program}."),
        );
    }
    if let Queues::Refused(error) = queues {
        log.line(
            LogEvent::SteeringUnavailable,
            &[("reason", Value::Text(error))],
            format_args!(
                "No program chooses the queues of interfaces, which costs speed where there are \
                 several workers: {error}{}.",
                if error.errno == Errno::EPERM { "; CAP_BPF would allow it" } else { "" },
            ),
        );
    }
}
