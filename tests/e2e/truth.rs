//! 200 and 503 as they are: for what is broken, for as long as it is, and for nothing else.

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

/// Asks until the status is `wanted`. Until then it must be `before`, every time.
fn turns_into(engine: &Engine, before: u16, wanted: u16) {
    wait_until(&format!("{wanted} after {before}"), || {
        let answer = engine.health("/");
        let status = answer.status;
        assert!(status == before || status == wanted, "{status} between {before} and {wanted}");
        status == wanted
    });
}

/// Asks for a while; the status is `wanted`, every time.
fn stays(engine: &Engine, wanted: u16, span: Duration) {
    let over = Deadline::after(span);
    wait_until("the time passes", || {
        let answer = engine.health("/");
        assert_eq!(answer.status, wanted, "{}", answer.body);
        over.is_over()
    });
}

#[test]
fn r21_a_worker_that_stalls_is_503_until_it_has_turned_for_a_while() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-j", "--workers", "2"]);
    stays(&engine, 200, Duration::from_secs(1));
    let frozen = Frozen::thread(engine.thread_id("gwlbtun U001"));
    turns_into(&engine, 200, 503);
    let status = engine.status();
    let reasons: Vec<_> = status["reasons"].as_array().into_iter().flatten().collect();
    assert_eq!(reasons.len(), 1, "{status}");
    assert!(reasons[0].as_str().unwrap().starts_with("worker 1 made no turn for "), "{status}");
    let healthy =
        |worker: usize| status["udp"]["UDPPacketReceiver"]["threads"][worker]["healthy"].as_bool();
    assert_eq!((healthy(0), healthy(1)), (Some(true), Some(false)), "{status}");
    stays(&engine, 503, Duration::from_secs(2));
    drop(frozen);
    turns_into(&engine, 503, 200);
    assert_eq!(engine.status()["reasons"].as_array().map(Vec::len), Some(0));
    stays(&engine, 200, Duration::from_secs(2));
}

#[test]
fn r21_hooks_that_fail_are_counted_and_are_no_503() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-j", "-c", "exit 3;", "-r", "kill -9 $$;", "-t", "1"]);
    let injector = &mut lab.injector();
    wait_until("hooks have failed four times", || {
        // An endpoint that has gone comes again.
        injector.send(endpoint_id(0), &packets::ping(V4, 1, b"hook"));
        let over = Deadline::after(Duration::from_secs(3));
        wait_until("it is idle, and goes", || {
            let answer = engine.health("/");
            assert_eq!(answer.status, 200, "{}", answer.body);
            over.is_over()
        });
        engine.status()["hookFailures"].as_u64() >= Some(4)
    });
}

#[test]
fn while_hooks_hold_up_the_end_it_is_503() {
    let lab = Lab::new(0, Config::default());
    let go = lab.scratch.file("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.1; done;", go.display());
    let mut engine = Engine::start(&lab, &["-r", &wait]);
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"end"));
    wait_until("the endpoint is there", || engine.health("/").body.contains("Handler for ENI"));
    engine.signal(Signal::SIGTERM);
    turns_into(&engine, 200, 503);
    let answer = engine.health("/");
    assert!(answer.body.contains("\nNOT healthy: the program is stopping.\n"), "{answer:?}");
    stays(&engine, 503, Duration::from_secs(1));
    std::fs::write(&go, "").unwrap();
    assert_eq!(engine.wait().code(), Some(0));
}
