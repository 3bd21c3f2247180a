//! Health as AWS judges it: thresholds against a naive oracle, who gets a flow, and real checks of
//! a listener that answers what the test wants.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sim::gwlb::Config;
use crate::sim::gwlb::Forwarding;
use crate::sim::gwlb::Gwlb;
use crate::sim::gwlb::Host;
use crate::sim::health::Failover;
use crate::sim::health::Group;
use crate::sim::health::GroupConfig;
use crate::sim::health::Outcome;
use crate::sim::health::State;
use crate::sim::health::Thresholds;
use crate::sim::health::Way;
use crate::sim::prober::Check;
use crate::sim::prober::Protocol;
use crate::sim::prober::status;
use crate::support::clock::wait_until;
use crate::support::lab::Lab;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;

const REFUSED: Outcome = Outcome::FailedHealthChecks;

/// One success or failure is enough.
const QUICK: GroupConfig = GroupConfig {
    thresholds: Thresholds { healthy: 1, unhealthy: 1 },
    failover: Failover::NoRebalance,
    other_target: true,
    deregistration_delay: Duration::from_mins(5),
};

/// What AWS's sentence says when read over a whole history: the last row that was long enough
/// decides.
fn oracle(history: &[bool], thresholds: Thresholds) -> &'static str {
    let mut verdict = "initial";
    for end in 1..=history.len() {
        let row = |length: u32, passed| {
            let length = usize::try_from(length).unwrap();
            length <= end && history[end - length..end].iter().all(|&one| one == passed)
        };
        if row(thresholds.healthy, true) {
            verdict = "healthy";
        } else if row(thresholds.unhealthy, false) {
            verdict = "unhealthy";
        }
    }
    verdict
}

#[test]
fn thresholds_count_rows_and_only_changes_are_told() {
    for (healthy, unhealthy) in [(1, 1), (5, 2), (2, 3), (3, 3)] {
        let thresholds = Thresholds { healthy, unhealthy };
        for bits in 0..1_u32 << 10 {
            let mut group = Group::new(GroupConfig { thresholds, ..QUICK }, 1);
            let mut history = Vec::new();
            let mut before = "initial";
            for probe in 0..10 {
                let passed = bits >> probe & 1 == 1;
                history.push(passed);
                let told = group.probed(0, if passed { Outcome::Passed } else { REFUSED });
                let now = oracle(&history, thresholds);
                assert_eq!(group.described(0).0, now, "{history:?} at {thresholds:?}");
                assert_eq!(told.map(State::name), (now != before).then_some(now), "{history:?}");
                before = now;
            }
            let passed = u64::from(bits.count_ones());
            assert_eq!((group.node(0).passed, group.node(0).failed), (passed, 10 - passed));
        }
    }
}

#[test]
fn every_node_decides_for_itself_and_names_its_last_reason() {
    let mut group = Group::new(QUICK, 3);
    group.probed(1, Outcome::Passed);
    group.probed(2, Outcome::Timeout);
    let described = |group: &Group| [0, 1, 2].map(|node| group.described(node));
    let initial = ("initial", "Elb.InitialHealthChecking");
    assert_eq!(described(&group), [initial, ("healthy", ""), ("unhealthy", "Target.Timeout")]);
    group.probed(2, Outcome::ResponseCodeMismatch(503));
    group.probed(1, REFUSED);
    assert_eq!(
        described(&group),
        [
            initial,
            ("unhealthy", "Target.FailedHealthChecks"),
            ("unhealthy", "Target.ResponseCodeMismatch"),
        ]
    );
}

/// A group in one of the states of the table in [`crate::sim::health`].
fn group_in(state: &str, failover: Failover, other_target: bool) -> Group {
    let mut group = Group::new(GroupConfig { failover, other_target, ..QUICK }, 1);
    match state {
        "healthy" => drop(group.probed(0, Outcome::Passed)),
        "unhealthy" => drop(group.probed(0, REFUSED)),
        "draining" | "unused" => group.toggle_registration(Duration::ZERO),
        _ => {}
    }
    if state == "unused" {
        assert!(!group.advance(Duration::from_secs(299)) && group.is_draining());
        assert!(group.advance(Duration::from_mins(5)) && !group.is_draining());
    }
    assert_eq!(group.described(0).0, state);
    group
}

