//! The load balancer itself: flows, encapsulation, and the check of what the target returns.
//!
//! No I/O and no clock: time is told to it. A flow is an endpoint and an inner 5-tuple, the same
//! for both directions; it is over when its hosts were silent for as long as AWS says.
//! Node, source port and cookie of a flow follow from a hash with the configured seed, so that a
//! run can be repeated.
//!
//! The target answers with a header that it received; between its reading and our checking newer
//! headers may be under way. So every direction of a flow remembers its *variants* (node, port,
//! GENEVE header), and an older one is accepted as long as the direction has sent no more than
//! [`Config::in_flight_packets`] since its last use.
//!
//! Later fragments have no ports, so they are a flow of their hosts and protocol. What the target
//! makes itself has no flow: an ICMP error is accepted under the header of the packet that it
//! quotes, a later fragment under that of its first one, which must have come back before it.

use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::flows::Flow;
use super::flows::FlowKey;
use super::flows::Lane;
use super::health::Group;
use super::health::GroupConfig;
use super::health::Outcome;
use super::health::Way;
use super::layout;
use super::layout::Geneve;
use super::layout::Outer;
use super::layout::OuterFault;
use super::layout::Returned;
use super::layout::Tuple;
use super::report::Breach;
use super::report::NodeReport;
use super::report::Report;

pub(crate) use super::flows::Wrapping;

/// Flows that one simulator keeps at most, so that a runaway test ends with a clear panic.
const FLOWS_MAX: usize = 4 << 20;

/// After how long without a packet a flow that is not TCP is over; AWS lets nobody change it.
const OTHER_IDLE: Duration = Duration::from_mins(2);

/// IANA's number of TCP.
const TCP: u8 = 6;

/// Whether both directions of a flow share a cookie. Public captures of a real load balancer
/// show a shared one; AWS promises nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CookieRule {
    /// One cookie per flow.
    PerFlow,
    /// Another cookie for each direction.
    PerDirection,
}

/// How this load balancer behaves.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Addresses of the nodes; each flow uses one of them.
    pub(crate) nodes: Vec<Ipv4Addr>,
    /// Address of the target.
    pub(crate) target: Ipv4Addr,
    /// First UDP source port.
    pub(crate) port_first: u16,
    /// How many source ports are spread over the flows, at least 1.
    pub(crate) port_count: u16,
    /// Class of the GENEVE options: AWS's, or another cloud's.
    pub(crate) option_class: u16,
    /// Whether the outer UDP checksum is filled in.
    pub(crate) outer_checksum: bool,
    /// Cookies of the two directions.
    pub(crate) cookies: CookieRule,
    /// Move a flow to the next node after so many packets; 0 = never.
    pub(crate) roam_packets: u64,
    /// How long an outdated header is still accepted, in packets of the direction.
    pub(crate) in_flight_packets: u64,
    /// Whether packets above what AWS documents reach the target all the same, as has been seen.
    pub(crate) lets_large_in: bool,
    /// Seed of ports, nodes and cookies.
    pub(crate) seed: u64,
    /// After how long without a packet of a host a TCP flow is over. Its next packet begins a
    /// flow with another cookie.
    pub(crate) tcp_idle: Duration,
    /// The target group.
    pub(crate) group: GroupConfig,
}

impl Default for Config {
    /// Three nodes, one source port, checksum on, shared cookies: what captures show.
    fn default() -> Self {
        Self {
            nodes: (11..=13).map(|last| Ipv4Addr::new(10, 99, 0, last)).collect(),
            target: Ipv4Addr::new(10, 99, 0, 100),
            port_first: 60000,
            port_count: 1,
            option_class: layout::AWS_CLASS,
            outer_checksum: true,
            cookies: CookieRule::PerFlow,
            roam_packets: 0,
            in_flight_packets: 4096,
            lets_large_in: false,
            seed: 1,
            tcp_idle: Duration::from_secs(350),
            group: GroupConfig::default(),
        }
    }
}

