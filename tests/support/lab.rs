//! One test's namespaces and how to start the parts in them.

use std::io;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use super::clock::wait_until;
use super::injector::Injector;
use super::process::Background;
use super::scratch::Scratch;
use super::scratch::unique_name;
use super::simulator::Simulator;
use super::tools;
use crate::sim::daemon::Daemon;
use crate::sim::daemon::host_links;
use crate::sim::gwlb::Config;
use crate::sim::gwlb::Gwlb;
use crate::sim::gwlb::Host;
use crate::sim::netns::Arms;
use crate::sim::netns::Namespace;
use crate::sim::netns::Plan;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::Topology;
use crate::sim::prober::Check;
use crate::sim::prober::Probers;

/// Id of endpoint number 0; the next ones follow it.
const ENDPOINT_FIRST: u64 = 0x2b8e_e1d4_db0c_51c4;

const INNER_MTU: u16 = 8500;

/// The id of an endpoint of a lab.
pub(crate) fn endpoint_id(number: usize) -> u64 {
    ENDPOINT_FIRST + u64::try_from(number).expect("few endpoints")
}

/// Namespaces, a scratch directory, and the load balancer's configuration.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) config: Config,
    pub(crate) topology: Topology,
    pub(crate) scratch: Scratch,
    /// MTU of the hosts' links.
    pub(crate) host_mtu: u16,
}

impl Lab {
    /// A lab in which `endpoints` endpoints have a client and a server.
    ///
    /// # Panics
    /// If the machine lacks something; the message says what.
    pub(crate) fn new(endpoints: usize, config: Config) -> Self {
        Self::build(config, |plan| plan.endpoints = endpoints)
    }

    /// The same with a link at the target that merges datagrams before it hands them up. A veth
    /// that does so holds 256 packets and drops the rest, so this is for paced traffic.
    pub(crate) fn with_gro(endpoints: usize, config: Config) -> Self {
        Self::build(config, |plan| {
            plan.endpoints = endpoints;
            plan.target_gro = true;
        })
    }

    /// A lab of one arm, without endpoints, with the changes that `vary` makes.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub(crate) fn build(config: Config, vary: impl FnOnce(&mut Plan)) -> Self {
        tools::require();
        let prefix = unique_name();
        let scratch = Scratch::new(&prefix);
        let mut plan = Plan {
            prefix,
            nodes: config.nodes.clone(),
            target: config.target,
            arms: Arms::One,
            endpoints: 0,
            networks: 1,
            outer_mtu: 9001,
            target_gro: false,
        };
        vary(&mut plan);
        let topology = Topology::build(&plan).expect("namespaces");
        Self { topology, config, scratch, host_mtu: INNER_MTU }
    }

    /// Starts the load balancer between hosts and target.
    pub(crate) fn simulator(&self) -> Simulator {
        self.start_simulator(None)
    }

    /// The same with health checks of the target.
    pub(crate) fn simulator_with(&self, check: &Check) -> Simulator {
        let Config { nodes, target, .. } = &self.config;
        let probers = Probers::start(&self.topology.gwlb(), nodes, *target, check);
        self.start_simulator(Some(probers.expect("probers")))
    }

    fn start_simulator(&self, probers: Option<Probers>) -> Simulator {
        let links = host_links(&self.topology, ENDPOINT_FIRST, self.host_mtu).expect("hosts' TUNs");
        let wire = self.topology.open_wire().expect("the wire");
        Simulator::start(Daemon::new(Gwlb::new(self.config.clone()), wire, links, probers))
    }

    /// A load balancer in the test's own hands, without hosts.
    pub(crate) fn injector(&self) -> Injector {
        let wire = self.topology.open_wire().expect("the wire");
        Injector::new(Gwlb::new(self.config.clone()), wire)
    }

    pub(crate) fn client(&self, endpoint: usize) -> Namespace {
        self.topology.host(endpoint, Host::Client)
    }

    pub(crate) fn server(&self, endpoint: usize) -> Namespace {
        self.topology.host(endpoint, Host::Server)
    }

    /// Serves the files of the scratch directory `dir` on port 8000 of a server.
    pub(crate) fn http_server(&self, endpoint: usize, dir: &str) -> Background {
        let server = self.server(endpoint);
        let dir = self.scratch.file(dir);
        let dir = dir.to_str().expect("UTF-8");
        let args = ["-m", "http.server", "8000", "--bind", SERVER_V4, "--directory", dir];
        let process = Background::start(&server, "python3", &args);
        let address: SocketAddr = format!("{SERVER_V4}:8000").parse().expect("an address");
        wait_until("the HTTP server listens", || is_listening(&server, address));
        process
    }
}

/// Whether a TCP connection from within the namespace is taken.
pub(crate) fn is_listening(namespace: &Namespace, address: SocketAddr) -> bool {
    let connect = || -> io::Result<TcpStream> {
        TcpStream::connect_timeout(&address, Duration::from_secs(1))
    };
    namespace.enter(connect).is_ok()
}
