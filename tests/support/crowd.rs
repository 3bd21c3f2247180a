//! Clients of the health port that mean no good, on a thread of their own. Who is thrown out
//! comes again.

use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::socket;

use crate::sim::netns::Namespace;

/// Time between two rounds. Each client does one thing in a round.
const ROUND: Duration = Duration::from_millis(20);

/// A piece of the head without an end.
static HUGE: [u8; 16 << 10] = [b'x'; 16 << 10];

/// Rounds for which a client that was thrown out stays away: a second.
const AWAY_ROUNDS: u32 = 50;

/// What a client does to hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// Connects and says nothing.
    Idle,
    /// Sends a head that never ends, a byte a round.
    Slow,
    /// Asks, and reads nothing of the answer.
    Deaf,
    /// Sends a head of this many bytes as fast as it can.
    Huge(usize),
}

/// What the crowd did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deeds {
    /// Connections made, in all.
    pub(crate) connections: u64,
    /// Bytes of heads sent.
    pub(crate) head_bytes: usize,
}

/// [`Deeds`] until now.
#[derive(Debug, Default)]
struct Told {
    connections: AtomicU64,
    head_bytes: AtomicUsize,
}

/// A crowd at work until this is dropped or [`Self::finish`]ed.
#[derive(Debug)]
pub(crate) struct Crowd {
    told: Arc<Told>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<Deeds>>,
}

/// One client; without a stream while it is not connected.
struct Client {
    manners: Manners,
    stream: Option<TcpStream>,
    has_asked: bool,
    /// Rounds until it comes again.
    away_rounds: u32,
}

impl Crowd {
    /// Sends clients from one address of a namespace to `target` within it.
    pub(crate) fn start(
        namespace: &Namespace,
        source: Ipv4Addr,
        target: SocketAddrV4,
        manners: &[(usize, Manners)],
    ) -> Self {
        let clients = manners.iter().flat_map(|&(count, manners)| {
            (0..count).map(move |_| Client {
                manners,
                stream: None,
                has_asked: false,
                away_rounds: 0,
            })
        });
        let mut clients: Vec<_> = clients.collect();
        let (stop, stopped) = mpsc::channel();
        let told = Arc::new(Told::default());
        let telling = Arc::clone(&told);
        let namespace = namespace.clone();
        let thread = std::thread::spawn(move || {
            let work = move || Ok(rounds(&mut clients, source, target, &stopped, &telling));
            namespace.enter(work).expect("the namespace is there")
        });
        Self { told, stop: Some(stop), thread: Some(thread) }
    }

    /// Bytes of heads sent until now.
    pub(crate) fn head_bytes(&self) -> usize {
        self.told.head_bytes.load(Ordering::Relaxed)
    }

    /// Connections made until now.
    pub(crate) fn connections(&self) -> u64 {
        self.told.connections.load(Ordering::Relaxed)
    }

    /// Sends it home.
    pub(crate) fn finish(mut self) -> Deeds {
        drop(self.stop.take());
        self.thread.take().expect("finished once").join().expect("the crowd's thread")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets every client act, round by round, until it is stopped.
fn rounds(
    clients: &mut [Client],
    source: Ipv4Addr,
    target: SocketAddrV4,
    stopped: &mpsc::Receiver<()>,
    told: &Told,
) -> Deeds {
    let mut deeds = Deeds::default();
    while stopped.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
        for client in &mut *clients {
            client.act(source, target, &mut deeds);
        }
        told.connections.store(deeds.connections, Ordering::Relaxed);
        told.head_bytes.store(deeds.head_bytes, Ordering::Relaxed);
    }
    deeds
}

impl Client {
    fn act(&mut self, source: Ipv4Addr, target: SocketAddrV4, deeds: &mut Deeds) {
        if self.away_rounds > 0 {
            self.away_rounds -= 1;
            return;
        }
        if self.stream.is_none() {
            self.stream = connect_from(source, target).ok();
            self.has_asked = false;
            deeds.connections += u64::from(self.stream.is_some());
        }
        // The kernel may have no port for it just now.
        let Some(stream) = &mut self.stream else { return };
        let outcome = match self.manners {
            Manners::Idle => stream.read(&mut [0; 64]).and_then(|count| match count {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            }),
            Manners::Slow => send(stream, b"x", deeds),
            // Behind the request, a byte that tells whether the connection is still there.
            Manners::Deaf if self.has_asked => stream.write(b"x").map(drop),
            Manners::Deaf => stream.write_all(b"GET / HTTP/1.0\r\n\r\n"),
            Manners::Huge(bytes) if deeds.head_bytes >= bytes => Ok(()),
            Manners::Huge(_) => (0..256).try_for_each(|_| send(stream, &HUGE, deeds)),
        };
        let not_yet = [io::ErrorKind::WouldBlock, io::ErrorKind::NotConnected];
        match outcome {
            Ok(()) => self.has_asked = true,
            Err(error) if not_yet.contains(&error.kind()) => {}
            Err(_) => {
                self.stream = None;
                // The huge head has to be sent some day.
                let stays_away = !matches!(self.manners, Manners::Huge(_));
                self.away_rounds = if stays_away { AWAY_ROUNDS } else { 0 };
            }
        }
    }
}

fn send(stream: &mut TcpStream, bytes: &[u8], deeds: &mut Deeds) -> io::Result<()> {
    let count = stream.write(bytes)?;
    deeds.head_bytes += count;
    Ok(())
}

/// A connection from `source`, perhaps not yet complete, that never blocks.
fn connect_from(source: Ipv4Addr, target: SocketAddrV4) -> nix::Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    bind(stream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    match connect(stream.as_raw_fd(), &SockaddrIn::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream.into()),
        Err(error) => Err(error),
    }
}