/// Which host of an endpoint sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Client,
    Server,
}

impl Host {
    /// The host at the other end.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// A returned packet that kept every rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery<'a> {
    /// The endpoint it belongs to.
    pub(crate) endpoint: u64,
    /// The host that it is for.
    pub(crate) to: Host,
    /// The packet.
    pub(crate) inner: &'a [u8],
}

/// What becomes of a host's packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// This outer packet goes to the target.
    ToTarget(Vec<u8>),
    /// The other target sends it back, so its host gets it.
    ByOtherTarget,
    /// It is no IP packet, or there is no target for it.
    Dropped,
}

/// A load balancer with its flow table and its counters.
#[derive(Debug)]
pub(crate) struct Gwlb {
    config: Config,
    endpoints: HashSet<u64>,
    flows: HashMap<FlowKey, Flow>,
    /// The flow of each first fragment that came back, and its direction there.
    first_fragments: HashMap<(u64, Tuple, u32), (FlowKey, usize)>,
    group: Group,
    /// Time since the start; only [`Self::advance`] moves it.
    now: Duration,
    changes: Vec<String>,
    report: Report,
}

impl Gwlb {
    /// A load balancer without flows.
    ///
    /// # Panics
    /// If the configuration has no node, no port, or ports above 65535.
    pub(crate) fn new(config: Config) -> Self {
        assert!(!config.nodes.is_empty(), "a load balancer has nodes");
        let last = config.port_count.checked_sub(1).expect("at least one port");
        assert!(config.port_first.checked_add(last).is_some(), "ports end at 65535");
        Self {
            group: Group::new(config.group, config.nodes.len()),
            config,
            endpoints: HashSet::new(),
            flows: HashMap::new(),
            first_fragments: HashMap::new(),
            now: Duration::ZERO,
            changes: Vec::new(),
            report: Report::default(),
        }
    }

    /// Sets the time since the start. Without it no flow gets old.
    pub(crate) fn advance(&mut self, now: Duration) {
        self.now = now;
        if self.group.advance(now) {
            self.tell_registration();
        }
    }

    /// Whether [`Self::advance`] is needed although nothing happens.
    pub(crate) fn waits_for_time(&self) -> bool {
        self.group.is_draining()
    }

    /// Takes the outcome of a health check that node number `node` made.
    pub(crate) fn probed(&mut self, node: usize, outcome: Outcome) {
        if let Some(state) = self.group.probed(node, outcome) {
            let address = self.config.nodes[node];
            let reason = state.reason();
            self.changes.push(format!("health: node {address}: {} {reason}", state.name()));
        }
    }

    /// Deregisters the target, or registers it anew.
    pub(crate) fn toggle_registration(&mut self) {
        self.group.toggle_registration(self.now);
        self.tell_registration();
    }

    fn tell_registration(&mut self) {
        let (state, reason) = self.group.described(0);
        self.changes.push(format!("target: {state} {reason}"));
    }

    /// See [`Config::lets_large_in`].
    pub(crate) fn lets_large_in(&self) -> bool {
        self.config.lets_large_in
    }

