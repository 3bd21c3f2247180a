//! The gate and the web server behind it, against clients that mean no good.

use super::routes::Content;
use super::*;
use crate::log::Format;
use crate::log::Level;
use crate::log::Thresholds;
use crate::settings::Compat;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::bind as bind_socket;
use nix::sys::socket::connect;
use nix::sys::socket::socket;
use std::cell::Cell;
use std::future::Future;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd as _;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time;

const TEXT: HealthSettings =
    HealthSettings { port: 1, json: false, body: true, compat: Compat::V3_0 };

const REQUEST: &[u8] = b"GET /any/path HTTP/1.1\r\nHost: x\r\n\r\n";

/// A gate of its own, and what belongs to it.
struct Fixture {
    address: SocketAddr,
    board: Arc<Board>,
    gate: Rc<Gate>,
    pages: Rc<Pages>,
    refreshed: Rc<Cell<u32>>,
}

/// Runs a test beside a gate.
fn with_gate<F: Future<Output = ()>>(settings: HealthSettings, test: impl FnOnce(Fixture) -> F) {
    tokio_uring::start(async {
        let listener = bind(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let board = Arc::new(Board::default());
        board.publish(Page { healthy: true, ..Page::default() });
        let refreshed = Rc::new(Cell::new(0));
        let count = Rc::clone(&refreshed);
        let refresh = Box::new(move || count.set(count.get() + 1));
        let (log, _) =
            Log::start(Thresholds::all(Level::Critical), Format::Text, io::sink()).unwrap();
        let pages = Pages::new(Some(settings), Arc::clone(&board), refresh, log.clone());
        let pages = Rc::new(pages.unwrap());
        let gate = Rc::new(Gate::new(Site::Health, Rc::clone(&pages), log));
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::task::spawn_local(Rc::clone(&gate).run(listener));
        let address = ([127, 0, 0, 1], port).into();
        test(Fixture { address, board, gate, pages, refreshed }).await;
    });
}

impl Fixture {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Connects from an address of the caller's choice, without giving the gate a turn.
    fn connect_from(&self, source: [u8; 4]) -> std::net::TcpStream {
        let flags = SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        bind_socket(stream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source.into(), 0)))
            .unwrap();
        let SocketAddr::V4(address) = self.address else { unreachable!("127.0.0.1") };
        connect(stream.as_raw_fd(), &SockaddrIn::from(address)).unwrap();
        stream.into()
    }

    /// Sends `request`, and reads until the other side closes; a reset is a failure.
    async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
            .await
            .expect("the connection ends by itself")
            .expect("with a FIN");
        String::from_utf8(answer).unwrap()
    }
}

/// What a client reads until the other side closes, while the gate has its turns.
async fn read_all(stream: std::net::TcpStream) -> String {
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("a FIN and no reset");
    answer
}

/// Reads exactly one answer with a body.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        answer.push(byte[0]);
        if let Some(reply) = http::Reply::parse(&answer) {
            drop(reply);
            return String::from_utf8(answer).unwrap();
        }
    }
}

#[test]
fn any_request_gets_the_page() {
    with_gate(TEXT, |fixture| async move {
        for request in [
            "GET / HTTP/1.0\r\n\r\n",
            "GET /favicon.ico?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
            "DELETE / HTTP/1.1\r\nConnection: close\r\n\r\n",
        ] {
            let answer = fixture.exchange(request.as_bytes()).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\nCache-Control: max-age=0"), "{head}");
            assert!(head.contains("\r\nContent-Type: text/html\r\n"), "{head}");
            let length = format!("\r\nContent-Length: {}\r\n", body.len());
            assert!(head.contains(&length), "{head}");
            assert!(body.starts_with("<!DOCTYPE html>") && body.ends_with("</html>"), "{body}");
        }
        assert_eq!(fixture.refreshed.get(), 4);
    });
}

