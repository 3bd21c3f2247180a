//! What real hosts see at the edges: fragments, errors that the target makes, packets that are too
//! big.

use std::process::Command;

use super::hosts::download;
use crate::sim::gwlb::Config;
use crate::sim::gwlb::CookieRule;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::process::run;

/// The target as a router: what comes by `gwi` leaves by `gwo`, whose MTU is 1,400 bytes, and so
/// does what the target itself has to say. `nft` may see it forwarded.
const ROUTER: &str = r#"route() {
    [ "$1" = CREATE ] || exit 0
    for setting in net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
        net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
        "net.ipv4.conf.$2.rp_filter=0" net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0; do
        sysctl -qw "$setting"
    done
    ip link set "$3" mtu 1400
    ip -6 address add fd00:99::1/128 dev "$3" nodad
    ip route add 10.1.0.0/24 dev "$3"
    ip -6 route add fd00:1::/64 dev "$3"
    nft -f "$RULES"
}; route"#;

/// Both directions have cookies of their own, and there is more than one worker: what goes back
/// under another header than its own is a breach.
fn config() -> Config {
    Config { cookies: CookieRule::PerDirection, port_count: 8, ..Config::default() }
}

fn router(lab: &Lab, rules: &str) -> Engine {
    let file = lab.scratch.file("rules.nft");
    std::fs::write(&file, rules).unwrap();
    let preparation = format!("export RULES={}", file.display());
    Engine::start_from_shell(lab, &preparation, &["-c", ROUTER, "-j", "--workers", "3"])
}

