//! The page as metrics, for Prometheus and what speaks its language.
//!
//! Base units, counters that never go back, HELP on everything, and labels from fixed lists: a
//! flood of endpoint ids makes one more series, `other`, and no more. An endpoint's own series
//! begin anew when it is made again, as those of a program that was restarted; sums never do.

mod endpoints;
mod families;
mod host;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::Exposition;
use super::HookResult;
use super::Page;
use super::WorkerSnapshot;
use crate::types::DropReason;
use families::Families;
pub use host::HostUsage;

/// Renders the metrics.
///
/// # Panics
/// Never: a string takes any text.
pub fn render(page: &Arc<Page>, host: HostUsage, exposition: Exposition) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { page: Arc::clone(page), host }));
    let mut rendered = String::new();
    text::encode(&mut rendered, &registry).expect("a string takes any text");
    exposition.of_openmetrics(rendered)
}

/// What is rendered.
#[derive(Debug)]
struct Metrics {
    page: Arc<Page>,
    host: HostUsage,
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        let page = &self.page;
        program(page, &mut families)?;
        traffic(page, &mut families)?;
        drops(page, &mut families)?;
        flows(page, &mut families)?;
        endpoints::encode(page, &mut families)?;
        hooks(page, &mut families)?;
        latency(page, &mut families)?;
        ring(page, &mut families)?;
        self.host.encode(page, &mut families)
    }
}

/// What all workers counted.
fn sum(page: &Page, count: impl Fn(&WorkerSnapshot) -> u64) -> u64 {
    page.workers.iter().map(|worker| count(&worker.counters)).sum()
}

/// What runs, and how it is.
fn program(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    let build =
        [("version", page.version), ("arch", std::env::consts::ARCH), ("io_engine", "io_uring")];
    families.gauges(
        "gwlbtun_build_info",
        "Always 1; the labels say what runs.",
        [(build, 1_u64)],
    )?;
    families.gauge(
        "gwlbtun_start_time_seconds",
        "When the program was started, since 1970.",
        page.started.as_secs_f64(),
    )?;
    families.gauge(
        "gwlbtun_healthy",
        "1 while the health page is 200, which /readyz is at the same time.",
        u64::from(page.healthy),
    )?;
    families.gauges(
        "gwlbtun_health_status",
        "1 while this is well, at this moment: workers turn, links can be made, answers can leave, \
         and the program is not stopping.",
        page.checks.iter().map(|&(check, good)| ([("check", check)], u64::from(good))),
    )?;
    families.gauge(
        "gwlbtun_warnings",
        "What an operator should look at: how many warnings the health page shows.",
        page.warnings.len() as u64,
    )?;
    families.counter(
        "gwlbtun_log_lines_lost",
        "Lines of the log that its reader was too slow for, or that could not be written.",
        page.log_lines_lost,
    )
}

/// What came from the load balancer and went back, all endpoints together.
fn traffic(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    let all = page.all_endpoints();
    families.counter(
        "gwlbtun_geneve_received_packets",
        "Datagrams received on UDP port 6081, those included that were dropped.",
        sum(page, |worker| worker.datagrams.packets),
    )?;
    families.counter(
        "gwlbtun_geneve_received_bytes",
        "UDP payload of these datagrams: GENEVE headers and packets.",
        sum(page, |worker| worker.datagrams.bytes),
    )?;
    families.counter(
        "gwlbtun_geneve_sent_packets",
        "Packets returned to the load balancer.",
        all.to_gwlb.packets,
    )?;
    families.counter(
        "gwlbtun_geneve_sent_bytes",
        "Length of these packets, without the GENEVE headers that they went in.",
        all.to_gwlb.bytes,
    )?;
    families.counter(
        "gwlbtun_host_noise_packets",
        "Packets that this host's own kernel sent into the interfaces: neither traffic nor loss.",
        all.host_noise,
    )?;
    families.counter(
        "gwlbtun_too_big_answers",
        "ICMP answers made to packets above what the load balancer takes back.",
        all.too_big_sent,
    )
}

/// What was lost, and why.
fn drops(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    let of_directions = ["decap", "encap"].into_iter().zip(page.drops_by_direction());
    families.counters(
        "gwlbtun_dropped_packets",
        "Packets dropped by the program: decap is from the load balancer to this host, or without \
         an endpoint, encap is back. The README says what to do about each reason.",
        of_directions.flat_map(|(direction, drops)| {
            let labels =
                move |reason: DropReason| [("direction", direction), ("reason", reason.name())];
            DropReason::ALL.iter().map(move |&reason| (labels(reason), drops.get(reason)))
        }),
    )?;
    families.counter(
        "gwlbtun_udp_receive_queue_drops",
        "Datagrams that Linux dropped because a worker's receive queue was full; what it has \
         merged counts once.",
        page.socket_drops,
    )?;
    families.gauge(
        "gwlbtun_held_packets",
        "Packets that wait for the CREATE hook of their endpoint.",
        sum(page, |worker| worker.held),
    )
}

