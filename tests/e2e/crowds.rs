//! The health port among clients that mean no good: a probe is answered all the same.

use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::time::Duration;

use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;

use crate::sim::gwlb::Config;
use crate::support::clock::Deadline;
use crate::support::clock::PATIENCE;
use crate::support::clock::Stopwatch;
use crate::support::clock::wait_until;
use crate::support::crowd::Crowd;
use crate::support::crowd::Manners;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;

const HEALTH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080);

/// Where the crowd comes from; the probe comes from 127.0.0.1.
const CROWD_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Clients of the crowd need a descriptor each.
const DESCRIPTORS: u64 = 8192;

/// The longest head that is tried.
const HEAD_BYTES: usize = 100 << 20;

/// Endpoints that make the page large.
const ENDPOINTS: usize = 60;

fn allow_descriptors() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    let wanted = soft.max(DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).expect("root may raise it");
}

#[test]
fn r20_a_probe_is_answered_among_idle_slow_deaf_and_huge_clients() {
    allow_descriptors();
    let lab = Lab::new(0, Config::default());
    let engine = Engine::start(&lab, &["-j", "--workers", "2"]);
    let mut injector = lab.injector();
    let endpoints = || engine.status()["enis"].as_array().map_or(0, Vec::len);
    for number in 0..ENDPOINTS {
        injector.send(endpoint_id(number), &packets::ping(V4, 1, b"large"));
    }
    wait_until("all endpoints are on the page", || endpoints() == ENDPOINTS);
    // What the first requests leave behind is not the crowd's doing.
    (0..50).for_each(|_| drop(engine.health("/")));
    let threads = engine.threads().len();
    engine.forget_peak();
    let resident_bytes = engine.peak_resident_bytes();

    let crowd = Crowd::start(
        &lab.topology.target(),
        CROWD_SOURCE,
        HEALTH,
        &[
            (1000, Manners::Idle),
            (1000, Manners::Slow),
            (100, Manners::Deaf),
            (1, Manners::Huge(HEAD_BYTES)),
        ],
    );
    let over = Deadline::after(Duration::from_secs(5));
    // However slow the machine is, the head grows.
    let (mut head_bytes, mut stands_still) = (0, Deadline::after(PATIENCE));
    let (mut answers, mut slowest, mut threads_max) = (0, Duration::ZERO, 0);
    while !over.is_over() || head_bytes < HEAD_BYTES && !stands_still.is_over() {
        let watch = Stopwatch::start();
        let answer = engine.health("/");
        slowest = slowest.max(watch.elapsed());
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(answer.is_whole(), "{}", answer.head);
        threads_max = threads_max.max(engine.threads().len());
        answers += 1;
        if crowd.head_bytes() > head_bytes {
            (head_bytes, stands_still) = (crowd.head_bytes(), Deadline::after(PATIENCE));
        }
    }
    let deeds = crowd.finish();
    let grown_bytes = engine.peak_resident_bytes().saturating_sub(resident_bytes);
    eprintln!(
        "{answers} answers of {} bytes, the slowest after {slowest:?}, among {deeds:?}; threads \
         {threads} to {threads_max}, resident memory +{} KiB",
        engine.health("/").body.len(),
        grown_bytes >> 10
    );
    assert!(deeds.connections >= 2101, "everybody came: {deeds:?}");
    assert!(deeds.head_bytes >= HEAD_BYTES, "the huge head was sent: {deeds:?}");
    assert!(threads_max <= threads + 3, "{threads} threads became {threads_max}");
    assert!(grown_bytes <= 8 << 20, "resident memory grew by {grown_bytes} bytes");
}
