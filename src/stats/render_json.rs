//! The health page as JSON: the reference program's document, odd spellings and all, because
//! parsers in the field depend on it, and a few keys of our own beside them.
//!
//! | | version 3.0 | version 3.2 |
//! |---|---|---|
//! | id of an endpoint | `eniStr`: 17 hex digits | `gwlbEndpointId`: `vpce-` before them |
//! | flows | two arrays of pairs and loose values | six objects |
//! | totals | | `summary`, and in each endpoint |
//! | `secsSincelastPacket` (small l) | in tunnels | in tunnels |
//! | `secsSinceLastPacket` | in UDP threads | in UDP threads and endpoints |
//! | `tunnelOut.pktsOut`, `.bytesOut` | always 0 | always 0 |
//!
//! Ours, in both: `version`, `healthy`, `reasons`, `warnings`, `hookFailures`, `logLinesLost`,
//! `drops`, `socketDrops`, `flowsEvicted`, `flowsRetaught`, `offload` and `steering` (null with one
//! worker) at the top, `decapDrops` and `encapDrops` in each endpoint. Drops are objects of reason
//! and count; only reasons that occurred are listed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde::Serializer;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::DropsSnapshot;
use super::TrafficSnapshot;
use super::page::EndpointRow;
use super::page::Page;
use super::page::SteeringRow;
use super::page::WorkerRow;
use super::render_text::cache_name;
use super::render_text::cache_name_v3_2;
use crate::types::FlowKind;
use crate::types::GENEVE_PORT;
use crate::types::Side;

/// Renders the page in the shape of 3.0, compact and with sorted keys.
pub fn render(page: &Page) -> String {
    document(page, Eni::new, rest(page))
}

/// Renders the page in the shape of 3.2, compact and with sorted keys.
pub fn render_v3_2(page: &Page) -> String {
    let mut rest = rest(page);
    rest["summary"] = summary(page);
    document(page, EniV3_2::new, rest)
}

/// The document. There may be thousands of endpoints: each row goes straight into the text. `rest`
/// are the keys behind "enis".
#[derive(Serialize)]
struct Document<'a, Row> {
    drops: Drops<'a>,
    enis: Vec<Row>,
    #[serde(flatten)]
    rest: Value,
}

fn document<'a, Row: Serialize>(
    page: &'a Page,
    row: impl Fn(&'a Page, &'a EndpointRow) -> Row,
    rest: Value,
) -> String {
    let drops = page.drops();
    let enis = page.endpoints.iter().map(|endpoint| row(page, endpoint)).collect();
    let document = Document { drops: Drops(&drops), enis, rest };
    serde_json::to_string(&document).expect("all keys are strings")
}

fn rest(page: &Page) -> Value {
    let threads: Vec<Value> = page.workers.iter().enumerate().map(udp_thread).collect();
    let mut rest = json!({
        "healthy": page.healthy,
        "hookFailures": page.hook_failures,
        "logLinesLost": page.log_lines_lost,
        "offload": offload(page),
        "reasons": page.reasons,
        "socketDrops": page.socket_drops,
        "steering": page.steering.as_ref().map(|row| steering(page, row)),
        "udp": { "UDPPacketReceiver": { "portNumber": GENEVE_PORT, "threads": threads } },
        "version": page.version,
        "warnings": page.warnings,
    });
    for (name, count) in page.flow_events() {
        rest[name] = count.into();
    }
    rest
}

fn offload(page: &Page) -> Value {
    let pieces = page.offload.pieces().into_iter();
    let pieces: Map<_, _> = pieces.map(|(name, on)| (name.to_owned(), on.into())).collect();
    let mut offload = json!({ "checksum": page.checksum, "pieces": pieces });
    for (name, count) in page.operations() {
        offload[name] = count.into();
    }
    offload
}

fn steering(page: &Page, row: &SteeringRow) -> Value {
    json!({
        "foreignPackets": page.foreign(),
        "outerPaths": row.outer_paths,
        "queues": row.queues,
        "receive": row.receive,
        "starving": row.starving,
    })
}

