//! The example hooks at work: real clients, IPv4 and IPv6, two endpoints at a time, and a target
//! that is as before when the program has ended.

use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use super::hosts::download;
use super::hosts::ping;
use crate::sim::gwlb::Config;
use crate::sim::netns::Namespace;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::tunnel_links;
use crate::support::kernel_state::assert_same;
use crate::support::kernel_state::kernel_state;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::outside::FAR_V4;
use crate::support::outside::FAR_V6;
use crate::support::outside::Mirror;
use crate::support::outside::WAYS_V4;
use crate::support::outside::WAYS_V6;
use crate::support::outside::add_outside;
use crate::support::outside::ask;
use crate::support::process::finish;
use crate::support::process::run;
use crate::support::scratch::unique_name;
use crate::support::simulator::Simulator;

const DOWNLOAD_BYTES: u64 = 5_000_000;

/// The address that a service on the target answers for.
const LOCAL_V4: &str = "198.51.100.10";
/// The address that a service on the target answers for.
const LOCAL_V6: &str = "2001:db8::10";

/// Path of an example hook.
pub(super) fn script(name: &str) -> String {
    format!("{}/example-scripts/create-{name}.sh", env!("CARGO_MANIFEST_DIR"))
}

/// An engine that runs one of the scripts, and the target as it was before.
pub(super) struct Scene {
    engine: Engine,
    simulator: Option<Simulator>,
    before: String,
    pub(super) lab: Lab,
}

impl Scene {
    /// Two endpoints whose hosts have the same addresses. The target filters reverse paths and
    /// forwards nothing, as many distributions have it; `environment` is the script's.
    pub(super) fn begin(name: &str, environment: &[(&str, &str)]) -> Self {
        let lab = Lab::new(2, Config::default());
        let simulator = lab.simulator();
        add_outside(&lab, 2);
        let target = lab.topology.target();
        run(&target, "sh", &["-c", "echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter"]);
        let before = kernel_state(&target);
        let state = lab.scratch.file("state");
        let settings = environment.iter().map(|(key, value)| format!(" {key}='{value}'"));
        let settings = settings.collect::<String>();
        let exports = format!("export GWLBTUN_STATE_DIR={}{settings}", state.display());
        let hook = script(name);
        let engine = Engine::start_from_shell(&lab, &exports, &["-c", &hook, "-r", &hook, "-j"]);
        Self { engine, simulator: Some(simulator), before, lab }
    }

    pub(super) fn target(&self) -> Namespace {
        self.lab.topology.target()
    }

    /// The program ends with its endpoints, and all is as it was.
    pub(super) fn end(mut self) {
        let log = self.engine.log();
        assert!(!log.contains("ended with exit status"), "{log}");
        self.engine.signal(Signal::SIGTERM);
        assert_eq!(self.engine.wait().code(), Some(0));
        let log = self.engine.log();
        assert!(!log.contains("ended with exit status"), "{log}");
        assert_same(&self.before, &kernel_state(&self.target()));
        let state = std::fs::read_dir(self.lab.scratch.file("state"));
        assert_eq!(state.map_or(0, Iterator::count), 0, "the scripts keep notes");
        let _ = self.simulator.take().expect("ended once").stop_clean();
    }

    /// Each endpoint's client reaches its own server.
    pub(super) fn pass(&self) {
        for endpoint in 0..2 {
            ping(&self.lab, endpoint);
            download(&self.lab, endpoint, DOWNLOAD_BYTES);
        }
    }

    /// Ends an endpoint by hand, as the program would.
    pub(super) fn destroy(&self, name: &str, endpoint: usize) {
        self.call(name, "DESTROY", endpoint, &[]);
    }

    /// Begins an endpoint again by hand, with another environment.
    pub(super) fn create(&self, name: &str, endpoint: usize, environment: &[(&str, &str)]) {
        self.call(name, "CREATE", endpoint, environment);
    }

    fn call(&self, name: &str, action: &str, endpoint: usize, environment: &[(&str, &str)]) {
        let id = format!("{:017x}", endpoint_id(endpoint));
        let gwi = self.link_of(endpoint);
        let gwo = gwi.replace("gwi-", "gwo-");
        let mut command = self.target().command(&script(name));
        command.args([action, &gwi, &gwo, &id]).envs(environment.iter().copied());
        command.env("GWLBTUN_STATE_DIR", self.lab.scratch.file("state"));
        finish(&mut command);
    }

    /// The name of an endpoint's gwi; names are ordered as ids are.
    pub(super) fn link_of(&self, endpoint: usize) -> String {
        let links = tunnel_links(&self.target());
        links.into_iter().filter(|link| link.starts_with("gwi-")).nth(endpoint).expect("a link")
    }
}

/// Ping that answers by the way that the simulator judges.
fn ping_once(client: &Namespace, address: &str) -> String {
    let printed = run(client, "ping", &["-c", "1", "-W", "10", address]);
    assert!(printed.contains(" 1 received"), "{printed}");
    printed
}

