//! The metrics port: what it serves, and that what it says is true and well-formed.

use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Answer;
use crate::support::engine::Engine;
use crate::support::exposition::Format;
use crate::support::exposition::Scrape;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;

const PORT: &str = "9608";

/// What Prometheus 2.42 sends.
const PROMETHEUS_ACCEPTS: &str = "application/openmetrics-text;version=1.0.0,\
     application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// Asks an address of the target.
fn try_ask(lab: &Lab, address: &str, path: &str, accept: &str) -> io::Result<Answer> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = lab.topology.target().enter(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    Answer::read(&mut stream)
}

/// Asks the metrics port.
fn ask(lab: &Lab, path: &str) -> Answer {
    try_ask(lab, &format!("127.0.0.1:{PORT}"), path, "*/*").expect("an answer")
}

/// What the metrics port says, in the format of old, held to its rules.
fn scrape(lab: &Lab) -> Scrape {
    let answer = ask(lab, "/metrics");
    assert_eq!(answer.status, 200, "{answer:?}");
    Scrape::parse(&answer.body, Format::Prometheus)
}

#[test]
fn a_port_alone_is_on_loopback_and_has_its_paths() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::start(&lab, &["--metrics-listen", PORT]);
    let elsewhere = format!("{}:{PORT}", lab.config.target);
    let refused = try_ask(&lab, &elsewhere, "/metrics", "*/*").expect_err("nothing is there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    for path in ["/livez", "/readyz"] {
        let answer = ask(&lab, path);
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{path}");
    }
    for path in ["/", "/metrics/", "/metrics/text", "/favicon.ico", "/health"] {
        let answer = ask(&lab, path);
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert!(answer.body.contains("/metrics") && answer.is_whole(), "{answer:?}");
    }
    let answer = ask(&lab, "/metrics?name=x");
    assert_eq!(answer.field("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(answer.is_whole());
    assert_eq!(Scrape::parse(&answer.body, Format::Prometheus).get("gwlbtun_healthy"), Some(1.0));

    let loopback = format!("127.0.0.1:{PORT}");
    let open = try_ask(&lab, &loopback, "/metrics", PROMETHEUS_ACCEPTS).expect("an answer");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.field("Content-Type"), Some(kind));
    assert_eq!(Scrape::parse(&open.body, Format::OpenMetrics).get("gwlbtun_healthy"), Some(1.0));
}

#[test]
fn an_address_is_listened_on_and_a_taken_port_is_status_1() {
    let lab = Lab::new(0, Config::default());
    let address = format!("{}:{PORT}", lab.config.target);
    let _engine = Engine::start(&lab, &["--metrics-listen", &address]);
    let answer = try_ask(&lab, &address, "/livez", "*/*").expect("an answer");
    assert_eq!(answer.status, 200);
    let loopback = try_ask(&lab, &format!("127.0.0.1:{PORT}"), "/livez", "*/*");
    assert!(loopback.is_err(), "{loopback:?}");

    for (address, expected) in [
        (
            address.as_str(),
            format!(
                "cannot listen for --metrics-listen: bind(TCP {address}): Address already in use; \
                 choose another port\n"
            ),
        ),
        (
            "10.99.99.99:1",
            "cannot listen for --metrics-listen: bind(TCP 10.99.99.99:1): Cannot assign requested \
             address; this host does not have that address; see ip address\n"
                .to_owned(),
        ),
    ] {
        let output = Engine::command_under(&lab, &[], &["--metrics-listen", address])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.ends_with(&expected), "{told:?} is not {expected:?}");
    }
}

#[test]
fn readiness_is_that_of_the_health_page_and_life_is_not() {
    let lab = Lab::new(0, Config::default());
    let go = lab.scratch.file("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.1; done;", go.display());
    let mut engine = Engine::start(&lab, &["-r", &wait, "--metrics-listen", PORT]);
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"end"));
    wait_until("the endpoint is there", || engine.health("/").body.contains("Handler for ENI"));
    assert_eq!(ask(&lab, "/readyz").status, 200);
    engine.signal(Signal::SIGTERM);
    wait_until("it is not ready", || ask(&lab, "/readyz").status == 503);
    assert_eq!(engine.health("/").status, 503);
    let answer = ask(&lab, "/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "not ready\n"));
    assert_eq!(ask(&lab, "/livez").status, 200);
    assert_eq!(scrape(&lab).get("gwlbtun_healthy"), Some(0.0));
    std::fs::write(&go, "").unwrap();
    assert_eq!(engine.wait().code(), Some(0));
}