#[test]
fn flows_go_where_the_guide_says() {
    use Way::Nowhere;
    use Way::Other;
    use Way::Target;
    // State; a new flow with and without another target; one that the target has, by failover.
    let table = [
        ("initial", [Target, Target], [Target, Target]),
        ("healthy", [Target, Target], [Target, Target]),
        ("unhealthy", [Other, Target], [Target, Other]),
        ("draining", [Other, Nowhere], [Target, Target]),
        ("unused", [Other, Nowhere], [Target, Other]),
    ];
    for (state, new, existing) in table {
        for (failover, expected) in
            [(Failover::NoRebalance, existing[0]), (Failover::Rebalance, existing[1])]
        {
            let group = group_in(state, failover, true);
            assert_eq!(group.way_of_new(0), new[0], "{state}");
            assert_eq!(group.way_of_existing(Target, 0), expected, "{state} {failover:?}");
            assert_eq!(group.way_of_existing(Other, 0), Other, "{state}: flows stick");
            let alone = group_in(state, failover, false);
            assert_eq!(alone.way_of_new(0), new[1], "{state} alone");
            assert_eq!(alone.way_of_existing(Target, 0), Target, "{state} alone");
            assert_eq!(alone.way_of_existing(Nowhere, 0), new[1], "{state} alone");
        }
    }
}

#[test]
fn a_target_registered_again_begins_anew_and_checks_meanwhile_do_not_count() {
    let mut group = group_in("unhealthy", Failover::NoRebalance, true);
    group.toggle_registration(Duration::ZERO);
    assert_eq!(group.probed(0, Outcome::Passed), None);
    assert_eq!(group.described(0), ("draining", "Target.DeregistrationInProgress"));
    group.toggle_registration(Duration::ZERO);
    assert_eq!(group.described(0).0, "initial");
    assert_eq!((group.node(0).passed, group.node(0).failed), (0, 1));
}

fn target_gets(gwlb: &mut Gwlb, inner: &[u8]) -> Option<Vec<u8>> {
    match gwlb.forward(1, Host::Client, inner) {
        Forwarding::ToTarget(packet) => Some(packet),
        Forwarding::ByOtherTarget | Forwarding::Dropped => None,
    }
}

#[test]
fn a_flow_stays_where_it_began_until_it_is_idle() {
    let config =
        Config { group: QUICK, nodes: vec![Ipv4Addr::new(10, 99, 0, 11)], ..Config::default() };
    let mut gwlb = Gwlb::new(config);
    let old = packets::tcp(V4, (1000, 443), 1, b"");
    let new = packets::udp(V6, (1000, 53), b"");
    let first = target_gets(&mut gwlb, &old).expect("the initial target gets flows");
    gwlb.probed(0, REFUSED);
    assert_eq!(
        gwlb.take_changes(),
        ["health: node 10.99.0.11: unhealthy Target.FailedHealthChecks"]
    );
    assert_eq!(target_gets(&mut gwlb, &old).as_ref(), Some(&first), "no rebalance");
    assert_eq!(gwlb.forward(1, Host::Client, &new), Forwarding::ByOtherTarget);
    gwlb.probed(0, Outcome::Passed);
    gwlb.advance(Duration::from_mins(2));
    assert_eq!(gwlb.forward(1, Host::Client, &new), Forwarding::ByOtherTarget, "not idle yet");
    gwlb.advance(Duration::from_secs(241));
    assert!(target_gets(&mut gwlb, &new).is_some(), "120 s are over");
    assert_eq!(target_gets(&mut gwlb, &old).as_ref(), Some(&first), "TCP has 350 s");
    gwlb.advance(Duration::from_secs(241 + 351));
    let renewed = target_gets(&mut gwlb, &old).expect("a healthy target");
    assert_ne!(renewed[64..68], first[64..68], "a new flow has a new cookie");
    let report = gwlb.report();
    assert_eq!((report.by_other_target, report.without_target), (2, 0));
    let node = report.nodes[0];
    assert_eq!((node.state, node.passed, node.failed), ("healthy", 1, 1));
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["health"][0]["node"], "10.99.0.11");
    assert_eq!(json["byOtherTarget"], 2);
}

