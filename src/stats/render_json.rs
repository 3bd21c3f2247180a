//! The health page as JSON: the reference program's 3.0 document, odd spellings and all, because
//! parsers in the field depend on it, and a few keys of our own beside them.
//!
//! | kept as it was | |
//! |---|---|
//! | `secsSincelastPacket` (small l) in tunnels, `secsSinceLastPacket` in UDP threads | |
//! | `v4FlowCache`, `v6FlowCache` | arrays of pairs and loose values, not objects |
//! | `tunnelOut.pktsOut`, `.bytesOut` | always 0 |
//!
//! Ours: `version`, `healthy`, `reasons`, `warnings`, `hookFailures` and `drops` at the top,
//! `decapDrops` and `encapDrops` in each endpoint. Drops are objects of reason and count; only
//! reasons that occurred are listed.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use super::DropsSnapshot;
use super::page::EndpointRow;
use super::page::Page;
use super::page::WorkerRow;
use super::render_text::cache_name;
use crate::types::GENEVE_PORT;
use crate::types::Side;

/// Renders the page, compact and with sorted keys.
pub fn render(page: &Page) -> String {
    let threads: Vec<Value> = page.workers.iter().enumerate().map(udp_thread).collect();
    let enis: Vec<Value> = page.endpoints.iter().map(|endpoint| eni(page, endpoint)).collect();
    json!({
        "drops": drops(&page.drops()),
        "enis": enis,
        "healthy": page.healthy,
        "hookFailures": page.hook_failures,
        "reasons": page.reasons,
        "udp": { "UDPPacketReceiver": { "portNumber": GENEVE_PORT, "threads": threads } },
        "version": page.version,
        "warnings": page.warnings,
    })
    .to_string()
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
    let cache = |family, size: u64, timed_out: u64| {
        json!([
            ["cacheName", cache_name(family, endpoint.id)],
            ["size", size],
            ["timedOut", timed_out],
            "idleTimeoutSecs",
            page.tcp_idle.as_secs(),
        ])
    };
    json!({
        "decapDrops": drops(&counters.decap_drops),
        "encapDrops": drops(&counters.encap_drops),
        "eniStr": endpoint.id.to_string(),
        "tunnelIn": tunnel(page, endpoint, Side::Gwi),
        "tunnelOut": tunnel(page, endpoint, Side::Gwo),
        "v4FlowCache": cache("IPv4", counters.flows_v4, endpoint.flows_v4_timed_out),
        "v6FlowCache": cache("IPv6", counters.flows_v6, endpoint.flows_v6_timed_out),
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
        "secsSincelastPacket": secs(quiet),
        "threads": threads.collect::<Vec<_>>(),
    })
}

fn drops(drops: &DropsSnapshot) -> Value {
    drops
        .occurred()
        .map(|(reason, count)| (reason.name().to_owned(), Value::from(count)))
        .collect::<serde_json::Map<_, _>>()
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
            r#"{"drops":{"flow_unknown":4,"short":3,"tun_full":2},"#,
            r#""enis":[{"decapDrops":{"tun_full":1},"encapDrops":{"flow_unknown":4},"#,
            r#""eniStr":"00123456789abcdef","#,
            r#""tunnelIn":{"bytesOut":1500,"devname":"gwi-887epl1uMf","pktsOut":1,"#,
            r#""secsSincelastPacket":1.0,"threads":[{"bytesIn":60,"healthy":false,"pktsIn":1,"#,
            r#""secsSincelastPacket":60.0,"threadId":4711,"threadNumber":0,"valid":true}]},"#,
            r#""tunnelOut":{"bytesOut":0,"devname":"gwo-887epl1uMf","pktsOut":0,"#,
            r#""secsSincelastPacket":60.0,"threads":[{"bytesIn":1500,"healthy":false,"pktsIn":2,"#,
            r#""secsSincelastPacket":0.75,"threadId":4711,"threadNumber":0,"valid":true}]},"#,
            r#""v4FlowCache":[["cacheName","IPv4 Flow Cache for ENI 00123456789abcdef"],"#,
            r#"["size",3],["timedOut",2],"idleTimeoutSecs",350],"#,
            r#""v6FlowCache":[["cacheName","IPv6 Flow Cache for ENI 00123456789abcdef"],"#,
            r#"["size",1],["timedOut",0],"idleTimeoutSecs",350]}],"#,
            r#""healthy":false,"hookFailures":6,"#,
            r#""reasons":["worker 0 made no turn for 2.5 s"],"#,
            r#""udp":{"UDPPacketReceiver":{"portNumber":6081,"threads":[{"bytesIn":1540,"#,
            r#""healthy":false,"pktsIn":1,"secsSinceLastPacket":0.529,"threadId":4711,"#,
            r#""threadNumber":0,"valid":true}]}},"version":"9.8.7","#,
            r#""warnings":["an endpoint was refused"]}"#,
        );
        assert_eq!(render(&sample()), expected);
    }

    #[test]
    fn a_page_without_endpoints() {
        let text = render(&Page::default());
        assert!(text.starts_with(r#"{"drops":{},"enis":[],"#), "{text}");
    }
}
