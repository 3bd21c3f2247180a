//! The load: a thread that stands for a Gateway Load Balancer node.
//!
//! Everything is built before the first send ([`crate::packet`], [`crate::workload`]). Flow *f*
//! belongs to outer source port *f* mod *ports*. The flows of a port take turns, each with a burst,
//! and then begin again with numbers that go on ([`Lap`]); ports take turns send by send. A send
//! is a `sendmmsg` of up to 64 datagrams, or one message that the kernel cuts into datagrams
//! (`UDP_SEGMENT`).

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

use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
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
use crate::packet::Lap;
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

/// Sends `datagrams` datagrams of the first endpoint, `pps` per second: `flows` flows in turn.
pub(crate) fn sow(lab: &Arc<Lab>, datagrams: u32, flows: u32, pps: u64) -> Result<(), Failure> {
    let lab = Arc::clone(lab);
    thread::spawn(move || {
        lab.enter(Host::Sender)?;
        let socket = outer_socket(OUTER_PORT_FIRST)?;
        let mut pace = Pace::starting(now());
        for flow in (0..datagrams).map(|datagram| datagram % flows) {
            let number = u16::try_from(flow % u32::from(FLOWS_MAX))?;
            let network = u8::try_from(1 + flow / u32::from(FLOWS_MAX))?;
            let mut packets = Flow::new(ENDPOINT_FIRST, number, Inner::Udp).in_network(network);
            pace.wait_for_turn(pps);
            socket.send(&packets.next_datagram(18))?;
            pace.sent += 1;
        }
        Ok(())
    })
    .join()
    .map_err(|_| "the sower panicked")?
}

fn blast(shape: &Shape, dials: &Dials) -> Result<(), Failure> {
    raise_descriptor_limit()?;
    // Naps end when they should, not up to 50 µs later: at a fixed rate packets leave evenly.
    prctl::set_timerslack(1)?;
    let mut ports = Vec::new();
    for port in 0..shape.ports {
        let socket = outer_socket(OUTER_PORT_FIRST + port)?;
        if shape.is_segmented {
            let bytes = shape.inner.datagram_bytes(shape.payloads[0]);
            setsockopt(&socket, sockopt::UdpGsoSegment, &i32::try_from(bytes)?)?;
        } else if !shape.has_checksum {
            leave_checksum_out(&socket)?;
        }
        ports.push((socket, sends_of_port(shape, port)));
    }
    let turns = ports.iter().map(|(_, sends)| sends.len()).max().unwrap_or(0);
    let order: Vec<(usize, usize)> = (0..turns)
        .flat_map(|turn| (0..ports.len()).map(move |port| (port, turn)))
        .filter(|(port, turn)| *turn < ports[*port].1.len())
        .collect();
    let mut headers = MultiHeaders::preallocate(BATCH_MAX, None);

    let mut pace = Pace::starting(now());
    for &(port, turn) in order.iter().cycle() {
        if dials.stop.load(Ordering::Relaxed) {
            break;
        }
        pace.wait_for_turn(dials.pps.load(Ordering::Relaxed));
        let (socket, sends) = &mut ports[port];
        let send = &mut sends[turn];
        let sent = offer(socket, send, &mut headers)?;
        dials.sent.fetch_add(sent, Ordering::Relaxed);
        pace.sent += sent;
        send.advance();
    }
    Ok(())
}

/// Hands a send to the kernel. Returns how many datagrams it took.
fn offer(
    socket: &UdpSocket,
    send: &Send,
    headers: &mut MultiHeaders<SockaddrIn>,
) -> Result<u64, Failure> {
    let slices: ArrayVec<_, BATCH_MAX> =
        send.messages.iter().map(|bytes| [IoSlice::new(bytes)]).collect();
    let connected: [Option<SockaddrIn>; BATCH_MAX] = [None; BATCH_MAX];
    let descriptor = socket.as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT;
    match sendmmsg(descriptor, headers, slices.iter(), connected, [], flags) {
        Ok(results) => Ok(u64::try_from(results.count())? * send.datagrams_per_message),
        // The kernel's queues are full; the rest of the batch is not offered again.
        Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(0),
        Err(error) => Err(format!("sendmmsg: {error}").into()),
    }
}

/// What goes to the kernel in one call.
struct Send {
    messages: Vec<Vec<u8>>,
    datagrams_per_message: u64,
    /// Bytes of each datagram of a message that holds several.
    datagram_bytes: usize,
    /// For each datagram, in order.
    laps: Vec<Lap>,
}

impl Send {
    /// The datagrams become those of the next lap.
    fn advance(&mut self) {
        let messages = self.messages.iter_mut();
        let datagrams = messages.flat_map(|message| message.chunks_mut(self.datagram_bytes));
        for (datagram, lap) in datagrams.zip(&self.laps) {
            lap.advance(datagram);
        }
    }
}

/// All that one outer port sends in a lap.
fn sends_of_port(shape: &Shape, port: u16) -> Vec<Send> {
    let mut flows: Vec<_> = (port..shape.flows)
        .step_by(usize::from(shape.ports))
        .map(|flow| Flow::new(shape.endpoint_of(flow), flow, shape.inner))
        .map(|flow| (flow, shape.payloads.iter().cycle()))
        .collect();
    let mut datagrams = Vec::new();
    for _round in 0..shape.rounds {
        for (flow, (packets, payloads)) in flows.iter_mut().enumerate() {
            for payload in payloads.take(usize::from(shape.burst)) {
                datagrams.push((packets.next_datagram(*payload), flow));
            }
        }
    }
    let laps: Vec<Lap> = flows.iter().map(|(flow, _)| flow.lap()).collect();
    let send = |chunk: &[(Vec<u8>, usize)]| {
        let messages: Vec<Vec<u8>> = chunk.iter().map(|(bytes, _)| bytes.clone()).collect();
        let laps = chunk.iter().map(|(_, flow)| laps[*flow]).collect();
        if !shape.is_segmented {
            return Send { messages, datagrams_per_message: 1, datagram_bytes: usize::MAX, laps };
        }
        Send {
            datagrams_per_message: u64::try_from(chunk.len()).expect("at most 64"),
            datagram_bytes: messages[0].len(),
            messages: vec![messages.concat()],
            laps,
        }
    };
    datagrams.chunks(shape.datagrams_per_send()).map(send).collect()
}

/// Keeps a rate over the time since it was last changed.
struct Pace {
    pps: u64,
    since: Instant,
    sent: u64,
}

impl Pace {
    /// Longest nap while ahead of the rate, after which somebody may have changed it.
    const NAP: Duration = Duration::from_millis(10);

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
            let ahead = due.saturating_sub(now().duration_since(self.since));
            pause(ahead.min(Self::NAP));
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
