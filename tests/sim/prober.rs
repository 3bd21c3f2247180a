//! Health checks of the target: one prober per node, each from its node's address, as AWS makes
//! them from every zone. A prober opens a connection per check, asks, and closes it.
//!
//! What a check means is not known here; outcomes go to [`super::health`]. Checks of the nodes
//! are spread over the interval. The head of the request is what Elastic Load Balancing sends
//! (`ELB-HealthChecker/2.0`); its other fields are a guess.

use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::getsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;

use super::health::Outcome;
use super::netns::Namespace;
use super::os;

/// How much of an answer is read, in bytes; its head must end within.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What a check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// A connection, and no more.
    Tcp,
    /// An answer with an expected status.
    Http,
}

/// A health check of a target group.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    /// Path of the HTTP request.
    pub(crate) path: String,
    /// HTTP status codes that pass.
    pub(crate) codes: RangeInclusive<u16>,
    /// Time from one check of a node to the node's next.
    pub(crate) interval: Duration,
    /// How long a whole check may take, at most the interval.
    pub(crate) timeout: Duration,
}

impl Default for Check {
    /// HTTP with AWS's default numbers.
    fn default() -> Self {
        Self {
            protocol: Protocol::Http,
            port: 80,
            path: "/".into(),
            codes: 200..=399,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
        }
    }
}

/// The probers of all nodes. They end after this is dropped, each when its check is over.
#[derive(Debug)]
pub(crate) struct Probers {
    outcomes: mpsc::Receiver<(usize, Outcome)>,
    wake: Arc<EventFd>,
    _running: Vec<mpsc::Sender<()>>,
}

impl Probers {
    /// Starts a prober per node in the load balancer's namespace, which has the nodes' addresses.
    pub(crate) fn start(
        namespace: &Namespace,
        nodes: &[Ipv4Addr],
        target: Ipv4Addr,
        check: &Check,
    ) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let (sender, outcomes) = mpsc::channel();
        let count = u32::try_from(nodes.len()).expect("few nodes");
        let mut running = Vec::new();
        for (number, &node) in nodes.iter().enumerate() {
            let (end, is_over) = mpsc::channel();
            running.push(end);
            let place = u32::try_from(number).expect("few nodes");
            let prober = Prober {
                number,
                node,
                target,
                check: check.clone(),
                wait: check.interval * place / count,
                is_over,
                sender: sender.clone(),
                wake: Arc::clone(&wake),
            };
            // A thread begins in the namespace of the one that starts it.
            let thread = std::thread::Builder::new().name(format!("prober {node}"));
            namespace.enter(|| thread.spawn(|| prober.run()))?;
        }
        Ok(Self { outcomes, wake, _running: running })
    }

    /// The next check that has ended: number of its node, and how.
    pub(crate) fn next(&self) -> Option<(usize, Outcome)> {
        let _ = self.wake.read();
        self.outcomes.try_recv().ok()
    }
}

impl AsFd for Probers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// One node's prober.
#[derive(Debug)]
struct Prober {
    number: usize,
    node: Ipv4Addr,
    target: Ipv4Addr,
    check: Check,
    /// Time until the next check.
    wait: Duration,
    is_over: mpsc::Receiver<()>,
    sender: mpsc::Sender<(usize, Outcome)>,
    wake: Arc<EventFd>,
}

impl Prober {
    fn run(mut self) {
        while self.is_over.recv_timeout(self.wait) == Err(RecvTimeoutError::Timeout) {
            let start = os::monotonic();
            let outcome = probe(self.node, self.target, &self.check);
            self.wait = self.check.interval.saturating_sub(os::since(start));
            // Nobody listens if the simulator has ended meanwhile.
            if self.sender.send((self.number, outcome)).is_err() || self.wake.write(1).is_err() {
                break;
            }
        }
    }
}

/// Makes one check in the calling thread's namespace.
fn probe(node: Ipv4Addr, target: Ipv4Addr, check: &Check) -> Outcome {
    let deadline = os::monotonic() + check.timeout;
    let result = open(node, SocketAddrV4::new(target, check.port), deadline)
        .and_then(|stream| ask(stream, target, check, deadline));
    match result {
        Ok(None) => Outcome::Passed,
        Ok(Some(status)) if check.codes.contains(&status) => Outcome::Passed,
        Ok(Some(status)) => Outcome::ResponseCodeMismatch(status),
        Err(error) if is_timeout(&error) => Outcome::Timeout,
        Err(_) => Outcome::FailedHealthChecks,
    }
}

/// Connects from the node's address.
fn open(node: Ipv4Addr, to: SocketAddrV4, deadline: Duration) -> io::Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(node, 0)))?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            let left = PollTimeout::try_from(left(deadline)?).map_err(io::Error::other)?;
            if poll(&mut fds, left)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let error = getsockopt(&fd, sockopt::SocketError)?;
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Asks for the HTTP status; TCP has none.
fn ask(
    mut stream: TcpStream,
    target: Ipv4Addr,
    check: &Check,
    deadline: Duration,
) -> io::Result<Option<u16>> {
    if check.protocol == Protocol::Tcp {
        return Ok(None);
    }
    let Check { path, port, .. } = check;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {target}:{port}\r\nUser-Agent: ELB-HealthChecker/2.0\r\n\
         Accept-Encoding: gzip, compressed\r\nConnection: close\r\n\r\n"
    );
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let bytes = stream.read(&mut part)?;
        answer.extend(&part[..bytes]);
        if bytes == 0 || answer.len() > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    status(&answer).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The status of an HTTP/1 answer (RFC 9112 §4).
pub(crate) fn status(answer: &[u8]) -> Option<u16> {
    let digits = answer.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" ")?.get(..3)?;
    let is_ended = matches!(answer.get(12), Some(b' ' | b'\r'));
    let text = str::from_utf8(digits).ok().filter(|_| is_ended)?;
    text.parse().ok()
}

/// Whether our time-out or the kernel's was over.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn left(deadline: Duration) -> io::Result<Duration> {
    let left = deadline.saturating_sub(os::monotonic());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
