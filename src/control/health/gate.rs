//! The gate before the web server: what reaches the health port is bounded here.
//!
//! | bound | value |
//! |---|---|
//! | connections | 64; a new one evicts one of whoever has the most, see [`super::crowd`] |
//! | head of a request | 8 KiB, complete 2 s after its first byte (or after the connect) |
//! | pause between requests | 15 s |
//! | requests at the web server | 2; the others wait, and share the answer while it is the newest |
//! | the web server's answer | 2 s |
//! | taking the answer | 5 s; 4 MiB wait for that in all |
//!
//! Any method and any path gets the health page. Answers leave with a length, and connections
//! end with a FIN and not with a reset, but for clients that send more than 256 KiB too much.

use std::cell::Cell;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time;
use tokio::time::Instant;

use super::Board;
use super::backend::Backend;
use super::crowd::Crowd;
use super::crowd::Origin;
use super::crowd::Progress;
use super::http;
use super::http::Parsed;
use super::http::Reply;
use super::http::RequestHead;
use crate::log::Level;
use crate::log::Log;
use crate::log::Section;
use crate::settings::HealthSettings;
use crate::stats::Page;

/// Requests that the web server sees at a time.
const RELAYED_MAX: usize = 2;

/// Time for a head, from its first byte or from the connect.
const HEAD_TIME: Duration = Duration::from_secs(2);

/// Time between two requests of a connection.
const PAUSE_TIME: Duration = Duration::from_secs(15);

/// Time for the web server's answer.
const RELAY_TIME: Duration = Duration::from_secs(2);

/// Time for the client to take the answer.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// Time for the client to close its side after ours.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// Bytes that are read after the answer, so that the connection ends with a FIN. More of them cost
/// others their turn.
const DISCARDED_BYTES_MAX: usize = 256 << 10;

/// Descriptors kept back for the time when the process has no others left: two clients', and both
/// ends of their ways to the web server, should that have no table of its own.
const SPARE_DESCRIPTORS: usize = 6;

/// Time for an evicted connection to close.
const EVICTION_PAUSE: Duration = Duration::from_millis(2);

/// Pause after a failed accept that nothing could be done about.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The only request that the web server ever sees.
const INNER_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n";

/// The gate's state, shared by its connections.
pub(super) struct Gate {
    settings: HealthSettings,
    board: Arc<Board>,
    /// Brings the board up to date.
    refresh: Box<dyn Fn()>,
    backend: RefCell<Option<Rc<Backend>>>,
    backend_started: Cell<Instant>,
    relays: Semaphore,
    /// The last answer of the web server, and the page that it shows.
    last: RefCell<Option<(Arc<Page>, Reply)>>,
    crowd: Crowd,
    log: Log,
}

impl Gate {
    pub(super) fn new(
        settings: HealthSettings,
        board: Arc<Board>,
        refresh: Box<dyn Fn()>,
        log: Log,
    ) -> io::Result<Self> {
        let backend = Backend::start(settings, Arc::clone(&board))?;
        Ok(Self {
            settings,
            board,
            refresh,
            backend: RefCell::new(Some(Rc::new(backend))),
            backend_started: Cell::new(now()),
            relays: Semaphore::new(RELAYED_MAX),
            last: RefCell::new(None),
            crowd: Crowd::default(),
            log,
        })
    }

    /// Accepts connections for ever.
    pub(super) async fn run(self: Rc<Self>, listener: TcpListener) {
        let mut spare = Vec::with_capacity(SPARE_DESCRIPTORS);
        for number in 0.. {
            let (stream, peer) = self.accept(&listener, &mut spare).await;
            self.log.event(
                Section::HealthCheck,
                Level::Debug,
                "health check clients",
                format_args!("Processing a health check client for {}", peer.ip()),
            );
            let origin = peer.ip().into();
            if self.crowd.make_room(origin) {
                self.admit(number, stream, origin).await;
            }
        }
    }

