//! The gate before the web server: what reaches a port is bounded here.
//!
//! | bound | value |
//! |---|---|
//! | connections | 64; a new one evicts one of whoever has the most, see [`super::crowd`] |
//! | head of a request | 8 KiB, complete 2 s after its first byte (or after the connect) |
//! | pause between requests | 15 s |
//! | requests at the web server | see [`super::pages`] |
//! | taking the answer | 5 s; 4 MiB wait for that in all |
//!
//! Which path gets what stands in [`super::routes`], and the method never matters. Answers leave
//! with a length, and connections end with a FIN and not with a reset, but for clients that send
//! more than 256 KiB too much.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time;
use tokio::time::Instant;

use super::crowd::Crowd;
use super::crowd::Origin;
use super::crowd::Progress;
use super::http;
use super::http::Parsed;
use super::http::Reply;
use super::http::RequestHead;
use super::pages::Pages;
use super::routes::Route;
use super::routes::Site;
use crate::log::Log;
use crate::log::LogEvent;
use crate::log::Value;

/// One page with all that it needs in it.
const LIVE_PAGE: &str = include_str!("live.html");

/// Time for a head, from its first byte or from the connect.
const HEAD_TIME: Duration = Duration::from_secs(2);

/// Time between two requests of a connection.
const PAUSE_TIME: Duration = Duration::from_secs(15);

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

/// The gate's state, shared by its connections.
pub(super) struct Gate {
    site: Site,
    pages: Rc<Pages>,
    crowd: Crowd,
    log: Log,
}

impl Gate {
    pub(super) fn new(site: Site, pages: Rc<Pages>, log: Log) -> Self {
        Self { site, pages, crowd: Crowd::default(), log }
    }

    /// Accepts connections for ever.
    pub(super) async fn run(self: Rc<Self>, listener: TcpListener) {
        let mut spare = Vec::with_capacity(SPARE_DESCRIPTORS);
        for number in 0.. {
            let (stream, peer) = self.accept(&listener, &mut spare).await;
            self.log.event(
                LogEvent::HealthClient,
                &[("client", Value::Text(&peer.ip()))],
                format_args!("Processing a {} client for {}", self.site, peer.ip()),
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
                LogEvent::HealthAcceptFailed,
                &[("reason", Value::Text(&error))],
                format_args!("accepting a {} failed: {error}", self.site),
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
                Incoming::Request(head) => {
                    (self.answer(&head).await, head.is_head, head.keep_alive)
                }
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

    /// What a request gets.
    async fn answer(&self, head: &RequestHead) -> Reply {
        match self.site.route(head) {
            Route::Content(content) => self.pages.get(content).await,
            Route::LivePage => Reply::html(LIVE_PAGE),
            // That this thread answers is all that was asked.
            Route::Live => Reply::text(200, "ok"),
            Route::Ready if self.pages.is_healthy() => Reply::text(200, "ok"),
            Route::Ready => Reply::text(503, "not ready"),
            Route::Missing => Reply::text(404, Site::MISSING),
        }
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
}

/// tokio's clock, which tests may stop.
pub(super) fn now() -> Instant {
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
