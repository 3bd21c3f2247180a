//! The program for a long time: real clients, flows and endpoints that come and go, and a fault in
//! every round. Nothing grows, and every packet is accounted for.
//!
//! A round ends when all endpoints have gone: then the program must hold what it held after the
//! first round, and what was sent and did not come back must stand in its drop counters or in the
//! kernel's. Where frames were dropped between gwi and gwo, or behind gwi by the host, each may
//! have held several packets: then no fewer than the frames. While the link is down nobody counts
//! what is lost, so a round with that fault may only not invent packets.

use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::hosts::random_file;
use crate::sim::gwlb::Config;
use crate::sim::netns::Namespace;
use crate::sim::netns::SERVER_V4;
use crate::support::books;
use crate::support::clock::Deadline;
use crate::support::clock::Stopwatch;
use crate::support::clock::wait_until;
use crate::support::crowd::Crowd;
use crate::support::crowd::Manners;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::freeze::Frozen;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::process::Background;
use crate::support::process::run;
use crate::support::random::Random;
use crate::support::simulator::Simulator;
use crate::support::vitals::KernelDrops;
use crate::support::vitals::Reserves;
use crate::support::vitals::Vitals;
use crate::support::vitals::slope;

/// How long to go on. What `.ci/run full` runs is short.
const MINUTES_VARIABLE: &str = "GWLBTUN_SOAK_MINUTES";
const MINUTES: u64 = 1;

/// Memory is judged from this share of the time on, where that leaves so much time.
const WARM_UP: f64 = 0.2;
const JUDGED_HOURS_MIN: f64 = 0.1;
const GROWTH_MIB_PER_HOUR_MAX: f64 = 1.0;

/// Endpoints that have hosts, and those behind them that only packets of ours go through.
const HOSTED: usize = 2;
const CHURNED: usize = 8;

/// Packets of a batch, each of another flow, and batches of a round.
const BATCH: usize = 250;
const BATCHES: usize = 20;

/// Packets that come while the program stands still: more than its sockets' queues hold.
const BURST: usize = 4000;

/// Packets for an endpoint that is new: more than are held for it.
const HELD_BURST: usize = 300;

/// Fewer than come in the time of one flow's life: the table is full after some rounds, and takes
/// no more memory from then on.
const FLOWS_MAX: &str = "40000";

/// Most packets of a frame.
const FRAME_PACKETS_MAX: i64 = 64;

/// The same on average, where nearly each packet is of a flow of its own.
const HOST_FRAME_PACKETS_MAX: i64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    LinkDown,
    HookFails,
    Stopped,
    WorkerStands,
    HealthCrowd,
    NewEndpoints,
}

const FAULTS: [Fault; 7] = [
    Fault::None,
    Fault::Stopped,
    Fault::NewEndpoints,
    Fault::HookFails,
    Fault::HealthCrowd,
    Fault::WorkerStands,
    Fault::LinkDown,
];

#[test]
#[ignore = "takes as long as it is told to: .ci/run soak"]
fn nothing_grows_and_nothing_is_lost_unseen() {
    let minutes = std::env::var(MINUTES_VARIABLE).map_or(MINUTES, |text| {
        text.parse().unwrap_or_else(|_| panic!("{MINUTES_VARIABLE} is a number, not {text}"))
    });
    let mut soak = Soak::start(Duration::from_mins(minutes));
    let over = Deadline::after(soak.span);
    for round in 0.. {
        if round >= FAULTS.len() && over.is_over() {
            break;
        }
        soak.round(round, FAULTS[round % FAULTS.len()]);
    }
    soak.finish();
}