#[test]
fn head_keep_alive_and_pipelining() {
    with_gate(TEXT, |fixture| async move {
        let answer = fixture.exchange(b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert!(answer.ends_with("\r\n\r\n") && !answer.contains("Content-Length: 0"), "{answer}");

        let mut stream = fixture.connect().await;
        for _ in 0..3 {
            stream.write_all(REQUEST).await.unwrap();
            let answer = read_answer(&mut stream).await;
            assert!(answer.contains("Connection: keep-alive"), "{answer}");
        }
        stream.write_all(&REQUEST.repeat(5)).await.unwrap();
        for _ in 0..5 {
            read_answer(&mut stream).await;
        }
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    });
}

#[test]
fn status_and_format() {
    let bare = HealthSettings { json: true, body: false, ..TEXT };
    with_gate(bare, |fixture| async move {
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("application/json\r\nContent-Length: 0\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        fixture.board.publish(Page::default());
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    });
    let json = HealthSettings { json: true, ..TEXT };
    with_gate(json, |fixture| async move {
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.contains("\r\n\r\n{\"drops\":{}"), "{answer}");
    });
}

#[test]
fn a_page_larger_than_every_buffer_arrives_whole() {
    with_gate(TEXT, |fixture| async move {
        fixture.board.publish(Page {
            workers: vec![crate::stats::WorkerRow::default(); 50_000],
            ..Page::default()
        });
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(body.len() > 4 << 20);
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert!(body.ends_with("</html>"));
    });
}

#[test]
fn bad_heads_are_told_and_closed() {
    with_gate(TEXT, |fixture| async move {
        let huge = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(64 << 10));
        let answer = fixture.exchange(huge.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        let slow = fixture.exchange(b"GET / HT").await;
        assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
        assert_eq!(fixture.exchange(b"").await, "", "a silent client is closed");
        assert_eq!(fixture.refreshed.get(), 0, "none of them reached the page");
    });
}

#[test]
fn a_crowd_of_idle_clients_keeps_nobody_out() {
    with_gate(TEXT, |fixture| async move {
        let mut crowd = Vec::new();
        for _ in 0..200 {
            let mut stream = fixture.connect().await;
            stream.write_all(b"GET / HTTP").await.unwrap();
            crowd.push(stream);
            assert!(fixture.gate.connection_count() <= 64);
        }
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(fixture.gate.connection_count() <= 64);
        // The oldest were evicted.
        let evicted = time::timeout(Duration::from_secs(1), crowd[0].read(&mut [0; 64])).await;
        assert!(evicted.is_ok());
    });
}

#[test]
fn a_request_that_came_with_its_connection_is_read_before_the_next_is_accepted() {
    with_gate(TEXT, |fixture| async move {
        // All of these wait in the kernel before the gate has its first turn: the probe is the
        // oldest of more than there are places.
        let mut probe = fixture.connect_from([127, 0, 0, 1]);
        probe.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let _crowd: Vec<_> = (0..100).map(|_| fixture.connect_from([127, 0, 0, 1])).collect();
        let answer = read_all(probe).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

#[test]
fn a_crowd_evicts_its_own_and_not_a_waiting_client_from_elsewhere() {
    with_gate(TEXT, |fixture| async move {
        let mut probe = fixture.connect_from([127, 0, 0, 2]);
        let mut crowd = Vec::new();
        for _ in 0..20 {
            crowd.extend((0..20).map(|_| fixture.connect_from([127, 0, 0, 1])));
            // The gate has its turns.
            time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(fixture.gate.connection_count(), 64);
        probe.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let answer = read_all(probe).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // Of the crowd, the oldest went.
        crowd[0].set_nonblocking(true).unwrap();
        assert_eq!(crowd[0].read(&mut [0]).unwrap(), 0);
        let last = crowd.last_mut().unwrap();
        last.set_nonblocking(true).unwrap();
        assert_eq!(last.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn unread_answers_take_a_bounded_place() {
    with_gate(TEXT, |fixture| async move {
        fixture.board.publish(Page {
            workers: vec![crate::stats::WorkerRow::default(); 100_000],
            healthy: true,
            ..Page::default()
        });
        // More than the kernel takes from one who reads nothing.
        let page = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await.len();
        assert!(page > 8 << 20);
        let mut deaf = Vec::new();
        for _ in 0..6 {
            let mut stream = fixture.connect_from([127, 0, 0, 1]);
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            let stream = TcpStream::from_std(stream).unwrap();
            stream.readable().await.unwrap();
            deaf.push(stream);
        }
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(answer.len(), page, "who reads gets it whole");
        assert!(fixture.gate.unsent_bytes() <= page, "{}", fixture.gate.unsent_bytes());
    });
}

#[test]
fn without_the_web_server_the_status_is_still_true() {
    with_gate(TEXT, |fixture| async move {
        fixture.pages.lose_backend();
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        time::sleep(Duration::from_millis(1100)).await;
        fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("</html>"), "the server is back: {answer}");
    });
}

/// A crowd that asks for one page costs the web server one answer.
#[test]
fn requests_share_the_answer_while_its_page_is_the_newest() {
    with_gate(TEXT, |fixture| async move {
        let first = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        // Nobody could render another answer now.
        fixture.pages.lose_backend();
        assert_eq!(fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await, first);
        assert!(fixture.exchange(b"HEAD / HTTP/1.0\r\n\r\n").await.ends_with("\r\n\r\n"));
        fixture.board.publish(Page { healthy: false, ..Page::default() });
        let answer = fixture.exchange(b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "a new page, a new answer: {answer}");
    });
}

#[test]
fn a_picture_is_rendered_once_until_there_is_another() {
    with_gate(TEXT, |fixture| async move {
        let first = fixture.pages.get(Content::Picture).await;
        assert_eq!((first.status, first.kind.as_str()), (200, "application/json"));
        fixture.pages.lose_backend();
        fixture.board.publish(Page { healthy: true, ..Page::default() });
        assert_eq!(fixture.pages.get(Content::Picture).await, first, "pages come more often");
        fixture.board.publish_picture(Picture::default());
        assert_eq!(fixture.pages.get(Content::Picture).await, http::Reply::bare(503));
    });
}
