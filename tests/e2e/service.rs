//! What the program tells the service manager that started it, and when.

use std::fs;
use std::net::Ipv6Addr;
use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::support::clock::Deadline;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::freeze::Frozen;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::process::run;
use crate::support::service_manager::ServiceManager;

const READY: &str = "READY=1";
const WATCHDOG: &str = "WATCHDOG=1";

/// The program with the health port 8080, two workers and these arguments, not yet started.
fn supervised(lab: &Lab, manager: &ServiceManager, args: &[&str]) -> std::process::Command {
    let args = [&["-p", "8080", "-j", "--workers", "2"], args].concat();
    let mut command = Engine::command_under(lab, &[], &args);
    manager.supervise(&mut command);
    command
}

#[test]
fn ready_is_told_when_ports_are_bound_and_not_before() {
    let lab = Lab::new(0, Config::default());
    for manager in [ServiceManager::at_a_path(&lab), ServiceManager::with_a_name(&lab)] {
        let mut command = supervised(&lab, &manager, &[]);
        let child = command.spawn().expect("the program starts");
        let told = manager.next();
        // Nothing here waits: at this moment it has to work.
        let mut engine = Engine::adopt(&lab, child);
        assert_eq!(engine.health("/").status, 200);
        let sockets = run(&lab.topology.target(), "ss", &["-lun"]);
        assert_eq!(sockets.matches(":6081 ").count(), 2, "{sockets}");
        assert_eq!(told[0], READY);
        let idle = "STATUS=Healthy; endpoints: 0; packets/s from the load balancer: 0";
        assert_eq!(told[1..], [idle]);
        engine.signal(Signal::SIGTERM);
        assert_eq!(engine.wait().code(), Some(0));
        let told = manager.heard();
        assert_eq!(told[0], "STOPPING=1", "{told:?}");
        assert!(!told.iter().any(|line| line == READY), "{told:?}");
    }
}

/// An address of another kind is told, and keeps nothing from starting.
#[test]
fn an_address_that_cannot_be_reached_is_no_reason_to_stop() {
    let lab = Lab::new(0, Config::default());
    for (address, reason) in [
        ("vsock:2:1", "connect(NOTIFY_SOCKET=vsock:2:1): Invalid argument"),
        ("/nowhere/at/all", "sendto(NOTIFY_SOCKET=/nowhere/at/all): No such file or directory"),
    ] {
        let mut command = Engine::command_under(&lab, &[], &["-p", "8080"]);
        let mut engine = Engine::launch(&lab, command.env("NOTIFY_SOCKET", address));
        let told = format!("The service manager cannot be told: {reason}.");
        wait_until("it is told", || engine.log().contains(&told));
        engine.signal(Signal::SIGTERM);
        assert_eq!(engine.wait().code(), Some(0));
    }
}

#[test]
fn a_failed_start_says_why() {
    let lab = Lab::new(0, Config::default());
    let manager = ServiceManager::at_a_path(&lab);
    let taken = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080));
    let taken = lab.topology.target().enter(taken).expect("a listener");
    let status = supervised(&lab, &manager, &[]).status().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let told = manager.heard();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("STATUS=gwlbtun: cannot listen for health checks: "), "{told:?}");
    assert_eq!(told[1], "ERRNO=98");
    drop(taken);
    let status = supervised(&lab, &manager, &["-c", "/nowhere/hook"]).status().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let told = manager.heard();
    assert!(told[0].starts_with("STATUS=gwlbtun: hook -c \"/nowhere/hook\": "), "{told:?}");
    assert_eq!(told[1], "ERRNO=22");
    // What is typed gets no line of its own.
    let typed = "--tunthreads=-1\nREADY=1";
    let status = supervised(&lab, &manager, &[typed]).status().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let told = manager.heard();
    assert!(told.len() == 2 && told[1] == "ERRNO=22", "{told:?}");
}

#[test]
fn a_worker_that_hangs_ends_the_signs_of_life() {
    let lab = Lab::new(0, Config::default());
    let manager = ServiceManager::at_a_path(&lab);
    let mut command = supervised(&lab, &manager, &[]);
    let engine = Engine::launch(&lab, command.env("WATCHDOG_USEC", "1000000"));
    for _ in 0..2 {
        manager.until(WATCHDOG);
    }
    let frozen = Frozen::thread(engine.thread_id("gwlbtun U001"));
    // It may have turned since the last sign.
    wait_until("503", || engine.health("/").status == 503);
    manager.heard();
    let over = Deadline::after(Duration::from_secs(2));
    while let Some(told) = manager.hears(over.left().max(Duration::from_millis(1))) {
        assert!(!told.iter().any(|line| line == WATCHDOG), "{told:?}");
    }
    let told = manager.until("STATUS=Unhealthy: worker 1 made no turn for ");
    assert!(!told.iter().any(|line| line == WATCHDOG), "{told:?}");
    drop(frozen);
    manager.until(WATCHDOG);
}

/// A watchdog that is meant for another process is none of ours.
#[test]
fn stopping_is_told_before_the_hooks_and_hooks_cannot_speak_for_the_program() {
    let lab = Lab::new(0, Config::default());
    let manager = ServiceManager::at_a_path(&lab);
    let go = lab.scratch.file("go");
    let environment = "echo \"$1 [$NOTIFY_SOCKET$WATCHDOG_USEC$WATCHDOG_PID]\"";
    let wait = format!("until [ -e {} ]; do sleep 0.1; done", go.display());
    let create = format!("f() {{ {environment}; }}; f");
    let destroy = format!("f() {{ {environment}; {wait}; }}; f");
    let mut command = supervised(&lab, &manager, &["-c", &create, "-r", &destroy]);
    command.env("WATCHDOG_USEC", "100000").env("WATCHDOG_PID", "1");
    let mut engine = Engine::launch(&lab, &mut command);
    manager.until(READY);
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"hook"));
    wait_until("CREATE", || engine.log().contains("CREATE []"));
    engine.signal(Signal::SIGTERM);
    wait_until("DESTROY", || engine.log().contains("DESTROY []"));
    let told = manager.heard();
    assert!(told.iter().any(|line| line == "STOPPING=1"), "{told:?}");
    assert!(!told.iter().any(|line| line == WATCHDOG), "{told:?}");
    fs::write(go, "").expect("the hook may go on");
    assert_eq!(engine.wait().code(), Some(0));
}
