//! What is known of one send socket.

use std::net::Ipv4Addr;

use crate::types::Moment;

/// Which way the datagrams of a port go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through a socket that is bound to it.
    Own,
    /// Through the raw sender. Try to bind it then.
    Raw(Moment),
    /// None. Try again then.
    Refused(Moment),
}

/// Whether sends of a socket may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// They may.
    Open,
    /// The first send that the kernel shall cut is under way.
    Proving,
    /// A send found no room, or has to be cut by us: the driver will say when to go on.
    Full,
}

/// A socket of the table, or what stands there for a port that has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    pub(super) local: Ipv4Addr,
    pub(super) port: u16,
    pub(super) used: Moment,
    /// Jobs that will leave from here when the plan is carried out.
    pub(super) promised: u32,
    /// Sends started and not completed.
    pub(super) in_flight: u32,
    /// Sends that wait for the gate.
    pub(super) waiting: u32,
    pub(super) way: Way,
    pub(super) gate: Gate,
    /// The kernel has cut a send of this socket.
    pub(super) is_proven: bool,
}

impl Socket {
    pub(super) const fn new((local, port): (Ipv4Addr, u16), used: Moment, way: Way) -> Self {
        Self {
            local,
            port,
            used,
            promised: 0,
            in_flight: 0,
            waiting: 0,
            way,
            gate: Gate::Open,
            is_proven: false,
        }
    }

    /// Whether it may be given to another port, or its datagrams another way.
    pub(super) fn is_idle(&self) -> bool {
        self.promised == 0 && self.in_flight == 0 && self.waiting == 0
    }
}