/// In: what all workers received. Out and dropped: the endpoints' rows, as below.
fn summary(page: &Page) -> Value {
    let mut received = TrafficSnapshot::default();
    for worker in &page.workers {
        received += worker.counters.datagrams;
    }
    let (mut written, mut dropped) = (TrafficSnapshot::default(), 0);
    for endpoint in &page.endpoints {
        written += endpoint.counters.to_gwi;
        dropped += endpoint.counters.decap_drops.total();
    }
    json!({
        "eniCount": page.endpoints.len(),
        "totalBytesIn": received.bytes,
        "totalBytesOut": written.bytes,
        "totalPktsDropped": dropped,
        "totalPktsIn": received.packets,
        "totalPktsOut": written.packets,
    })
}

fn udp_thread((number, worker): (usize, &WorkerRow)) -> Value {
    json!({
        "bytesIn": worker.counters.datagrams.bytes,
        "healthy": worker.healthy,
        "pktsIn": worker.counters.datagrams.packets,
        "secsSinceLastPacket": secs(worker.quiet),
        "threadId": worker.thread_id,
        "threadNumber": number,
        "valid": true,
    })
}

/// An endpoint, as 3.0 has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Eni<'a> {
    decap_drops: Drops<'a>,
    encap_drops: Drops<'a>,
    #[serde(rename = "eniStr")]
    id: String,
    packet_too_big_sent: u64,
    tunnel_in: Tunnel,
    #[serde(flatten)]
    returning: Option<Returning>,
}

/// What there is only where packets are returned.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Returning {
    tunnel_out: Tunnel,
    v4_flow_cache: Cache,
    v6_flow_cache: Cache,
}

/// Name, size, flows that timed out, and the time of that: arrays where 3.2 has objects.
type Cache = ((&'static str, String), (&'static str, u64), (&'static str, u64), &'static str, u64);

impl<'a> Eni<'a> {
    fn new(page: &'a Page, endpoint: &'a EndpointRow) -> Self {
        let counters = &endpoint.counters;
        let cache = |family, kinds: &[FlowKind]| {
            (
                ("cacheName", cache_name(family, endpoint.id)),
                ("size", counters.flows.sum(kinds)),
                ("timedOut", endpoint.flows_timed_out.sum(kinds)),
                "idleTimeoutSecs",
                page.tcp_idle.as_secs(),
            )
        };
        Self {
            decap_drops: Drops(&counters.decap_drops),
            encap_drops: Drops(&counters.encap_drops),
            id: endpoint.id.to_string(),
            packet_too_big_sent: counters.too_big_sent,
            tunnel_in: Tunnel::new(page, endpoint, Side::Gwi),
            returning: (!page.no_return).then(|| Returning {
                tunnel_out: Tunnel::new(page, endpoint, Side::Gwo),
                v4_flow_cache: cache("IPv4", &FlowKind::V4),
                v6_flow_cache: cache("IPv6", &FlowKind::V6),
            }),
        }
    }
}

/// An endpoint, as 3.2 has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EniV3_2<'a> {
    bytes_out: u64,
    decap_drops: Drops<'a>,
    encap_drops: Drops<'a>,
    gwlb_endpoint_id: String,
    healthy: bool,
    packet_too_big_sent: u64,
    pkts_dropped: u64,
    pkts_out: u64,
    secs_since_last_packet: f64,
    tunnel_in: Tunnel,
    #[serde(flatten)]
    returning: Option<ReturningV3_2>,
}

/// What there is only where packets are returned.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReturningV3_2 {
    tunnel_out: Tunnel,
    v4_flow_cache_other: CacheV3_2,
    v4_flow_cache_tcp: CacheV3_2,
    v4_flow_cache_udp: CacheV3_2,
    v6_flow_cache_other: CacheV3_2,
    v6_flow_cache_tcp: CacheV3_2,
    v6_flow_cache_udp: CacheV3_2,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CacheV3_2 {
    cache_name: String,
    idle_timeout_secs: u64,
    size: u64,
    timed_out: u64,
}

