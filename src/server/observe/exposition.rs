use std::fmt::Write as _;

use super::histogram::{BOUNDS, Distribution};
use super::names::{Kind, Metric};

/// The content type of what [`Exposition`] makes.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics as Prometheus' text format 0.0.4, which every scraper reads (of OpenMetrics not all know the counters).
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
    /// The metric whose samples are being written.
    current: Option<&'static str>,
}

impl Exposition {
    /// A sample; `labels` are the values of the metric's labels. All samples of a metric follow each other.
    pub(super) fn sample(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.head(metric);
        self.text.push_str(metric.name);
        self.labels(metric.labels.iter().copied().zip(labels.iter().copied()));
        self.value(value);
    }

    /// A metric without labels.
    pub(super) fn number(&mut self, metric: &'static Metric, value: f64) {
        self.sample(metric, &[], value);
    }

    pub(super) fn histogram(&mut self, metric: &'static Metric, found: &Distribution) {
        self.head(metric);
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, &count) in bounds.zip(found.cumulative.iter().chain([&found.count])) {
            self.text.push_str(metric.name);
            self.text.push_str("_bucket");
            self.labels([("le", bound.as_str())]);
            self.value(count as f64);
        }
        for (part, value) in [("_sum", found.sum), ("_count", found.count as f64)] {
            self.text.push_str(metric.name);
            self.text.push_str(part);
            self.value(value);
        }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn head(&mut self, metric: &'static Metric) {
        if self.current.replace(metric.name) == Some(metric.name) {
            return;
        }
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let Metric { name, help, .. } = metric;
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn labels<'a>(&mut self, labels: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut before = '{';
        for (name, value) in labels {
            self.text.push(before);
            before = ',';
            self.text.push_str(name);
            self.text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if before == ',' {
            self.text.push('}');
        }
    }

    fn value(&mut self, value: f64) {
        let _ = match value {
            f64::INFINITY => writeln!(self.text, " +Inf"),
            f64::NEG_INFINITY => writeln!(self.text, " -Inf"),
            value => writeln!(self.text, " {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Histogram;
    use super::*;
    use std::time::Duration;

    const COUNTED: Metric =
        Metric { name: "counted_total", kind: Kind::Counter, labels: &["a", "b"], help: "Counted." };
    const TIMED: Metric =
        Metric { name: "timed_seconds", kind: Kind::Histogram, labels: &[], help: "Timed." };

    #[test]
    fn heads_once_labels_escaped_buckets_cumulative() {
        let mut page = Exposition::default();
        page.sample(&COUNTED, &["x", "1"], 2.0);
        page.sample(&COUNTED, &["\"\\\n", "é"], f64::INFINITY);
        let histogram = Histogram::default();
        [0, 30, 40, 1_000_000_000]
            .into_iter()
            .for_each(|micros| histogram.add(Duration::from_micros(micros)));
        page.histogram(&TIMED, &histogram.get());
        let text = page.into_text();
        let start = "# HELP counted_total Counted.\n# TYPE counted_total counter\ncounted_total{a=\"x\",b=\"1\"} 2\n\
                     counted_total{a=\"\\\"\\\\\\n\",b=\"é\"} +Inf\n# HELP timed_seconds Timed.\n\
                     # TYPE timed_seconds histogram\ntimed_seconds_bucket{le=\"0.000025\"} 1\n\
                     timed_seconds_bucket{le=\"0.00005\"} 3\n";
        assert!(text.starts_with(start), "{text}");
        let end = "timed_seconds_bucket{le=\"250\"} 3\ntimed_seconds_bucket{le=\"+Inf\"} 4\n\
                   timed_seconds_sum 1000.00007\ntimed_seconds_count 4\n";
        assert!(text.ends_with(end), "{text}");
    }
}
