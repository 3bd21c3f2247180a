//! Which worker gets a packet, as the counters of the workers show it.

use nix::libc;
use serde_json::Value;

use super::bytes::expect_order;
use crate::sim::gwlb::Config;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::lab::Lab;
use crate::support::seccomp;

/// Runs traffic of many flows through four workers, in order; the health page afterwards.
fn status_after_traffic(lab: &Lab, engine: &Engine) -> Value {
    let mut injector = lab.injector();
    expect_order(&mut injector);
    engine.status()
}

fn lab(port_count: u16) -> Lab {
    Lab::new(0, Config { port_count, ..Config::default() })
}

fn lab_with_one_path() -> Lab {
    let all = Config::default();
    Lab::new(0, Config { port_count: 1, nodes: vec![all.nodes[0]], ..all })
}

/// What each worker counted under one key of its rows.
fn of_each_worker(threads: &Value, key: &str) -> Vec<u64> {
    let threads = threads.as_array().expect("a list");
    threads.iter().map(|thread| thread[key].as_u64().expect("a count")).collect()
}

fn received(status: &Value) -> Vec<u64> {
    of_each_worker(&status["udp"]["UDPPacketReceiver"]["threads"], "pktsIn")
}

#[test]
fn every_packet_comes_back_to_the_worker_that_received_it() {
    let lab = lab(16);
    let engine = Engine::passthrough(&lab, &["--workers", "4"]);
    let status = status_after_traffic(&lab, &engine);
    let steering = &status["steering"];
    assert_eq!(steering["receive"], "outer");
    assert_eq!(steering["queues"], "program");
    // 64 flows and three nodes with 16 ports each.
    let paths = steering["outerPaths"].as_u64().expect("a count");
    assert!((16..=48).contains(&paths), "{steering}");
    let received = received(&status);
    assert!(received.iter().filter(|count| **count > 0).count() > 1, "{received:?}");
    // What this host sends on a link that comes up is read, and counted, there as well.
    let read = of_each_worker(&status["enis"][0]["tunnelOut"]["threads"], "pktsIn");
    for (received, read) in received.iter().zip(&read) {
        assert!(read >= received && read - received < 100, "{received} in, {read} back");
    }
    assert_eq!(steering["foreignPackets"], 0, "{status}");
}

#[test]
fn without_the_program_packets_come_back_to_other_workers_and_nothing_is_lost() {
    let lab = lab(16);
    let engine = Engine::passthrough(&lab, &["--workers", "4", "--no-tun-steering"]);
    let status = status_after_traffic(&lab, &engine);
    assert_eq!(status["steering"]["queues"], "kernel");
    assert!(status["steering"]["foreignPackets"].as_u64() > Some(0), "{status}");
}

#[test]
fn steered_by_the_flow_inside_one_outer_path_is_work_for_all() {
    let lab = lab_with_one_path();
    let engine = Engine::passthrough(&lab, &["--workers", "4", "--steer", "inner"]);
    let status = status_after_traffic(&lab, &engine);
    assert_eq!(status["steering"]["receive"], "inner");
    assert_eq!(status["steering"]["foreignPackets"], 0, "{status}");
    let received = received(&status);
    assert!(received.iter().all(|count| *count > 0), "{received:?}");
}

#[test]
fn one_outer_path_is_one_worker_s_by_default() {
    let lab = lab_with_one_path();
    let engine = Engine::passthrough(&lab, &["--workers", "4"]);
    let status = status_after_traffic(&lab, &engine);
    assert_eq!(status["steering"]["outerPaths"], 1);
    let received = received(&status);
    assert_eq!(received.iter().filter(|count| **count > 0).count(), 1, "{received:?}");
}

#[test]
fn one_worker_has_nothing_to_steer() {
    let lab = lab(4);
    let engine = Engine::passthrough(&lab, &["--workers", "1", "--steer", "inner"]);
    let status = status_after_traffic(&lab, &engine);
    assert_eq!(status["steering"], Value::Null);
}

/// As without `CAP_BPF` where only root may load programs: it is told once, and all works.
#[test]
fn without_permission_for_programs_the_kernel_chooses_and_that_is_told() {
    let lab = lab(16);
    let args = ["-j", "-p", "8080", "-c", PASSTHROUGH, "--workers", "4"];
    let mut command = Engine::command_under(&lab, &[], &args);
    seccomp::forbid(&mut command, libc::SYS_bpf);
    let engine = Engine::launch(&lab, &mut command);
    let status = status_after_traffic(&lab, &engine);
    let refused = "bpf BPF_PROG_LOAD(gwlbtun_queue): Operation not permitted";
    assert_eq!(status["steering"]["queues"], format!("kernel ({refused})"));
    let log = engine.log();
    assert_eq!(log.matches(refused).count(), 1, "{log}");
    assert!(log.contains("CAP_BPF"), "{log}");
}
