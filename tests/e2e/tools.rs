//! Tools that people put behind gwlbtun, with super-packets before them: who takes them, who sees
//! something else than packets, and who needs `--gwi-max-frame mtu`. tuning/README.md has the list.
//!
//! Ignored but for `.ci/run full`, which installs the tools.

use std::fs::File;
use std::path::Path;
use std::process::Child;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::super_packets::Way;
use super::super_packets::transfer;
use crate::sim::gwlb::Config;
use crate::sim::netns::Namespace;
use crate::sim::netns::SERVER_V4;
use crate::support::clock::wait_for;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::nfqueue::Asked;
use crate::support::nfqueue::NfQueue;
use crate::support::process::run;
use crate::support::random::Random;
use crate::support::simulator::Simulator;

const MTU: [&str; 2] = ["--gwi-max-frame", "mtu"];

/// Longest inner packet, which is the MTU of gwi, in bytes.
const PACKET_BYTES_MAX: usize = 8500;

const TRANSFER_BYTES: usize = 20_000_000;

/// Where the content has [`MARK`], and how often.
const MARKS: usize = 20;
const MARK: &[u8] = b"THE-MARK-OF-THE-TEST";

/// A lab whose target routes, and its engine.
struct Rig {
    engine: Engine,
    simulator: Option<Simulator>,
    lab: Lab,
}

