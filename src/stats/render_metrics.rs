//! The page as metrics, for Prometheus and what speaks its language.
//!
//! Base units, counters that never go back, HELP on everything, and labels from fixed lists: a flood
//! of endpoint ids makes one more series, `other`, and no more.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeGaugeValue;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Exposition;
use super::Page;

/// Renders the metrics.
///
/// # Panics
/// Never: a string takes any text.
pub fn render(page: &Arc<Page>, exposition: Exposition) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { page: Arc::clone(page) }));
    let mut rendered = String::new();
    text::encode(&mut rendered, &registry).expect("a string takes any text");
    exposition.of_openmetrics(rendered)
}

/// What is rendered.
#[derive(Debug)]
struct Metrics {
    page: Arc<Page>,
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.program(&mut families)
    }
}

impl Metrics {
    /// What runs, and how it is.
    fn program(&self, families: &mut Families<'_>) -> fmt::Result {
        let page = &self.page;
        families.gauges(
            "gwlbtun_build_info",
            "Always 1; the labels say what runs.",
            [(
                [
                    ("version", page.version),
                    ("arch", std::env::consts::ARCH),
                    ("io_engine", "io_uring"),
                ],
                1_u64,
            )],
        )?;
        families.gauge(
            "gwlbtun_healthy",
            "1 while the health page is 200, which is when /readyz is.",
            u64::from(page.healthy),
        )
    }
}

/// Writes families of metrics, one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge<V: EncodeGaugeValue>(&mut self, name: &str, help: &str, value: V) -> fmt::Result {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)
        })
    }
}
