//! Namespaces: addresses of many endpoints, and two arms with a kernel as the target's peer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::UdpSocket;

use crate::sim::gwlb::Config;
use crate::sim::gwlb::Host;
use crate::sim::netns::Arms;
use crate::sim::netns::CLIENT_V4;
use crate::sim::netns::CLIENT_V6;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::sim::netns::Topology;
use crate::sim::outside::INTERNET_V4;
use crate::sim::outside::INTERNET_V6;
use crate::sim::outside::TARGET_V4;
use crate::sim::outside::TARGET_V6;
use crate::support::clock::PATIENCE;
use crate::support::lab::Lab;
use crate::support::mirror::Mirror;
use crate::support::process::run;

#[test]
fn a_hundred_endpoints_in_fifty_networks() {
    let lab = Lab::build(Config::default(), |plan| {
        plan.endpoints = 100;
        plan.networks = 50;
    });
    let address = |endpoint| lab.topology.addresses(endpoint, Host::Client);
    let texts = |host| {
        let (v4, v6) = lab.topology.addresses(0, host);
        (v4.to_string(), v6.to_string())
    };
    assert_eq!(texts(Host::Client), (CLIENT_V4.to_owned(), CLIENT_V6.to_owned()));
    assert_eq!(texts(Host::Server), (SERVER_V4.to_owned(), SERVER_V6.to_owned()));
    let different: BTreeSet<_> = (0..100).map(address).collect();
    assert_eq!(different.len(), 50);
    assert_eq!(address(7), address(57));

    let simulator = lab.simulator();
    let _mirror = Mirror::start(&lab.topology.target(), lab.config.target);
    for endpoint in [0, 49, 50, 99] {
        let (v4, v6) = lab.topology.addresses(endpoint, Host::Server);
        for server in [v4.to_string(), v6.to_string()] {
            run(&lab.client(endpoint), "ping", &["-c", "1", "-W", "10", &server]);
        }
    }
    let report = simulator.stop_clean();
    assert_eq!((report.returned, report.flows), (4 * 2 * 2, 4 * 2), "{}", report.to_json());
}

#[test]
fn two_arms_have_a_way_out_and_one_for_answers_of_the_target_alone() {
    let lab = Lab::build(Config::default(), |plan| {
        plan.arms = Arms::Two;
        plan.endpoints = 2;
        plan.networks = 2;
    });
    let simulator = lab.simulator();
    let target = lab.topology.target();
    let internet = lab.topology.first_server();
    let (v4, v6) = lab.topology.addresses(1, Host::Client);
    for (server, here, client) in
        [(INTERNET_V4, TARGET_V4, IpAddr::from(v4)), (INTERNET_V6, TARGET_V6, v6.into())]
    {
        run(&target, "ping", &["-c", "1", "-W", "10", server]);
        let route = run(&target, "ip", &["route", "get", server]);
        assert!(route.contains("dev eth1") && route.contains(here), "{route}");
        // Not through an endpoint: no load balancer carries this.
        let taker = lab.client(1).enter(|| UdpSocket::bind((client, 9000))).expect("a socket");
        let sender = target.enter(|| UdpSocket::bind((here, 0))).expect("a socket");
        sender.send_to(b"translated", (client, 9000)).expect("a route");
        taker.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        assert_eq!(taker.recv(&mut [0; 64]).expect("it arrives"), b"translated".len());
        let mut lost = internet.command("ip");
        let lost = lost.args(["route", "get", &client.to_string()]).output().expect("ip");
        assert!(!lost.status.success(), "the server itself knows no way to a client");
    }
    assert_eq!(simulator.report().encapsulated, 0, "no load balancer carried this");
}

#[test]
fn a_prefix_in_use_is_refused_and_left_alone() {
    let mut taken = None;
    let lab = Lab::build(Config::default(), |plan| taken = Some(plan.clone()));
    let error = Topology::build(&taken.unwrap()).expect_err("the namespaces exist");
    assert!(error.to_string().contains("exists: take another prefix"), "{error}");
    run(&lab.topology.target(), "true", &[]);
}