impl Rig {
    /// What leaves gwi goes through the kernel's IP stack and its filters, and out by gwo.
    fn routing(arguments: &[&str]) -> Self {
        let lab = Lab::new(1, Config::default());
        let settings = "cd /proc/sys/net/ipv4; echo 1 > ip_forward; \
                        echo 0 > conf/all/rp_filter; echo 0 > conf/default/rp_filter";
        run(&lab.topology.target(), "sh", &["-ec", settings]);
        let routes = r#"ip rule add iif "$2" lookup 77 && ip route add default dev "$3" table 77"#;
        let hook = format!(r#"route() {{ [ "$1" = DESTROY ] || {{ {routes}; }}; }}; route"#);
        let engine = Engine::start(&lab, &[&["-c", &hook, "-j"], arguments].concat());
        Self { engine, simulator: Some(lab.simulator()), lab }
    }

    /// What leaves gwi is redirected to gwo; a sniffer on gwi has seen it before.
    fn passing(arguments: &[&str]) -> Self {
        let lab = Lab::new(1, Config::default());
        let engine = Engine::passthrough(&lab, arguments);
        Self { engine, simulator: Some(lab.simulator()), lab }
    }

    fn target(&self) -> Namespace {
        self.lab.topology.target()
    }

    /// Both ways, with marks in the bytes.
    fn transfer(&self) {
        let mut content = Random::from_environment().bytes(TRANSFER_BYTES);
        for number in 0..MARKS {
            let at = (2 * number + 1) * TRANSFER_BYTES / (2 * MARKS);
            content[at..at + MARK.len()].copy_from_slice(MARK);
        }
        transfer(&self.lab, SERVER_V4, 7001, Way::Up, &content);
        transfer(&self.lab, SERVER_V4, 7002, Way::Down, &content);
    }

    fn gwi(&self) -> String {
        let links = wait_for("the endpoint's links", || {
            let links = self.engine.links();
            (!links.is_empty()).then_some(links)
        });
        links.into_iter().find(|link| link.starts_with("gwi-")).expect("a pair of links")
    }

    /// Makes the endpoint, so that its links are there.
    fn introduce_endpoint(&self) {
        run(&self.lab.client(0), "ping", &["-c", "1", "-W", "10", SERVER_V4]);
    }

    fn finish(mut self) {
        self.simulator.take().expect("finished once").stop_clean();
    }
}

/// Packets and bytes of nft's counter with this name.
fn counter(target: &Namespace, name: &str) -> (u64, u64) {
    let text = run(target, "nft", &["list", "counter", "ip", "t", name]);
    let number = |key: &str| {
        let mut words = text.split_whitespace().skip_while(|word| *word != key);
        words.nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    (number("packets"), number("bytes"))
}

/// nft in the forward chain: packets above the MTU, all packets, and a limit in bytes that nothing
/// reaches in vain, because TCP sends again.
fn nft_counts(arguments: &[&str]) -> (u64, u64) {
    let rig = Rig::routing(arguments);
    let rules = format!(
        "add table ip t; add counter ip t long; add counter ip t seen; \
         add chain ip t f {{ type filter hook forward priority 0; }}; \
         add rule ip t f iifname \"gwi-*\" limit rate over 20 mbytes/second drop; \
         add rule ip t f iifname \"gwi-*\" meta length > {PACKET_BYTES_MAX} counter name long; \
         add rule ip t f iifname \"gwi-*\" counter name seen"
    );
    run(&rig.target(), "nft", &[&rules]);
    rig.transfer();
    let counts = (counter(&rig.target(), "long").0, counter(&rig.target(), "seen").0);
    rig.finish();
    counts
}

#[test]
#[ignore = "needs nft: .ci/run full"]
fn nft_sees_super_packets_and_transfers_go_on_under_a_limit() {
    let (long, all) = nft_counts(&[]);
    assert!(long > 0, "none of {all} frames is above the MTU");
}

#[test]
#[ignore = "needs nft: .ci/run full"]
fn nft_sees_packets_where_frames_are_limited_to_the_mtu() {
    let (long, all) = nft_counts(&MTU);
    assert_eq!(long, 0, "of {all}");
    let least = 2 * TRANSFER_BYTES / PACKET_BYTES_MAX;
    assert!(all > u64::try_from(least).unwrap(), "{all} packets");
}

/// A program behind iptables' NFQUEUE: what it was asked.
fn nfqueue_is_asked(arguments: &[&str], takes_super_packets: bool) -> Asked {
    let rig = Rig::routing(arguments);
    let target = rig.target();
    let queue = NfQueue::start(&target, 5, takes_super_packets);
    let rule = ["-A", "FORWARD", "-i", "gwi-+", "-j", "NFQUEUE", "--queue-num", "5"];
    run(&target, "iptables", &rule);
    rig.transfer();
    run(&target, "iptables", &["-F"]);
    rig.finish();
    let asked = queue.finish();
    let least = if takes_super_packets { 0 } else { 2 * TRANSFER_BYTES / PACKET_BYTES_MAX };
    assert!(asked.packets > u64::try_from(least).unwrap(), "{asked:?}");
    asked
}

#[test]
#[ignore = "needs iptables: .ci/run full"]
fn nfqueue_gives_packets_to_programs_that_want_packets() {
    for arguments in [&[][..], &MTU] {
        let asked = nfqueue_is_asked(arguments, false);
        assert!(asked.longest <= PACKET_BYTES_MAX, "{arguments:?}: {asked:?}");
    }
}

#[test]
#[ignore = "needs iptables: .ci/run full"]
fn nfqueue_gives_super_packets_to_programs_that_know_them() {
    let asked = nfqueue_is_asked(&[], true);
    assert!(asked.longest > PACKET_BYTES_MAX, "{asked:?}");
    let asked = nfqueue_is_asked(&MTU, true);
    assert!(asked.longest <= PACKET_BYTES_MAX, "{asked:?}");
}

/// A configuration of Suricata that sniffs, reassembles whole streams and logs alerts.
const SURICATA: &str = "%YAML 1.1
---
vars: {address-groups: {HOME_NET: any, EXTERNAL_NET: any}, port-groups: {}}
stats: {enabled: yes, interval: 1}
outputs:
  - stats: {enabled: yes, filename: stats.log, append: no, totals: yes}
  - fast: {enabled: yes, filename: fast.log, append: no}
af-packet:
  - interface: default
    cluster-id: 99
    cluster-type: cluster_flow
    use-mmap: yes
    tpacket-v3: yes
stream: {memcap: 256mb, reassembly: {memcap: 512mb, depth: 0}}
";

/// What Suricata made of both transfers.
#[derive(Debug)]
struct Sniffed {
    alerts: usize,
    /// Packets that it could not read.
    invalid: u64,
    /// The longest that it read, in bytes.
    longest: u64,
}

/// A running program that ends by Ctrl-C.
struct Sniffer(Child);

impl Drop for Sniffer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn suricata_sniffs(arguments: &[&str], settings: &[&str]) -> Sniffed {
    let rig = Rig::passing(arguments);
    rig.introduce_endpoint();
    let scratch = |name: &str| rig.lab.scratch.file(name);
    std::fs::write(scratch("s.yaml"), SURICATA).expect("a file");
    let mark = String::from_utf8_lossy(MARK);
    let rule = format!("alert tcp any any -> any any (msg:\"mark\"; content:\"{mark}\"; sid:1;)\n");
    std::fs::write(scratch("s.rules"), rule).expect("a file");
    std::fs::create_dir(scratch("log")).expect("a folder");
    let words = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let output = File::create(scratch("suricata.out")).expect("a file");
    let mut suricata = rig.target().command("suricata");
    suricata.args(["-c", &words(&scratch("s.yaml")), "-S", &words(&scratch("s.rules"))]);
    suricata.args(["-l", &words(&scratch("log")), &format!("--af-packet={}", rig.gwi())]);
    suricata.args(settings).stderr(output.try_clone().expect("a handle")).stdout(output);
    let mut sniffer = Sniffer(suricata.spawn().expect("suricata"));
    let read = |name: &str| std::fs::read_to_string(scratch(name)).unwrap_or_default();
    wait_until("suricata listens", || read("suricata.out").contains("Engine started"));
    rig.transfer();
    let pid = i32::try_from(sniffer.0.id()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("kill");
    wait_for("suricata ends", || sniffer.0.try_wait().expect("wait"));
    let stats = read("log/stats.log");
    let sniffed = Sniffed {
        alerts: read("log/fast.log").lines().count(),
        invalid: stat(&stats, "decoder.invalid"),
        longest: stat(&stats, "decoder.max_pkt_size"),
    };
    eprintln!("{arguments:?} {settings:?}: {sniffed:?}");
    rig.finish();
    sniffed
}

/// Its default for sniffing.
#[test]
#[ignore = "needs suricata: .ci/run full"]
fn suricata_with_blocks_reads_super_packets() {
    let sniffed = suricata_sniffs(&[], &[]);
    assert!(sniffed.alerts > 0 && sniffed.invalid == 0, "{sniffed:?}");
    assert!(sniffed.longest > u64::try_from(PACKET_BYTES_MAX).unwrap(), "{sniffed:?}");
}

/// Frames of a fixed size, which Suricata takes from the MTU: the only kind of its inline modes.
const FRAMES: [&str; 2] = ["--set", "af-packet.0.tpacket-v3=no"];

#[test]
#[ignore = "needs suricata: .ci/run full"]
fn suricata_with_frames_cuts_super_packets() {
    let sniffed = suricata_sniffs(&[], &FRAMES);
    assert!(sniffed.invalid > 0, "{sniffed:?}");
}

#[test]
#[ignore = "needs suricata: .ci/run full"]
fn suricata_reads_everything_where_frames_are_limited_to_the_mtu() {
    for settings in [&[][..], &FRAMES] {
        let sniffed = suricata_sniffs(&MTU, settings);
        assert!(sniffed.alerts > 0 && sniffed.invalid == 0, "{settings:?}: {sniffed:?}");
    }
}

/// The last value of one of Suricata's counters; it does not print zeros.
fn stat(log: &str, name: &str) -> u64 {
    let fields = log.lines().map(|line| line.split('|').map(str::trim));
    let mut values = fields.filter_map(|mut fields| {
        let is_it = fields.next() == Some(name);
        is_it.then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    values.next_back().unwrap_or_default()
}
