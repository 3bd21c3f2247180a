//! A network beyond the target, for hooks that send packets out by another link: the first
//! endpoint's server gets links to the target, and addresses that clients reach only by it.
//!
//! | link of the target | its addresses | gateways at the server |
//! |---|---|---|
//! | `eth1` | 192.0.2.1, `2001:db8:1::1` | 192.0.2.2, `2001:db8:1::2` |
//! | `eth2` | 203.0.113.1, `2001:db8:2::1` | 203.0.113.2, `2001:db8:2::2` |
//!
//! The target's default routes lead by `eth1`, the clients' to their endpoint.

use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::Duration;

use super::kernel_state::wait_for_address;
use super::lab::Lab;
use super::process::run;
use crate::sim::netns::Namespace;

/// What clients ask.
pub(crate) const FAR_V4: &str = "198.51.100.80";
/// What clients ask.
pub(crate) const FAR_V6: &str = "2001:db8:80::80";

/// Addresses of the target by `eth1` and by `eth2`.
pub(crate) const WAYS_V4: [&str; 2] = ["192.0.2.1", "203.0.113.1"];
/// Addresses of the target by `eth1` and by `eth2`.
pub(crate) const WAYS_V6: [&str; 2] = ["2001:db8:1::1", "2001:db8:2::1"];

const PORT: u16 = 8000;

/// Adds the links, addresses and routes to a lab whose simulator runs.
pub(crate) fn add_outside(lab: &Lab, endpoints: usize) {
    let (target, server) = (lab.topology.target(), lab.server(0));
    for (way, (v4, v6)) in (1..).zip(WAYS_V4.into_iter().zip(WAYS_V6)) {
        let gateway4 = format!("{}.2", v4.rsplit_once('.').expect("dots").0);
        let gateway6 = format!("{}::2", v6.split_once("::").expect("colons").0);
        let link = format!("eth{way}");
        let add = format!("link add {link} type veth peer name {link} netns {}", server.0);
        let address = |v4: &str, v6: &str| {
            [
                format!("link set {link} addrgenmode none up"),
                format!("addr add {v4}/24 dev {link}"),
                format!("addr add {v6}/64 dev {link} nodad"),
            ]
        };
        target.ip(&[add]).expect("a veth");
        target.ip(&address(v4, v6)).expect("addresses");
        server.ip(&address(&gateway4, &gateway6)).expect("addresses");
    }
    let lines = ["route add default via 192.0.2.2", "route add default via 2001:db8:1::2"];
    target.ip(&lines.map(str::to_owned)).expect("default routes");
    for address in WAYS_V6 {
        wait_for_address(&target, address);
    }
    let lines = [format!("addr add {FAR_V4}/32 dev lo"), format!("addr add {FAR_V6}/128 dev lo")];
    server.ip(&lines).expect("the far addresses");
    for endpoint in 0..endpoints {
        let lines = ["route add default dev lb0", "route add ::/0 dev lb0"];
        lab.client(endpoint).ip(&lines.map(str::to_owned)).expect("default routes");
    }
}

/// A web server that tells each client its address. It answers when all are there.
#[derive(Debug)]
pub(crate) struct Mirror(Option<JoinHandle<()>>);

impl Mirror {
    /// Takes so many connections at any address of the namespace.
    pub(crate) fn start(namespace: &Namespace, connections: usize) -> Self {
        let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT));
        let listener = namespace.enter(bind).expect("the port is free");
        let serve = move || {
            let streams: Vec<_> = listener.incoming().take(connections).collect();
            for stream in streams {
                answer(stream.expect("a connection"));
            }
        };
        Self(Some(std::thread::spawn(serve)))
    }

    /// Waits until all are answered.
    pub(crate) fn finish(mut self) {
        self.0.take().expect("finished once").join().expect("the server's thread");
    }
}

fn answer(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_mins(1))).expect("a time-out");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut part = [0; 4096];
        let bytes = stream.read(&mut part).expect("a request");
        assert_ne!(bytes, 0, "the client ended in its request");
        request.extend(&part[..bytes]);
    }
    let peer = stream.peer_addr().expect("a peer").ip().to_canonical();
    let body = format!("{peer}\n");
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).expect("the client listens");
}

/// What curl gets from a [`Mirror`] at `address`, with more options of curl's.
pub(crate) fn ask(client: &Namespace, address: &str, options: &[&str]) -> String {
    let host = match address.parse().expect("an address") {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let url = format!("http://{host}:{PORT}/");
    let printed = run(client, "curl", &[&["-sSg", "--max-time", "60"], options, &[&url]].concat());
    printed.trim_end().to_owned()
}
