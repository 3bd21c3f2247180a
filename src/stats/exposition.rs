//! The two text formats in which metrics are read, and which of them a client wants.
//!
//! The library writes `OpenMetrics` 1.0. Prometheus' own format 0.0.4 is the same line by line but
//! for what [`Exposition::of_openmetrics`] changes; it is what `curl`, `promtool` and older tools
//! understand, so whoever does not ask for the other gets it.

use std::fmt::Write;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exposition {
    /// Prometheus text format 0.0.4.
    PrometheusText,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
}

impl Exposition {
    /// The format that the `Accept` header `accept` prefers (RFC 9110 §12.5.1).
    pub fn wanted_by(accept: &str) -> Self {
        let (mut text, mut open) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let find = |name: &str| {
                let mut parameters = parameters.iter();
                let found = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.trim_matches('"'))
            };
            let weight: f32 = find("q").map_or(1.0, |value| value.parse().unwrap_or(0.0));
            let is_ours = find("version").is_none_or(|version| version == "1.0.0");
            match kind.as_str() {
                "application/openmetrics-text" if is_ours => open = weight.max(open),
                "text/plain" | "text/*" | "*/*" => text = weight.max(text),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::PrometheusText }
    }

    /// The `Content-Type` of the format.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::PrometheusText => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// `text`, which is `OpenMetrics`, in this format. In the old one a counter's family has the
    /// name of its samples, and there is neither a unit nor an end.
    pub(super) fn of_openmetrics(self, text: String) -> String {
        match self {
            Self::PrometheusText => to_prometheus_text(&text),
            Self::OpenMetrics => text,
        }
    }
}

fn to_prometheus_text(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            // Of what type it is stands in the next line.
            help = said.split_once(' ');
        } else if let Some(said) = line.strip_prefix("# TYPE ") {
            let (name, kind) = said.split_once(' ').unwrap_or((said, "unknown"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                writeln!(text, "# HELP {name}{suffix} {help}").expect("a string takes any text");
            }
            writeln!(text, "# TYPE {name}{suffix} {kind}").expect("a string takes any text");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        use Exposition::OpenMetrics;
        use Exposition::PrometheusText;
        for (accept, wanted) in [
            ("", PrometheusText),
            ("*/*", PrometheusText),
            ("text/html,application/xhtml+xml,*/*;q=0.8", PrometheusText),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=1.0.0 ;q=0.5,*/*;q=0.1", OpenMetrics),
            ("application/openmetrics-text;version=0.0.1", PrometheusText),
            ("application/openmetrics-text;q=0", PrometheusText),
            ("application/openmetrics-text;q=nonsense", PrometheusText),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.3", PrometheusText),
            // Prometheus 2.42, and 3 as it comes.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                 version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                OpenMetrics,
            ),
        ] {
            assert_eq!(Exposition::wanted_by(accept), wanted, "{accept}");
        }
    }

    #[test]
    fn the_old_format_differs_in_counters_units_and_the_end() {
        let open = "# HELP a Help, of a.\n# TYPE a counter\n# UNIT a bytes\na_total{x=\"#\"} 1\n\
                    # HELP b Help.\n# TYPE b gauge\nb 2\n# EOF\n";
        let text = "# HELP a_total Help, of a.\n# TYPE a_total counter\na_total{x=\"#\"} 1\n\
                    # HELP b Help.\n# TYPE b gauge\nb 2\n";
        assert_eq!(Exposition::PrometheusText.of_openmetrics(open.to_owned()), text);
        assert_eq!(Exposition::OpenMetrics.of_openmetrics(open.to_owned()), open);
    }
}
