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
//! Ours, in both: `version`, `healthy`, `reasons`, `warnings`, `hookFailures`, `drops`,
//! `socketDrops`, `flowsEvicted`, `flowsRetaught`, `offload` and `steering` (null with one worker)
//! at the top, `decapDrops` and `encapDrops` in each endpoint. Drops are objects of reason and
//! count; only reasons that occurred are listed.

use std::time::Duration;

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
    document(page, eni).to_string()
}

/// Renders the page in the shape of 3.2, compact and with sorted keys.
pub fn render_v3_2(page: &Page) -> String {
    let mut document = document(page, eni_v3_2);
    document["summary"] = summary(page);
    document.to_string()
}

fn document(page: &Page, eni: impl Fn(&Page, &EndpointRow) -> Value) -> Value {
    let threads: Vec<Value> = page.workers.iter().enumerate().map(udp_thread).collect();
    let enis = page.endpoints.iter().map(|endpoint| {
        let mut row = eni(page, endpoint);
        if page.no_return
            && let Value::Object(row) = &mut row
        {
            row.retain(|key, _| key != "tunnelOut" && !key.contains("FlowCache"));
        }
        row
    });
    let enis: Vec<Value> = enis.collect();
    let mut document = json!({
        "drops": drops(&page.drops()),
        "enis": enis,
        "healthy": page.healthy,
        "hookFailures": page.hook_failures,
        "offload": offload(page),
        "reasons": page.reasons,
        "socketDrops": page.socket_drops,
        "steering": page.steering.as_ref().map(|row| steering(page, row)),
        "udp": { "UDPPacketReceiver": { "portNumber": GENEVE_PORT, "threads": threads } },
        "version": page.version,
        "warnings": page.warnings,
    });
    for (name, count) in page.flow_events() {
        document[name] = count.into();
    }
    document
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

fn eni(page: &Page, endpoint: &EndpointRow) -> Value {
    let counters = &endpoint.counters;
    let cache = |family, kinds: &[FlowKind]| {
        json!([
            ["cacheName", cache_name(family, endpoint.id)],
            ["size", counters.flows.sum(kinds)],
            ["timedOut", endpoint.flows_timed_out.sum(kinds)],
            "idleTimeoutSecs",
            page.tcp_idle.as_secs(),
        ])
    };
    json!({
        "decapDrops": drops(&counters.decap_drops),
        "encapDrops": drops(&counters.encap_drops),
        "eniStr": endpoint.id.to_string(),
        "packetTooBigSent": counters.too_big_sent,
        "tunnelIn": tunnel(page, endpoint, Side::Gwi),
        "tunnelOut": tunnel(page, endpoint, Side::Gwo),
        "v4FlowCache": cache("IPv4", &FlowKind::V4),
        "v6FlowCache": cache("IPv6", &FlowKind::V6),
    })
}

fn eni_v3_2(page: &Page, endpoint: &EndpointRow) -> Value {
    let counters = &endpoint.counters;
    let cache = |kind: FlowKind| {
        json!({
            "cacheName": cache_name_v3_2(kind, endpoint.id),
            "idleTimeoutSecs": page.idle_of(kind).as_secs(),
            "size": counters.flows.get(kind),
            "timedOut": endpoint.flows_timed_out.get(kind),
        })
    };
    json!({
        "bytesOut": counters.to_gwi.bytes,
        "decapDrops": drops(&counters.decap_drops),
        "encapDrops": drops(&counters.encap_drops),
        "gwlbEndpointId": format!("vpce-{}", endpoint.id),
        "healthy": page.serves(endpoint),
        "packetTooBigSent": counters.too_big_sent,
        "pktsDropped": counters.decap_drops.total(),
        "pktsOut": counters.to_gwi.packets,
        "secsSinceLastPacket": secs(endpoint.quiet_to_gwi),
        "tunnelIn": tunnel(page, endpoint, Side::Gwi),
        "tunnelOut": tunnel(page, endpoint, Side::Gwo),
        "v4FlowCacheOther": cache(FlowKind::V4Other),
        "v4FlowCacheTcp": cache(FlowKind::V4Tcp),
        "v4FlowCacheUdp": cache(FlowKind::V4Udp),
        "v6FlowCacheOther": cache(FlowKind::V6Other),
        "v6FlowCacheTcp": cache(FlowKind::V6Tcp),
        "v6FlowCacheUdp": cache(FlowKind::V6Udp),
    })
}

fn tunnel(page: &Page, endpoint: &EndpointRow, side: Side) -> Value {
    let (written, quiet) = endpoint.written(side);
    let workers = page.workers.iter().zip(&endpoint.reads).enumerate();
    let threads = workers.map(|(number, (worker, reads))| {
        let queue = reads[side.index()];
        json!({
            "bytesIn": queue.read.bytes,
            "healthy": worker.healthy && endpoint.healthy,
            "pktsIn": queue.read.packets,
            "secsSincelastPacket": secs(queue.quiet),
            "threadId": worker.thread_id,
            "threadNumber": number,
            "valid": true,
        })
    });
    json!({
        "bytesOut": written.bytes,
        "devname": endpoint.link(side).as_str(),
        "pktsOut": written.packets,
        "queueDrops": endpoint.queue_drops[side.index()],
        "secsSincelastPacket": secs(quiet),
        "threads": threads.collect::<Vec<_>>(),
    })
}

fn drops(drops: &DropsSnapshot) -> Value {
    drops
        .occurred()
        .map(|(reason, count)| (reason.name().to_owned(), Value::from(count)))
        .collect::<Map<_, _>>()
        .into()
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
            r#""offload":{"checksum":"avx2","gwiWrites":0,"pieces":{"tcp-coalescing":true,"#,
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
            r#""offload":{"checksum":"avx2","gwiWrites":0,"pieces":{"tcp-coalescing":true,"#,
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
