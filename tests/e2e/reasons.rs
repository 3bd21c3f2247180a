//! Drop reasons that no ordinary traffic gives: what has to go wrong on the host, or at once, for
//! each of them. The others are where what they are about is tested; `tests/tidy.rs` knows of all.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::flows::Sender;
use crate::sim::gwlb::Config;
use crate::sim::gwlb::Host;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::Path;
use crate::support::packets::SERVER;
use crate::support::packets::V4;
use crate::support::packets::pattern;
use crate::support::process::run;

/// Names of the links of the lab's first endpoint.
const GWI: &str = "gwi-5bqWvzLwwkk";
const GWO: &str = "gwo-5bqWvzLwwkk";

/// Numbers of ioctls (`linux/if_tun.h`): what a queue may hold, and the length of what stands
/// before each packet, in bytes.
const TUNSETSNDBUF: &str = "400454d4";
const TUNSETVNETHDRSZ: &str = "400454d8";

fn tc(lab: &Lab, line: &str) {
    let words: Vec<_> = line.split(' ').collect();
    run(&lab.topology.target(), "tc", &words);
}

/// Opens one more queue of an endpoint's link, as any program with `CAP_NET_ADMIN` may, does one
/// ioctl with a number that is for the whole link, and closes the queue again.
fn change_link(lab: &Lab, link: &str, request: &str, number: u32) {
    const SCRIPT: &str = "import fcntl, os, struct, sys\n\
        link, request, number = sys.argv[1].encode(), int(sys.argv[2], 16), int(sys.argv[3])\n\
        tun = os.open('/dev/net/tun', os.O_RDWR)\n\
        flags = 0x5101 # IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE\n\
        fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', link, flags)) # TUNSETIFF\n\
        fcntl.ioctl(tun, request, struct.pack('i', number))\n";
    let number = number.to_string();
    run(&lab.topology.target(), "python3", &["-c", SCRIPT, link, request, &number]);
}

/// From the `number`th of many clients to the server.
fn many(number: u16) -> Path {
    let [high, low] = number.to_be_bytes();
    (IpAddr::V4(Ipv4Addr::new(10, 7, high, low)), SERVER)
}

/// Sends one packet each way of a flow, which is live from then on.
fn converse(injector: &mut Injector, number: u16) {
    let (client, server) = many(number);
    injector.send(endpoint_id(0), &packets::udp((client, server), (4000, 53), b"?"));
    let answer = packets::udp((server, client), (53, 4000), b"!");
    let answer = injector.gwlb.encapsulate(endpoint_id(0), Host::Server, &answer);
    injector.send_datagram(&answer.expect("an IP packet"));
}

/// Waits until so many packets are back or counted for this reason, and some for each.
fn expect_back_or_counted(injector: &mut Injector, engine: &Engine, reason: &str, sent: u64) {
    let (mut back, mut counted) = (0, 0);
    wait_until("each is back or counted", || {
        while injector.receive(Duration::from_millis(10)).is_some() {
            back += 1;
        }
        counted = engine.drops(reason);
        back + counted == sent
    });
    eprintln!("of {sent} packets {back} are back, and {counted} are {reason}");
    assert!(back > 0 && counted > 0);
}

#[test]
fn flow_limit_is_when_all_flows_in_reach_are_live() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "1", "--max-flows", "64"]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"the endpoint is there"));
    let mut flows = 0;
    wait_until("a flow finds no room", || {
        converse(&mut injector, flows);
        flows += 1;
        engine.drops("flow_limit") > 0
    });
    expect_back_or_counted(&mut injector, &engine, "flow_limit", 2 * u64::from(flows));
    let inner = packets::udp(many(0), (4000, 53), b"those that live go on");
    injector.exchange(endpoint_id(0), &inner);
    injector.assert_clean();
}

/// There is no drop reason for that: a write waits inside the kernel, and its like behind it. The
/// limit is 2 GiB (`tun_chr_open`, drivers/net/tun.c); here it is what a few packets fill.
#[test]
fn a_tun_queue_that_may_hold_no_more_loses_nothing() {
    const SENT: usize = 100;
    let lab = Lab::new(0, Config::default());
    // What waits behind gwo is still charged to the queue of gwi that it was written to.
    let slow = "tc qdisc add dev $3 root handle 1: tbf rate 8kbit burst 2kb limit 10mb";
    let hook = format!("f() {{ {PASSTHROUGH} \"$@\" && {slow}; }}; f");
    let engine = Engine::start(&lab, &["-j", "--workers", "1", "--no-offload", "-c", &hook]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"the endpoint is there"));
    change_link(&lab, GWI, TUNSETSNDBUF, 10_000);
    let packet = |number| packets::udp(V4, (4000, 53), &pattern(number, 1000));
    for number in 0..SENT {
        injector.send(endpoint_id(0), &packet(number));
    }
    let writes = || engine.status()["offload"]["gwiWrites"].as_u64().expect("a number");
    wait_until("all have arrived", || {
        engine.status()["offload"]["receives"].as_u64() == Some(SENT as u64 + 1)
    });
    let at_first = writes();
    assert!(at_first < SENT as u64, "{at_first} were written at once: nothing was full");
    let fast = "root handle 1: tbf rate 1gbit burst 1mb limit 10mb";
    tc(&lab, &format!("qdisc change dev {GWO} {fast}"));
    // What waits may be overtaken.
    let mut back: Vec<_> = (0..SENT).map(|_| injector.receive(PATIENCE).map(|b| b.inner)).collect();
    back.sort_unstable();
    let mut sent: Vec<_> = (0..SENT).map(|number| Some(packet(number))).collect();
    sent.sort_unstable();
    assert!(back == sent && writes() == SENT as u64 + 1);
    assert_eq!(engine.status()["drops"].to_string(), "{}");
    injector.assert_clean();
}