/// Pings once with these options and returns what `ping` prints, whether or not an answer comes.
fn ping(lab: &Lab, options: &str, server: &str) -> String {
    let mut command: Command = lab.client(0).command("ping");
    command.args(["-n", "-c", "1", "-W", "10"]).args(options.split(' ')).arg(server);
    let output = command.output().expect("ping");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn assert_answered(lab: &Lab, options: &str, server: &str) {
    let printed = ping(lab, options, server);
    assert!(printed.contains(" 1 received"), "{options} {server}: {printed}");
}

fn assert_refused(lab: &Lab, options: &str, server: &str, words: &str) {
    let printed = ping(lab, options, server);
    assert!(printed.contains(words), "{options} {server}: {printed}");
}

#[test]
fn fragments_of_hosts_pass_as_they_are() {
    let lab = Lab::new(1, config());
    let engine = Engine::passthrough(&lab, &["--workers", "3"]);
    let simulator = lab.simulator();
    for server in [SERVER_V4, SERVER_V6] {
        for bytes in [8600, 20_000, 60_000] {
            for _ in 0..3 {
                assert_answered(&lab, &format!("-s {bytes} -M dont"), server);
            }
        }
    }
    assert_eq!(engine.drops("fragment_unmatched"), 0);
    simulator.stop_clean();
}

/// Connection tracking puts them together and takes them apart again: other fragments than those
/// that came.
#[test]
fn fragments_that_the_target_makes_return() {
    let lab = Lab::new(1, config());
    let engine = router(
        &lab,
        "table inet track { chain forward { type filter hook forward priority 0; \
         ct state established,related counter; }; }",
    );
    let simulator = lab.simulator();
    // No router cuts IPv6 where the sender did not, so both hosts have to know the MTU first.
    assert_refused(&lab, "-s 2000 -M do", SERVER_V6, "Packet too big: mtu=1400");
    wait_until("the server has learnt the MTU", || {
        ping(&lab, "-s 2000 -M dont -W 1", SERVER_V6).contains(" 1 received")
    });
    for server in [SERVER_V4, SERVER_V6] {
        for bytes in [2000, 8600, 20_000] {
            for _ in 0..3 {
                assert_answered(&lab, &format!("-s {bytes} -M dont"), server);
            }
        }
    }
    assert_eq!(engine.drops("fragment_unmatched"), 0);
    assert_eq!(engine.drops("flow_unknown"), 0);
    simulator.stop_clean();
}

#[test]
fn errors_that_the_target_makes_reach_the_hosts() {
    let lab = Lab::new(1, config());
    let engine = router(
        &lab,
        "table inet refuse { chain forward { type filter hook forward priority 0; \
         tcp dport 81 reject with tcp reset; tcp dport 82 reject; udp dport 83 reject; }; }",
    );
    let simulator = lab.simulator();
    for (server, exceeded, too_big) in [
        (SERVER_V4, "Time to live exceeded", "Frag needed and DF set (mtu = 1400)"),
        (SERVER_V6, "Time exceeded: Hop limit", "Packet too big: mtu=1400"),
    ] {
        assert_answered(&lab, "-s 56", server);
        assert_refused(&lab, "-t 1", server, exceeded);
        assert_refused(&lab, "-s 2000 -M do", server, too_big);
        for (kind, port) in [("STREAM", 81), ("STREAM", 82), ("DGRAM", 83)] {
            let program = format!(
                "import socket\n\
                 family = socket.getaddrinfo('{server}', None)[0][0]\n\
                 s = socket.socket(family, socket.SOCK_{kind})\n\
                 s.settimeout(10)\n\
                 try:\n s.connect(('{server}', {port})); s.send(b'x'); s.recv(1)\n\
                 except OSError as error:\n print(error)\n"
            );
            let printed = run(&lab.client(0), "python3", &["-c", &program]);
            let is_refused = printed.contains("Connection refused");
            assert!(is_refused, "port {port} of {server}: {printed}");
        }
    }
    assert_eq!(engine.drops("flow_unknown"), 0);
    simulator.stop_clean();
}

/// The hosts' links take more than the load balancer does back, and nothing between the links says
/// so.
#[test]
fn hosts_learn_what_the_load_balancer_takes() {
    let mut lab = Lab::new(1, Config { lets_large_in: true, ..config() });
    lab.host_mtu = 8932;
    let engine = Engine::passthrough(&lab, &["--workers", "3"]);
    let simulator = lab.simulator();
    for (server, words, headers) in [
        (SERVER_V4, "Frag needed and DF set (mtu = 8500)", 28),
        (SERVER_V6, "Packet too big: mtu=8500", 48),
    ] {
        assert_answered(&lab, &format!("-s {} -M do", 8500 - headers), server);
        for bytes in [8501 - headers, 8932 - headers] {
            let options = format!("-s {bytes} -M do");
            // The client's kernel remembers, and says so itself the next time.
            let printed = ping(&lab, &options, server);
            let known = printed.contains("message too long, mtu=8500")
                || printed.contains("message too long, mtu: 8500");
            assert!(printed.contains(words) || known, "{options} {server}: {printed}");
        }
        // What the hosts send from then on is cut by themselves.
        wait_until("the server has learnt the MTU", || {
            ping(&lab, "-s 20000 -M dont -W 1", server).contains(" 1 received")
        });
    }
    let status = engine.status();
    let answered = status["enis"][0]["packetTooBigSent"].as_u64();
    assert!(answered.is_some_and(|count| count >= 2), "{status}");
    assert!(engine.drops("mtu") >= 2, "{status}");
    simulator.stop_clean();
}

/// Hosts of which one has heard of no limit, and the load balancer drops what is too big.
#[test]
fn tcp_with_links_above_8500_bytes() {
    const BYTES: u64 = 20_000_000;
    for arguments in [&["--clamp-mss"][..], &[]] {
        let mut lab = Lab::new(1, Config { lets_large_in: true, ..config() });
        lab.host_mtu = 8932;
        let engine = Engine::passthrough(&lab, &[&["--workers", "2"], arguments].concat());
        let simulator = lab.simulator();
        download(&lab, 0, BYTES);
        let is_clamped = !arguments.is_empty();
        assert_eq!(engine.drops("mtu") == 0, is_clamped, "{}", engine.status());
        simulator.stop_clean();
    }
}
