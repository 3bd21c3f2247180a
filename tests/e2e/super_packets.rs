//! Super-packets where they should be, and nobody outside sees them: real hosts get the bytes that
//! were sent, and a checker that is not ours finds no wrong checksum.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::support::books;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::craft::Ip;
use crate::support::craft::Sum;
use crate::support::craft::TCP;
use crate::support::craft::Tcp;
use crate::support::craft::UDP;
use crate::support::craft::Udp;
use crate::support::craft::flag;
use crate::support::engine::Engine;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets::Path;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::packets::pattern;
use crate::support::process::Background;
use crate::support::process::finish;
use crate::support::random::Random;

/// Packets that one TCP segment after the other, or one datagram after the other, makes.
fn run_of(path: Path, protocol: u8, first: u32, count: u32) -> Vec<Vec<u8>> {
    const PAYLOAD_BYTES: usize = 1400;
    let ip = Ip::new(path);
    let packet = |number: u32| {
        let payload = pattern(usize::try_from(number).unwrap(), PAYLOAD_BYTES);
        let content = if protocol == TCP {
            let sequence = number.wrapping_mul(u32::try_from(PAYLOAD_BYTES).unwrap());
            let (ports, flags, window) = ((4000, 443), flag::ACK, 1000);
            let (ack, urgent, options, sum) = (1, 0, Vec::new(), Sum::Right);
            let tcp = Tcp { ports, sequence, ack, flags, window, urgent, options, sum };
            tcp.segment(path, &payload)
        } else {
            let udp = Udp { ports: (4000, 4500), length_error: 0, sum: Sum::Right };
            udp.datagram(path, &payload)
        };
        ip.packet(protocol, &content)
    };
    (first..first + count).map(packet).collect()
}

/// How many frames reach gwi for a burst that the engine finds at once.
fn frames_of_a_burst(
    lab: &Lab,
    engine: &Engine,
    injector: &mut Injector,
    packets: &[Vec<u8>],
) -> u64 {
    let (first, burst) = packets.split_first().expect("a burst");
    injector.exchange(endpoint_id(0), first);
    let before = books::frames_written(lab, engine);
    engine.signal(Signal::SIGSTOP);
    for inner in burst {
        injector.send(endpoint_id(0), inner);
    }
    engine.signal(Signal::SIGCONT);
    for inner in burst {
        let back = injector.receive(PATIENCE).expect("it comes back");
        assert!(back.inner == *inner, "another packet, or another order");
    }
    books::frames_written(lab, engine) - before
}

/// One packet introduces the flow, then comes the burst.
const BURST: u32 = 60;

fn frames_of_bursts(arguments: &[&str]) -> Vec<(u8, Path, u64)> {
    let lab = Lab::new(0, Config::default());
    books::silence_kernel(&lab);
    let engine = Engine::passthrough(&lab, &[arguments, &["--workers", "1"]].concat());
    let mut injector = lab.injector();
    let mut frames = Vec::new();
    for (protocol, path) in [(TCP, V4), (TCP, V6), (UDP, V4), (UDP, V6)] {
        let packets = run_of(path, protocol, 0, BURST + 1);
        let count = frames_of_a_burst(&lab, &engine, &mut injector, &packets);
        frames.push((protocol, path, count));
    }
    injector.assert_clean();
    frames
}

#[test]
#[ignore = "the engine does not merge yet"]
fn a_burst_reaches_gwi_in_few_frames() {
    for (protocol, path, frames) in frames_of_bursts(&[]) {
        assert!(frames <= u64::from(BURST) / 4, "protocol {protocol}, {path:?}: {frames} frames");
    }
}

#[test]
fn frames_of_at_most_the_mtu_hold_one_packet_each() {
    for arguments in [&["--gwi-max-frame", "mtu"][..], &["--no-offload"]] {
        for (protocol, path, frames) in frames_of_bursts(arguments) {
            let told = format!("{arguments:?}: protocol {protocol}, {path:?}: {frames} frames");
            assert_eq!(frames, u64::from(BURST), "{told}");
        }
    }
}

/// Bytes of each transfer between real hosts.
const TRANSFER_BYTES: usize = 10_000_000;

