//! Real clients and servers, every packet of theirs through the program.

use std::io::Read as _;
use std::io::Write as _;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::sim::gwlb::Config;
use crate::sim::gwlb::CookieRule;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::packets::pattern;
use crate::support::process::Background;
use crate::support::process::finish;
use crate::support::process::run;

const DOWNLOAD_BYTES: u64 = 200_000_000;

pub(super) fn ping(lab: &Lab, endpoint: usize) {
    for address in [SERVER_V4, SERVER_V6] {
        for bytes in ["0", "56", "8400"] {
            // One by one: of several, ping waits for the last answers no longer than the others
            // took, which a busy machine exceeds.
            for _ in 0..5 {
                let options = ["-c", "1", "-W", "10", "-s", bytes, address];
                let printed = run(&lab.client(endpoint), "ping", &options);
                assert!(printed.contains(" 1 received"), "{printed}");
            }
        }
    }
}

pub(super) fn sha256(path: &std::path::Path) -> String {
    let printed = finish(Command::new("sha256sum").arg(path));
    printed.split(' ').next().unwrap_or_default().to_owned()
}

/// A file of bytes that no compression or repetition hides errors in.
pub(super) fn random_file(lab: &Lab, path: &str, bytes: u64) -> std::path::PathBuf {
    let path = lab.scratch.file(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let random = std::fs::File::open("/dev/urandom").unwrap();
    let mut file = std::fs::File::create(&path).unwrap();
    std::io::copy(&mut random.take(bytes), &mut file).unwrap();
    path
}

pub(super) fn download(lab: &Lab, endpoint: usize, bytes: u64) {
    let served = random_file(lab, &format!("www{endpoint}/file"), bytes);
    let _server = lab.http_server(endpoint, &format!("www{endpoint}"));
    let got = lab.scratch.file(&format!("got{endpoint}"));
    let url = format!("http://{SERVER_V4}:8000/file");
    let args = ["-sS", "-o", got.to_str().unwrap(), &url];
    run(&lab.client(endpoint), "curl", &args);
    assert_eq!(sha256(&got), sha256(&served));
}

fn pings_and_download(arguments: &[&str], lab: &Lab) {
    pings_and_download_of(DOWNLOAD_BYTES, arguments, lab);
}

fn pings_and_download_of(bytes: u64, arguments: &[&str], lab: &Lab) {
    let _engine = Engine::passthrough(lab, arguments);
    let simulator = lab.simulator();
    ping(lab, 0);
    download(lab, 0, bytes);
    let report = simulator.stop_clean();
    assert!(report.returned > bytes / 8500, "{}", report.to_json());
}

#[test]
fn ping_and_download_with_one_worker() {
    pings_and_download(&["--workers", "1"], &Lab::new(1, Config::default()));
}

#[test]
fn ping_and_download_with_two_workers() {
    pings_and_download(&["--workers", "2"], &Lab::new(1, Config::default()));
}

/// Linux 6.1 has no multishot read: poll and plain reads must do.
#[test]
fn ping_and_download_with_what_the_oldest_kernel_has() {
    pings_and_download(&["--workers", "2", "--kernel-floor"], &Lab::new(1, Config::default()));
}

#[test]
fn ping_and_download_with_four_workers_and_many_outer_ports() {
    let config = Config { port_first: 50000, port_count: 64, ..Config::default() };
    pings_and_download(&["--workers", "4"], &Lab::new(1, config));
}

#[test]
fn ping_and_download_without_outer_checksums_and_with_roaming_flows() {
    let config = Config {
        outer_checksum: false,
        roam_packets: 1000,
        cookies: CookieRule::PerDirection,
        ..Config::default()
    };
    pings_and_download(&["--workers", "2"], &Lab::new(1, config));
}

/// Such a link drops bursts, which TCP repeats: fewer bytes, so that a busy machine is in time.
#[test]
fn ping_and_download_with_datagrams_merged_by_the_link() {
    for port_count in [1, 4] {
        let config = Config { port_count, ..Config::default() };
        let lab = Lab::with_gro(1, config);
        pings_and_download_of(DOWNLOAD_BYTES / 4, &["--workers", "2"], &lab);
    }
}

/// Names and addresses of a server, asked for over UDP.
pub(super) fn resolve(lab: &Lab) {
    let options = [
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
        "--bind-interfaces",
        "--listen-address=10.1.0.2",
        "--listen-address=fd00:1::2",
        "--address=/demo.test/192.0.2.7",
        "--address=/demo.test/2001:db8::7",
    ];
    let _server = Background::start(&lab.server(0), "dnsmasq", &options);
    wait_until("dnsmasq answers on its own host", || {
        let mut dig = lab.server(0).command("dig");
        dig.args(["+short", "+time=1", "+tries=1", "@10.1.0.2", "demo.test"]);
        dig.output().is_ok_and(|output| output.stdout == b"192.0.2.7\n")
    });
    for (server, kind, answer) in
        [(SERVER_V4, "A", "192.0.2.7"), (SERVER_V6, "AAAA", "2001:db8::7")]
    {
        for _ in 0..20 {
            let at = format!("@{server}");
            let printed = run(&lab.client(0), "dig", &["+short", &at, "demo.test", kind]);
            assert_eq!(printed.trim(), answer);
        }
    }
}

#[test]
fn dns_over_udp() {
    let lab = Lab::new(1, Config::default());
    let _engine = Engine::passthrough(&lab, &[]);
    let simulator = lab.simulator();
    resolve(&lab);
    simulator.stop_clean();
}

/// Sends `content`, closes its direction, and returns everything that comes back.
fn echo_through(mut stream: TcpStream, content: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    std::thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            writer.write_all(content).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    })
}

#[test]
fn sixty_four_tcp_connections_at_once() {
    const CONNECTIONS: usize = 64;
    let config = Config { port_count: 4, ..Config::default() };
    let lab = Lab::new(1, config);
    let _engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let simulator = lab.simulator();
    let bind = || TcpListener::bind((SERVER_V4, 7));
    let listener = lab.server(0).enter(bind).expect("the echo port");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming().take(CONNECTIONS) {
                let stream = stream.unwrap();
                scope.spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        for number in 0..CONNECTIONS {
            let client = lab.client(0);
            scope.spawn(move || {
                let connect = || TcpStream::connect((SERVER_V4, 7));
                let content = pattern(number, 500_000 + number);
                let back = echo_through(client.enter(connect).unwrap(), &content);
                assert!(back == content, "connection {number} got other bytes");
            });
        }
    });
    let report = simulator.stop_clean();
    assert!(report.flows >= 64, "{}", report.to_json());
}

#[test]
fn two_endpoints_with_the_same_addresses_stay_apart() {
    let lab = Lab::new(2, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let simulator = lab.simulator();
    std::thread::scope(|scope| {
        for endpoint in 0..2 {
            let lab = &lab;
            scope.spawn(move || {
                ping(lab, endpoint);
                // Each server has another file under the same URL.
                download(lab, endpoint, 20_000_000);
            });
        }
    });
    assert_eq!(engine.links().len(), 4, "{:?}", engine.links());
    simulator.stop_clean();
}
