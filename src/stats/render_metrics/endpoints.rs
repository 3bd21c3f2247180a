//! What is counted for each endpoint.

use std::fmt;

use super::families::Families;
use crate::stats::EndpointSnapshot;
use crate::stats::Others;
use crate::stats::Page;
use crate::types::FlowKind;

/// The label of all endpoints together that have no name of their own.
const OTHER: &str = "other";

/// One value of the label.
struct Series {
    endpoint: String,
    counters: EndpointSnapshot,
    queue_drops: u64,
}

/// The endpoints with a name, and the others as one if there ever was one.
fn series(page: &Page) -> Vec<Series> {
    let mut all = Vec::with_capacity(page.endpoints.len() + 1);
    let mut others = page.others_gone.map(|Others { counters, queue_drops }| Series {
        endpoint: OTHER.to_owned(),
        counters,
        queue_drops: queue_drops.iter().sum(),
    });
    for row in &page.endpoints {
        let queue_drops = row.queue_drops.iter().sum();
        match &mut others {
            Some(others) if !row.is_named => {
                others.counters += row.counters;
                others.queue_drops += queue_drops;
            }
            _ => {
                let endpoint = format!("vpce-{}", row.id);
                all.push(Series { endpoint, counters: row.counters, queue_drops });
            }
        }
    }
    all.extend(others);
    all
}

pub(super) fn encode(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    let series = series(page);
    let counters = |count: fn(&EndpointSnapshot) -> u64| {
        let samples = series.iter();
        samples.map(move |one| ([("endpoint", one.endpoint.as_str())], count(&one.counters)))
    };
    families.gauge(
        "gwlbtun_endpoints",
        "Endpoints that are served.",
        page.endpoints.len() as u64,
    )?;
    families.gauge(
        "gwlbtun_endpoints_limit",
        "Endpoints that are served at most: --max-endpoints, or what open files carry.",
        page.endpoints_max,
    )?;
    families.counters(
        "gwlbtun_tun_written_packets",
        "Packets written to an endpoint's gwi.",
        counters(|one| one.to_gwi.packets),
    )?;
    families.counters(
        "gwlbtun_tun_written_bytes",
        "Length of these packets.",
        counters(|one| one.to_gwi.bytes),
    )?;
    families.counters(
        "gwlbtun_tun_read_packets",
        "Packets read from an endpoint's gwo and gwi, what this host's kernel sends included.",
        counters(|one| one.from_gwi.packets + one.from_gwo.packets),
    )?;
    families.counters(
        "gwlbtun_tun_read_bytes",
        "Length of these packets.",
        counters(|one| one.from_gwi.bytes + one.from_gwo.bytes),
    )?;
    families.counters(
        "gwlbtun_tun_queue_drops",
        "Packets of this host that Linux dropped at an endpoint's interfaces because a queue was \
         full; a super-packet counts once.",
        series.iter().map(|one| ([("endpoint", one.endpoint.as_str())], one.queue_drops)),
    )?;
    named_only(page, families)?;
    families.gauges(
        "gwlbtun_flows",
        "Flows that are remembered.",
        series.iter().flat_map(|one| {
            FlowKind::ALL.into_iter().map(|kind| {
                let (family, protocol) = words(kind);
                let labels = [
                    ("endpoint", one.endpoint.as_str()),
                    ("family", family),
                    ("protocol", protocol),
                ];
                (labels, one.counters.flows.get(kind))
            })
        }),
    )
}

/// What means nothing for several together.
fn named_only(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    families.gauges(
        "gwlbtun_endpoint_up",
        "1 while both interfaces of the endpoint work.",
        page.endpoints
            .iter()
            .filter(|row| row.is_named)
            .map(|row| ([("endpoint", format!("vpce-{}", row.id))], u64::from(row.healthy))),
    )?;
    families.gauges(
        "gwlbtun_endpoint_last_packet_timestamp_seconds",
        "When a packet of a host last passed, since 1970.",
        page.endpoints.iter().filter(|row| row.is_named).filter_map(|row| {
            let at = row.last_seen_at?.as_secs_f64();
            Some(([("endpoint", format!("vpce-{}", row.id))], at))
        }),
    )
}

/// IP version and transport of a kind of flow.
const fn words(kind: FlowKind) -> (&'static str, &'static str) {
    match kind {
        FlowKind::V4Tcp => ("ipv4", "tcp"),
        FlowKind::V4Udp => ("ipv4", "udp"),
        FlowKind::V4Other => ("ipv4", "other"),
        FlowKind::V6Tcp => ("ipv6", "tcp"),
        FlowKind::V6Udp => ("ipv6", "udp"),
        FlowKind::V6Other => ("ipv6", "other"),
    }
}
