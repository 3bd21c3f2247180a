//! The health port, and on it the reason of every drop that the network can cause.
//!
//! The page shows a snapshot that is some hundred milliseconds old, so numbers are waited for.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::sim::gwlb::Config;
use crate::sim::gwlb::Host;
use crate::sim::gwlb::Wrapping;
use crate::sim::layout;
use crate::sim::layout::Outer;
use crate::support::clock::Deadline;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_for;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::packets::pattern;
use crate::support::process::run;

#[test]
fn text_names_threads_endpoints_and_links_under_any_path() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-c", PASSTHROUGH, "-r", PASSTHROUGH]);
    let answer = engine.health("/");
    assert_eq!(answer.status, 200, "healthy without endpoints: {answer:?}");
    lab.injector().exchange(endpoint_id(0), &packets::ping(V4, 1, b"seen"));
    wait_until("the page shows the endpoint", || {
        engine.health("/").body.contains("02b8ee1d4db0c51c4")
    });
    for path in ["/", "/health", "/any/thing?else=1"] {
        let answer = engine.health(path);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("Content-Type: text/html"), "{answer:?}");
        assert!(answer.head.contains("Cache-Control: max-age=0, no-cache"), "{answer:?}");
        for text in
            ["<!DOCTYPE html>", "6081", "02b8ee1d4db0c51c4", "gwi-5bqWvzLwwkk", "gwo-5bqWvzLwwkk"]
        {
            assert!(answer.body.contains(text), "{text} is missing: {answer:?}");
        }
    }
}

#[test]
fn json_has_the_fields_of_the_reference() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &[]);
    let mut injector = lab.injector();
    let inner = packets::udp(V4, (4000, 53), &pattern(0, 100));
    for _ in 0..10 {
        injector.exchange(endpoint_id(0), &inner);
    }
    let answer = engine.health("/");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("Content-Type: application/json"), "{answer:?}");
    let status = wait_for("the page shows all packets", || {
        let status = engine.status();
        // The target's own router solicitations on gwo are read too, as by the reference.
        let all_are_back = read_back(&status, "pktsIn") >= 10;
        (all_are_back && status["enis"][0]["tunnelIn"]["pktsOut"] == 10).then_some(status)
    });
    let inner_bytes = u64::try_from(inner.len()).unwrap();
    assert!(read_back(&status, "bytesIn") >= 10 * inner_bytes, "{status}");
    assert_eq!(status["udp"]["UDPPacketReceiver"]["portNumber"], 6081);
    assert!(status["udp"]["UDPPacketReceiver"]["threads"].is_array());
    let enis = status["enis"].as_array().expect("enis");
    assert_eq!(enis.len(), 1, "{status}");
    assert_eq!(enis[0]["eniStr"], "02b8ee1d4db0c51c4");
    assert_eq!(enis[0]["tunnelIn"]["devname"], "gwi-5bqWvzLwwkk");
    assert_eq!(enis[0]["tunnelOut"]["devname"], "gwo-5bqWvzLwwkk");
    assert_eq!(enis[0]["tunnelIn"]["pktsOut"], 10, "{status}");
    assert_eq!(enis[0]["tunnelIn"]["bytesOut"], 10 * inner.len());
    assert!(enis[0]["v4FlowCache"].is_array(), "{status}");
    assert_eq!(status["drops"], Value::Object(serde_json::Map::new()), "{status}");
}

#[test]
fn compat_3_2_has_its_fields_and_words() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--compat", "3.2"]);
    let mut injector = lab.injector();
    let inner = packets::udp(V4, (4000, 53), &pattern(0, 100));
    injector.exchange(endpoint_id(0), &inner);
    injector.exchange(endpoint_id(0), &packets::udp(V6, (4000, 53), &pattern(0, 100)));
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"other"));
    let status = wait_for("the page shows the packets", || {
        let status = engine.status();
        (status["enis"][0]["pktsOut"] == 3).then_some(status)
    });
    let eni = &status["enis"][0];
    assert_eq!(eni["gwlbEndpointId"], "vpce-02b8ee1d4db0c51c4");
    assert_eq!((&eni["healthy"], &eni["pktsDropped"]), (&Value::Bool(true), &Value::from(0)));
    for (cache, size, idle_secs) in [
        ("v4FlowCacheTcp", 0, 350),
        ("v4FlowCacheUdp", 1, 120),
        ("v4FlowCacheOther", 1, 120),
        ("v6FlowCacheTcp", 0, 350),
        ("v6FlowCacheUdp", 1, 120),
        ("v6FlowCacheOther", 0, 120),
    ] {
        assert_eq!(eni[cache]["size"], size, "{cache} in {status}");
        assert_eq!(eni[cache]["idleTimeoutSecs"], idle_secs, "{cache} in {status}");
    }
    let summary = &status["summary"];
    assert_eq!((&summary["totalPktsIn"], &summary["eniCount"]), (&3.into(), &1.into()), "{status}");
    assert!(eni["eniStr"].is_null() && eni["v4FlowCache"].is_null(), "{status}");
    assert!(engine.log().contains(" for GWLB endpoint vpce-02b8ee1d4db0c51c4 created."));
}

