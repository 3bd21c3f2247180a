//! What the control thread and a worker say to each other, and the admission they share.
//!
//! Both directions are bounded channels of typed messages with an eventfd beside them, because
//! both ends sleep in a ring. Capacities are such that a full channel means a worker that no
//! longer turns, which health reports on its own.
//!
//! Life of an endpoint, as one worker sees it:
//!
//! ```text
//!             first datagram, admitted          Attach            Closing
//!   (unknown) ───────────────────────▶ Pending ────────▶ Active ─────────▶ Closing
//!       ▲        Event::EndpointSeen      │  Forget                           │ Detach
//!       └─────────────────────────────────┴───────────────────────────────────┘
//!                                                             Event::Detached
//! ```
//!
//! While an endpoint is `Pending` or `Closing` its datagrams are held; after `Attach` they go
//! first, in order.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

pub use super::admission::Admission;
pub use super::admission::AdmissionPlan;
use crate::flow::Templates;
use crate::stats::EndpointCell;
use crate::sync;
use crate::sync::Receiver;
use crate::sync::Sender;
use crate::sync::TrySendError;
use crate::sys;
use crate::sys::EventFd;
use crate::types::Downgrade;
use crate::types::DropReason;
use crate::types::EndpointId;
use crate::types::EndpointRef;
use crate::types::Moment;
use crate::types::OuterPath;
use crate::types::Side;
use crate::types::TcpSegmentMax;
use crate::types::WorkerId;

/// Everything a worker needs to serve an endpoint.
#[derive(Debug)]
pub struct Attachment {
    /// The id that datagrams carry.
    pub id: EndpointId,
    /// The endpoint's slot in every table, and which life of the slot this is.
    pub endpoint: EndpointRef,
    /// The endpoint's GENEVE header templates, shared by all workers.
    pub templates: Arc<Templates>,
    /// This worker's counters for the endpoint.
    pub cell: Arc<EndpointCell>,
    /// This worker's queue of `gwi` and, where packets are returned, of `gwo`, in the order of
    /// [`Side::BOTH`]. The worker registers them with its ring and lets go of the `Arc`; the netdev
    /// thread closes them.
    pub queues: ArrayVec<Arc<OwnedFd>, 2>,
}

/// What may change while the program runs. Everything else is fixed at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Idle time after which a TCP flow is forgotten.
    pub tcp_idle: Duration,
    /// Idle time after which any other flow is forgotten.
    pub other_idle: Duration,
    /// What TCP connections may agree on as their largest segment, if that is limited.
    pub clamp_mss: Option<TcpSegmentMax>,
    /// Which packets the log wants to see.
    pub samples: SampleWish,
}

impl Policy {
    /// Idle time of everything but TCP at a load balancer; it cannot be changed (AWS guide,
    /// "Gateway Load Balancers", *Idle timeout*).
    pub const OTHER_IDLE: Duration = Duration::from_mins(2);

    /// The policy with this idle time for TCP.
    pub fn new(tcp_idle: Duration) -> Self {
        let samples = SampleWish::default();
        Self { tcp_idle, other_idle: Self::OTHER_IDLE, clamp_mss: None, samples }
    }
}

/// Which packets the log wants to see; few of them are really looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleWish {
    /// All that come in, from either side.
    pub packets: bool,
    /// Those that are dropped for what they are.
    pub drops: bool,
}

/// Bytes of a packet that a sample keeps: every header, and a taste of what follows.
const SAMPLE_BYTES: usize = 256;

/// A look at one packet, for the log.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Who saw it.
    pub worker: WorkerId,
    /// Where it came from.
    pub sight: Sight,
    /// Why it was dropped, if it is shown for that.
    pub dropped: Option<DropReason>,
    /// Its length in bytes; 0 if there is only a number to tell.
    pub len: usize,
    /// Its first bytes.
    pub bytes: ArrayVec<u8, SAMPLE_BYTES>,
    /// Packets of the same kind that came before it, and were not looked at.
    pub passed_over: u64,
}

impl Sample {
    /// A sample of the packet `bytes`, of which it keeps the start.
    pub fn new(
        worker: WorkerId,
        sight: Sight,
        dropped: Option<DropReason>,
        bytes: &[u8],
        passed_over: u64,
    ) -> Self {
        let kept = bytes.iter().copied().take(SAMPLE_BYTES).collect();
        Self { worker, sight, dropped, len: bytes.len(), bytes: kept, passed_over }
    }
}

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A datagram from the load balancer; the bytes begin with the GENEVE header.
    Datagram(OuterPath),
    /// A packet that the host left in an endpoint's link; the bytes begin with the IP header.
    Packet(EndpointId, Side),
}

/// From control to a worker.
#[derive(Debug)]
pub enum Command {
    /// CREATE has ended: serve the endpoint, held datagrams first.
    Attach(Box<Attachment>),
    /// DESTROY is about to run: hold datagrams, write nothing more to `gwi`.
    Closing(EndpointRef),
    /// DESTROY has ended: stop reading, drop what waits for a full send socket, let go of the
    /// queues, answer [`Event::Detached`].
    Detach(EndpointRef),
    /// The endpoint could not be set up: count what is held as `reason` and forget the id.
    Forget(EndpointId, DropReason),
    /// Let the kernel merge no more datagrams.
    StopMerging,
    /// New limits and time-outs.
    Policy(Arc<Policy>),
    /// End: cancel every operation, wait for their completions, return.
    Stop,
}

/// No answer can leave from an address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Ours, and the load balancer's source port.
    pub from: SocketAddrV4,
    /// Why no socket can be bound there. There is no raw socket either.
    pub errno: sys::Errno,
    /// When it was tried.
    pub at: Moment,
}

/// From a worker to control.
#[derive(Debug)]
pub enum Event {
    /// A datagram with an id that this worker does not know may be announced
    /// ([`Admission::announce`]) and is held.
    EndpointSeen(WorkerId, EndpointId),
    /// The queues of the endpoint are out of this worker's ring.
    Detached(WorkerId, EndpointRef),
    /// Reading a queue failed for good: its link is gone.
    QueueLost(WorkerId, EndpointRef, Side, sys::Errno),
    /// Packets were dropped because of this; told again while it is so and packets come.
    SendRefused(Refusal),
    /// The kernel refused this, and this worker will not ask for it again.
    Downgraded(WorkerId, Downgrade, sys::Errno),
    /// The worker's receive socket or ring failed for good; the worker has ended.
    Failed(WorkerId, sys::Error),
}

/// A sender with the eventfd that wakes the other end.
#[derive(Debug)]
pub struct Mailbox<T> {
    queue: Sender<T>,
    wake: Arc<EventFd>,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), wake: Arc::clone(&self.wake) }
    }
}

impl<T> Mailbox<T> {
    /// A mailbox of `capacity` messages: the end that sends and the end that receives.
    pub fn new(capacity: usize, wake: Arc<EventFd>) -> (Self, Receiver<T>) {
        let (queue, receiver) = sync::bounded(capacity);
        (Self { queue, wake }, receiver)
    }

    /// Leaves a message and wakes the other end. Never blocks.
    ///
    /// # Errors
    /// Gives the message back if the box is full or nobody will read it any more.
    pub fn post(&self, message: T) -> Result<(), T> {
        match self.queue.try_send(message) {
            Ok(()) => {
                self.wake.notify();
                Ok(())
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => Err(message),
        }
    }
}
