//! The health page as text in a shell of HTML: the reference program's words, which people read
//! and scripts cut. What it called a tunnel handler thread is a worker's part here.

use std::fmt;
use std::fmt::Write;
use std::time::Duration;

use super::page::EndpointRow;
use super::page::Page;
use super::page::SteeringRow;
use crate::types::EndpointId;
use crate::types::FlowKind;
use crate::types::GENEVE_PORT;
use crate::types::Offload;
use crate::types::Side;

/// Renders the page in the words of 3.0.
///
/// # Panics
/// Never: a string takes any text.
pub fn render(page: &Page) -> String {
    write_page(page, write_endpoint).expect("a string takes any text")
}

/// Renders the page in the words of 3.2.
///
/// # Panics
/// Never: a string takes any text.
pub fn render_v3_2(page: &Page) -> String {
    write_page(page, write_endpoint_v3_2).expect("a string takes any text")
}

fn write_page(
    page: &Page,
    write_endpoint: impl Fn(&mut String, &Page, &EndpointRow) -> fmt::Result,
) -> Result<String, fmt::Error> {
    let mut html = String::with_capacity(4096);
    let out = &mut html;
    out.write_str(
        "<!DOCTYPE html>\n<html lang=\"en-us\">\n<head><title>Health check</title></head><body>",
    )?;
    writeln!(out, "UDP receiver threads for port number {GENEVE_PORT}:")?;
    for (number, worker) in page.workers.iter().enumerate() {
        writeln!(
            out,
            "UDP receiver thread {number} (ID {}): {}, {} packets in, {} bytes in, {} since last \
             packet.",
            worker.thread_id,
            health(worker.healthy),
            worker.counters.datagrams.packets,
            worker.counters.datagrams.bytes,
            Span(worker.quiet),
        )?;
    }
    writeln!(out)?;
    for endpoint in &page.endpoints {
        write_endpoint(out, page, endpoint)?;
    }
    // Ours, and after everything that scripts know: what is wrong, and what might be.
    write_offload(out, page)?;
    if let Some(steering) = &page.steering {
        let SteeringRow { receive, outer_paths, queues, .. } = steering;
        writeln!(
            out,
            "Steering: datagrams by {receive} path, of which there are {outer_paths}; queues by \
             {queues}; {} packets at another worker than their own.",
            page.foreign(),
        )?;
    }
    if page.socket_drops > 0 {
        writeln!(out, "Dropped by Linux at the receive sockets: {}.", page.socket_drops)?;
    }
    for endpoint in &page.endpoints {
        for &side in Side::of_endpoint(!page.no_return) {
            let dropped = endpoint.queue_drops[side.index()];
            if dropped > 0 {
                writeln!(out, "Dropped by Linux at {}: {dropped}.", endpoint.link(side))?;
            }
        }
    }
    if page.log_lines_lost > 0 {
        writeln!(out, "Lines of the log that were lost: {}.", page.log_lines_lost)?;
    }
    for reason in &page.reasons {
        writeln!(out, "NOT healthy: {reason}.")?;
    }
    for warning in &page.warnings {
        writeln!(out, "Warning: {warning}.")?;
    }
    out.write_str("\n</body></html>")?;
    Ok(html)
}

fn write_offload(out: &mut String, page: &Page) -> fmt::Result {
    write!(out, "Offloads:")?;
    for (name, _) in page.offload.pieces().into_iter().filter(|(_, on)| *on) {
        write!(out, " {name}")?;
    }
    if page.offload == Offload::NONE {
        write!(out, " none")?;
    }
    write!(out, "; checksums by {}.", page.checksum)?;
    for (name, count) in page.operations() {
        write!(out, " {name} {count}")?;
    }
    writeln!(out)?;
    write!(out, "Flow table:")?;
    for (name, count) in page.flow_events() {
        write!(out, " {name} {count}")?;
    }
    writeln!(out)
}

fn write_endpoint(out: &mut String, page: &Page, endpoint: &EndpointRow) -> fmt::Result {
    writeln!(out, "Handler for ENI {}", endpoint.id)?;
    for &side in Side::of_endpoint(!page.no_return) {
        write_link(out, page, endpoint, side)?;
    }
    if page.no_return {
        return Ok(());
    }
    for (family, kinds) in [("IPv4", &FlowKind::V4), ("IPv6", &FlowKind::V6)] {
        write_cache(out, &cache_name(family, endpoint.id), endpoint, kinds, page.tcp_idle)?;
    }
    Ok(())
}