/// Sum of a field over the threads that read the first endpoint's gwo.
fn read_back(status: &Value, field: &str) -> u64 {
    let threads = status["enis"][0]["tunnelOut"]["threads"].as_array();
    let counts = threads.into_iter().flatten().map(|thread| &thread[field]);
    counts.filter_map(Value::as_u64).sum()
}

#[test]
fn status_only_has_an_empty_body() {
    let lab = Lab::new(0, Config::default());
    for format in [&["-s"][..], &["-s", "-j"]] {
        let answer = Engine::start(&lab, format).health("/");
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        let is_json = answer.head.contains("application/json");
        assert_eq!(is_json, format.len() == 2, "{answer:?}");
    }
}

/// The wrapping of a datagram with this GENEVE header.
fn wrapping(header: Vec<u8>) -> Wrapping {
    let config = Config::default();
    Wrapping { outer: Outer { node: config.nodes[0], target: config.target, port: 60000 }, header }
}

fn send_payload(injector: &Injector, payload: &[u8]) {
    let outer = wrapping(Vec::new()).outer;
    injector.send_datagram(&layout::datagram(outer, &[payload], true));
}

/// One payload for each reason why a datagram is refused.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let inner = packets::udp(V4, (4000, 53), b"never to be seen");
    let good = [layout::geneve_header(endpoint_id(0), 1, &inner), inner].concat();
    // Offsets: 8 endpoint id, 20 attachment id, 32 cookie, 40 inner packet.
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut payload = good.clone();
        change(&mut payload);
        payload
    };
    let without_cookie = changed(&|p| {
        p[0] = 6;
        p.drain(32..40);
    });
    let cookie_twice = changed(&|p| {
        p[0] = 10;
        let cookie = p[32..40].to_vec();
        p.splice(40..40, cookie);
    });
    let critical = changed(&|p| {
        p[0] = 9;
        p.splice(40..40, [0x0a, 0xaa, 0x80, 0]);
    });
    vec![
        ("short", good[..7].to_vec()),
        ("short", Vec::new()),
        ("bad_version", changed(&|p| p[0] |= 0x40)),
        ("oam", changed(&|p| p[1] |= 0x80)),
        ("options_overrun", good[..20].to_vec()),
        ("options_overrun", changed(&|p| p[35] = 0x1f)),
        ("option_missing", without_cookie),
        ("option_duplicate", cookie_twice),
        ("option_bad_length", changed(&|p| p[23] = 1)),
        ("critical_option_unknown", critical),
        ("bad_ethertype", changed(&|p| p[3] = 6)),
        ("inner_version_mismatch", changed(&|p| p[40] = 0x65)),
        ("inner_truncated", good[..60].to_vec()),
        ("inner_truncated", changed(&|p| p[43] += 1)),
        ("inner_malformed", changed(&|p| p[40] = 0x44)),
    ]
}

#[test]
fn malformed_datagrams_are_counted_by_reason_and_go_nowhere() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--workers", "2"]);
    let mut injector = lab.injector();
    let witness = packets::ping(V4, 1, b"witness");
    injector.exchange(endpoint_id(0), &witness);
    for (case, (reason, payload)) in malformed().into_iter().enumerate() {
        let before = engine.drops(reason);
        send_payload(&injector, &payload);
        wait_until(&format!("case {case} counts as {reason}"), || {
            engine.drops(reason) == before + 1
        });
        injector.exchange(endpoint_id(0), &witness);
        injector.expect_silence();
    }
    // The kernel's own count of what was written to gwi.
    let counter = "/sys/class/net/gwi-5bqWvzLwwkk/statistics/rx_packets";
    let written = run(&lab.topology.target(), "cat", &[counter]);
    let witnesses = malformed().len() + 1;
    assert_eq!(written.trim(), witnesses.to_string(), "only the witnesses reached gwi");
    injector.assert_clean();
}

#[test]
fn too_many_option_sets_are_refused() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &[]);
    let mut injector = lab.injector();
    let inner = packets::udp(V6, (4000, 53), b"options");
    for set in 0..80_u8 {
        let mut header = layout::geneve_header(endpoint_id(0), 1, &inner);
        header[4] = set;
        let packet =
            injector.gwlb.encapsulate_as(endpoint_id(0), Host::Client, wrapping(header), &inner);
        injector.send_datagram(&packet.unwrap());
        if set == 0 {
            assert!(injector.receive(PATIENCE).is_some());
        }
    }
    wait_until("sets beyond 64 are refused", || engine.drops("option_set_limit") == 80 - 64);
}

#[test]
fn endpoints_beyond_the_limit_are_refused() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--max-endpoints", "1"]);
    let mut injector = lab.injector();
    let inner = packets::ping(V4, 1, b"limit");
    injector.exchange(endpoint_id(0), &inner);
    injector.send(endpoint_id(1), &inner);
    wait_until("the second endpoint is refused", || engine.drops("endpoint_limit") == 1);
    injector.exchange(endpoint_id(0), &inner);
    assert_eq!(engine.links().len(), 2);
    injector.assert_clean();
}