#[test]
fn create_route_lets_filters_see_what_passes() {
    let scene = Scene::begin("route", &[]);
    let chain = "add table inet seen; add counter inet seen forwarded; \
                 add chain inet seen forward { type filter hook forward priority 0; }; \
                 add rule inet seen forward counter name forwarded";
    run(&scene.target(), "nft", &[chain]);
    for address in [SERVER_V4, SERVER_V6] {
        let printed = ping_once(&scene.lab.client(0), address);
        assert!(printed.contains("ttl=63"), "one router on the way back: {printed}");
    }
    scene.pass();
    let seen = run(&scene.target(), "nft", &["list", "counter", "inet", "seen", "forwarded"]);
    assert!(!seen.contains("packets 0 "), "{seen}");
    run(&scene.target(), "nft", &["delete table inet seen"]);
    scene.end();
}

/// Both endpoints' clients reach far servers under the target's address, and one still does when
/// the other endpoint is gone.
fn nat(firewall: &str) {
    let scene = Scene::begin("nat", &[("FIREWALL", firewall)]);
    let other = ["addr add 10.1.0.9/24 dev lb0", "addr add fd00:1::9/64 dev lb0 nodad"];
    scene.lab.client(1).ip(&other.map(str::to_owned)).unwrap();
    let far = |endpoint: usize| {
        let client = scene.lab.client(endpoint);
        for (address, seen, source) in
            [(FAR_V4, WAYS_V4[0], "10.1.0.9"), (FAR_V6, WAYS_V6[0], "fd00:1::9")]
        {
            let source = if endpoint == 0 { vec![] } else { vec!["--interface", source] };
            let mirror = Mirror::start(&scene.lab.server(0), 1);
            assert_eq!(ask(&client, address, &source), seen);
            mirror.finish();
            ping_once(&client, address);
        }
    };
    far(0);
    far(1);
    scene.destroy("nat", 0);
    far(1);
    scene.destroy("nat", 0);
    far(1);
    scene.end();
}

#[test]
fn create_nat_masquerades_with_nft() {
    nat("nft");
}

#[test]
fn create_nat_masquerades_with_iptables() {
    nat("iptables");
}

/// The way out takes less than the client and the server believe, and nobody tells the client.
fn nat_to_a_smaller_link(name: &str, firewall: &str) {
    let scene = Scene::begin(name, &[("FIREWALL", firewall)]);
    let small = ["link set eth1 mtu 1400".to_owned()];
    scene.target().ip(&small).unwrap();
    let head = format!("X-Long: {}", "x".repeat(10_000));
    for (address, seen) in [(FAR_V4, WAYS_V4[0]), (FAR_V6, WAYS_V6[0])] {
        let mirror = Mirror::start(&scene.lab.server(0), 1);
        assert_eq!(ask(&scene.lab.client(0), address, &["--header", &head]), seen);
        mirror.finish();
    }
    download(&scene.lab, 0, DOWNLOAD_BYTES);
    scene.target().ip(&["link set eth1 mtu 1500".to_owned()]).unwrap();
    scene.end();
}

#[test]
fn create_nat_makes_segments_fit_the_way_out_with_nft() {
    nat_to_a_smaller_link("nat", "nft");
}

#[test]
fn create_nat_makes_segments_fit_the_way_out_with_iptables() {
    nat_to_a_smaller_link("nat", "iptables");
}

#[test]
fn create_nat_overlapping_makes_segments_fit_the_way_out() {
    nat_to_a_smaller_link("nat-overlapping", "nft");
}

/// The host's default route is that of `eth1`; `eth2` has a worse one.
#[test]
fn create_nat_leaves_by_the_interface_that_is_named() {
    let scene = Scene::begin("nat", &[("NAT_INTERFACE", "eth2")]);
    let other = ["203.0.113.2", "2001:db8:2::2"]
        .map(|gateway| format!("route add default via {gateway} dev eth2 metric 4096"));
    scene.target().ip(&other).unwrap();
    for (address, seen) in [(FAR_V4, WAYS_V4[1]), (FAR_V6, WAYS_V6[1])] {
        let mirror = Mirror::start(&scene.lab.server(0), 1);
        assert_eq!(ask(&scene.lab.client(0), address, &[]), seen);
        mirror.finish();
        ping_once(&scene.lab.client(0), address);
    }
    scene.target().ip(&other.map(|route| route.replace("route add", "route del"))).unwrap();
    scene.end();
}

