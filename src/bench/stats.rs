use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples that a bootstrap draws.
const RESAMPLES: usize = 10_000;

/// What is reported of many measurements of one quantity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// How many there are.
    pub count: usize,
    /// Their arithmetic mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Distribution {
    /// Of these values, in any order; none where there is no value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        Some(Self {
            count: values.len(),
            p50: percentile(&values, 50.0)?,
            p90: percentile(&values, 90.0)?,
            p99: percentile(&values, 99.0)?,
            mean: values.iter().sum::<f64>() / values.len() as f64,
        })
    }
}

/// The nearest-rank percentile of ascending values: the smallest value that at least `percent` of them do not
/// exceed. It is always a value that was measured; none where there is none.
pub fn percentile(ascending: &[f64], percent: f64) -> Option<f64> {
    let rank = (percent / 100.0 * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.clamp(1, ascending.len().max(1)) - 1).copied()
}

/// The geometric mean of positive values; none where there is none.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (sum / values.len() as f64).exp())
}

/// The 95% percentile-bootstrap interval of the geometric mean of positive values: it comes from resampling them
/// with replacement, the same for the same seed. None of fewer than two values, which say nothing of their spread.
///
/// With few values it is somewhat too narrow, as every bootstrap is: of five, it covers about 85% and not 95%.
pub fn bootstrap_interval(values: &[f64], seed: u64) -> Option<[f64; 2]> {
    if values.len() < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draws = (0..logarithms.len()).map(|_| logarithms[random.random_range(0..logarithms.len())]);
            (draws.sum::<f64>() / logarithms.len() as f64).exp()
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    Some([percentile(&means, 2.5)?, percentile(&means, 97.5)?])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_percentile_is_what_counting_says(
            values in prop::collection::vec(-1e3..1e3f64, 1..60),
            percent in prop::sample::select(vec![1.0, 50.0, 90.0, 99.0, 100.0]),
        ) {
            let naive = values
                .iter()
                .copied()
                .filter(|&candidate| {
                    let below = values.iter().filter(|&&value| value <= candidate).count();
                    below as f64 >= percent / 100.0 * values.len() as f64
                })
                .fold(f64::INFINITY, f64::min);
            let mut ascending = values.clone();
            ascending.sort_unstable_by(f64::total_cmp);
            prop_assert_eq!(percentile(&ascending, percent), Some(naive));
        }

        #[test]
        fn a_bootstrap_stays_inside_its_values_and_repeats(
            values in prop::collection::vec(0.1..10.0f64, 2..8), seed: u64,
        ) {
            let interval = bootstrap_interval(&values, seed);
            prop_assert_eq!(interval, bootstrap_interval(&values, seed));
            let [low, high] = interval.unwrap();
            let mean = geometric_mean(&values).unwrap();
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            prop_assert!(least * 0.999_999 <= low && low <= mean * 1.000_001);
            prop_assert!(mean * 0.999_999 <= high && high <= most * 1.000_001);
        }
    }

    #[test]
    fn the_interval_has_the_width_that_theory_gives() {
        // 200 values of ln = -0.1 or 0.1: the mean's standard error is 0.1 / sqrt(200), the interval 1.96 of it.
        let values: Vec<f64> =
            (0..200).map(|i| if i % 2 == 0 { 0.1f64.exp() } else { (-0.1f64).exp() }).collect();
        let [low, high] = bootstrap_interval(&values, 7).unwrap();
        let expected = 1.96 * 0.1 / 200f64.sqrt();
        assert!(
            (high.ln() / expected - 1.0).abs() < 0.1 && (low.ln() / -expected - 1.0).abs() < 0.1,
            "{low} {high}"
        );
        let uneven: Vec<f64> = (1..10).map(|i| f64::from(i).sqrt()).collect();
        assert_ne!(bootstrap_interval(&uneven, 7), bootstrap_interval(&uneven, 8));
    }

    #[test]
    fn nothing_measured_gives_nothing() {
        assert_eq!(Distribution::of([]), None);
        assert_eq!(geometric_mean(&[]), None);
        assert_eq!(bootstrap_interval(&[1.1], 0), None);
        let one = Distribution::of([3.0]).unwrap();
        assert_eq!((one.count, one.mean, one.p50, one.p99), (1, 3.0, 3.0, 3.0));
    }
}