#[test]
fn packets_that_the_load_balancer_would_refuse_are_dropped_here() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &[]);
    let mut injector = lab.injector();
    let witness = packets::ping(V4, 1, b"witness");
    injector.exchange(endpoint_id(0), &witness);
    // Above 8,500 bytes in, and so on its way out.
    injector.send(endpoint_id(0), &packets::udp(V4, (1, 2), &pattern(0, 8501 - 28)));
    wait_until("a packet of 8,501 bytes is dropped", || engine.drops("mtu") == 1);
    let answer = injector.receive(PATIENCE).expect("its sender is told");
    assert_eq!(answer.inner[20..22], [3, 4], "fragmentation needed");
    // A ping of the target's own on gwo, which belongs to no flow.
    let target = lab.topology.target();
    let gwo = "gwo-5bqWvzLwwkk";
    run(&target, "ip", &["addr", "add", "10.77.0.1/24", "dev", gwo]);
    let mut ping = target.command("ping");
    ping.args(["-c", "1", "-W", "1", "-I", gwo, "10.77.0.2"]);
    assert!(!ping.output().unwrap().status.success());
    wait_until("a packet of no flow is dropped", || engine.drops("flow_unknown") == 1);
    injector.exchange(endpoint_id(0), &witness);
    injector.assert_clean();
}

#[test]
fn a_refused_endpoint_is_a_warning_and_no_503() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &["--max-endpoints", "1"]);
    let mut injector = lab.injector();
    injector.exchange(endpoint_id(0), &packets::ping(V4, 1, b"first"));
    assert_eq!(engine.status()["warnings"], Value::Array(Vec::new()));
    injector.send(endpoint_id(1), &packets::ping(V4, 1, b"one too many"));
    wait_until("the page warns", || {
        engine.status()["warnings"][0].as_str().is_some_and(|text| text.contains("refused"))
    });
    assert_eq!(engine.health("/").status, 200);
    wait_until("the log has it", || engine.log().contains("(geneve,critical) : : An endpoint was"));
    wait_until("a datagram is counted", || {
        injector.send(endpoint_id(1), &packets::ping(V4, 1, b"one too many"));
        engine.drops("endpoint_limit") > 0
    });
    injector.exchange(endpoint_id(0), &packets::ping(V4, 2, b"undisturbed"));
    injector.assert_clean();
}

#[test]
fn without_a_free_descriptor_it_still_answers() {
    let lab = Lab::new(0, Config::default());
    let limited = || {
        let engine = Engine::passthrough(&lab, &[]);
        assert_eq!(engine.health("/").status, 200);
        // As if everything up to the limit were in use.
        engine.limit_descriptors(0).then_some(engine)
    };
    let engine = (0..20).find_map(|_| limited()).expect("an engine without gaps");
    for _ in 0..3 {
        assert_eq!(engine.health("/").status, 200);
    }
}

#[test]
fn a_process_that_stood_still_is_not_unhealthy_for_that() {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &[]);
    engine.signal(Signal::SIGSTOP);
    let over = Deadline::after(Duration::from_secs(5));
    wait_until("time passes", || over.is_over());
    engine.signal(Signal::SIGCONT);
    let over = Deadline::after(Duration::from_secs(2));
    wait_until("the page is watched", || {
        let answer = engine.health("/");
        assert_eq!(answer.status, 200, "{}", answer.body);
        over.is_over()
    });
}

#[test]
fn a_device_that_is_missing_for_a_while_is_told_for_that_while() {
    a_device_out_of_reach(&["mount", "-t", "tmpfs", "none", "/dev/net"]);
}

#[test]
fn a_device_that_may_not_be_opened_for_a_while_is_told_for_that_while() {
    let forbid = "mount -t tmpfs -o nodev none /dev/net && mknod /dev/net/tun c 10 200";
    a_device_out_of_reach(&["sh", "-c", forbid]);
}

/// `take` hides the device or forbids it.
fn a_device_out_of_reach(take: &[&str]) {
    let lab = Lab::new(0, Config::default());
    let engine = Engine::passthrough(&lab, &[]);
    let mut injector = lab.injector();
    // The program has a mount namespace of its own, as all that `ip netns exec` starts.
    let pid = engine.pid().to_string();
    let within = |words: &[&str]| {
        let args = [&["-t", &pid, "-m"][..], words].concat();
        run(&lab.topology.target(), "nsenter", &args);
    };
    within(take);
    injector.send(endpoint_id(0), &packets::ping(V4, 1, b"in vain"));
    wait_until("503", || engine.health("/").status == 503);
    let reason = engine.status()["reasons"][0].to_string();
    assert!(reason.contains("/dev/net/tun"), "{reason}");
    within(&["umount", "/dev/net"]);
    // A load balancer sends no new endpoint meanwhile, so none is needed for it.
    wait_until("200 again", || engine.health("/").status == 200);
    injector.exchange(endpoint_id(0), &packets::ping(V4, 2, b"now"));
    injector.assert_clean();
}
