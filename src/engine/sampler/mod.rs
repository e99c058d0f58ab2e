//! From logits to a token.
//!
//! The order of things is that of other servers: bias and penalties change the logits; the temperature divides them; what
//! is left of `min_p`, then `top_k`, then `top_p` is drawn from.

mod edits;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::Sampling;
use super::weights::{RUN, Weights, at_least, likeliest, peaks};
use crate::model::Draw;
use edits::Edits;

/// Candidates for which room is kept from one token to the next: more than there usually are, but not a whole vocabulary
/// for each sequence.
const KEPT: usize = 16 * 1024;

/// The logits are no distribution: one of them is not a number, or none is finite.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the model's output is not a number")]
pub struct NotANumber;

/// Chooses one sequence's tokens. It owns the sequence's random numbers, of which each token that is not greedy takes
/// exactly one.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    edits: Edits,
    random: ChaCha8Rng,
    // What is worked on, kept for the next token.
    peaks: Vec<f32>,
    by_size: Vec<f32>,
    sums: Vec<f64>,
    candidates: Vec<Candidate>,
    boundary: Vec<Candidate>,
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
    /// A sampler at the start of its random numbers, for what follows `prompt`.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        // The standard library's hash keys come from the operating system, which is all that a seed of no one's needs.
        let seed = sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(sampling.stream));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(sampling.stream);
        let edits = Edits::new(&sampling, prompt);
        let (peaks, by_size, sums, candidates, boundary) = Default::default();
        Self { sampling, edits, random, peaks, by_size, sums, candidates, boundary }
    }

    /// How the next tokens, so many, are drawn, for who has the logits; None where these are to be changed before.
    pub fn draws(&self, count: usize) -> Option<Vec<Draw>> {
        let mut random = self.random.clone();
        self.edits.is_none().then(|| (0..count).map(|_| next_draw(&self.sampling, &mut random)).collect())
    }

    /// Says that the first of these draws was made.
    pub fn take_draw(&mut self) {
        next_draw(&self.sampling, &mut self.random);
    }

    /// The next token, given the logits of all, which may not be one of `banned`. It counts as generated. The logits are
    /// worked on in place and are afterwards what they were.
    ///
    /// # Errors
    /// [`NotANumber`] if the logits define no distribution.
    pub fn sample(&mut self, logits: &mut [f32], banned: &[u32]) -> Result<u32, NotANumber> {
        self.edits.apply(logits, banned);
        let chosen = self.choose(logits);
        self.candidates.shrink_to(KEPT);
        self.edits.undo(logits);
        if let Ok(id) = chosen {
            self.edits.note(id);
        }
        chosen
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, NotANumber> {
        let draw = next_draw(&self.sampling, &mut self.random);
        self.pick(logits, draw)
    }

    /// The token that `draw` takes from these logits.
    ///
    /// # Errors
    /// [`NotANumber`] if the logits define no distribution.
    pub fn pick(&mut self, logits: &[f32], draw: Draw) -> Result<u32, NotANumber> {
        let max = peaks(logits, &mut self.peaks)?;
        let Draw { temperature, top_p, top_k, min_p, uniform } = draw;
        if temperature == 0.0 {
            return Ok(likeliest(logits, &self.peaks, max));
        }
        let weights = Weights::new(max, temperature);
        let top_k = if top_k < logits.len() { top_k } else { 0 };
        let drawn = if top_p < 1.0 || min_p > 0.0 || top_k > 0 {
            self.find_candidates(logits, max, weights, Draw { top_k, ..draw });
            draw_from(&self.candidates, uniform)
        } else {
            self.draw_from_all(logits, weights, uniform)
        };
        Ok(drawn.unwrap_or_else(|| likeliest(logits, &self.peaks, max)))
    }

    /// The tokens that are left of `min_p`, `top_k` and `top_p`, by id. 0 for `top_k` keeps all.
    fn find_candidates(&mut self, logits: &[f32], max: f32, weights: Weights, draw: Draw) {
        let Draw { top_p, top_k, min_p, .. } = draw;
        // Below which logit a token cannot be left.
        let mut floor = f32::NEG_INFINITY;
        let mut total = None;
        if min_p > 0.0 {
            floor = weights.floor(0.999 * min_p);
        }
        if (1..self.peaks.len()).contains(&top_k) {
            // So many runs have a token that is at least this likely.
            self.by_size.clone_from(&self.peaks);
            let (_, least, _) = self.by_size.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
            floor = floor.max(*least);
        }
        if floor == f32::NEG_INFINITY && top_k == 0 {
            // Tokens below this have less than 1 - top_p of the weight among them all.
            let all = weights.total(logits);
            floor = weights.floor(0.999 * all * (1.0 - top_p) / logits.len() as f64);
            total = Some(all);
        }
        self.candidates.clear();
        self.candidates.extend(at_least(logits, &self.peaks, floor.min(max)).filter_map(|(id, logit)| {
            let weight = f64::from(weights.of(logit));
            (weight >= min_p).then_some(Candidate { id, logit, weight })
        }));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, Candidate::order);
            self.candidates.truncate(top_k);
            // A draw goes by ids, so it does not depend on how the candidates were found.
            self.candidates.sort_unstable_by_key(|c| c.id);
        }
        if top_p < 1.0 {
            let total = total.unwrap_or_else(|| self.candidates.iter().map(|c| c.weight).sum());
            keep_nucleus(&mut self.candidates, &mut self.boundary, top_p * total);
        }
    }

    /// The token at `uniform` (0 to 1) of the total weight of all.
    fn draw_from_all(&mut self, logits: &[f32], weights: Weights, uniform: f64) -> Option<u32> {
        let mut left = uniform * weights.sums(logits, &mut self.sums);
        let run = self.sums.iter().position(|sum| {
            let is_here = left < *sum;
            left -= if is_here { 0.0 } else { *sum };
            is_here
        });
        let last = || self.sums.iter().rposition(|&sum| sum > 0.0);
        let run = run.or_else(last)?;
        let ids = (run * RUN) as u32..;
        self.candidates.clear();
        self.candidates.extend(ids.zip(logits[run * RUN..].iter().take(RUN)).map(|(id, &logit)| Candidate {
            id,
            logit,
            weight: f64::from(weights.of(logit)),
        }));
        take_at(&self.candidates, left)
    }
}

