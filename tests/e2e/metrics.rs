//! The metrics port: what it serves, and that what it says is true and well-formed.

use std::collections::BTreeSet;
use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Command;
use std::process::Stdio;

use gwlbtun::types::DropReason;
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

pub(super) const PORT: &str = "9608";

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
pub(super) fn ask(lab: &Lab, path: &str) -> Answer {
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

/// Names of our metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("gwlbtun_") || word.starts_with("process_")).collect()
}

fn of_endpoint(name: &str, endpoint: usize) -> String {
    format!("{name}{{endpoint=\"vpce-{:017x}\"}}", endpoint_id(endpoint))
}

#[test]
fn what_it_says_is_what_happened() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--metrics-listen", PORT, "--workers", "2"]);
    let injector = &mut lab.injector();
    let packet = packets::ping(V4, 1, b"counted");
    for _ in 0..3 {
        injector.exchange(endpoint_id(0), &packet);
    }
    injector.send_raw(b"short");
    wait_until("all is counted", || {
        engine.drops("short") == 1 && scrape(&lab).sum("gwlbtun_geneve_sent_packets_total") >= 3.0
    });
    let seen = scrape(&lab);
    let bytes = 3.0 * f64::from(u32::try_from(packet.len()).expect("a short one"));
    for (series, value) in [
        ("gwlbtun_geneve_received_packets_total", 4.0),
        ("gwlbtun_geneve_sent_packets_total", 3.0),
        ("gwlbtun_geneve_sent_bytes_total", bytes),
        (&of_endpoint("gwlbtun_tun_written_packets_total", 0), 3.0),
        (&of_endpoint("gwlbtun_tun_written_bytes_total", 0), bytes),
        (&of_endpoint("gwlbtun_tun_queue_drops_total", 0), 0.0),
        (&of_endpoint("gwlbtun_endpoint_up", 0), 1.0),
        ("gwlbtun_dropped_packets_total{direction=\"decap\",reason=\"short\"}", 1.0),
        ("gwlbtun_endpoints", 1.0),
        ("gwlbtun_endpoints_limit", 1024.0),
        ("gwlbtun_hooks_running", 0.0),
        ("gwlbtun_hook_runs_total{action=\"create\",result=\"success\"}", 1.0),
        ("gwlbtun_hook_runs_total{action=\"destroy\",result=\"success\"}", 0.0),
        ("gwlbtun_hook_duration_seconds_count{action=\"create\"}", 1.0),
        ("gwlbtun_health_status{check=\"workers\"}", 1.0),
        ("gwlbtun_worker_up{worker=\"1\"}", 1.0),
        ("gwlbtun_uring_stray_completions_total", 0.0),
        ("gwlbtun_udp_receive_queue_drops_total", 0.0),
    ] {
        assert_eq!(seen.get(series), Some(value), "{series} in {seen:#?}");
    }
    let flows =
        of_endpoint("gwlbtun_flows", 0).replace('}', ",family=\"ipv4\",protocol=\"other\"}");
    assert_eq!(seen.get(&flows), Some(1.0), "{seen:#?}");
    let reasons = seen.label_values("gwlbtun_dropped_packets_total", "reason");
    let all: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    assert_eq!(reasons, all);
    for direction in ["decap", "encap"] {
        let series = format!("gwlbtun_forward_latency_seconds_count{{direction=\"{direction}\"}}");
        assert!(seen.get(&series).is_some_and(|count| count >= 1.0), "{series} in {seen:#?}");
    }
    let last = of_endpoint("gwlbtun_endpoint_last_packet_timestamp_seconds", 0);
    let started = seen.get("gwlbtun_start_time_seconds").expect("it was started");
    assert!(seen.get(&last).is_some_and(|last| last >= started), "{seen:#?}");
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "gwlbtun_worker_cpu_seconds_total",
        "gwlbtun_build_info",
        "gwlbtun_flow_table_capacity",
    ] {
        assert!(seen.sum(name) > 0.0, "{name} in {seen:#?}");
    }
}

#[test]
fn counters_go_on_when_endpoints_go_and_come_again() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::passthrough(&lab, &["--metrics-listen", PORT, "-t", "1"]);
    let injector = &mut lab.injector();
    let mut before = scrape(&lab);
    for round in 1..=2 {
        for number in 0..2 {
            injector.exchange(endpoint_id(number), &packets::ping(V4, 1, b"come and go"));
        }
        let destroyed = "gwlbtun_hook_runs_total{action=\"destroy\",result=\"success\"}";
        let gone = [("gwlbtun_endpoints", 0.0), (destroyed, 2.0 * f64::from(round))];
        wait_until("both endpoints go", || {
            let now = scrape(&lab);
            now.expect_after(&before);
            before = now;
            gone.iter().all(|&(series, value)| before.get(series) == Some(value))
        });
        let sent = before.get("gwlbtun_geneve_sent_packets_total");
        assert_eq!(sent, Some(2.0 * f64::from(round)), "{before:#?}");
        assert_eq!(before.label_values("gwlbtun_tun_written_packets_total", "endpoint").len(), 0);
        let created = "gwlbtun_hook_runs_total{action=\"create\",result=\"success\"}";
        assert_eq!(before.get(created), Some(2.0 * f64::from(round)), "{before:#?}");
    }
}

/// What the rules, the dashboard and the README say exists, exists under that name.
#[test]
fn whoever_names_a_metric_names_one_that_there_is() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::start(&lab, &["--metrics-listen", PORT]);
    let seen = scrape(&lab);
    let root = env!("CARGO_MANIFEST_DIR");
    for file in ["tuning/alerts.yml", "tuning/alerts-test.yml", "tuning/dashboard.json"] {
        let text = std::fs::read_to_string(format!("{root}/{file}")).expect(file);
        let named = metrics_in(&text);
        assert!(named.len() > 10, "{file}: {named:?}");
        for name in named {
            assert!(seen.has(name), "{file} names {name}, which there is not");
        }
    }
    let readme = std::fs::read_to_string(format!("{root}/README.md")).expect("README.md");
    let (_, section) = readme.split_once("\n## Metrics\n").expect("a section");
    let section = section.split("\n## ").next().expect("its text");
    for name in metrics_in(section) {
        assert!(seen.has(name), "the README names {name}, which there is not");
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_tested() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |file: &str| std::fs::read_to_string(format!("{root}/tuning/{file}")).expect(file);
    let (rules, tests) = (read("alerts.yml"), read("alerts-test.yml"));
    let alerts: Vec<_> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 10, "{rules}");
    for alert in alerts {
        let name = alert.lines().next().expect("a name");
        let action = alert.lines().find_map(|line| line.trim().strip_prefix("action: \""));
        assert!(action.is_some_and(|action| action.len() > 30), "{alert}");
        assert!(alert.contains("severity: ") && alert.contains("summary: "), "{alert}");
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} is not tested");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels {
        let targets = panel["targets"].as_array().map_or(0, Vec::len);
        assert!(targets > 0 && panel["title"].is_string(), "{panel}");
    }
}

/// Runs promtool in the folder of the rules.
fn promtool(args: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tuning"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: install the package prometheus");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {told}");
    assert!(args[0] != "check" || args[1] != "metrics" || told.is_empty(), "{told}");
}

#[test]
#[ignore = "needs promtool: .ci/run full"]
fn promtool_finds_no_fault() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::passthrough(&lab, &["--metrics-listen", PORT]);
    lab.injector().exchange(endpoint_id(0), &packets::ping(V4, 1, b"promtool"));
    promtool(&["check", "metrics"], &ask(&lab, "/metrics").body);
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts-test.yml"], "");
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
