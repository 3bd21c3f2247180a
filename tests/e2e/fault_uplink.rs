//! What may happen to the way to the load balancer: down, without its address, without a route.
//! Scenario R27.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::injector::Injector;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::pattern;
use crate::support::process::run;

/// Packets that are on their way when something happens to the uplink.
const UNDER_WAY: u64 = 200;

/// A way to lose the uplink, and to have it again.
struct Fault {
    lose: &'static str,
    restore: &'static str,
    /// Whether what is lost is what Linux refused to send: a link that is down loses more.
    is_exact: bool,
}

const FAULTS: [Fault; 3] = [
    Fault {
        lose: "addr del 10.99.0.100/16 dev eth0",
        restore: "addr add 10.99.0.100/16 dev eth0",
        is_exact: true,
    },
    Fault {
        lose: "route replace unreachable 10.99.0.0/16",
        restore: "route replace 10.99.0.0/16 dev eth0 src 10.99.0.100",
        is_exact: true,
    },
    Fault { lose: "link set eth0 down", restore: "link set eth0 up", is_exact: false },
];

/// One target, and how many packets went to it and came back.
struct Rig {
    engine: Engine,
    lab: Lab,
    injector: Injector,
    sent: u64,
    back: u64,
}

impl Rig {
    fn new() -> Self {
        let lab = Lab::new(0, Config::default());
        // What comes back waits on gwo for a while, as it does where a tool shapes it.
        let slow = "tc qdisc add dev $3 root tbf rate 100mbit burst 100kb limit 10mb";
        let hook = format!("f() {{ {PASSTHROUGH} \"$@\" && {slow}; }}; f");
        let engine = Engine::start(&lab, &["-j", "--workers", "2", "-c", &hook]);
        let injector = lab.injector();
        Self { engine, lab, injector, sent: 0, back: 0 }
    }

    fn ip(&self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        run(&self.lab.topology.target(), "ip", &words);
    }

    fn send(&mut self, inner: &[u8]) {
        self.sent += 1;
        self.injector.send(endpoint_id(0), inner);
    }

    fn receive(&mut self, within: Duration) -> bool {
        let back = self.injector.receive(within);
        self.back += u64::from(back.is_some());
        back.is_some()
    }

    /// Sends until something comes back.
    fn until_back(&mut self) {
        let mut sequence = 0;
        wait_until("traffic is back", || {
            sequence += 1;
            self.send(&packets::ping(V4, sequence, b"back?"));
            self.receive(Duration::from_millis(10))
        });
    }

    /// Waits until each packet is back or counted.
    fn until_all_known(&mut self) {
        wait_until("each is back or counted", || {
            while self.receive(Duration::from_millis(10)) {}
            self.back + self.engine.drops("send_error") == self.sent
        });
    }

    /// Loses the uplink, and restores it. Packets leave in super-packets, of which some are on
    /// their way before, while and after it is lost.
    fn flap(&mut self, fault: &Fault) {
        self.engine.signal(Signal::SIGSTOP);
        for _ in 0..UNDER_WAY {
            self.send(&packets::udp(V4, (4000, 53), &pattern(1, 1000)));
        }
        self.engine.signal(Signal::SIGCONT);
        self.ip(fault.lose);
        self.ip(fault.restore);
        self.until_back();
        if fault.is_exact {
            self.until_all_known();
        }
    }
}

/// Loses and restores the uplink in each way, so many times each.
fn flaps(rounds: usize) {
    let mut rig = Rig::new();
    rig.until_back();
    rig.until_all_known();
    let before = rig.engine.descriptor_count();
    for fault in &FAULTS {
        let refused = rig.engine.drops("send_error");
        for _ in 0..rounds {
            rig.flap(fault);
        }
        // How many are refused is up to chance, but not that it happens: then it is told.
        wait_until("some packets are refused, and a warning says what to look at", || {
            rig.flap(fault);
            let warnings = rig.engine.status()["warnings"].to_string();
            rig.engine.drops("send_error") > refused && warnings.contains("ip route get")
        });
        assert_eq!(rig.engine.health("/").status, 200);
    }
    wait_until("descriptors are as before", || rig.engine.descriptor_count() <= before);
    while rig.receive(Duration::from_millis(200)) {}
    let inner = packets::ping(V4, 1, b"as before");
    rig.injector.exchange(endpoint_id(0), &inner);
    let page = rig.engine.status();
    let pieces = &page["offload"]["pieces"];
    assert_eq!(pieces["udp-gso"], true, "nothing is done without for that: {page}");
    wait_until("the warning goes", || {
        rig.engine.status()["warnings"].as_array().map(Vec::len) == Some(0)
    });
    rig.injector.assert_clean();
}

#[test]
fn r27_traffic_is_back_after_the_uplink_was_lost() {
    flaps(5);
}

#[test]
#[ignore = "takes a minute; .ci/run full has it"]
fn r27_traffic_is_back_after_the_uplink_was_lost_hundreds_of_times() {
    flaps(100);
}