/// Two clients with the same address and port ask the same server at the same time.
fn overlapping(environment: &[(&str, &str)], seen: [usize; 2]) {
    let scene = Scene::begin("nat-overlapping", environment);
    for (address, ways, port) in [(FAR_V4, WAYS_V4, "40004"), (FAR_V6, WAYS_V6, "40006")] {
        let mirror = Mirror::start(&scene.lab.server(0), 2);
        std::thread::scope(|scope| {
            let ask = |endpoint: usize| {
                let client = scene.lab.client(endpoint);
                move || ask(&client, address, &["--local-port", port])
            };
            let answers = [0, 1].map(|endpoint| scope.spawn(ask(endpoint)));
            let answers = answers.map(|answer| answer.join().unwrap());
            assert_eq!(answers, seen.map(|way| ways[way]));
        });
        mirror.finish();
    }
    // The target's own services answer too.
    for endpoint in 0..2 {
        let mirror = Mirror::start(&scene.target(), 1);
        assert_eq!(ask(&scene.lab.client(endpoint), WAYS_V4[0], &[]), "10.1.0.1");
        mirror.finish();
    }
    scene.end();
}

#[test]
fn create_nat_overlapping_keeps_equal_clients_apart_with_nft() {
    overlapping(&[("FIREWALL", "nft")], [0, 0]);
}

#[test]
fn create_nat_overlapping_keeps_equal_clients_apart_with_iptables() {
    overlapping(&[("FIREWALL", "iptables")], [0, 0]);
}

#[test]
fn create_nat_overlapping_gives_endpoints_ways_out_of_their_own() {
    let map = format!("vpce-{:017x} eth2 203.0.113.2 2001:db8:2::2", endpoint_id(1));
    overlapping(&[("NAT_MAP", &map)], [0, 1]);
}

/// The test's own `aws` answers as the CLI does, where an endpoint has no such tag: None.
#[test]
fn create_nat_overlapping_asks_the_aws_cli() {
    let bin = Lab::new(0, Config::default());
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *' vpce-{:017x} '*) echo eth2 203.0.113.2 2001:db8:2::2 ;; \
         *) echo None ;; esac\n",
        endpoint_id(1)
    );
    let aws = bin.scratch.file("aws");
    std::fs::write(&aws, text).unwrap();
    std::fs::set_permissions(&aws, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.scratch.file("").display(), std::env::var("PATH").unwrap());
    overlapping(&[("NAT_LOOKUP", "aws"), ("PATH", &path)], [0, 1]);
}

/// A service on the target answers, and everything else passes.
fn local(firewall: &str) {
    let addresses = format!("{LOCAL_V4} {LOCAL_V6}");
    let scene = Scene::begin("local", &[("FIREWALL", firewall), ("LOCAL_ADDRESSES", &addresses)]);
    for endpoint in 0..2 {
        let client = scene.lab.client(endpoint);
        let addresses = [
            (LOCAL_V4, "10.1.0.1"),
            (WAYS_V4[0], "10.1.0.1"),
            (LOCAL_V6, "fd00:1::1"),
            (WAYS_V6[0], "fd00:1::1"),
        ];
        for (address, seen) in addresses {
            let mirror = Mirror::start(&scene.target(), 1);
            assert_eq!(ask(&client, address, &[]), seen);
            mirror.finish();
            ping_once(&client, address);
        }
    }
    scene.pass();
    scene.end();
}

#[test]
fn create_local_answers_with_nft() {
    local("nft");
}

#[test]
fn create_local_answers_with_iptables() {
    local("iptables");
}

#[test]
fn create_shape_holds_back_what_is_too_fast() {
    let scene = Scene::begin("shape", &[("SHAPE_RATE", "100mbit")]);
    scene.pass();
    for endpoint in 0..2 {
        let gwo = scene.link_of(endpoint).replace("gwi-", "gwo-");
        let shown = run(&scene.target(), "tc", &["-s", "qdisc", "show", "dev", &gwo]);
        assert!(shown.starts_with("qdisc tbf 6081: root"), "{shown}");
        assert!(!shown.contains("overlimits 0 "), "{shown}");
    }
    scene.end();
}

#[test]
fn create_netns_gives_each_endpoint_a_namespace() {
    let prefix = format!("{}-", unique_name());
    let scene = Scene::begin("netns", &[("NETNS_PREFIX", &prefix)]);
    scene.pass();
    // Seen by the program's own view of the file system, which is that of its namespace.
    let engine = scene.engine.pid().to_string();
    for endpoint in 0..2 {
        let name = format!("{prefix}{:017x}", endpoint_id(endpoint));
        let enter = ["-m", "-t", &engine, "ip", "-n", &name, "-o", "link"];
        let links = run(&scene.target(), "nsenter", &enter);
        assert!(links.contains("gwi-") && links.contains("gwo-"), "{links}");
    }
    assert_eq!(tunnel_links(&scene.target()), Vec::<String>::new());
    assert_eq!(scene.engine.health("/").status, 200);
    scene.end();
    wait_until("no namespace is left", || {
        let names = std::fs::read_dir("/run/netns").unwrap();
        !names.flatten().any(|name| name.file_name().to_string_lossy().starts_with(&prefix))
    });
}