struct Soak {
    // Before the lab: they live in its namespaces.
    simulator: Simulator,
    engine: Engine,
    _servers: [Background; 2],
    span: Duration,
    watch: Stopwatch,
    random: Random,
    /// While this file is there, CREATE fails.
    fails: PathBuf,
    /// Where DESTROY writes what the links have dropped.
    dropped: PathBuf,
    /// Kernel's drops on the wire before the first round: the first packets of new links.
    drops_before: KernelDrops,
    /// Packets that were lost while the link was down.
    lost_with_link: u64,
    reserves: Reserves,
    /// What was held after each round, and when, in hours.
    samples: Vec<(f64, Vitals)>,
    lab: Lab,
}

impl Soak {
    fn start(span: Duration) -> Self {
        let random = Random::from_environment();
        let lab = Lab::new(HOSTED, Config { port_count: 16, ..Config::default() });
        books::silence_kernel(&lab);
        let (fails, dropped) = (lab.scratch.file("fails"), lab.scratch.file("dropped"));
        let hook = lab.scratch.file("hook.sh");
        let script = format!(
            r#"#!/bin/sh
{PASSTHROUGH} "$@" || exit
if [ "$1" = CREATE ] && [ -e "{}" ]; then exit 3; fi
if [ "$1" = DESTROY ]; then
    for link in "$2" "$3"; do
        cd "/sys/class/net/$link/statistics" && cat rx_dropped tx_dropped
    done >>"{}"
fi
"#,
            fails.display(),
            dropped.display()
        );
        std::fs::write(&hook, script).unwrap();
        std::fs::write(&dropped, "").unwrap();
        let hook = format!("sh {}", hook.display());
        let args = ["-c", &hook, "-r", &hook, "-j", "-t", "2", "--workers", "2", "--rcvbuf", "1"];
        let args = [&args[..], &["--max-flows", FLOWS_MAX]].concat();
        let engine = Engine::start(&lab, &args);
        let simulator = lab.simulator();
        random_file(&lab, "www/file", 5_000_000);
        let servers =
            [lab.http_server(1, "www"), Background::start(&lab.server(0), "iperf3", &["-s"])];
        Self {
            drops_before: KernelDrops::read(&lab, &engine),
            simulator,
            _servers: servers,
            span,
            watch: Stopwatch::start(),
            random,
            fails,
            dropped,
            lost_with_link: 0,
            reserves: Reserves::of(&engine),
            samples: Vec::new(),
            engine,
            lab,
        }
    }

    fn round(&mut self, number: usize, fault: Fault) {
        let hosts = [self.lab.client(0), self.lab.client(1)];
        std::thread::scope(|scope| {
            let [first, second] = &hosts;
            let clients = [
                scope.spawn(|| iperf(first)),
                scope.spawn(|| curl(second)),
                scope.spawn(|| ping(first)),
                scope.spawn(|| ping(second)),
            ];
            self.churn(BATCHES / 2);
            self.inflict(fault);
            self.churn(BATCHES / 2);
            for client in clients {
                client.join().expect("the client is served");
            }
        });
        wait_until("all endpoints go", || self.engine.links().is_empty());
        wait_until("it is healthy", || self.engine.health("/").status == 200);
        self.reconcile(number, fault);
        let vitals = Vitals::take(&self.engine, &self.reserves);
        let Vitals { resident_kib, working_kib, .. } = vitals;
        eprintln!("    {resident_kib} KiB resident, {working_kib} KiB without reserves");
        self.samples.push((self.watch.elapsed().as_secs_f64() / 3600.0, vitals));
    }

    /// Packets of flows that are mostly new, through endpoints that may be.
    fn churn(&mut self, batches: usize) {
        for _ in 0..batches {
            let packets = (0..BATCH).map(|_| {
                let endpoint = HOSTED + self.random.below(CHURNED);
                (endpoint_id(endpoint), any_packet(&mut self.random))
            });
            self.simulator.inject(packets.collect());
        }
    }