impl<'a> EniV3_2<'a> {
    fn new(page: &'a Page, endpoint: &'a EndpointRow) -> Self {
        let counters = &endpoint.counters;
        let cache = |kind: FlowKind| CacheV3_2 {
            cache_name: cache_name_v3_2(kind, endpoint.id),
            idle_timeout_secs: page.idle_of(kind).as_secs(),
            size: counters.flows.get(kind),
            timed_out: endpoint.flows_timed_out.get(kind),
        };
        Self {
            bytes_out: counters.to_gwi.bytes,
            decap_drops: Drops(&counters.decap_drops),
            encap_drops: Drops(&counters.encap_drops),
            gwlb_endpoint_id: format!("vpce-{}", endpoint.id),
            healthy: page.serves(endpoint),
            packet_too_big_sent: counters.too_big_sent,
            pkts_dropped: counters.decap_drops.total(),
            pkts_out: counters.to_gwi.packets,
            secs_since_last_packet: secs(endpoint.quiet_to_gwi),
            tunnel_in: Tunnel::new(page, endpoint, Side::Gwi),
            returning: (!page.no_return).then(|| ReturningV3_2 {
                tunnel_out: Tunnel::new(page, endpoint, Side::Gwo),
                v4_flow_cache_other: cache(FlowKind::V4Other),
                v4_flow_cache_tcp: cache(FlowKind::V4Tcp),
                v4_flow_cache_udp: cache(FlowKind::V4Udp),
                v6_flow_cache_other: cache(FlowKind::V6Other),
                v6_flow_cache_tcp: cache(FlowKind::V6Tcp),
                v6_flow_cache_udp: cache(FlowKind::V6Udp),
            }),
        }
    }
}

/// A link of an endpoint.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tunnel {
    bytes_out: u64,
    devname: String,
    pkts_out: u64,
    queue_drops: u64,
    secs_sincelast_packet: f64,
    threads: Vec<TunnelThread>,
}

/// A worker's queue of a link.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TunnelThread {
    bytes_in: u64,
    healthy: bool,
    pkts_in: u64,
    secs_sincelast_packet: f64,
    thread_id: u32,
    thread_number: usize,
    valid: bool,
}

impl Tunnel {
    fn new(page: &Page, endpoint: &EndpointRow, side: Side) -> Self {
        let (written, quiet) = endpoint.written(side);
        let workers = page.workers.iter().zip(&endpoint.reads).enumerate();
        let threads = workers.map(|(thread_number, (worker, reads))| {
            let queue = reads[side.index()];
            TunnelThread {
                bytes_in: queue.read.bytes,
                healthy: worker.healthy && endpoint.healthy,
                pkts_in: queue.read.packets,
                secs_sincelast_packet: secs(queue.quiet),
                thread_id: worker.thread_id,
                thread_number,
                valid: true,
            }
        });
        Self {
            bytes_out: written.bytes,
            devname: endpoint.link(side).as_str().to_owned(),
            pkts_out: written.packets,
            queue_drops: endpoint.queue_drops[side.index()],
            secs_sincelast_packet: secs(quiet),
            threads: threads.collect(),
        }
    }
}

/// Those that occurred, as an object of reasons and counts.
struct Drops<'a>(&'a DropsSnapshot);

impl Serialize for Drops<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sorted: BTreeMap<_, _> =
            self.0.occurred().map(|(reason, count)| (reason.name(), count)).collect();
        serializer.collect_map(sorted)
    }
}