fn write_endpoint_v3_2(out: &mut String, page: &Page, endpoint: &EndpointRow) -> fmt::Result {
    let counters = &endpoint.counters;
    writeln!(
        out,
        "Handler for GWLBe vpce-{} is {}\n{} packets out to OS, {} bytes out to OS, {} packets \
         dropped on write, {} since last packet.",
        endpoint.id,
        if page.serves(endpoint) { "healthy" } else { "UNHEALTHY" },
        counters.to_gwi.packets,
        counters.to_gwi.bytes,
        counters.decap_drops.total(),
        Span(endpoint.quiet_to_gwi),
    )?;
    for &side in Side::of_endpoint(!page.no_return) {
        write_link(out, page, endpoint, side)?;
    }
    if page.no_return {
        return Ok(());
    }
    for kind in FlowKind::ALL {
        let name = cache_name_v3_2(kind, endpoint.id);
        write_cache(out, &name, endpoint, &[kind], page.idle_of(kind))?;
    }
    Ok(())
}

fn write_cache(
    out: &mut String,
    name: &str,
    endpoint: &EndpointRow,
    kinds: &[FlowKind],
    idle: Duration,
) -> fmt::Result {
    writeln!(
        out,
        "{name} : Contains {} elements, of which {} were just timed out (idle timeout is {} \
         seconds).",
        endpoint.counters.flows.sum(kinds),
        endpoint.flows_timed_out.sum(kinds),
        idle.as_secs(),
    )
}

fn write_link(out: &mut String, page: &Page, endpoint: &EndpointRow, side: Side) -> fmt::Result {
    let (written, quiet) = endpoint.written(side);
    writeln!(
        out,
        "Interface {}:\n{} packets out to OS, {} bytes out to OS, {} since last packet.",
        endpoint.link(side),
        written.packets,
        written.bytes,
        Span(quiet),
    )?;
    for (number, (worker, reads)) in page.workers.iter().zip(&endpoint.reads).enumerate() {
        let queue = reads[side.index()];
        writeln!(
            out,
            "Tunnel handler thread {number} (ID {}): {}, {} packets in from OS, {} bytes in from \
             OS, {} since last packet.",
            worker.thread_id,
            health(worker.healthy && endpoint.healthy),
            queue.read.packets,
            queue.read.bytes,
            Span(queue.quiet),
        )?;
    }
    writeln!(out)
}

/// The name that 3.2 has for the flows of one endpoint and kind.
pub(super) fn cache_name_v3_2(kind: FlowKind, id: EndpointId) -> String {
    let kind = match kind {
        FlowKind::V4Tcp => "IPv4 TCP",
        FlowKind::V4Udp => "IPv4 UDP",
        FlowKind::V4Other => "IPv4 Other",
        FlowKind::V6Tcp => "IPv6 TCP",
        FlowKind::V6Udp => "IPv6 UDP",
        FlowKind::V6Other => "IPv6 Other",
    };
    format!("{kind} Flow Cache for GWLBe vpce-{id}")
}

/// The name that 3.0 has for the flows of one endpoint and family.
pub(super) fn cache_name(family: &str, id: EndpointId) -> String {
    format!("{family} Flow Cache for ENI {id}")
}

const fn health(healthy: bool) -> &'static str {
    if healthy { "Healthy" } else { "NOT healthy" }
}

