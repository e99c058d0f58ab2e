//! Prometheus' text format 0.0.4, read as strictly as it is written down.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "each test file is a program of its own")]

use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

/// All samples of a page, by metric.
#[derive(Debug, Default)]
pub struct Page {
    pub families: BTreeMap<String, Family>,
}

#[derive(Debug)]
pub struct Family {
    pub help: String,
    pub kind: String,
    /// Name (with `_bucket`, `_sum` or `_count`), labels and value.
    pub samples: Vec<(String, Labels, f64)>,
}

impl Page {
    /// Panics where anything is not as the format has it.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line ends too");
        let mut page = Self::default();
        let mut help: Option<(String, String)> = None;
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, text) = rest.split_once(' ').unwrap();
                assert!(help.replace((name.into(), text.into())).is_none(), "{line}: the last has no TYPE");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                let (helped, help) = help.take().unwrap();
                assert_eq!(helped, name);
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let family = Family { help, kind: kind.into(), samples: Vec::new() };
                assert!(page.families.insert(name.into(), family).is_none(), "{line}: twice");
                current = name.into();
            } else {
                assert!(help.is_none() && !line.starts_with('#'), "{line}");
                let (name, labels, value) = sample(line);
                let family = page.families.get_mut(&current).unwrap();
                let suffixes: &[&str] =
                    if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                let suffix = name.strip_prefix(&current).unwrap();
                assert!(suffixes.contains(&suffix), "{line}: among those of {current}");
                let is_new = !family.samples.iter().any(|(other, had, _)| (other, had) == (&name, &labels));
                assert!(is_new, "{line}: twice");
                family.samples.push((name, labels, value));
            }
        }
        page.families.values().filter(|family| family.kind == "histogram").for_each(Family::check_histogram);
        page
    }

    /// The sum of a metric's samples that have these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = |had: &Labels| labels.iter().all(|(label, value)| had.get(*label).unwrap() == value);
        let samples = self.families.values().flat_map(|family| &family.samples);
        let found: Vec<f64> = samples
            .filter(|(other, had, _)| other == name && matching(had))
            .map(|(_, _, value)| *value)
            .collect();
        assert!(!found.is_empty(), "{name} {labels:?} is not there");
        found.iter().sum()
    }
}

impl Family {
    /// Each set of labels has rising buckets, the last for all, and as many in it as are counted.
    fn check_histogram(&self) {
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for (_, labels, value) in self.samples.iter().filter(|(name, ..)| name.ends_with("_bucket")) {
            let mut labels = labels.clone();
            let bound = labels.remove("le").unwrap().replace("+Inf", "inf").parse().unwrap();
            buckets.entry(labels).or_default().push((bound, *value));
        }
        assert!(!buckets.is_empty());
        for (labels, buckets) in buckets {
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{buckets:?}");
            let (bound, all) = *buckets.last().unwrap();
            let one = |suffix: &str| {
                let is_it =
                    |(name, had, _): &&(String, Labels, f64)| name.ends_with(suffix) && *had == labels;
                self.samples.iter().find(is_it).unwrap().2
            };
            assert!(bound.is_infinite() && all == one("_count"), "{buckets:?}");
            assert!(one("_sum") >= 0.0 && (all > 0.0 || one("_sum") == 0.0));
        }
    }
}

/// `name{label="value",...} number`
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inside.split_once("=\"").unwrap();
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (value, after) = quoted(after);
            assert!(labels.insert(label.into(), value).is_none(), "{line}: {label} twice");
            match after.strip_prefix(',') {
                Some(next) => inside = next,
                None => {
                    rest = after.strip_prefix('}').unwrap();
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap();
    let number = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        digits => {
            assert!(digits.starts_with(|c: char| c.is_ascii_digit() || c == '-'), "{line}");
            digits.parse().unwrap()
        }
    };
    (name.into(), labels, number)
}

/// The text before the closing quote, and what is behind it.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match characters.next().unwrap().1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                c => panic!("\\{c}"),
            }),
            c => value.push(c),
        }
    }
    panic!("no end: {text}")
}

pub fn is_name(name: &str) -> bool {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    name.starts_with(|c: char| is_fine(c) && !c.is_ascii_digit()) && name.chars().all(is_fine)
}
