//! The load: a thread that stands for a Gateway Load Balancer node.
//!
//! Everything is built before the first send ([`crate::packet`], [`crate::workload`]). Flow *f*
//! belongs to outer source port *f* mod *ports*. The flows of a port take turns, each with a burst,
//! until the port's packets repeat; ports take turns send by send. A send is a `sendmmsg` of up to
//! 64 datagrams, or one message that the kernel cuts into datagrams (`UDP_SEGMENT`).

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource;
use nix::sys::resource::Resource;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::MultiHeaders;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::sendmmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::lab;
use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::measure::now;
use crate::measure::pause;
use crate::packet::ENDPOINT_FIRST;
use crate::packet::Flow;
use crate::packet::Inner;
use crate::workload::BATCH_MAX;
use crate::workload::FLOWS_MAX;
use crate::workload::Shape;

/// UDP port of GENEVE (RFC 8926 §3.3).
const GENEVE_PORT: u16 = 6081;

/// First outer source port. The rest of the range up to 65535 is the most there can be.
pub(crate) const OUTER_PORT_FIRST: u16 = 49_152;

/// Send buffer of each socket: enough that a batch never waits.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// The running generator.
#[derive(Debug)]
pub(crate) struct Blast {
    dials: Arc<Dials>,
    thread: JoinHandle<Result<(), Failure>>,
}

/// What the generator and its owner share.
#[derive(Debug)]
struct Dials {
    sent: AtomicU64,
    /// Datagrams per second, 0 for as fast as it can.
    pps: AtomicU64,
    stop: AtomicBool,
}

impl Blast {
    /// Starts sending on the sender's core, at `pps` datagrams per second (0: flood).
    pub(crate) fn start(lab: &Arc<Lab>, shape: Shape, pps: u64) -> Self {
        let dials = Arc::new(Dials {
            sent: AtomicU64::new(0),
            pps: AtomicU64::new(pps),
            stop: AtomicBool::new(false),
        });
        let lab = Arc::clone(lab);
        let shared = Arc::clone(&dials);
        let thread = thread::spawn(move || {
            lab.enter(Host::Sender)?;
            lab::pin(lab::SENDER_CORE)?;
            blast(&shape, &shared)
        });
        Self { dials, thread }
    }

    /// Changes the rate; 0 floods.
    pub(crate) fn set_pps(&self, pps: u64) {
        self.dials.pps.store(pps, Ordering::Relaxed);
    }

    /// Datagrams handed to the kernel so far.
    pub(crate) fn sent(&self) -> u64 {
        self.dials.sent.load(Ordering::Relaxed)
    }

    /// Ends the load and says how many datagrams were sent in all.
    pub(crate) fn stop(self) -> Result<u64, Failure> {
        self.dials.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the generator panicked")??;
        Ok(self.dials.sent.load(Ordering::Relaxed))
    }
}

/// Sends one datagram for each of `endpoints` endpoints, from the sender's namespace.
pub(crate) fn greet(lab: &Arc<Lab>, endpoints: u16) -> Result<(), Failure> {
    let lab = Arc::clone(lab);
    thread::spawn(move || {
        lab.enter(Host::Sender)?;
        let socket = outer_socket(OUTER_PORT_FIRST)?;
        for endpoint in 0..endpoints {
            let id = ENDPOINT_FIRST + u64::from(endpoint);
            socket.send(&Flow::new(id, 0, Inner::Udp).next_datagram(18))?;
        }
        Ok(())
    })
    .join()
    .map_err(|_| "the greeter panicked")?
}

