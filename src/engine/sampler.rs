use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::Sampling;

/// The logits are no distribution: one of them is not a number, or none is finite.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the model's output is not a number")]
pub struct NotANumber;

/// Chooses one sequence's tokens. It owns the sequence's random numbers, of which each token that is not greedy takes
/// exactly one.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    candidates: Vec<Candidate>,
}

/// A token that may be drawn, with a weight proportional to its probability.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    /// What decides the order: at a high temperature different logits may have one weight.
    logit: f32,
    weight: f64,
}

impl Candidate {
    /// The likelier first, of equals the lower id.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    pub fn new(sampling: Sampling) -> Self {
        // The standard library's hash keys come from the operating system, which is all that a seed of no one's needs.
        let seed = sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(sampling.stream));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(sampling.stream);
        Self { sampling, random, candidates: Vec::new() }
    }

    /// The next token, given the logits of all.
    ///
    /// # Errors
    /// [`NotANumber`] if the logits define no distribution.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, NotANumber> {
        let (likeliest, max) = argmax(logits)?;
        let Sampling { temperature, top_p, top_k, .. } = self.sampling;
        if temperature == 0.0 {
            return Ok(likeliest);
        }
        // Relative to the maximum, so that no temperature overflows: the likeliest token's weight is 1.
        let weight = |x: f32| ((f64::from(x) - f64::from(max)) / temperature).exp();
        self.candidates.clear();
        self.candidates.extend((0u32..).zip(logits).map(|(id, &logit)| Candidate {
            id,
            logit,
            weight: weight(logit),
        }));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, Candidate::order);
            self.candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            keep_nucleus(&mut self.candidates, top_p);
        }
        Ok(draw(&self.candidates, self.random.random()).unwrap_or(likeliest))
    }
}

/// The lowest of the ids with the largest logit, and that logit.
fn argmax(logits: &[f32]) -> Result<(u32, f32), NotANumber> {
    let mut best = (0, f32::NEG_INFINITY);
    let mut is_number = true;
    for (id, &x) in (0u32..).zip(logits) {
        is_number &= !x.is_nan();
        if x > best.1 {
            best = (id, x);
        }
    }
    if is_number && best.1.is_finite() { Ok(best) } else { Err(NotANumber) }
}

/// Keeps the fewest of the likeliest candidates that together have at least `top_p` of the weight, and at least one.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    // Candidates below this have less than 1 - top_p of the weight among them all, so the nucleus is reached without
    // them, and sorting the few that are left is all the work. The factor keeps rounding on the safe side.
    let floor = 0.999 * total * (1.0 - top_p) / candidates.len() as f64;
    candidates.retain(|c| c.weight >= floor);
    candidates.sort_unstable_by(Candidate::order);
    let mut sum = 0.0;
    let within = candidates.iter().position(|c| {
        sum += c.weight;
        sum >= top_p * total
    });
    if let Some(last) = within {
        candidates.truncate(last + 1);
    }
}