/// How the next token is drawn. Only where that is left to chance it takes a random number.
fn next_draw(sampling: &Sampling, random: &mut ChaCha8Rng) -> Draw {
    let &Sampling { temperature, top_p, top_k, min_p, .. } = sampling;
    if temperature == 0.0 || top_k == 1 {
        return Draw::LIKELIEST;
    }
    Draw { temperature, top_p, top_k, min_p, uniform: random.random() }
}

/// Keeps the fewest of the likeliest candidates that together have at least `weight`, and at least one.
///
/// The candidates may be a large part of the vocabulary, so they are not sorted: they are counted into bins of like logits,
/// and only the bin in which the weight is reached is looked at more closely.
fn keep_nucleus(candidates: &mut Vec<Candidate>, boundary: &mut Vec<Candidate>, weight: f64) {
    const BINS: usize = 256;
    let logits = || candidates.iter().filter(|c| c.weight > 0.0).map(|c| c.logit);
    let (least, most) = logits().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let scale = if most > least { BINS as f32 / (most - least) } else { 0.0 };
    let bin = |c: &Candidate| (((most - c.logit) * scale) as usize).min(BINS - 1);
    let mut weights = [0f64; BINS];
    candidates.iter().for_each(|c| weights[bin(c)] += c.weight);
    let mut sum = 0.0;
    let reaches = |weight_of: f64, sum: &mut f64| {
        *sum += weight_of;
        *sum >= weight
    };
    let Some(reached) = weights.iter().position(|&x| reaches(x, &mut sum)) else { return };
    sum -= weights[reached];
    boundary.clear();
    boundary.extend(candidates.iter().filter(|c| bin(c) == reached));
    boundary.sort_unstable_by(Candidate::order);
    let last = boundary.iter().find(|c| reaches(c.weight, &mut sum)).or(boundary.last()).copied();
    let Some(last) = last else { return };
    candidates.retain(|c| bin(c) < reached || (bin(c) == reached && c.order(&last).is_le()));
}

/// The candidate at `uniform` (0 to 1) of the total weight; none only if no candidate has any.
fn draw_from(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    take_at(candidates, uniform * total)
}

/// The candidate in which `weight` is reached, of those that have any; the last of them if none reaches it.
fn take_at(candidates: &[Candidate], weight: f64) -> Option<u32> {
    let mut left = weight;
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