#[test]
fn only_the_status_line_of_http_1_is_a_status() {
    assert_eq!(status(b"HTTP/1.1 200 OK\r\n\r\n"), Some(200));
    assert_eq!(status(b"HTTP/1.0 404\r\n\r\n"), Some(404));
    for wrong in
        ["HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 20 \r\n\r\n", "HTTP/1.1 2000\r\n", "220 smtp\r\n"]
    {
        assert_eq!(status(wrong.as_bytes()), None, "{wrong}");
    }
}

/// What a [`Listener`] does instead of answering.
const SILENCE: u16 = 0;
const NO_HTTP: u16 = 1;

/// A health port that answers the status it is told, and notes who asked.
struct Listener {
    status: Arc<AtomicU16>,
    askers: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl Listener {
    fn start(lab: &Lab, port: u16) -> Self {
        let bind = || TcpListener::bind((lab.config.target, port));
        let listener = lab.topology.target().enter(bind).expect("the health port");
        let status = Arc::new(AtomicU16::new(200));
        let askers = Arc::new(Mutex::new(BTreeSet::new()));
        // Ends with the test's process.
        std::thread::spawn({
            let (status, askers) = (Arc::clone(&status), Arc::clone(&askers));
            move || {
                let mut silent = Vec::new();
                while let Ok((stream, asker)) = listener.accept() {
                    askers.lock().unwrap().insert(asker.ip());
                    silent.extend(answer(stream, status.load(Ordering::Relaxed)));
                }
            }
        });
        Self { status, askers }
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

/// Answers a check; gives back a connection that is to stay open. Who asked may have left.
fn answer(mut stream: TcpStream, status: u16) -> Option<TcpStream> {
    let text = match status {
        SILENCE => return Some(stream),
        NO_HTTP => "220 mail\r\n\r\n".to_owned(),
        code => format!("HTTP/1.1 {code} Word\r\nContent-Length: 0\r\n\r\n"),
    };
    let _ = stream.read(&mut [0; 1024]);
    let _ = stream.write_all(text.as_bytes());
    None
}

/// AWS's thresholds at a speed for tests.
fn fast_check(protocol: Protocol) -> Check {
    let interval = Duration::from_millis(300);
    Check { protocol, port: 8081, interval, timeout: interval, ..Check::default() }
}

#[test]
fn every_node_asks_from_its_own_address_and_knows_why_it_fails() {
    let lab = Lab::new(0, Config { group: QUICK, ..Config::default() });
    let listener = Listener::start(&lab, 8081);
    let simulator = lab.simulator_with(&fast_check(Protocol::Http));
    let reason = |expected: &str| {
        wait_until(expected, || {
            simulator.report().nodes.iter().all(|node| node.reason == expected)
        });
    };
    simulator.wait_until_health("healthy");
    let nodes: BTreeSet<_> = lab.config.nodes.iter().copied().map(IpAddr::V4).collect();
    assert_eq!(*listener.askers.lock().unwrap(), nodes);
    listener.answers(503);
    simulator.wait_until_health("unhealthy");
    reason("Target.ResponseCodeMismatch");
    listener.answers(SILENCE);
    reason("Target.Timeout");
    listener.answers(NO_HTTP);
    reason("Target.FailedHealthChecks");
    listener.answers(399);
    simulator.wait_until_health("healthy");
    listener.answers(404);
    simulator.wait_until_health("unhealthy");
}

#[test]
fn a_tcp_check_wants_a_connection_and_no_more() {
    let lab = Lab::new(0, Config { group: QUICK, ..Config::default() });
    let simulator = lab.simulator_with(&fast_check(Protocol::Tcp));
    simulator.wait_until_health("unhealthy");
    let report = simulator.report();
    assert!(report.nodes.iter().all(|node| node.reason == "Target.FailedHealthChecks"));
    let listener = Listener::start(&lab, 8081);
    listener.answers(SILENCE);
    simulator.wait_until_health("healthy");
}