/// A span as the reference program writes it: `1d 2h3m4.567s`.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        for (unit, length) in [("d ", 86_400_000), ("h", 3_600_000), ("m", 60_000)] {
            // "More than", not "at least": one minute is 60.000s there, and so it is here.
            if millis > length {
                write!(f, "{}{unit}", millis / length)?;
                millis %= length;
            }
        }
        write!(f, "{}.{:03}s", millis / 1000, millis % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::page::tests::sample;

    #[test]
    fn the_page_word_for_word() {
        assert_eq!(
            render(&sample()),
            "<!DOCTYPE html>\n\
             <html lang=\"en-us\">\n\
             <head><title>Health check</title></head><body>\
             UDP receiver threads for port number 6081:\n\
             UDP receiver thread 0 (ID 4711): NOT healthy, 1 packets in, 1540 bytes in, \
             0.529s since last packet.\n\
             \n\
             Handler for ENI 00123456789abcdef\n\
             Interface gwi-887epl1uMf:\n\
             1 packets out to OS, 1500 bytes out to OS, 1.000s since last packet.\n\
             Tunnel handler thread 0 (ID 4711): NOT healthy, 1 packets in from OS, \
             60 bytes in from OS, 60.000s since last packet.\n\
             \n\
             Interface gwo-887epl1uMf:\n\
             0 packets out to OS, 0 bytes out to OS, 60.000s since last packet.\n\
             Tunnel handler thread 0 (ID 4711): NOT healthy, 2 packets in from OS, \
             1500 bytes in from OS, 0.750s since last packet.\n\
             \n\
             IPv4 Flow Cache for ENI 00123456789abcdef : Contains 3 elements, of which 2 were \
             just timed out (idle timeout is 350 seconds).\n\
             IPv6 Flow Cache for ENI 00123456789abcdef : Contains 31 elements, of which 18 were \
             just timed out (idle timeout is 350 seconds).\n\
             Offloads: udp-gro udp-gso tun-tso tcp-coalescing udp-coalescing; checksums by \
             avx2. gwiWrites 0 receives 7 sends 0 tunReads 0 udpGroPaused 0\n\
             Flow table: flowsEvicted 8 flowsRetaught 9\n\
             Steering: datagrams by outer path, of which there are 3; queues by program; \
             3 packets at another worker than their own.\n\
             Dropped by Linux at the receive sockets: 8.\n\
             Dropped by Linux at gwi-887epl1uMf: 9.\n\
             Dropped by Linux at gwo-887epl1uMf: 10.\n\
             Lines of the log that were lost: 2.\n\
             NOT healthy: worker 0 made no turn for 2.5 s.\n\
             Warning: an endpoint was refused.\n\
             \n\
             </body></html>"
        );
    }

    #[test]
    fn the_page_of_3_2_word_for_word() {
        assert_eq!(
            render_v3_2(&sample()),
            "<!DOCTYPE html>\n\
             <html lang=\"en-us\">\n\
             <head><title>Health check</title></head><body>\
             UDP receiver threads for port number 6081:\n\
             UDP receiver thread 0 (ID 4711): NOT healthy, 1 packets in, 1540 bytes in, \
             0.529s since last packet.\n\
             \n\
             Handler for GWLBe vpce-00123456789abcdef is UNHEALTHY\n\
             1 packets out to OS, 1500 bytes out to OS, 1 packets dropped on write, \
             1.000s since last packet.\n\
             Interface gwi-887epl1uMf:\n\
             1 packets out to OS, 1500 bytes out to OS, 1.000s since last packet.\n\
             Tunnel handler thread 0 (ID 4711): NOT healthy, 1 packets in from OS, \
             60 bytes in from OS, 60.000s since last packet.\n\
             \n\
             Interface gwo-887epl1uMf:\n\
             0 packets out to OS, 0 bytes out to OS, 60.000s since last packet.\n\
             Tunnel handler thread 0 (ID 4711): NOT healthy, 2 packets in from OS, \
             1500 bytes in from OS, 0.750s since last packet.\n\
             \n\
             IPv4 TCP Flow Cache for GWLBe vpce-00123456789abcdef : Contains 2 elements, \
             of which 0 were just timed out (idle timeout is 350 seconds).\n\
             IPv4 UDP Flow Cache for GWLBe vpce-00123456789abcdef : Contains 1 elements, \
             of which 1 were just timed out (idle timeout is 120 seconds).\n\
             IPv4 Other Flow Cache for GWLBe vpce-00123456789abcdef : Contains 0 elements, \
             of which 1 were just timed out (idle timeout is 120 seconds).\n\
             IPv6 TCP Flow Cache for GWLBe vpce-00123456789abcdef : Contains 7 elements, \
             of which 6 were just timed out (idle timeout is 350 seconds).\n\
             IPv6 UDP Flow Cache for GWLBe vpce-00123456789abcdef : Contains 11 elements, \
             of which 6 were just timed out (idle timeout is 120 seconds).\n\
             IPv6 Other Flow Cache for GWLBe vpce-00123456789abcdef : Contains 13 elements, \
             of which 6 were just timed out (idle timeout is 120 seconds).\n\
             Offloads: udp-gro udp-gso tun-tso tcp-coalescing udp-coalescing; checksums by \
             avx2. gwiWrites 0 receives 7 sends 0 tunReads 0 udpGroPaused 0\n\
             Flow table: flowsEvicted 8 flowsRetaught 9\n\
             Steering: datagrams by outer path, of which there are 3; queues by program; \
             3 packets at another worker than their own.\n\
             Dropped by Linux at the receive sockets: 8.\n\
             Dropped by Linux at gwi-887epl1uMf: 9.\n\
             Dropped by Linux at gwo-887epl1uMf: 10.\n\
             Lines of the log that were lost: 2.\n\
             NOT healthy: worker 0 made no turn for 2.5 s.\n\
             Warning: an endpoint was refused.\n\
             \n\
             </body></html>"
        );
    }

    #[test]
    fn nothing_is_said_of_what_returns_where_nothing_does() {
        let page = Page { no_return: true, ..sample() };
        for text in [render(&page), render_v3_2(&page)] {
            assert!(text.contains("Interface gwi-887epl1uMf:"), "{text}");
            assert!(!text.contains("gwo-") && !text.contains("Flow Cache"), "{text}");
        }
    }

    #[test]
    fn a_serving_endpoint_is_healthy_in_the_words_of_3_2() {
        let mut page = sample();
        page.workers[0].healthy = true;
        let text = render_v3_2(&page);
        assert!(text.contains("Handler for GWLBe vpce-00123456789abcdef is healthy\n"), "{text}");
    }

    #[test]
    fn spans() {
        for (millis, text) in [
            (0, "0.000s"),
            (529, "0.529s"),
            (60_000, "60.000s"),
            (60_001, "1m0.001s"),
            (93_784_567, "1d 2h3m4.567s"),
        ] {
            assert_eq!(Span(Duration::from_millis(millis)).to_string(), text);
        }
    }
}
