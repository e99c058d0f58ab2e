use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Serialize;

use super::stats::{bootstrap_interval, geometric_mean};
use super::{Distribution, FailureKind, Load, Pass, Record, Sampling, Sent};

/// What a request must keep to count for goodput; in milliseconds, each optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Slo {
    /// Time to first token.
    pub ttft: Option<f64>,
    /// Time per output token after the first.
    pub tpot: Option<f64>,
    /// End to end.
    pub e2e: Option<f64>,
}

impl FromStr for Slo {
    type Err = String;

    /// Reads `ttft:200,tpot:20,e2e:3000`, or some of it.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let form = || format!("'{part}' is not ttft, tpot or e2e with its milliseconds, as in ttft:200");
            let (name, ms) = part.split_once(':').ok_or_else(form)?;
            let ms: f64 = ms.trim().parse().map_err(|_| form())?;
            let slot = match name.trim() {
                "ttft" => &mut slo.ttft,
                "tpot" => &mut slo.tpot,
                "e2e" => &mut slo.e2e,
                _ => return Err(form()),
            };
            *slot = Some(ms);
        }
        Ok(slo)
    }
}

impl Slo {
    fn is_kept_by(&self, record: &Record) -> bool {
        let keeps = |limit: Option<f64>, value: Option<f64>| match (limit, value) {
            (Some(limit), Some(value)) => value <= limit,
            _ => true,
        };
        keeps(self.ttft, record.ttft_ms)
            && keeps(self.tpot, record.tpot_ms())
            && keeps(self.e2e, Some(record.e2e_ms))
    }
}

/// Failed requests of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failures {
    /// How many.
    pub count: usize,
    /// The first one's message.
    pub first: String,
}

/// What one target did under one load, over all repetitions. Rates and times are of requests that succeeded.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The target's name.
    pub target: String,
    /// The load.
    pub load: Load,
    /// Requests that succeeded.
    pub ok: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Why they failed.
    pub failures: BTreeMap<FailureKind, Failures>,
    /// Requests that succeeded with fewer output tokens than asked for.
    pub short: usize,
    /// Time of all repetitions together.
    pub elapsed_s: f64,
    /// Requests a second.
    pub requests_per_s: f64,
    /// Output tokens a second.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens a second; none if the server does not count prompt tokens.
    pub total_tokens_per_s: Option<f64>,
    /// Time to first token.
    pub ttft_ms: Option<Distribution>,
    /// Gaps between streamed tokens, of all requests together.
    pub itl_ms: Option<Distribution>,
    /// Time per output token after the first, request by request.
    pub tpot_ms: Option<Distribution>,
    /// End to end.
    pub e2e_ms: Option<Distribution>,
    /// Requests a second that kept the service level; none if none was given.
    pub goodput_per_s: Option<f64>,
}

impl Summary {
    /// Sums up the passes of one target under one load.
    pub fn of(target: &str, load: Load, passes: &[&Pass], sampling: &Sampling, slo: Option<&Slo>) -> Self {
        let sent: Vec<&Sent> = passes.iter().flat_map(|pass| &pass.requests).collect();
        let records: Vec<&Record> = sent.iter().map(|sent| &sent.record).collect();
        let ok: Vec<&Record> = records.iter().copied().filter(|record| record.error.is_none()).collect();
        let short = |sent: &&&Sent| {
            let asked = u64::from(sampling.output_tokens_of(sent.prompt));
            sent.record.error.is_none() && sent.record.output_tokens < asked
        };
        let elapsed_s: f64 = passes.iter().map(|pass| pass.elapsed.as_secs_f64()).sum();
        let per_s = |count: f64| if elapsed_s > 0.0 { count / elapsed_s } else { 0.0 };
        let output: u64 = ok.iter().map(|record| record.output_tokens).sum();
        let prompt: Option<u64> = ok.iter().map(|record| record.prompt_tokens).sum();
        Self {
            target: target.to_owned(),
            load,
            ok: ok.len(),
            failed: records.len() - ok.len(),
            failures: failures(&records),
            short: sent.iter().filter(short).count(),
            elapsed_s,
            requests_per_s: per_s(ok.len() as f64),
            output_tokens_per_s: per_s(output as f64),
            total_tokens_per_s: prompt.map(|prompt| per_s((prompt + output) as f64)),
            ttft_ms: Distribution::of(ok.iter().filter_map(|record| record.ttft_ms)),
            itl_ms: Distribution::of(ok.iter().flat_map(|record| record.itl_ms.iter().copied())),
            tpot_ms: Distribution::of(ok.iter().filter_map(|record| record.tpot_ms())),
            e2e_ms: Distribution::of(ok.iter().map(|record| record.e2e_ms)),
            goodput_per_s: slo
                .map(|slo| per_s(ok.iter().filter(|record| slo.is_kept_by(record)).count() as f64)),
        }
    }
}

fn failures(records: &[&Record]) -> BTreeMap<FailureKind, Failures> {
    let mut failures = BTreeMap::new();
    for failure in records.iter().filter_map(|record| record.error.as_ref()) {
        let first = || Failures { count: 0, first: failure.message.clone() };
        failures.entry(failure.kind).or_insert_with(first).count += 1;
    }
    failures
}

/// Which figure of a repetition two targets are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Output tokens a second: more is better.
    OutputTokensPerS,
    /// Median time to first token: less is better.
    TtftP50,
    /// Median time per output token: less is better.
    TpotP50,
}

impl Metric {
    /// All of them, as they are reported.
    pub const ALL: [Self; 3] = [Self::OutputTokensPerS, Self::TtftP50, Self::TpotP50];

