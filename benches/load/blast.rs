//! The load: a thread that stands for a Gateway Load Balancer node.
//!
//! It sends GENEVE datagrams that are laid out as AWS lays them out: 8 bytes of GENEVE header, then
//! endpoint id, attachment id and flow cookie, then an inner IPv4/UDP packet with valid checksums.
//! The layout is written down here a second time, on purpose: a generator that used the program's
//! own wire code would share its mistakes.
//!
//! Everything is built before the first send. Flow *f* belongs to outer source port *f* mod
//! *ports*; a port's datagrams, one of each of its flows, go out in `sendmmsg`s of up to 64, and
//! ports take turns. So neighbouring datagrams are of different flows, the target's worst case.

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

/// UDP port of GENEVE (RFC 8926 §3.3).
const GENEVE_PORT: u16 = 6081;

/// Bytes in front of the inner packet: 8 of GENEVE, 12 + 12 + 8 of options.
pub(crate) const GENEVE_BYTES: usize = 40;

/// Where the inner UDP source port stands in a datagram: it numbers the flow.
pub(crate) const INNER_PORT_AT: usize = GENEVE_BYTES + 20;

/// First outer source port. The rest of the range up to 65535 is the most there can be.
const OUTER_PORT_FIRST: u16 = 49_152;

/// Most outer source ports, and most flows.
pub(crate) const FLOWS_MAX: u16 = 16_384;

/// Most datagrams of one `sendmmsg` (the kernel's limit is 1,024).
const BATCH_MAX: usize = 64;

/// Id of the first endpoint; further ones count up from it.
const ENDPOINT_FIRST: u64 = 0x2b8e_e1d4_db0c_51c4;

/// Send buffer of each socket: enough that a batch never waits.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// Shape of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Inner flows, 1 to [`FLOWS_MAX`].
    pub(crate) flows: u16,
    /// Outer source ports, 1 to `flows`.
    pub(crate) ports: u16,
    /// Inner UDP payload in bytes, at most 8,472 (an inner packet of 8,500).
    pub(crate) payload_bytes: u16,
}

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
    pub(crate) fn start(lab: &Arc<Lab>, workload: Workload, pps: u64) -> Self {
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
            blast(workload, &shared)
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
            socket.send(&datagram(ENDPOINT_FIRST + u64::from(endpoint), 0, 18))?;
        }
        Ok(())
    })
    .join()
    .map_err(|_| "the greeter panicked")?
}

fn blast(workload: Workload, dials: &Dials) -> Result<(), Failure> {
    raise_descriptor_limit()?;
    let mut sockets = Vec::new();
    let mut datagrams = Vec::new();
    for port in 0..workload.ports {
        sockets.push(outer_socket(OUTER_PORT_FIRST + port)?);
        let flows = (port..workload.flows).step_by(usize::from(workload.ports));
        let built: Vec<Vec<u8>> =
            flows.map(|flow| datagram(ENDPOINT_FIRST, flow, workload.payload_bytes)).collect();
        datagrams.push(built);
    }
    let mut batches: Vec<(&UdpSocket, Vec<[IoSlice<'_>; 1]>)> = Vec::new();
    for (socket, built) in sockets.iter().zip(&datagrams) {
        for batch in built.chunks(BATCH_MAX) {
            let slices = batch.iter().map(|bytes| [IoSlice::new(bytes)]).collect();
            batches.push((socket, slices));
        }
    }
    let connected: [Option<SockaddrIn>; BATCH_MAX] = [None; BATCH_MAX];
    let mut headers = MultiHeaders::preallocate(BATCH_MAX, None);

    let mut pace = Pace::starting(now());
    for (socket, batch) in batches.iter().cycle() {
        if dials.stop.load(Ordering::Relaxed) {
            break;
        }
        pace.wait_for_turn(dials.pps.load(Ordering::Relaxed));
        let results = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            batch.iter(),
            connected,
            [],
            MsgFlags::MSG_DONTWAIT,
        );
        let sent = match results {
            Ok(results) => u64::try_from(results.count())?,
            // The kernel's queues are full; the rest of the batch is not offered again.
            Err(Errno::EAGAIN | Errno::ENOBUFS) => 0,
            Err(error) => return Err(format!("sendmmsg: {error}").into()),
        };
        dials.sent.fetch_add(sent, Ordering::Relaxed);
        pace.sent += sent;
    }
    Ok(())
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

/// One socket per outer port needs more descriptors than the usual 1,024.
fn raise_descriptor_limit() -> Result<(), Failure> {
    let wanted = u64::from(FLOWS_MAX) + 256;
    let (soft, hard) = resource::getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        resource::setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))?;
    }
    Ok(())
}

/// One datagram of `flow` at endpoint `endpoint`.
fn datagram(endpoint: u64, flow: u16, payload_bytes: u16) -> Vec<u8> {
    let udp_bytes = 8 + payload_bytes;
    let mut out = Vec::with_capacity(GENEVE_BYTES + 20 + usize::from(udp_bytes));
    // GENEVE: 8 words of options, protocol IPv4, VNI 0. Then AWS's class 0x0108, types 1 to 3,
    // each with its length in words.
    out.extend([8, 0, 0x08, 0x00, 0, 0, 0, 0]);
    out.extend([0x01, 0x08, 1, 2]);
    out.extend(endpoint.to_be_bytes());
    out.extend([0x01, 0x08, 2, 2]);
    out.extend(0_u64.to_be_bytes());
    out.extend([0x01, 0x08, 3, 1]);
    out.extend((0xc000_0000 | u32::from(flow)).to_be_bytes());

    let [flow_high, flow_low] = flow.to_be_bytes();
    let addresses = [10, 1, flow_high, flow_low, 10, 2, 0, 1];
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_bytes).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(addresses);
    let sum = internet_checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut udp = Vec::new();
    udp.extend((10_000 + flow).to_be_bytes());
    udp.extend(5201_u16.to_be_bytes());
    udp.extend(udp_bytes.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend((0..payload_bytes).map(|at| at.to_be_bytes()[1]));
    // The pseudo header of RFC 768: addresses, protocol, length.
    let mut summed = addresses.to_vec();
    summed.extend([0, 17]);
    summed.extend(udp_bytes.to_be_bytes());
    summed.extend(&udp);
    // Zero would mean "no checksum"; its other form means the same sum.
    let sum = match internet_checksum(&summed) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    out.extend(ip);
    out.extend(udp);
    out
}

/// RFC 1071, word by word: this runs once per flow, not once per packet.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum = words.fold(0_u32, |sum, word| {
        let low = word.get(1).copied().unwrap_or(0);
        let sum = sum + u32::from(u16::from_be_bytes([word[0], low]));
        (sum & 0xffff) + (sum >> 16)
    });
    !u16::try_from(sum).expect("folded into 16 bits")
}