/// The flow table.
fn flows(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    families.gauge(
        "gwlbtun_flow_table_capacity",
        "Flows that are remembered at most.",
        page.flows_max,
    )?;
    families.counter(
        "gwlbtun_flow_evictions",
        "Flows forgotten to make room for others, before they were idle.",
        sum(page, |worker| worker.flows_evicted),
    )?;
    families.counter(
        "gwlbtun_flow_retaught",
        "Headers that a known flow got from another node of the load balancer than before.",
        sum(page, |worker| worker.flows_retaught),
    )?;
    families.counter(
        "gwlbtun_flow_lock_contended",
        "Times that a worker found a lock of the flow table taken by another one.",
        sum(page, |worker| worker.flow_lock_contended),
    )
}

/// The operator's commands.
fn hooks(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    let actions = [("create", page.hooks.create), ("destroy", page.hooks.destroy)];
    families.gauge("gwlbtun_hooks_running", "Hooks that run now.", page.hooks.running)?;
    families.counters(
        "gwlbtun_hook_runs",
        "Hooks that were run, by how they ended.",
        actions.iter().flat_map(|(action, row)| {
            HookResult::ALL.into_iter().zip(row.results).map(move |(result, count)| {
                ([("action", *action), ("result", result.name())], count)
            })
        }),
    )?;
    families.histograms(
        "gwlbtun_hook_duration_seconds",
        "Time from the start of a hook to its end, without its wait for other hooks.",
        actions.map(|(action, row)| ([("action", action)], row.durations)),
    )
}

/// How long the way of packets takes.
fn latency(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    let [mut decap, mut encap] = Default::default();
    for worker in &page.workers {
        decap += worker.counters.to_gwi_times;
        encap += worker.counters.to_gwlb_times;
    }
    families.histograms(
        "gwlbtun_forward_latency_seconds",
        "Samples of the time from when a worker begins with what has arrived to when the first of \
         it is known to be written to gwi (decap: with all that Linux does with it on the way to \
         gwo) or sent (encap). Time in queues before that is not in it. A worker takes a few in 1 \
         to 4 ms.",
        [([("direction", "decap")], decap), ([("direction", "encap")], encap)],
    )
}

/// What the workers' rings ran short of.
fn ring(page: &Page, families: &mut Families<'_>) -> fmt::Result {
    families.counter(
        "gwlbtun_uring_enobufs",
        "Times that a worker's ring had no buffer for the next datagram: bursts, and no loss yet.",
        sum(page, |worker| worker.receive_starved),
    )?;
    families.counter(
        "gwlbtun_uring_stray_completions",
        "Completions that belong to nothing: a bug, please report it.",
        sum(page, |worker| worker.stray_completions),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::EndpointCell;
    use crate::stats::EndpointRow;
    use crate::stats::Others;
    use crate::stats::page::tests::sample;
    use crate::types::EndpointId;
    use crate::types::Moment;

    fn lines(page: Page) -> Vec<String> {
        let text = render(&Arc::new(page), HostUsage::default(), Exposition::PrometheusText);
        text.lines().map(str::to_owned).collect()
    }

    fn has(lines: &[String], line: &str) -> bool {
        lines.iter().any(|other| other == line)
    }

    #[test]
    fn every_reason_is_there_in_both_directions() {
        let lines = lines(sample());
        for direction in ["decap", "encap"] {
            for reason in DropReason::ALL {
                let labels = format!("{{direction=\"{direction}\",reason=\"{reason}\"}}");
                let start = format!("gwlbtun_dropped_packets_total{labels} ");
                assert!(lines.iter().any(|line| line.starts_with(&start)), "{start}");
            }
        }
        for line in [
            "gwlbtun_dropped_packets_total{direction=\"decap\",reason=\"tun_down\"} 2",
            "gwlbtun_dropped_packets_total{direction=\"encap\",reason=\"flow_unknown\"} 4",
            "gwlbtun_udp_receive_queue_drops_total 8",
            "gwlbtun_flow_evictions_total 8",
            "gwlbtun_healthy 0",
            "gwlbtun_log_lines_lost_total 2",
        ] {
            assert!(has(&lines, line), "{line} in {lines:#?}");
        }
    }

    #[test]
    fn endpoints_without_a_name_are_one_and_those_that_have_gone_stay_in_it() {
        let row = |id, packets| {
            let cell = EndpointCell::default();
            cell.to_gwi.count_many(packets, 10 * packets);
            let cells = [Arc::new(cell)];
            EndpointRow::new(EndpointId(id), Moment::ZERO, Moment::from_secs(1), &cells)
        };
        let gone = Others { counters: row(9, 400).counters, queue_drops: [1, 2] };
        let unnamed = [row(2, 30), row(3, 4)].map(|row| EndpointRow { is_named: false, ..row });
        let endpoints = [row(1, 5000)].into_iter().chain(unnamed).collect();
        let lines = lines(Page { endpoints, others_gone: Some(gone), ..sample() });
        let written = "gwlbtun_tun_written_packets_total";
        for line in [
            format!("{written}{{endpoint=\"vpce-00000000000000001\"}} 5000"),
            format!("{written}{{endpoint=\"other\"}} 434"),
            "gwlbtun_tun_queue_drops_total{endpoint=\"other\"} 3".to_owned(),
            "gwlbtun_endpoints 3".to_owned(),
        ] {
            assert!(has(&lines, &line), "{line} in {lines:#?}");
        }
        assert!(!lines.iter().any(|line| line.contains("00002\"")), "{lines:#?}");
    }
}