    fn inflict(&mut self, fault: Fault) {
        let target = self.lab.topology.target();
        match fault {
            Fault::None => {}
            Fault::LinkDown => {
                run(&target, "ip", &["link", "set", "eth0", "down"]);
                self.churn(1);
                run(&target, "ip", &["link", "set", "eth0", "up"]);
            }
            Fault::HookFails => {
                let failures = || self.engine.status()["hookFailures"].as_u64();
                let before = failures();
                std::fs::write(&self.fails, "").unwrap();
                self.simulator.inject(burst(HOSTED + CHURNED, 1));
                wait_until("a hook fails", || failures() > before);
                std::fs::remove_file(&self.fails).unwrap();
            }
            Fault::Stopped => {
                self.engine.signal(Signal::SIGSTOP);
                self.simulator.inject(burst(HOSTED, BURST));
                // The answer comes after the packets have left.
                self.simulator.report();
                self.engine.signal(Signal::SIGCONT);
            }
            Fault::WorkerStands => {
                let frozen = Frozen::thread(self.engine.thread_id("gwlbtun U001"));
                self.churn(1);
                wait_until("it shows", || self.engine.health("/").status == 503);
                drop(frozen);
            }
            Fault::HealthCrowd => self.crowd(),
            Fault::NewEndpoints => {
                for number in 0..CHURNED {
                    self.simulator.inject(burst(HOSTED + CHURNED + number, HELD_BURST));
                }
            }
        }
    }

    /// Clients of the health port that mean no good; the load balancer is answered all the same.
    fn crowd(&mut self) {
        let target = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080);
        let manners = [(100, Manners::Idle), (100, Manners::Slow), (50, Manners::Deaf)];
        let source = Ipv4Addr::new(127, 0, 0, 2);
        let crowd = Crowd::start(&self.lab.topology.target(), source, target, &manners);
        wait_until("everybody comes, and is answered", || {
            self.churn(1);
            assert_eq!(self.engine.health("/").status, 200);
            crowd.connections() >= 250
        });
    }

    /// Waits until what was sent has come back or stands in a drop counter.
    fn reconcile(&mut self, number: usize, fault: Fault) {
        let mut account = None;
        wait_until("nothing is under way", || {
            let now = self.account();
            account.replace(now) == Some(now)
        });
        let mut account = account.expect("looked at least once");
        if fault == Fault::LinkDown {
            self.lost_with_link = account.unexplained().max(0).unsigned_abs();
        }
        let what = format!("round {number}, {fault:?}: the account balances: {account:?}");
        wait_until(&what, || {
            account = self.account();
            account.is_balanced(self.lost_with_link)
        });
        let Account { sent, engine, kernel, frames, host, .. } = account;
        eprintln!(
            "round {number}, {fault:?}: {sent} packets sent; dropped by the program {engine}, by \
             the kernel {kernel}, between gwi and gwo {frames} frames, by the host's IP {host}; \
             lost with the link {}",
            self.lost_with_link
        );
    }

    fn account(&self) -> Account {
        let report = self.simulator.report();
        assert_eq!(report.breaches(), 0, "{:#?}", report.described());
        let status = self.engine.status();
        let drops = status["drops"].as_object().expect("drops").values();
        let drops = drops.map(|count| count.as_u64().expect("a count"));
        let kernel = KernelDrops::read(&self.lab, &self.engine);
        let frames = std::fs::read_to_string(&self.dropped).expect("the hook's file");
        let frames = frames.lines().map(|count| count.parse::<u64>().expect("a count"));
        Account {
            sent: report.encapsulated,
            returned: report.returned,
            engine: drops.sum(),
            kernel: kernel.sum() - self.drops_before.sum(),
            frames: frames.sum(),
            host: kernel.host - self.drops_before.host,
        }
    }

    /// Ends the program, and looks at what it held over the time.
    fn finish(self) {
        let Self { mut engine, samples, random: _, .. } = self;
        let (first, last) = (&samples[0].1, &samples[samples.len() - 1].1);
        engine.signal(Signal::SIGTERM);
        assert_eq!(engine.wait().code(), Some(0));
        let log = engine.log();
        assert!(!log.contains("panicked"), "{log}");
        assert!(last.holds_the_same(first), "{first:#?} became {last:#?}");
        let (start, end) = (samples[0].0, samples[samples.len() - 1].0);
        let from = start + (end - start) * WARM_UP;
        let growth = |of: fn(&Vitals) -> u64| {
            let judged = samples.iter().filter(|(hours, _)| *hours >= from);
            let mib =
                |vitals| f64::from(u32::try_from(of(vitals)).expect("less than TiB")) / 1024.0;
            let points: Vec<_> = judged.map(|(hours, vitals)| (*hours, mib(vitals))).collect();
            slope(&points)
        };
        let (all, working) = (growth(|held| held.resident_kib), growth(|held| held.working_kib));
        eprintln!(
            "{} rounds in {:.1} min; resident memory of the last {:.1} min grows by {working:.2} \
             MiB/h, with what was reserved at the start by {all:.2} MiB/h",
            samples.len(),
            end * 60.0,
            (end - from) * 60.0,
        );
        if end - from >= JUDGED_HOURS_MIN {
            assert!(working < GROWTH_MIB_PER_HOUR_MAX, "resident memory grows: {samples:#?}");
        }
    }
}