    /// What changed since the last call, a line each.
    pub(crate) fn take_changes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.changes)
    }

    /// What was counted so far.
    pub(crate) fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.flows = u64::try_from(self.flows.len()).expect("bounded");
        for (number, &node) in self.config.nodes.iter().enumerate() {
            let (state, reason) = self.group.described(number);
            let health = self.group.node(number);
            let (passed, failed) = (health.passed, health.failed);
            report.nodes.push(NodeReport { node, state, reason, passed, failed });
        }
        if report.nodes.iter().all(|node| node.passed + node.failed == 0) {
            report.nodes.clear();
        }
        report
    }

    /// The counters, for what others see on the way to and from the hosts.
    pub(crate) fn counters(&mut self) -> &mut Report {
        &mut self.report
    }

    /// Decides on a packet that `from` sends through `endpoint`.
    ///
    /// # Panics
    /// If the flow table outgrows its bound.
    pub(crate) fn forward(&mut self, endpoint: u64, from: Host, inner: &[u8]) -> Forwarding {
        let Some(tuple) = layout::inner_tuple(inner) else {
            return Forwarding::Dropped;
        };
        let (key, lane) = FlowKey::of(endpoint, tuple);
        match self.flow(key, lane, from).way {
            Way::Target => {
                let wrapping = self.wrapping(key, lane, inner);
                Forwarding::ToTarget(self.send(key, lane, wrapping, inner))
            }
            Way::Other => {
                self.report.by_other_target += 1;
                Forwarding::ByOtherTarget
            }
            Way::Nowhere => {
                self.report.without_target += 1;
                Forwarding::Dropped
            }
        }
    }

    /// Wraps a packet that `from` sends through `endpoint`: a complete outer IPv4 packet.
    /// Nothing if the bytes are no IP packet, or the target does not get it.
    pub(crate) fn encapsulate(
        &mut self,
        endpoint: u64,
        from: Host,
        inner: &[u8],
    ) -> Option<Vec<u8>> {
        match self.forward(endpoint, from, inner) {
            Forwarding::ToTarget(packet) => Some(packet),
            Forwarding::ByOtherTarget | Forwarding::Dropped => None,
        }
    }

    /// As [`Self::encapsulate`] with a wrapping of the caller's choice, which from now on is the
    /// newest of its direction.
    pub(crate) fn encapsulate_as(
        &mut self,
        endpoint: u64,
        from: Host,
        wrapping: Wrapping,
        inner: &[u8],
    ) -> Option<Vec<u8>> {
        let (key, lane) = FlowKey::of(endpoint, layout::inner_tuple(inner)?);
        self.flow(key, lane, from);
        Some(self.send(key, lane, wrapping, inner))
    }

    /// Ends the flow that `inner` belongs to and begins it anew with another cookie, as a reused
    /// 5-tuple does. What was sent under the old cookie is no longer accepted back.
    pub(crate) fn renew(&mut self, endpoint: u64, inner: &[u8]) {
        let key = layout::inner_tuple(inner).map(|tuple| FlowKey::of(endpoint, tuple).0);
        if let Some(flow) = key.and_then(|key| self.flows.get_mut(&key)) {
            flow.renew();
        }
    }

    /// Gives the flow that `inner` belongs to another cookie from now on. What was sent under the
    /// old one is still accepted back for a while.
    pub(crate) fn change_cookie(&mut self, endpoint: u64, inner: &[u8]) {
        let key = layout::inner_tuple(inner).map(|tuple| FlowKey::of(endpoint, tuple).0);
        if let Some(flow) = key.and_then(|key| self.flows.get_mut(&key)) {
            flow.incarnation += 1;
        }
    }

    /// The flow of a packet that a host sends now, and who is to get it.
    fn flow(&mut self, key: FlowKey, lane: usize, from: Host) -> &Flow {
        assert!(self.flows.len() < FLOWS_MAX, "too many flows");
        self.endpoints.insert(key.endpoint);
        let idle = if key.protocol == TCP { self.config.tcp_idle } else { OTHER_IDLE };
        let node = self.node(key, self.flows.get(&key).map_or(0, Flow::packets));
        let flow = self.flows.entry(key).or_insert_with(|| Flow {
            low_host: if lane == 0 { from } else { from.other() },
            incarnation: 0,
            lanes: [Lane::default(), Lane::default()],
            way: self.group.way_of_new(node),
            seen: self.now,
        });
        if self.now.saturating_sub(flow.seen) > idle {
            flow.renew();
            flow.way = self.group.way_of_new(node);
        } else {
            flow.way = self.group.way_of_existing(flow.way, node);
        }
        flow.seen = self.now;
        flow
    }

    /// Number of the node that a flow's next packet passes, after so many packets.
    fn node(&self, key: FlowKey, packets: u64) -> usize {
        let moved = packets.checked_div(self.config.roam_packets).unwrap_or(0);
        let hash = hash_of(&(self.config.seed, key));
        remainder((hash >> 32) + moved, self.config.nodes.len())
    }

    fn wrapping(&self, key: FlowKey, lane: usize, inner: &[u8]) -> Wrapping {
        let config = &self.config;
        let flow = &self.flows[&key];
        let hash = hash_of(&(config.seed, key));
        let port = u64::from(config.port_first) + hash % u64::from(config.port_count);
        let cookie_lane = match config.cookies {
            CookieRule::PerFlow => 0,
            CookieRule::PerDirection => lane,
        };
        let cookie = hash_of(&(config.seed, key, flow.incarnation, cookie_lane)) >> 32;
        Wrapping {
            outer: Outer {
                node: config.nodes[self.node(key, flow.packets())],
                target: config.target,
                port: u16::try_from(port).expect("ports fit 16 bits"),
            },
            header: layout::geneve_header_of(
                config.option_class,
                key.endpoint,
                u32::try_from(cookie).expect("the upper half"),
                inner,
            ),
        }
    }

    fn send(&mut self, key: FlowKey, lane: usize, wrapping: Wrapping, inner: &[u8]) -> Vec<u8> {
        let packet = layout::datagram(
            wrapping.outer,
            &[&wrapping.header, inner],
            self.config.outer_checksum,
        );
        let flow = self.flows.get_mut(&key).expect("entered before");
        flow.lanes[lane].used(wrapping);
        self.report.encapsulated += 1;
        packet
    }

    /// Checks an IPv4 packet from the target. Returns its inner packet if every rule is kept;
    /// counts a breach otherwise.
    pub(crate) fn check<'a>(
        &mut self,
        packet: &'a [u8],
        checksum_ready: bool,
    ) -> Option<Delivery<'a>> {
        match self.judge(packet, checksum_ready) {
            Ok(Some((delivery, is_own_direction))) => {
                self.report.returned += 1;
                self.report.other_direction += u64::from(!is_own_direction);
                Some(delivery)
            }
            Ok(None) => {
                self.report.foreign += 1;
                None
            }
            Err((breach, why)) => {
                let head = &packet[..packet.len().min(96)];
                self.report.breach(breach, || format!("{why}; {} bytes {head:02x?}", packet.len()));
                None
            }
        }
    }

    fn judge<'a>(
        &mut self,
        packet: &'a [u8],
        checksum_ready: bool,
    ) -> Result<Option<(Delivery<'a>, bool)>, (Breach, String)> {
        let back = match layout::returned(packet, checksum_ready) {
            Ok(back) => back,
            Err(OuterFault::NotUdp) => return Ok(None),
            Err(OuterFault::Ipv4(why)) => return Err((Breach::BadOuterHeader, why.into())),
            Err(OuterFault::UdpChecksum) => return Err((Breach::BadUdpChecksum, "wrong".into())),
        };
        if back.dst_port != layout::GENEVE_PORT {
            let why = format!("destination port {}", back.dst_port);
            return Err((Breach::InvalidGeneveTunnel, why));
        }
        let Some(geneve) = layout::geneve(back.payload, self.config.option_class) else {
            return Err((Breach::InvalidGeneveTunnel, "no GENEVE header".into()));
        };
        if !self.endpoints.contains(&geneve.endpoint) {
            let why = format!("endpoint {:017x}", geneve.endpoint);
            return Err((Breach::InvalidGwlbEndpointId, why));
        }
        let Some(tuple) = layout::inner_tuple(geneve.inner) else {
            return Err((Breach::MissingFlowEntry, "inner bytes are no IP packet".into()));
        };
        let own = FlowKey::of(geneve.endpoint, tuple);
        let (key, lane, is_own_direction) =
            self.match_flow(own, &back, &geneve).or_else(|why| {
                let related = self.related(&geneve).ok_or(why)?;
                self.match_flow(related, &back, &geneve)
            })?;
        if let Some(((common, id), true)) = layout::fragment(geneve.inner) {
            assert!(self.first_fragments.len() < FLOWS_MAX, "too many fragments");
            self.first_fragments.insert((geneve.endpoint, common, id), (key, lane));
        }
        let flow = &self.flows[&key];
        if geneve.inner.len() > layout::INNER_BYTES_MAX {
            let why = format!("{} bytes inside", geneve.inner.len());
            return Err((Breach::InnerTooLarge, why));
        }
        let from = if lane == 0 { flow.low_host } else { flow.low_host.other() };
        let delivery =
            Delivery { endpoint: geneve.endpoint, to: from.other(), inner: geneve.inner };
        Ok(Some((delivery, is_own_direction)))
    }

    /// The flow and the direction that a packet of the target's own belongs to.
    fn related(&self, geneve: &Geneve<'_>) -> Option<(FlowKey, usize)> {
        if let Some(((common, id), false)) = layout::fragment(geneve.inner) {
            return self.first_fragments.get(&(geneve.endpoint, common, id)).copied();
        }
        let tuple = layout::quoting_tuple(geneve.inner)?;
        Some(FlowKey::of(geneve.endpoint, tuple))
    }

    /// Whether there is such a flow, with this header; and [`Self::match_variant`].
    fn match_flow(
        &self,
        (key, lane): (FlowKey, usize),
        back: &Returned<'_>,
        geneve: &Geneve<'_>,
    ) -> Result<(FlowKey, usize, bool), (Breach, String)> {
        let Some(flow) = self.flows.get(&key) else {
            return Err((Breach::MissingFlowEntry, format!("{key:?}")));
        };
        let is_own_direction = self.match_variant(flow, lane, back, geneve)?;
        Ok((key, lane, is_own_direction))
    }

    /// Whether the header is one of the packet's own direction (true) or, which AWS takes as
    /// well, of the other one although its own direction had one (false).
    fn match_variant(
        &self,
        flow: &Flow,
        lane: usize,
        back: &Returned<'_>,
        geneve: &Geneve<'_>,
    ) -> Result<bool, (Breach, String)> {
        let in_flight = self.config.in_flight_packets;
        let (own, other) = (&flow.lanes[lane], &flow.lanes[1 - lane]);
        if own.accepts(back, geneve.header, in_flight) {
            return Ok(true);
        }
        if other.accepts(back, geneve.header, in_flight) {
            return Ok(own.is_unused());
        }
        let Some(newest) = own.newest().or_else(|| other.newest()) else {
            return Err((Breach::MissingFlowEntry, "the flow was renewed".into()));
        };
        Err(difference(newest, back, geneve, self.config.option_class))
    }
}

