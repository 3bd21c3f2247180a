//! Reads what `/metrics` says, and holds it to the rules of its formats: those of `OpenMetrics` 1.0
//! and of Prometheus' text format 0.0.4, and what `promtool check metrics` complains of.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Prometheus,
    OpenMetrics,
}

/// One family of metrics.
#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
}

/// All samples of a scrape, by name and labels as they are written.
#[derive(Debug)]
pub(crate) struct Scrape {
    families: BTreeMap<String, Family>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Reads a scrape.
    ///
    /// # Panics
    /// If it breaks a rule of its format.
    pub(crate) fn parse(text: &str, format: Format) -> Self {
        let mut scrape = Self { families: BTreeMap::new(), samples: BTreeMap::new() };
        let mut current = String::new();
        let text = match format {
            Format::Prometheus => text,
            Format::OpenMetrics => text.strip_suffix("# EOF\n").expect("ends with # EOF"),
        };
        assert!(text.ends_with('\n') && !text.contains("# EOF"), "{text:?}");
        for line in text.lines() {
            if let Some(said) = line.strip_prefix("# HELP ") {
                let (name, help) = said.split_once(' ').expect("name and help");
                let family = Family { help: help.to_owned(), ..Family::default() };
                let other = scrape.families.insert(name.to_owned(), family);
                assert!(other.is_none(), "{name} stands twice");
                name.clone_into(&mut current);
            } else if let Some(said) = line.strip_prefix("# TYPE ") {
                let (name, kind) = said.split_once(' ').expect("name and type");
                assert_eq!(name, current, "TYPE comes behind its HELP");
                scrape.families.get_mut(name).expect("just made").kind.push_str(kind);
            } else {
                assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
                scrape.take_sample(line, &current, format);
            }
        }
        scrape.check_names(format);
        scrape
    }

    fn take_sample(&mut self, line: &str, current: &str, format: Format) {
        let (series, value) = line.rsplit_once(' ').expect("series and value");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
        assert!(value.is_finite() && value >= 0.0, "{line:?}");
        let name = series.split('{').next().expect("a name");
        let family = &self.families[current];
        let suffix = name.strip_prefix(current).unwrap_or_else(|| panic!("{line} in {current}"));
        let allowed: &[&str] = match (family.kind.as_str(), format) {
            ("counter", Format::OpenMetrics) => &["_total"],
            ("counter", Format::Prometheus) | ("gauge", _) => &[""],
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            (kind, _) => panic!("{current} is a {kind}"),
        };
        assert!(allowed.contains(&suffix), "{line} in {current}");
        let labels = labels_of(series);
        let keys: BTreeSet<_> = labels.iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), labels.len(), "a label twice: {line}");
        assert!(self.samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
    }

    /// What `promtool check metrics` wants of names and help, as far as that is ours to break.
    fn check_names(&self, format: Format) {
        for (name, Family { help, kind }) in &self.families {
            assert!(help.ends_with('.') && help.len() > 10, "{name}: {help:?}");
            assert!(!help.contains(['\\', '"']), "not escaped alike in both formats: {help}");
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            assert!(name.chars().all(is_plain), "{name}");
            let is_known = name.starts_with("gwlbtun_") || name.starts_with("process_");
            assert!(is_known, "{name} has another prefix");
            let is_total = kind == "counter" && format == Format::Prometheus;
            assert_eq!(name.ends_with("_total"), is_total, "{name} is a {kind}");
            assert!(!name.ends_with("_count") && !name.ends_with("_bucket"), "{name}");
            assert!(!name.contains("milli") && !name.contains("micro"), "base units: {name}");
        }
    }

    /// The value of one series, as it is written.
    pub(crate) fn get(&self, series: &str) -> Option<f64> {
        self.samples.get(series).copied()
    }

    /// The sum of the samples of this name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let is_of = |series: &str| series.split('{').next() == Some(name);
        self.samples.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| value).sum()
    }

    /// Whether there is such a metric, by the name of its samples: that of a histogram has
    /// `_bucket` behind it. There may be no sample on this host.
    pub(crate) fn has(&self, name: &str) -> bool {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        self.families.contains_key(name)
            || family.is_some_and(|family| {
                self.families.get(family).is_some_and(|family| family.kind == "histogram")
            })
    }

    /// The values of a label in the samples of this name.
    pub(crate) fn label_values(&self, name: &str, label: &str) -> BTreeSet<String> {
        let of_name = self.samples.keys().filter(|series| series.split('{').next() == Some(name));
        let labels = of_name.flat_map(|series| labels_of(series));
        labels.filter(|(key, _)| key == label).map(|(_, value)| value).collect()
    }

    /// The series that must never go back: counters, and what histograms are made of.
    pub(crate) fn counters(&self) -> BTreeMap<&str, f64> {
        let suffixes = ["_total", "_bucket", "_sum", "_count"];
        let is_counter = |series: &str| {
            let name = series.split('{').next().unwrap_or_default();
            suffixes.iter().any(|suffix| name.ends_with(suffix))
        };
        let counters = self.samples.iter().filter(|(series, _)| is_counter(series));
        counters.map(|(series, &value)| (series.as_str(), value)).collect()
    }

    /// Checks that nothing has gone back since `before`. Of an endpoint that has gone there may be
    /// nothing any more.
    pub(crate) fn expect_after(&self, before: &Self) {
        let now = self.counters();
        for (series, value) in before.counters() {
            match now.get(series) {
                Some(&later) => assert!(later >= value, "{series} from {value} to {later}"),
                None => assert!(series.contains("endpoint=\"vpce-"), "{series} is gone"),
            }
        }
    }
}

/// The labels of a series. No value of ours has a quote or a comma in it.
fn labels_of(series: &str) -> Vec<(String, String)> {
    let Some((_, labels)) = series.split_once('{') else { return Vec::new() };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{series}"));
    let pair = |label: &str| {
        let (key, value) = label.split_once('=').unwrap_or_else(|| panic!("{series}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        (key.to_owned(), value.unwrap_or_else(|| panic!("{series}")).to_owned())
    };
    labels.split(',').filter(|label| !label.is_empty()).map(pair).collect()
}
