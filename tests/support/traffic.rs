//! Random traffic of several flows, each in order, mixed as a link mixes them.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use super::packets::Path;
use super::random::Random;
use super::streams::Stream;

/// A packet that a test is to send.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// Number of the endpoint.
    pub(crate) endpoint: usize,
    /// Whether its flow has another cookie from here on.
    pub(crate) new_cookie: bool,
    pub(crate) inner: Vec<u8>,
}

/// A lane is what must stay in order: a stream at an endpoint.
#[derive(Debug)]
struct Lane {
    endpoint: usize,
    stream: Stream,
    /// Where both directions have headers, a new cookie of one makes the other's stale.
    is_one_way: bool,
}

/// All flows of a test.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) random: Random,
    lanes: Vec<Lane>,
}

impl Traffic {
    /// So many flows at each of `endpoints` endpoints. A third of them go both ways, and all
    /// endpoints have the same addresses.
    pub(crate) fn new(mut random: Random, endpoints: usize, flows: usize) -> Self {
        let mut lanes = Vec::new();
        for endpoint in 0..endpoints {
            for flow in 0..flows {
                let port = 2000 + u16::try_from(flow).expect("few flows");
                let ports = (port, random.pick(&[53, 443, 5001]));
                let stream = Stream::new(path(&mut random), ports, &mut random);
                let is_one_way = !random.once_in(3);
                if !is_one_way {
                    let stream = stream.reverse(&mut random);
                    lanes.push(Lane { endpoint, stream, is_one_way });
                }
                lanes.push(Lane { endpoint, stream, is_one_way });
            }
        }
        Self { random, lanes }
    }

    /// The next packets, at most `count` of them: of a few lanes, which take turns in bursts. What
    /// is more than that is lost, as far as its flows are concerned.
    pub(crate) fn round(&mut self, count: usize) -> Vec<Outgoing> {
        let random = &mut self.random;
        let active = random.between(1, self.lanes.len().min(8));
        let mut queues: Vec<VecDeque<Outgoing>> = Vec::new();
        // Neighbours, from anywhere on: no lane twice, or it would overtake itself.
        let first = random.below(self.lanes.len());
        for number in first..first + active {
            let number = number % self.lanes.len();
            let lane = &mut self.lanes[number];
            let mut queue = VecDeque::new();
            while queue.len() < count / active {
                for inner in lane.stream.next(random) {
                    let new_cookie = lane.is_one_way && random.once_in(100);
                    queue.push_back(Outgoing { endpoint: lane.endpoint, new_cookie, inner });
                }
            }
            queues.push(queue);
        }
        let mut mixed = mix(queues, random);
        mixed.truncate(count);
        mixed
    }
}

/// Lets the queues take turns, each with up to as many packets as one number of the round says.
fn mix(mut queues: Vec<VecDeque<Outgoing>>, random: &mut Random) -> Vec<Outgoing> {
    let burst_max = random.pick(&[1, 2, 8, 64]);
    let mut mixed = Vec::new();
    while !queues.is_empty() {
        let number = random.below(queues.len());
        let queue = &mut queues[number];
        let burst = random.between(1, burst_max).min(queue.len());
        mixed.extend(queue.drain(..burst));
        if queue.is_empty() {
            queues.swap_remove(number);
        }
    }
    mixed
}

/// Two hosts of one of the families.
fn path(random: &mut Random) -> Path {
    let (a, b) = (random.byte(), random.byte());
    if random.once_in(2) {
        let host = |net, last| IpAddr::V4(Ipv4Addr::new(10, 1, net, last));
        (host(0, a), host(1, b))
    } else {
        let host =
            |net, last: u8| IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, net, last.into()));
        (host(0, a), host(1, b))
    }
}