/// Names the first rule that a datagram breaks compared with what was sent for its flow.
fn difference(
    sent: &Wrapping,
    back: &Returned<'_>,
    geneve: &Geneve<'_>,
    class: u16,
) -> (Breach, String) {
    let Outer { node, target, port } = sent.outer;
    let sent_cookie = layout::geneve(&sent.header, class).map(|sent| sent.cookie);
    if sent_cookie != Some(geneve.cookie) {
        let why = format!("cookie {:08x}, sent {sent_cookie:08x?}", geneve.cookie);
        return (Breach::InvalidGwlbFlowCookie, why);
    }
    if (back.src, back.dst) != (target, node) {
        let why = format!("{} to {}, not {target} to {node}", back.src, back.dst);
        return (Breach::InvalidGeneveTunnel, why);
    }
    if back.src_port != port {
        let why = format!("source port {}, not {port}", back.src_port);
        return (Breach::WrongSourcePort, why);
    }
    let why = format!("{:02x?}, sent {:02x?}", geneve.header, sent.header);
    (Breach::HeaderNotEqual, why)
}

/// A hash that is the same in every run.
fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn remainder(value: u64, count: usize) -> usize {
    let count = u64::try_from(count).expect("a count fits 64 bits");
    usize::try_from(value % count).expect("below a usize")
}
