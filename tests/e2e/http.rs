//! The health port's HTTP, as clients of every kind see it.

use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::TcpStream;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Answer;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::process::run;

/// Sends a request and reads until the other side closes, which must be with a FIN.
fn exchange(engine: &Engine, request: &str) -> Answer {
    let mut stream = engine.connect();
    stream.write_all(request.as_bytes()).expect("it takes the request");
    Answer::read(&mut stream).unwrap_or_else(|error| panic!("{request:?}: {error}"))
}

/// Reads one answer of a connection that stays open.
fn read_one(stream: &mut TcpStream) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("ASCII").trim_end().to_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let mut answer = Answer { status, head, body: String::new() };
    let length = answer.field("Content-Length").expect("a length").parse().expect("a number");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    answer.body = String::from_utf8(body).expect("UTF-8");
    answer
}

#[test]
fn any_method_and_any_path_get_the_page_with_its_length_and_a_fin() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &[]);
    let long = format!("GET /{} HTTP/1.1\r\nConnection: close\r\n\r\n", "x".repeat(7000));
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET http://proxy.example/health?a=b#c HTTP/1.1\r\nConnection: close\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nConnection: close\r\n\r\n",
        "DELETE /../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n",
        "BREW /%00%ff HTTP/1.1\r\nConnection: close\r\n\r\n",
        // A body that nobody reads must not turn the FIN into a reset.
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        &long,
    ] {
        let answer = exchange(&engine, request);
        assert_eq!(answer.status, 200, "{request}: {answer:?}");
        assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\nCache-Control: max-age=0, no-cache"));
        assert_eq!(answer.field("Content-Type"), Some("text/html"), "{answer:?}");
        assert_eq!(answer.field("Connection"), Some("close"), "{answer:?}");
        assert!(answer.is_whole() && answer.body.ends_with("</html>"), "{request}: {answer:?}");
    }
    for odd in ["\x16\x03\x01\x02\x00\x01\x00", "hello\r\n", "GET /\r\n", "GET / HTTP/1.1\r\n\r\n"]
    {
        let answer = exchange(&engine, odd);
        assert_eq!(answer.status, 200, "{odd:?}: {answer:?}");
        assert!(answer.is_whole() && answer.body.ends_with("</html>"), "{odd:?}: {answer:?}");
    }
    let huge = exchange(&engine, &format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(64 << 10)));
    assert_eq!((huge.status, huge.field("Content-Length")), (431, Some("0")));
}

#[test]
fn head_has_the_length_of_the_page_and_no_page() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &[]);
    let answer = exchange(&engine, "HEAD / HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let length: usize = answer.field("Content-Length").unwrap().parse().unwrap();
    assert!(length > 100, "{answer:?}");
}

#[test]
fn a_connection_is_kept_for_those_who_want_that() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-j"]);
    let mut stream = engine.connect();
    for request in [
        "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "POST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ] {
        stream.write_all(request.as_bytes()).unwrap();
        let answer = read_one(&mut stream);
        assert_eq!(answer.field("Connection"), Some("keep-alive"), "{answer:?}");
        assert!(answer.body.ends_with('}'), "{answer:?}");
    }
    // Several at once, and the last one ends it.
    stream.write_all("GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3).as_bytes()).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    (0..3).for_each(|_| assert_eq!(read_one(&mut stream).status, 200));
    let last = Answer::read(&mut stream).expect("a FIN");
    assert_eq!(last.field("Connection"), Some("close"), "{last:?}");
    // A client that closes first gets its FIN too.
    let mut stream = engine.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    read_one(&mut stream);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn both_families_are_served_whatever_the_hosts_default_is() {
    let lab = Lab::new(0, Config::default());
    // As on RHEL 10.
    let only = "echo 1 > /proc/sys/net/ipv6/bindv6only";
    run(&lab.topology.target(), "sh", &["-c", only]);
    let engine = Engine::start(&lab, &[]);
    let outer = IpAddr::V4(lab.config.target);
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), outer] {
        let mut stream = engine.connect_to(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(Answer::read(&mut stream).unwrap().status, 200, "{address}");
    }
}

#[test]
fn b07_port_80_is_free_for_a_successor_at_once() {
    let lab = Lab::new(0, Config::default());
    for _ in 0..3 {
        // Starting fails where the port is taken.
        let mut engine = Engine::start_on(&lab, 80, &[]);
        // The client waits for the FIN, so it is the server's port that is in TIME_WAIT.
        assert_eq!(exchange(&engine, "GET / HTTP/1.0\r\n\r\n").status, 200);
        let waiting = || run(&lab.topology.target(), "ss", &["-Htan", "state", "time-wait"]);
        wait_until("TIME_WAIT", || waiting().contains(":80 "));
        let _open = engine.connect();
        engine.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(engine.wait().code(), Some(0));
    }
}

#[test]
fn b07_clients_that_reset_before_the_answer_do_no_harm() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-j"]);
    let threads = engine.threads().len();
    for round in 0..100 {
        let mut stream = engine.connect();
        if round % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        }
        if round % 3 == 0 {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        // Closing is a reset then.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    }
    assert_eq!(exchange(&engine, "GET / HTTP/1.0\r\n\r\n").status, 200);
    assert!(engine.threads().len() <= threads + 3);
}

#[test]
fn b07_a_slow_reader_of_a_large_page_keeps_nobody_waiting_and_gets_all_of_it() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-j", "--compat", "3.2", "--workers", "2"]);
    let mut injector = lab.injector();
    for number in 0..40 {
        injector.send(endpoint_id(number), &packets::ping(V4, 1, b"large"));
    }
    let count = || engine.status()["summary"]["eniCount"].as_u64();
    wait_until("all endpoints are there", || count() == Some(40));
    let mut slow = engine.connect();
    setsockopt(&slow, sockopt::RcvBuf, &4096).unwrap();
    slow.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut start = [0; 100];
    slow.read_exact(&mut start).unwrap();
    for _ in 0..20 {
        let answer = exchange(&engine, "GET / HTTP/1.0\r\n\r\n");
        assert!(answer.status == 200 && answer.is_whole(), "{}", answer.head);
    }
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).expect("a FIN");
    let text = String::from_utf8([&start[..], &rest].concat()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(body.len() > 32 << 10 && body.ends_with('}'), "{} bytes", body.len());
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
}
