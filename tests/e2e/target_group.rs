//! The program as a target whose health the load balancer checks, and with a second arm.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::hosts;
use crate::sim::gwlb::Config;
use crate::sim::health::GroupConfig;
use crate::sim::health::Thresholds;
use crate::sim::netns::Arms;
use crate::sim::netns::Namespace;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::sim::outside::INTERNET_V4;
use crate::sim::outside::INTERNET_V6;
use crate::sim::prober::Check;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::lab::Lab;
use crate::support::lab::is_listening;
use crate::support::process::Background;
use crate::support::process::run;
use crate::support::simulator::Simulator;

/// The port that AWS's sample units give the program.
const HEALTH_PORT: u16 = 80;

/// AWS's checks twenty times as often. More failures in a row than a busy machine causes.
fn group(other_target: bool) -> Config {
    let thresholds = Thresholds { healthy: 2, unhealthy: 4 };
    Config {
        group: GroupConfig { thresholds, other_target, ..GroupConfig::default() },
        ..Config::default()
    }
}

fn check() -> Check {
    let interval = Duration::from_millis(500);
    Check { port: HEALTH_PORT, interval, timeout: interval, ..Check::default() }
}

fn engine(lab: &Lab) -> Engine {
    Engine::start_on(lab, HEALTH_PORT, &["-c", PASSTHROUGH, "-r", PASSTHROUGH])
}

fn ping(lab: &Lab, address: &str) {
    run(&lab.client(0), "ping", &["-c", "1", "-W", "10", address]);
}

/// Requires that a packet is sent to the target and nothing comes back.
fn expect_no_answer(lab: &Lab, simulator: &Simulator, address: &str) {
    let before = simulator.report();
    let mut ping = lab.client(0).command("ping");
    let output = ping.args(["-c", "1", "-W", "1", address]).output().expect("ping");
    assert!(!output.status.success(), "{output:?}");
    let after = simulator.report();
    assert!(after.encapsulated > before.encapsulated, "the target gets it");
    assert_eq!(after.returned, before.returned);
}

#[test]
fn a_stopped_target_keeps_its_flows_and_gets_no_new_ones() {
    let lab = Lab::new(1, group(true));
    let engine = engine(&lab);
    let simulator = lab.simulator_with(&check());
    simulator.wait_until_health("healthy");
    ping(&lab, SERVER_V4);
    assert_eq!(simulator.report().by_other_target, 0);

    engine.signal(Signal::SIGSTOP);
    simulator.wait_until_health("unhealthy");
    let report = simulator.report();
    assert!(report.nodes.iter().all(|node| node.reason == "Target.Timeout"), "{report:?}");
    expect_no_answer(&lab, &simulator, SERVER_V4);
    let before = simulator.report();
    ping(&lab, SERVER_V6);
    let after = simulator.report();
    assert_eq!(after.by_other_target, before.by_other_target + 2, "question and answer");
    assert_eq!(after.encapsulated, before.encapsulated);

    engine.signal(Signal::SIGCONT);
    simulator.wait_until_health("healthy");
    ping(&lab, SERVER_V4);
    simulator.stop_clean();
}

#[test]
fn a_target_that_is_gone_gets_all_the_same_what_no_other_can_take() {
    let lab = Lab::new(1, group(false));
    let engine = engine(&lab);
    let simulator = lab.simulator_with(&check());
    simulator.wait_until_health("healthy");
    ping(&lab, SERVER_V4);
    drop(engine);
    simulator.wait_until_health("unhealthy");
    let report = simulator.report();
    assert!(report.nodes.iter().all(|node| node.reason == "Target.FailedHealthChecks"));
    expect_no_answer(&lab, &simulator, SERVER_V6);
}