#[test]
fn tun_error_is_when_somebody_has_changed_what_frames_begin_with() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"as it should be"));
    // Longer than the frames that are written.
    change_link(&lab, GWI, TUNSETVNETHDRSZ, 1000);
    for number in 0..10 {
        injector.send(endpoint_id(0), &packets::ping(V4, number, b"refused"));
    }
    wait_until("each is counted", || engine.drops("tun_error") == 10);
    change_link(&lab, GWI, TUNSETVNETHDRSZ, 10);
    injector.exchange(endpoint_id(0), &packets::ping(V4, 2, b"as it should be"));
    injector.assert_clean();
}

#[test]
fn tun_bad_frame_is_when_the_host_sends_what_is_no_ip_packet() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"the endpoint is there"));
    let host = Sender::open(&lab, GWO);
    (0..3).for_each(|_| host.send(&[0x15; 60]));
    wait_until("each is counted", || engine.drops("tun_bad_frame") == 3);
    injector.exchange(endpoint_id(0), &packets::ping(V4, 2, b"nothing else happens"));
    injector.assert_clean();
}

#[test]
fn fragment_unmatched_is_when_the_first_one_does_not_come() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "1"]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"the endpoint is there"));
    let (IpAddr::V4(client), IpAddr::V4(server)) = V4 else { panic!("not of IPv4") };
    // 40 bytes behind the start of what it is a part of.
    let later = packets::ipv4(server, client, 17, 5, &pattern(1, 100));
    let host = Sender::open(&lab, GWO);
    (0..3).for_each(|_| host.send(&later));
    wait_until("their time is over", || engine.drops("fragment_unmatched") == 3);
    injector.expect_silence();
    injector.assert_clean();
}

#[test]
fn send_full_is_when_the_uplink_takes_less_than_comes() {
    let lab = Lab::new(0, Config { port_count: 1, ..Config::default() });
    let engine = Engine::passthrough(&lab, &["--workers", "1", "--no-offload"]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"the endpoint is there"));
    tc(&lab, "qdisc add dev eth0 root handle 1: tbf rate 80kbit burst 10kb limit 100mb");
    let mut sent = 0;
    wait_until("a send finds no room to wait in", || {
        for _ in 0..100 {
            sent += 1;
            injector.send(endpoint_id(0), &packets::udp(V4, (4000, 53), &pattern(1, 1400)));
        }
        engine.drops("send_full") > 0
    });
    tc(&lab, "qdisc change dev eth0 root handle 1: tbf rate 1gbit burst 1mb limit 100mb");
    expect_back_or_counted(&mut injector, &engine, "send_full", sent);
    injector.exchange(endpoint_id(0), &packets::ping(V4, 2, b"it has room again"));
    injector.assert_clean();
}

#[test]
fn shutdown_is_when_the_program_ends_before_the_endpoint_was_ready() {
    let lab = Lab::new(0, Config::default());
    let file = |name: &str| lab.scratch.file(name);
    let wait = format!("while [ ! -e {}/end-$1 ]; do sleep 0.05; done", file("").display());
    let hook = format!("f() {{ touch {}/begin-$1; {wait}; }}; f", file("").display());
    let mut engine = Engine::start(&lab, &["-j", "--workers", "2", "-c", &hook, "-r", &hook]);
    let mut injector = lab.injector();
    for number in 0..5 {
        injector.send(endpoint_id(0), &packets::ping(V4, number, b"held"));
    }
    wait_until("CREATE runs", || file("begin-CREATE").exists());
    engine.signal(Signal::SIGTERM);
    std::fs::write(file("end-CREATE"), "").expect("a file");
    wait_until("DESTROY runs", || file("begin-DESTROY").exists());
    wait_until("what was held is counted", || engine.drops("shutdown") == 5);
    std::fs::write(file("end-DESTROY"), "").expect("a file");
    assert!(engine.wait().success());
    injector.expect_silence();
}