/// Which way a transfer's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// Moves `content` between the hosts of endpoint 0 and requires that it arrives.
pub(super) fn transfer(lab: &Lab, server: &str, port: u16, way: Way, content: &[u8]) {
    let listener = lab.server(0).enter(|| TcpListener::bind((server, port))).expect("a port");
    let receive = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("the transfer ends");
        assert!(got == content, "{server} {way:?}: {} other bytes", got.len());
    };
    let send = |mut stream: TcpStream| stream.write_all(content).expect("the other side reads");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, _) = listener.accept().expect("the client comes");
            if way == Way::Up { receive(stream) } else { send(stream) }
        });
        let connect = || TcpStream::connect((server, port));
        let stream = lab.client(0).enter(connect).expect("the server listens");
        if way == Way::Up { send(stream) } else { receive(stream) }
    });
}

/// Up and down, over IPv4 and IPv6, all at once.
fn transfers(lab: &Lab, bytes: usize) {
    let content = Random::from_environment().bytes(bytes);
    std::thread::scope(|scope| {
        for (server, port, way) in [
            (SERVER_V4, 7001, Way::Up),
            (SERVER_V4, 7002, Way::Down),
            (SERVER_V6, 7003, Way::Up),
            (SERVER_V6, 7004, Way::Down),
        ] {
            let content = &content;
            scope.spawn(move || transfer(lab, server, port, way, content));
        }
    });
}

/// Returns frames and packets that went to gwi.
fn real_hosts_transfer(arguments: &[&str], lab: &Lab) -> (u64, u64) {
    books::silence_kernel(lab);
    let engine = Engine::passthrough(lab, &[arguments, &["--workers", "2"]].concat());
    let simulator = lab.simulator();
    transfers(lab, TRANSFER_BYTES);
    simulator.stop_clean();
    (books::frames_written(lab, &engine), books::packets_written(&engine))
}

#[test]
fn real_hosts_get_what_was_sent() {
    real_hosts_transfer(&[], &Lab::new(1, Config::default()));
}

#[test]
fn real_hosts_get_what_was_sent_over_a_link_that_merges() {
    real_hosts_transfer(&[], &Lab::with_gro(1, Config::default()));
}

#[test]
fn real_hosts_get_what_was_sent_without_offloads() {
    let (frames, packets) = real_hosts_transfer(&["--no-offload"], &Lab::new(1, Config::default()));
    assert_eq!(frames, packets);
}

#[test]
#[ignore = "the engine does not merge yet"]
fn real_hosts_packets_are_merged() {
    for lab in [Lab::new(1, Config::default()), Lab::with_gro(1, Config::default())] {
        let (frames, packets) = real_hosts_transfer(&[], &lab);
        assert!(frames < packets, "{frames} frames for {packets} packets");
    }
}

/// The capture is on the load balancer's side, where every checksum must be final.
#[test]
fn tshark_finds_no_wrong_checksum() {
    for lab in [Lab::new(1, Config::default()), Lab::with_gro(1, Config::default())] {
        let _engine = Engine::passthrough(&lab, &["--workers", "2"]);
        let simulator = lab.simulator();
        let capture = lab.scratch.file("capture.pcap");
        let path = capture.to_str().expect("UTF-8");
        let args = ["-q", "-i", "gw0", "-f", "udp port 6081", "-F", "pcap", "-w", path];
        let tshark = Background::start(&lab.topology.gwlb(), "tshark", &args);
        let has_packets = || std::fs::metadata(&capture).is_ok_and(|file| file.len() > 1 << 20);
        wait_until("tshark captures", || {
            transfers(&lab, TRANSFER_BYTES / 10);
            has_packets()
        });
        tshark.interrupt();
        simulator.stop_clean();
        let outer_and_inner = "udp.checksum.status == 1 && tcp.checksum.status == 1";
        let right = checked(path, outer_and_inner);
        assert!(right.lines().count() > 100, "tshark checked few packets:\n{right}");
        let wrong = ["ip", "udp", "tcp"].map(|layer| format!("{layer}.checksum.status == 0"));
        assert_eq!(checked(path, &wrong.join(" || ")), "", "packets with wrong checksums");
    }
}

/// tshark's lines about the packets of a capture that a filter finds; all checksums are checked.
fn checked(capture: &str, filter: &str) -> String {
    let mut command = Command::new("tshark");
    for layer in ["ip", "udp", "tcp"] {
        command.args(["-o", &format!("{layer}.check_checksum:TRUE")]);
    }
    finish(command.args(["-n", "-r", capture, "-Y", filter]))
}