#[test]
fn a_deregistered_target_drains() {
    let lab = Lab::new(1, group(true));
    let _engine = engine(&lab);
    let simulator = lab.simulator_with(&check());
    ping(&lab, SERVER_V4);
    // One probe is enough for the report to list the nodes.
    simulator.wait_until_health("healthy");
    simulator.toggle_registration();
    simulator.wait_until_health("draining");
    let before = simulator.report();
    ping(&lab, SERVER_V4);
    ping(&lab, SERVER_V6);
    let after = simulator.stop_clean();
    assert_eq!(after.returned, before.returned + 2, "the flow that it had");
    assert_eq!(after.by_other_target, before.by_other_target + 2, "the new one");
}

/// A hook as people write them for two arms: forward, and leave with the target's own address.
const MASQUERADE: &str = r#"#!/bin/sh -e
[ "$1" = CREATE ] || exit 0
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >"/proc/sys/net/ipv4/conf/$2/rp_filter"
nft -f - <<END
add table inet two_arm
delete table inet two_arm
table inet two_arm {
    chain out { type nat hook postrouting priority srcnat; oifname "eth1" masquerade; }
}
END
"#;

fn hook(lab: &Lab, text: &str) -> String {
    let path = lab.scratch.file("hook");
    std::fs::write(&path, text).expect("a file");
    run(&lab.topology.target(), "chmod", &["+x", path.to_str().expect("UTF-8")]);
    path.to_str().expect("UTF-8").to_owned()
}

fn two_arm_lab() -> Lab {
    Lab::build(Config::default(), |plan| {
        plan.arms = Arms::Two;
        plan.endpoints = 2;
        plan.networks = 2;
    })
}

/// Serves the files of the scratch directory `www` in the internet, by IPv4 and IPv6.
fn web_server(lab: &Lab, internet: &Namespace) -> Background {
    let dir = lab.scratch.file("www");
    let dir = dir.to_str().expect("UTF-8");
    let args = ["-m", "http.server", "8000", "--bind", "::", "--directory", dir];
    let server = Background::start(internet, "python3", &args);
    let address: SocketAddr = format!("{INTERNET_V4}:8000").parse().expect("an address");
    wait_until("the web server listens", || is_listening(internet, address));
    server
}

#[test]
fn two_arms_translate_and_answer_past_the_load_balancer() {
    let lab = two_arm_lab();
    let hook = hook(&lab, MASQUERADE);
    let _engine = Engine::start(&lab, &["-c", &hook, "-r", &hook]);
    let simulator = lab.simulator();
    let served = hosts::random_file(&lab, "www/file", 20_000_000);
    let _server = web_server(&lab, &lab.topology.first_server());
    for endpoint in 0..2 {
        for (number, server) in [INTERNET_V4, INTERNET_V6].into_iter().enumerate() {
            run(&lab.client(endpoint), "ping", &["-c", "1", "-W", "10", server]);
            let got = lab.scratch.file(&format!("got{endpoint}{number}"));
            let host = if number == 0 { server.to_owned() } else { format!("[{server}]") };
            let url = format!("http://{host}:8000/file");
            run(&lab.client(endpoint), "curl", &["-sS", "-o", got.to_str().unwrap(), &url]);
            assert_eq!(hosts::sha256(&got), hosts::sha256(&served));
        }
    }
    let report = simulator.stop_clean();
    assert_eq!(report.returned, 0, "answers go to the clients directly");
    assert_eq!(report.flows, 8, "two pings and two downloads for each client");
}

#[test]
fn two_arms_without_translation_get_no_answer() {
    let lab = two_arm_lab();
    let only_forward = MASQUERADE.split("nft").next().expect("the lines before");
    let hook = hook(&lab, only_forward);
    let engine = Engine::start(&lab, &["-c", &hook]);
    let simulator = lab.simulator();
    for server in [INTERNET_V4, INTERNET_V6] {
        expect_no_answer(&lab, &simulator, server);
    }
    assert_eq!(engine.links().len(), 2, "the packets did reach the target's links");
}