/// The candidate at `uniform` (0 to 1) of the total weight; none only if no candidate has any.
fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let mut left = uniform * total;
    let mut last = None;
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        left -= candidate.weight;
        last = Some(candidate.id);
        if left < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The distribution that a sampler should draw from, from the definition: sort everything, cut, normalise.
    fn distribution(logits: &[f32], sampling: Sampling) -> Vec<f64> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        let weights: Vec<f64> =
            order.iter().map(|&i| (f64::from(logits[i]) / sampling.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let mut probabilities = vec![0.0; logits.len()];
        for (&i, weight) in order.iter().zip(weights) {
            probabilities[i] = weight / total;
            kept += weight / total;
            if kept >= sampling.top_p {
                break;
            }
        }
        probabilities.iter().map(|p| p / kept).collect()
    }

    fn logits(count: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec((-60i8..60).prop_map(|x| f32::from(x) / 13.0), 1..count)
    }

    fn frequencies(logits: &[f32], sampling: Sampling, draws: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1.0;
        }
        counts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Pearson's statistic against the definition. With a fixed number of draws it has about as many degrees of
        /// freedom as tokens; eight standard deviations above that mean the wrong distribution, not bad luck.
        #[test]
        fn draws_from_the_distribution(
            logits in logits(30), temperature in 0.3f64..2.0, top_p in 0.05f64..1.1, top_k in 0usize..12, seed: u64,
        ) {
            let sampling = Sampling { temperature, top_p: top_p.min(1.0), top_k, seed: Some(seed), stream: 0 };
            let draws = 20_000;
            let counts = frequencies(&logits, sampling, draws);
            let (mut statistic, mut cells) = (0.0, 0.0);
            for (count, p) in counts.iter().zip(distribution(&logits, sampling)) {
                let expected = p * draws as f64;
                prop_assert!(p > 0.0 || *count == 0.0, "a token outside the cut was drawn");
                if expected >= 5.0 {
                    statistic += (count - expected).powi(2) / expected;
                    cells += 1.0;
                }
            }
            prop_assert!(statistic <= cells + 8.0 * (2.0 * f64::max(cells, 1.0)).sqrt(), "{statistic} over {cells} cells");
        }

        #[test]
        fn the_nucleus_is_that_of_the_definition(logits in logits(200), top_p in 0.0f64..1.0) {
            let mut candidates: Vec<Candidate> =
                (0u32..).zip(&logits).map(|(id, &x)| Candidate { id, logit: x, weight: f64::from(x).exp() }).collect();
            keep_nucleus(&mut candidates, top_p);
            let sampling = Sampling { temperature: 1.0, top_p, top_k: 0, seed: None, stream: 0 };
            let expected = distribution(&logits, sampling);
            // At a boundary that rounding decides, either side is right.
            let inside = expected.iter().filter(|&&p| p > 0.0).count();
            prop_assert!(inside.abs_diff(candidates.len()) <= 1);
            prop_assert!(!candidates.is_empty());
            prop_assert!(candidates.iter().take(inside).all(|c| expected[c.id as usize] > 0.0));
        }
    }

    #[test]
    fn seeds_and_streams_repeat_and_differ() {
        let logits = vec![0.0; 1000];
        let tokens = |seed, stream| -> Vec<u32> {
            let sampling = Sampling { temperature: 1.0, seed, stream, ..Sampling::GREEDY };
            let mut sampler = Sampler::new(sampling);
            (0..8).map(|_| sampler.sample(&logits).unwrap()).collect()
        };
        assert_eq!(tokens(Some(7), 0), tokens(Some(7), 0));
        assert_ne!(tokens(Some(7), 0), tokens(Some(7), 1));
        assert_ne!(tokens(Some(7), 0), tokens(Some(8), 0));
        assert_ne!(tokens(None, 0), tokens(None, 0));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut sampler = Sampler::new(Sampling::GREEDY);
        assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0]), Ok(1));
    }

    #[test]
    fn extreme_settings_still_sample() {
        for temperature in [1e-300, 1e-3, 1e300] {
            let mut sampler =
                Sampler::new(Sampling { temperature, top_p: 0.0, seed: Some(1), ..Sampling::GREEDY });
            assert_eq!(sampler.sample(&[-1e30, 5.0, f32::NEG_INFINITY, 4.0]), Ok(1));
        }
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 0.0, ..Sampling::GREEDY });
        assert_eq!(sampler.sample(&[2.0; 7]), Ok(0));
    }

    #[test]
    fn no_distribution_is_an_error() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::GREEDY });
            assert_eq!(sampler.sample(&[0.0, f32::NAN]), Err(NotANumber));
            assert_eq!(sampler.sample(&[0.0, f32::INFINITY]), Err(NotANumber));
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 2]), Err(NotANumber));
        }
    }
}