/// What became of all packets until now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Account {
    sent: u64,
    returned: u64,
    /// Dropped by the program.
    engine: u64,
    /// Dropped by the kernel, one by one.
    kernel: u64,
    /// Frames that the kernel dropped between gwi and gwo: each one packet or more.
    frames: u64,
    /// Frames that the target's own IP dropped. They are of churned endpoints, where hardly two
    /// packets are of one flow.
    host: u64,
}

impl Account {
    /// Packets that nobody counts; negative if packets were counted twice.
    fn unexplained(&self) -> i64 {
        let signed = |count: u64| i64::try_from(count).expect("far below 2^63");
        let Self { sent, returned, engine, kernel, frames, host } = *self;
        signed(sent) - [returned, engine, kernel, frames, host].map(signed).iter().sum::<i64>()
    }

    fn is_balanced(&self, lost_with_link: u64) -> bool {
        let unexplained = self.unexplained() - i64::try_from(lost_with_link).expect("few");
        let [frames, host] =
            [self.frames, self.host].map(|count| i64::try_from(count).expect("few"));
        // The rest of the packets of a frame.
        let rest = frames * (FRAME_PACKETS_MAX - 1) + host * (HOST_FRAME_PACKETS_MAX - 1);
        (0..=rest).contains(&unexplained)
    }
}

/// So many packets of one flow.
fn burst(endpoint: usize, count: usize) -> Vec<(u64, Vec<u8>)> {
    let packet = packets::udp(V4, (4000, 53), &[0x5a; 200]);
    (0..count).map(|_| (endpoint_id(endpoint), packet.clone())).collect()
}

/// A packet of one of a million flows.
fn any_packet(random: &mut Random) -> Vec<u8> {
    let path = random.pick(&[V4, V6]);
    let ports = (20_000 + random.half() % 32_000, random.pick(&[53, 443]));
    let count = random.between(1, 600);
    let payload = random.bytes(count);
    if random.once_in(2) {
        packets::udp(path, ports, &payload)
    } else {
        packets::tcp(path, ports, random.word(), &payload)
    }
}

fn iperf(host: &Namespace) {
    run(host, "iperf3", &["-c", SERVER_V4, "-t", "4", "-b", "200M"]);
}

fn curl(host: &Namespace) {
    let url = format!("http://{SERVER_V4}:8000/file");
    run(host, "curl", &["-sS", "--max-time", "100", "-o", "/dev/null", &url]);
}

/// Some of it may be lost.
fn ping(host: &Namespace) {
    let printed = run(host, "ping", &["-c", "20", "-i", "0.2", "-W", "10", SERVER_V4]);
    assert!(printed.contains(" received"), "{printed}");
}