/// Seconds to the millisecond, as the reference program has them.
fn secs(span: Duration) -> f64 {
    Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::page::tests::sample;

    #[test]
    fn the_document_byte_for_byte() {
        let expected = concat!(
            r#"{"drops":{"flow_unknown":4,"short":3,"tun_down":2},"#,
            r#""enis":[{"decapDrops":{"tun_down":1},"encapDrops":{"flow_unknown":4},"#,
            r#""eniStr":"00123456789abcdef","packetTooBigSent":5,"#,
            r#""tunnelIn":{"bytesOut":1500,"devname":"gwi-887epl1uMf","pktsOut":1,"#,
            r#""queueDrops":9,"secsSincelastPacket":1.0,"#,
            r#""threads":[{"bytesIn":60,"healthy":false,"pktsIn":1,"#,
            r#""secsSincelastPacket":60.0,"threadId":4711,"threadNumber":0,"valid":true}]},"#,
            r#""tunnelOut":{"bytesOut":0,"devname":"gwo-887epl1uMf","pktsOut":0,"#,
            r#""queueDrops":10,"secsSincelastPacket":60.0,"#,
            r#""threads":[{"bytesIn":1500,"healthy":false,"pktsIn":2,"#,
            r#""secsSincelastPacket":0.75,"threadId":4711,"threadNumber":0,"valid":true}]},"#,
            r#""v4FlowCache":[["cacheName","IPv4 Flow Cache for ENI 00123456789abcdef"],"#,
            r#"["size",3],["timedOut",2],"idleTimeoutSecs",350],"#,
            r#""v6FlowCache":[["cacheName","IPv6 Flow Cache for ENI 00123456789abcdef"],"#,
            r#"["size",31],["timedOut",18],"idleTimeoutSecs",350]}],"#,
            r#""flowsEvicted":8,"flowsRetaught":9,"healthy":false,"hookFailures":6,"#,
            r#""logLinesLost":2,"offload":{"checksum":"avx2","gwiWrites":0,"#,
            r#""pieces":{"tcp-coalescing":true,"#,
            r#""tun-tso":true,"tun-uso":false,"udp-coalescing":true,"udp-gro":true,"#,
            r#""udp-gso":true},"receives":7,"sends":0,"tunReads":0,"udpGroPaused":0},"#,
            r#""reasons":["worker 0 made no turn for 2.5 s"],"socketDrops":8,"#,
            r#""steering":{"foreignPackets":3,"outerPaths":3,"queues":"program","#,
            r#""receive":"outer","starving":[1,2]},"#,
            r#""udp":{"UDPPacketReceiver":{"portNumber":6081,"threads":[{"bytesIn":1540,"#,
            r#""healthy":false,"pktsIn":1,"secsSinceLastPacket":0.529,"threadId":4711,"#,
            r#""threadNumber":0,"valid":true}]}},"version":"9.8.7","#,
            r#""warnings":["an endpoint was refused"]}"#,
        );
        assert_eq!(render(&sample()), expected);
    }

    #[test]
    fn the_document_of_3_2_byte_for_byte() {
        let expected = concat!(
            r#"{"drops":{"flow_unknown":4,"short":3,"tun_down":2},"#,
            r#""enis":[{"bytesOut":1500,"decapDrops":{"tun_down":1},"#,
            r#""encapDrops":{"flow_unknown":4},"gwlbEndpointId":"vpce-00123456789abcdef","#,
            r#""healthy":false,"packetTooBigSent":5,"pktsDropped":1,"pktsOut":1,"#,
            r#""secsSinceLastPacket":1.0,"#,
            r#""tunnelIn":{"bytesOut":1500,"devname":"gwi-887epl1uMf","pktsOut":1,"#,
            r#""queueDrops":9,"secsSincelastPacket":1.0,"#,
            r#""threads":[{"bytesIn":60,"healthy":false,"pktsIn":1,"#,
            r#""secsSincelastPacket":60.0,"threadId":4711,"threadNumber":0,"valid":true}]},"#,
            r#""tunnelOut":{"bytesOut":0,"devname":"gwo-887epl1uMf","pktsOut":0,"#,
            r#""queueDrops":10,"secsSincelastPacket":60.0,"#,
            r#""threads":[{"bytesIn":1500,"healthy":false,"pktsIn":2,"#,
            r#""secsSincelastPacket":0.75,"threadId":4711,"threadNumber":0,"valid":true}]},"#,
            r#""v4FlowCacheOther":{"#,
            r#""cacheName":"IPv4 Other Flow Cache for GWLBe vpce-00123456789abcdef","#,
            r#""idleTimeoutSecs":120,"size":0,"timedOut":1},"#,
            r#""v4FlowCacheTcp":{"#,
            r#""cacheName":"IPv4 TCP Flow Cache for GWLBe vpce-00123456789abcdef","#,
            r#""idleTimeoutSecs":350,"size":2,"timedOut":0},"#,
            r#""v4FlowCacheUdp":{"#,
            r#""cacheName":"IPv4 UDP Flow Cache for GWLBe vpce-00123456789abcdef","#,
            r#""idleTimeoutSecs":120,"size":1,"timedOut":1},"#,
            r#""v6FlowCacheOther":{"#,
            r#""cacheName":"IPv6 Other Flow Cache for GWLBe vpce-00123456789abcdef","#,
            r#""idleTimeoutSecs":120,"size":13,"timedOut":6},"#,
            r#""v6FlowCacheTcp":{"#,
            r#""cacheName":"IPv6 TCP Flow Cache for GWLBe vpce-00123456789abcdef","#,
            r#""idleTimeoutSecs":350,"size":7,"timedOut":6},"#,
            r#""v6FlowCacheUdp":{"#,
            r#""cacheName":"IPv6 UDP Flow Cache for GWLBe vpce-00123456789abcdef","#,
            r#""idleTimeoutSecs":120,"size":11,"timedOut":6}}],"#,
            r#""flowsEvicted":8,"flowsRetaught":9,"healthy":false,"hookFailures":6,"#,
            r#""logLinesLost":2,"offload":{"checksum":"avx2","gwiWrites":0,"#,
            r#""pieces":{"tcp-coalescing":true,"#,
            r#""tun-tso":true,"tun-uso":false,"udp-coalescing":true,"udp-gro":true,"#,
            r#""udp-gso":true},"receives":7,"sends":0,"tunReads":0,"udpGroPaused":0},"#,
            r#""reasons":["worker 0 made no turn for 2.5 s"],"socketDrops":8,"#,
            r#""steering":{"foreignPackets":3,"outerPaths":3,"queues":"program","#,
            r#""receive":"outer","starving":[1,2]},"#,
            r#""summary":{"eniCount":1,"totalBytesIn":1540,"totalBytesOut":1500,"#,
            r#""totalPktsDropped":1,"totalPktsIn":1,"totalPktsOut":1},"#,
            r#""udp":{"UDPPacketReceiver":{"portNumber":6081,"threads":[{"bytesIn":1540,"#,
            r#""healthy":false,"pktsIn":1,"secsSinceLastPacket":0.529,"threadId":4711,"#,
            r#""threadNumber":0,"valid":true}]}},"version":"9.8.7","#,
            r#""warnings":["an endpoint was refused"]}"#,
        );
        assert_eq!(render_v3_2(&sample()), expected);
    }

    #[test]
    fn nothing_is_said_of_what_returns_where_nothing_does() {
        let page = Page { no_return: true, ..sample() };
        for text in [render(&page), render_v3_2(&page)] {
            assert!(text.contains(r#""tunnelIn":{"#), "{text}");
            assert!(!text.contains("tunnelOut") && !text.contains("FlowCache"), "{text}");
        }
    }

    #[test]
    fn a_page_without_endpoints() {
        let text = render(&Page::default());
        assert!(text.starts_with(r#"{"drops":{},"enis":[],"#), "{text}");
        let text = render_v3_2(&Page::default());
        assert!(text.contains(r#""summary":{"eniCount":0,"totalBytesIn":0,"#), "{text}");
    }
}