    /// Accepts the next connection. Where there is no descriptor for it, the spare ones are let
    /// go, then the connections that wait for their clients.
    async fn accept(
        &self,
        listener: &TcpListener,
        spare: &mut Vec<OwnedFd>,
    ) -> (TcpStream, SocketAddr) {
        // While there are connections they need what was let go for them.
        if self.crowd.len() == 0 {
            keep_back(listener, spare);
        }
        loop {
            let error = match listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            self.log.event(
                Section::HealthCheck,
                Level::Important,
                "health_accept_failed",
                format_args!("accepting a health check failed: {error}"),
            );
            if !spare.is_empty() {
                spare.clear();
            } else if self.crowd.evict() {
                // The connection closes when its task has its turn; so short that no probe notices,
                // so long that the next one to go is not the probe itself.
                time::sleep(EVICTION_PAUSE).await;
            } else {
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Enters a connection and gives it its first turn: a request that came along with it is read
    /// before the next connection is accepted, and can be evicted no more by that one.
    async fn admit(self: &Rc<Self>, number: u64, mut stream: TcpStream, origin: Origin) {
        let progress = Rc::new(Progress::new());
        let had_turn = Rc::new(Notify::new());
        let (gate, own, turn) = (Rc::clone(self), Rc::clone(&progress), Rc::clone(&had_turn));
        let task = tokio::task::spawn_local(async move {
            // Before the first wait of this task, so whoever is notified finds it in order.
            turn.notify_one();
            let received = what_is_there(&stream);
            gate.converse(&mut stream, received, &own).await;
            gate.crowd.leave(number);
        });
        self.crowd.enter(number, origin, task.abort_handle(), progress);
        had_turn.notified().await;
        // Accepting is always possible in a flood; answers need to hear from the kernel meanwhile.
        yield_now().await;
    }

    /// One connection, from its first request to its end.
    async fn converse(&self, stream: &mut TcpStream, mut received: Vec<u8>, progress: &Progress) {
        let mut patience = HEAD_TIME;
        loop {
            progress.waits();
            let request = read_head(stream, &mut received, patience).await;
            progress.answers();
            let (reply, is_head, keep_alive) = match request {
                Incoming::Request(head) => (self.page().await, head.is_head, head.keep_alive),
                Incoming::Refused(status) => (Reply::bare(status), false, false),
                Incoming::Ended => break,
            };
            let bytes = reply.to_bytes(is_head, keep_alive);
            drop(reply);
            self.crowd.send(progress, bytes.len());
            let sent = time::timeout(WRITE_TIME, stream.write_all(&bytes)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
            if !keep_alive {
                break;
            }
            patience = PAUSE_TIME;
        }
        progress.waits();
        // A close with unread bytes is a reset, which may overtake the answer.
        let _ = stream.shutdown().await;
        let _ = time::timeout(LINGER_TIME, discard(stream)).await;
    }

    /// The page, from the web server if it answers; the bare truth otherwise. Who asks while a page
    /// is the newest one shares its answer: a crowd costs one.
    async fn page(&self) -> Reply {
        (self.refresh)();
        let page = self.board.page();
        let relay = async {
            let _turn = self.relays.acquire().await.ok()?;
            if let Some(reply) = self.last_answer(&page) {
                return Some(reply);
            }
            let backend = self.backend.borrow().clone()?;
            let answer = time::timeout(RELAY_TIME, relay(&backend)).await;
            let reply = Reply::parse(&answer.ok()?.ok()?)?;
            self.last.replace(Some((Arc::clone(&page), reply.clone())));
            Some(reply)
        };
        if let Some(reply) = relay.await {
            return reply;
        }
        self.replace_backend();
        Reply::bare(if page.healthy { 200 } else { 503 })
    }

    /// The answer that shows `page`, if the web server gave one already.
    fn last_answer(&self, page: &Arc<Page>) -> Option<Reply> {
        let last = self.last.borrow();
        let (shown, reply) = last.as_ref()?;
        Arc::ptr_eq(shown, page).then(|| reply.clone())
    }

    /// Starts another web server in place of one that has ended, once a second at most. One that
    /// is only slow stays: to start threads on a host that is out of them is the end of
    /// `tiny_http`, and of the whole program with it.
    fn replace_backend(&self) {
        if self.backend.borrow().as_ref().is_some_and(|backend| backend.is_alive()) {
            return;
        }
        if now().duration_since(self.backend_started.get()) < Duration::from_secs(1) {
            return;
        }
        self.backend_started.set(now());
        let backend = Backend::start(self.settings, Arc::clone(&self.board));
        self.log.event(
            Section::HealthCheck,
            Level::Important,
            "health_server_restarted",
            format_args!("the health page's server has ended; it is started again"),
        );
        *self.backend.borrow_mut() = backend.ok().map(Rc::new);
    }

    /// How many connections there are.
    #[cfg(test)]
    pub(super) fn connection_count(&self) -> usize {
        self.crowd.len()
    }

    /// How many bytes of answers wait for their clients.
    #[cfg(test)]
    pub(super) fn unsent_bytes(&self) -> usize {
        self.crowd.unsent_bytes()
    }

    /// Breaks the web server, for a test of what happens then.
    #[cfg(test)]
    pub(super) fn lose_backend(&self) {
        self.backend.borrow_mut().take();
    }
}

/// tokio's clock, which tests may stop.
fn now() -> Instant {
    Instant::now()
}

/// Keeps descriptors back, as far as there are any.
fn keep_back(listener: &TcpListener, spare: &mut Vec<OwnedFd>) {
    while spare.len() < SPARE_DESCRIPTORS {
        let Ok(descriptor) = listener.as_fd().try_clone_to_owned() else {
            return;
        };
        spare.push(descriptor);
    }
}

/// What a client sent along with its connection, as far as it is already here. tokio would first
/// have to hear from the kernel that there is something.
fn what_is_there(stream: &TcpStream) -> Vec<u8> {
    let mut chunk = [0; 1024];
    // An end or an error comes again when it is read for.
    let count = recv(stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
    chunk[..count].to_vec()
}

/// What a client came with.
enum Incoming {
    Request(RequestHead),
    Refused(u16),
    Ended,
}

/// Reads one head, and takes it out of `received`. `patience` is for its first byte.
async fn read_head(stream: &mut TcpStream, received: &mut Vec<u8>, patience: Duration) -> Incoming {
    let mut deadline = now() + if received.is_empty() { patience } else { HEAD_TIME };
    loop {
        match http::parse_request(received) {
            Parsed::Head(head) => {
                received.drain(..head.bytes);
                return Incoming::Request(head);
            }
            Parsed::Refused(status) => return Incoming::Refused(status),
            Parsed::Partial => {}
        }
        let mut chunk = [0; 1024];
        match time::timeout_at(deadline, stream.read(&mut chunk)).await {
            Ok(Ok(0) | Err(_)) => return Incoming::Ended,
            Ok(Ok(count)) => {
                if received.is_empty() {
                    deadline = deadline.min(now() + HEAD_TIME);
                }
                received.extend_from_slice(&chunk[..count]);
            }
            Err(_) if received.is_empty() => return Incoming::Ended,
            Err(_) => return Incoming::Refused(408),
        }
    }
}

/// One request to the web server, and all of its answer.
async fn relay(backend: &Backend) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(backend.path()).await?;
    stream.write_all(INNER_REQUEST).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Reads until the client closes, or has sent more than anybody who means well does.
async fn discard(stream: &mut TcpStream) {
    let mut chunk = [0; 4096];
    let mut discarded_bytes = 0;
    while discarded_bytes < DISCARDED_BYTES_MAX {
        match stream.read(&mut chunk).await {
            Ok(count @ 1..) => discarded_bytes += count,
            Ok(0) | Err(_) => return,
        }
    }
}