    fn of(self, summary: &Summary) -> Option<f64> {
        let value = match self {
            Self::OutputTokensPerS => summary.output_tokens_per_s,
            Self::TtftP50 => summary.ttft_ms?.p50,
            Self::TpotP50 => summary.tpot_ms?.p50,
        };
        (value > 0.0).then_some(value)
    }
}

/// One target against the baseline under one load: the ratio of each repetition's figures, and what they say
/// together. A repetition in which either has no figure is left out.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The target.
    pub target: String,
    /// What it is divided by.
    pub baseline: String,
    /// The load.
    pub load: Load,
    /// The figure.
    pub metric: Metric,
    /// The ratios, one a repetition.
    pub ratios: Vec<f64>,
    /// Their geometric mean.
    pub geometric_mean: Option<f64>,
    /// Its 95% interval, bootstrapped over repetitions; none of fewer than two.
    pub interval: Option<[f64; 2]>,
    /// Whether the interval includes 1, so that the run shows no difference.
    pub includes_one: Option<bool>,
}

impl Ratio {
    /// Compares two targets by their summaries of each repetition.
    pub fn of(target: &[Summary], baseline: &[Summary], metric: Metric, seed: u64) -> Option<Self> {
        let (first, first_of_baseline) = (target.first()?, baseline.first()?);
        let pairs = target.iter().zip(baseline);
        let ratios: Vec<f64> = pairs.filter_map(|(a, b)| Some(metric.of(a)? / metric.of(b)?)).collect();
        let interval = bootstrap_interval(&ratios, seed);
        Some(Self {
            target: first.target.clone(),
            baseline: first_of_baseline.target.clone(),
            load: first.load,
            metric,
            geometric_mean: geometric_mean(&ratios),
            interval,
            includes_one: interval.map(|[low, high]| low <= 1.0 && 1.0 <= high),
            ratios,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::{Failure, OutputTokens};

    const LOAD: Load = Load::Closed { concurrency: 1 };

    fn asking(tokens: u32) -> Sampling {
        let output_tokens = OutputTokens::exactly(tokens).unwrap();
        Sampling { output_tokens, temperature: 0.0, seed: 0, timeout: Duration::from_secs(1) }
    }

    fn sent(ttft_ms: f64, gap_ms: f64, error: Option<FailureKind>) -> Sent {
        let record = Record {
            ttft_ms: Some(ttft_ms),
            e2e_ms: ttft_ms + 2.0 * gap_ms,
            itl_ms: vec![gap_ms; 2],
            prompt_tokens: Some(7),
            output_tokens: 3,
            error: error.map(|kind| Failure { kind, message: format!("{kind:?}") }),
        };
        Sent { prompt: 0, start_s: 0.0, record }
    }

    fn pass(requests: Vec<Sent>) -> Pass {
        Pass { requests, elapsed: Duration::from_secs(2) }
    }

    #[test]
    fn failures_are_counted_and_left_out_of_the_rates() {
        let status = Some(FailureKind::Status);
        let passes = [
            pass(vec![sent(10.0, 1.0, None), sent(999.0, 99.0, status)]),
            pass(vec![
                sent(20.0, 3.0, None),
                sent(999.0, 99.0, status),
                sent(1.0, 1.0, Some(FailureKind::Timeout)),
            ]),
        ];
        let slo = "ttft:15,tpot:2".parse().unwrap();
        let summary = Summary::of("a", LOAD, &passes.each_ref(), &asking(4), Some(&slo));
        assert_eq!((summary.ok, summary.failed, summary.short), (2, 3, 2));
        assert_eq!(summary.failures[&FailureKind::Status], Failures { count: 2, first: "Status".to_owned() });
        assert_eq!(summary.failures[&FailureKind::Timeout].count, 1);
        assert_eq!((summary.requests_per_s, summary.output_tokens_per_s), (0.5, 1.5));
        assert_eq!(summary.total_tokens_per_s, Some(5.0));
        assert_eq!(summary.goodput_per_s, Some(0.25));
        assert_eq!(summary.ttft_ms.unwrap().mean, 15.0);
        assert_eq!((summary.itl_ms.unwrap().count, summary.tpot_ms.unwrap().p90), (4, 3.0));
    }

    #[test]
    fn ratios_pair_the_repetitions_that_both_have() {
        let summary = |name: &str, ttft| {
            Summary::of(name, LOAD, &[&pass(vec![sent(ttft, 1.0, None)])], &asking(3), None)
        };
        let nothing = Summary::of("b", LOAD, &[&pass(vec![])], &asking(3), None);
        let slow = [summary("b", 40.0), nothing, summary("b", 10.0)];
        let base = [summary("a", 10.0), summary("a", 10.0), summary("a", 10.0)];
        let ratio = Ratio::of(&slow, &base, Metric::TtftP50, 1).unwrap();
        assert_eq!(ratio.ratios, [4.0, 1.0]);
        assert!((ratio.geometric_mean.unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(ratio.includes_one, Some(true));
        let ratio = Ratio::of(&slow[..1], &base[..1], Metric::TtftP50, 1).unwrap();
        assert_eq!((ratio.interval, ratio.includes_one), (None, None));
    }

    #[test]
    fn a_service_level_is_read_or_refused() {
        let slo: Slo = "ttft:200,e2e:1.5".parse().unwrap();
        assert_eq!(slo, Slo { ttft: Some(200.0), tpot: None, e2e: Some(1.5) });
        for bad in ["", "ttft", "itl:3", "tpot:fast"] {
            assert!(bad.parse::<Slo>().is_err(), "{bad}");
        }
    }
}
