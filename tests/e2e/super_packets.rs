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
use crate::support::process::run;
use crate::support::random::Random;
use crate::support::tools::kernel_merges_udp;

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
fn a_burst_reaches_gwi_in_few_frames() {
    for (protocol, path, frames) in frames_of_bursts(&[]) {
        let told = format!("protocol {protocol}, {path:?}: {frames} frames");
        if protocol == TCP || kernel_merges_udp() {
            assert!(frames <= u64::from(BURST) / 4, "{told}");
        } else {
            assert_eq!(frames, u64::from(BURST), "{told}");
        }
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

/// The link becomes too small for some of the packets that the engine finds at once. `port` says of
/// which flow a packet is: the number, and whether it is long.
fn too_long_among_others(port: impl Fn(u16, bool) -> u16) {
    const PAIRS: u16 = 20;
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "1"]);
    let mut injector = lab.injector();
    // With 68 bytes of the tunnel and 28 of their own, the short ones just fit.
    let packet = |number: u16, is_long: bool| {
        let payload = pattern(number.into(), 1500 - 96 + usize::from(is_long));
        let ports = (port(number, is_long), 53);
        Ip::new(V4)
            .packet(UDP, &Udp { ports, length_error: 0, sum: Sum::Right }.datagram(V4, &payload))
    };
    injector.exchange(endpoint_id(0), &packet(0, true));
    engine.signal(Signal::SIGSTOP);
    run(&lab.topology.target(), "ip", &["link", "set", "eth0", "mtu", "1500"]);
    for number in 0..PAIRS {
        injector.send(endpoint_id(0), &packet(number, true));
        injector.send(endpoint_id(0), &packet(number, false));
    }
    engine.signal(Signal::SIGCONT);
    let receive = |_| injector.receive(PATIENCE).expect("it comes back").inner;
    let mut returned: Vec<_> = (0..PAIRS).map(receive).collect();
    let mut sent: Vec<_> = (0..PAIRS).map(|number| packet(number, false)).collect();
    if port(0, false) != port(1, false) {
        // There is no order among packets of different flows.
        returned.sort();
        sent.sort();
    }
    assert!(returned == sent, "other packets, or another order");
    wait_until("the others are counted", || engine.drops("mtu") == u64::from(PAIRS));
    injector.expect_silence();
    injector.assert_clean();
}

#[test]
fn what_is_too_long_for_the_link_is_counted_and_the_rest_returns() {
    too_long_among_others(|_, is_long| 1000 + u16::from(is_long));
}

/// Then a packet that fits is behind one that does not, in one send of several datagrams.
#[test]
fn what_fits_the_link_returns_although_its_send_does_not() {
    too_long_among_others(|number, is_long| 1000 + 2 * number + u16::from(is_long));
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
    let (frames, packets) = real_hosts_transfer(&[], &Lab::new(1, Config::default()));
    assert!(frames < packets, "{frames} frames for {packets} packets");
}

#[test]
fn real_hosts_get_what_was_sent_over_a_link_that_merges() {
    let (frames, packets) = real_hosts_transfer(&[], &Lab::with_gro(1, Config::default()));
    assert!(frames < packets, "{frames} frames for {packets} packets");
}

#[test]
fn real_hosts_get_what_was_sent_without_offloads() {
    let (frames, packets) = real_hosts_transfer(&["--no-offload"], &Lab::new(1, Config::default()));
    assert_eq!(frames, packets);
}

/// A proxy: the connection ends at the target, whose own kernel makes the super-packets and leaves
/// their checksums open, and those of small packets. At the shorter segments, one super-packet is
/// more than one send takes.
#[test]
fn a_program_on_the_target_sends_super_packets() {
    for advertised in ["8000", "1400", "536", "91"] {
        let lab = Lab::new(1, Config::default());
        let target = lab.topology.target();
        let hook = r#"proxy() { [ "$1" = DESTROY ] || ip route add 10.1.0.1 dev "$3"; }; proxy"#;
        let engine = Engine::start(&lab, &["-c", hook, "-j", "--workers", "2"]);
        let simulator = lab.simulator();
        let settings = "cd /proc/sys/net/ipv4/conf; echo 0 > all/rp_filter; \
                        echo 0 > default/rp_filter; ip addr add 10.1.0.2/32 dev lo";
        run(&target, "sh", &["-ec", settings]);
        let route = ["route", "change", "10.1.0.0/24", "dev", "lb0", "advmss", advertised];
        run(&lab.client(0), "ip", &route);
        let bind = || TcpListener::bind((SERVER_V4, 7001));
        let listener = target.enter(bind).expect("a port of the target");
        let content = Random::from_environment().bytes(TRANSFER_BYTES / 10);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("the client comes");
                stream.write_all(&content).expect("the client reads");
            });
            let connect = || TcpStream::connect((SERVER_V4, 7001));
            let mut stream = lab.client(0).enter(connect).expect("the target answers");
            stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("the transfer ends");
            assert!(got == content, "{advertised}: {} other bytes", got.len());
        });
        assert_eq!(engine.drops("tun_bad_frame"), 0);
        simulator.stop_clean();
        let sent = books::frames_read(&lab, &engine);
        let segments = content.len() / advertised.parse::<usize>().unwrap();
        assert!(sent < u64::try_from(segments).unwrap(), "{advertised}: {sent} frames");
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