fn blast(shape: &Shape, dials: &Dials) -> Result<(), Failure> {
    raise_descriptor_limit()?;
    let mut sockets = Vec::new();
    let mut sends = Vec::new();
    for port in 0..shape.ports {
        let socket = outer_socket(OUTER_PORT_FIRST + port)?;
        if !shape.has_checksum {
            leave_checksum_out(&socket)?;
        }
        if shape.is_segmented {
            let bytes = shape.inner.datagram_bytes(shape.payloads[0]);
            setsockopt(&socket, sockopt::UdpGsoSegment, &i32::try_from(bytes)?)?;
        }
        sockets.push(socket);
        sends.push(sends_of_port(shape, port));
    }
    // Ports take turns.
    let turns = sends.iter().map(Vec::len).max().unwrap_or(0);
    let mut batches: Vec<(&UdpSocket, &Send, Vec<[IoSlice<'_>; 1]>)> = Vec::new();
    for turn in 0..turns {
        for (socket, sends) in sockets.iter().zip(&sends) {
            let Some(send) = sends.get(turn) else { continue };
            let slices = send.messages.iter().map(|bytes| [IoSlice::new(bytes)]).collect();
            batches.push((socket, send, slices));
        }
    }
    let connected: [Option<SockaddrIn>; BATCH_MAX] = [None; BATCH_MAX];
    let mut headers = MultiHeaders::preallocate(BATCH_MAX, None);

    let mut pace = Pace::starting(now());
    for (socket, send, slices) in batches.iter().cycle() {
        if dials.stop.load(Ordering::Relaxed) {
            break;
        }
        pace.wait_for_turn(dials.pps.load(Ordering::Relaxed));
        let results = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            slices.iter(),
            connected,
            [],
            MsgFlags::MSG_DONTWAIT,
        );
        let sent = match results {
            Ok(results) => u64::try_from(results.count())? * send.datagrams_per_message,
            // The kernel's queues are full; the rest of the batch is not offered again.
            Err(Errno::EAGAIN | Errno::ENOBUFS) => 0,
            Err(error) => return Err(format!("sendmmsg: {error}").into()),
        };
        dials.sent.fetch_add(sent, Ordering::Relaxed);
        pace.sent += sent;
    }
    Ok(())
}

/// What goes to the kernel in one call.
struct Send {
    messages: Vec<Vec<u8>>,
    datagrams_per_message: u64,
}

/// All that one outer port sends, before it repeats.
fn sends_of_port(shape: &Shape, port: u16) -> Vec<Send> {
    let mut flows: Vec<_> = (port..shape.flows)
        .step_by(usize::from(shape.ports))
        .map(|flow| Flow::new(ENDPOINT_FIRST, flow, shape.inner))
        .map(|flow| (flow, shape.payloads.iter().cycle()))
        .collect();
    let mut datagrams = Vec::new();
    for _round in 0..shape.rounds {
        for (flow, payloads) in &mut flows {
            for payload in payloads.take(usize::from(shape.burst)) {
                datagrams.push(flow.next_datagram(*payload));
            }
        }
    }
    let chunks = datagrams.chunks(shape.datagrams_per_send());
    if !shape.is_segmented {
        return chunks
            .map(|chunk| Send { messages: chunk.to_vec(), datagrams_per_message: 1 })
            .collect();
    }
    chunks
        .map(|chunk| Send {
            messages: vec![chunk.concat()],
            datagrams_per_message: u64::try_from(chunk.len()).expect("at most 64"),
        })
        .collect()
}

/// Keeps a rate over the time since it was last changed.
struct Pace {
    pps: u64,
    since: Instant,
    sent: u64,
}

impl Pace {
    /// Longest nap while ahead of the rate: short against the receive buffer, long against a wake.
    const NAP: Duration = Duration::from_micros(100);

    fn starting(at: Instant) -> Self {
        Self { pps: 0, since: at, sent: 0 }
    }

    fn wait_for_turn(&mut self, pps: u64) {
        if pps != self.pps {
            *self = Self { pps, ..Self::starting(now()) };
        }
        if pps == 0 {
            return;
        }
        let due = Duration::from_nanos(self.sent.saturating_mul(1_000_000_000) / pps);
        while now().duration_since(self.since) < due {
            pause(Self::NAP);
        }
    }
}

/// A socket of one outer source port, connected to the target.
fn outer_socket(port: u16) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind((lab::SENDER, port))?;
    socket.connect((lab::TARGET, GENEVE_PORT))?;
    setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES)?;
    Ok(socket)
}

/// Datagrams of this socket get no checksum: the field is 0.
#[expect(unsafe_code, reason = "SO_NO_CHECK has no safe wrapper in nix")]
fn leave_checksum_out(socket: &UdpSocket) -> Result<(), Failure> {
    let on: libc::c_int = 1;
    // SAFETY: the value is an int that lives through the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on))?,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// One socket per outer port needs more descriptors than the usual 1,024.
pub(crate) fn raise_descriptor_limit() -> Result<(), Failure> {
    let wanted = u64::from(FLOWS_MAX) + 256;
    let (soft, hard) = resource::getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        resource::setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))?;
    }
    Ok(())
}
