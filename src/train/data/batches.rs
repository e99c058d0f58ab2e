use std::sync::Arc;

use super::permutation::{Permutation, mix};
use crate::corpus::{Dataset, Shard, Tags};
use crate::train::TrainError;

/// Windows of equal length, laid end to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `windows * context` tokens.
    pub inputs: Vec<u32>,
    /// The token after each.
    pub targets: Arc<Vec<u32>>,
    /// The length of the longest match at each input, not reaching before its window; empty for a baseline.
    pub matches: Vec<u8>,
    /// Tokens of a window.
    pub context: usize,
}

impl Batch {
    /// Replaces a `share` of the matches by a shorter one, or none, at random: every prefix of a match's length is again
    /// an f-gram, for the set is closed.
    pub fn fall_back(&mut self, share: f64, seed: u64) {
        let limit = (share * (1u64 << 32) as f64) as u64;
        for (i, n) in self.matches.iter_mut().enumerate().filter(|(_, n)| **n >= 2) {
            let random = mix(mix(seed) ^ i as u64);
            if random >> 32 < limit {
                *n = 1 + ((random & 0xffff_ffff) % u64::from(*n - 1)) as u8;
            }
        }
    }
}

/// Cuts a split into windows of `context` tokens and one more to predict, and hands them out in shuffled order: each
/// epoch is a permutation of its own. A batch depends on the seed and its number alone, so a resumed run sees what an
/// undisturbed one sees.
pub struct Batches<'a> {
    shards: Vec<(&'a Shard, Option<&'a [u8]>)>,
    /// Windows in all shards before this one.
    before: Vec<u64>,
    windows: u64,
    context: usize,
    seed: u64,
}

impl<'a> Batches<'a> {
    /// The windows of the training split, or of the validation split.
    ///
    /// # Errors
    /// Where no shard holds even one window.
    pub fn new(
        dataset: &'a Dataset,
        tags: Option<&'a Tags>,
        validation: bool,
        context: usize,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let (split, name) =
            if validation { (dataset.validation(), "validation") } else { (dataset.train(), "training") };
        let tags: Vec<&[u8]> = match tags {
            Some(tags) if validation => tags.validation().collect(),
            Some(tags) => tags.train().collect(),
            None => Vec::new(),
        };
        let mut shards = Vec::new();
        let (mut before, mut windows) = (Vec::new(), 0);
        for (i, shard) in split.shards.iter().enumerate() {
            shards.push((shard, tags.get(i).copied()));
            before.push(windows);
            windows += (shard.len().saturating_sub(1) / context) as u64;
        }
        if windows == 0 {
            return Err(TrainError::Data(format!(
                "the {name} split of {} has {} tokens, not enough for one window of {context} and a token to predict: \
                 prepare more text, or lower context",
                dataset.directory().display(),
                split.tokens
            )));
        }
        Ok(Self { shards, before, windows, context, seed })
    }

    /// How many different windows there are.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// The `number`-th batch of `size` windows, in shuffled order.
    ///
    /// # Errors
    /// Where a shard holds an impossible token.
    pub fn shuffled(&self, number: u64, size: usize) -> Result<Batch, TrainError> {
        let windows = (0..size as u64).map(|i| {
            let at = number * size as u64 + i;
            let epoch = at / self.windows;
            Permutation::new(self.windows, mix(self.seed ^ mix(epoch))).get(at % self.windows)
        });
        self.batch(windows)
    }

    /// About `tokens` tokens in batches of `size` windows, spread evenly over the split and always the same.
    ///
    /// # Errors
    /// Where a shard holds an impossible token.
    pub fn spread(&self, tokens: usize, size: usize) -> Result<Vec<Batch>, TrainError> {
        let count = (tokens.div_ceil(self.context) as u64).clamp(1, self.windows);
        let windows: Vec<u64> = (0..count).map(|i| i * self.windows / count).collect();
        windows.chunks(size).map(|chunk| self.batch(chunk.iter().copied())).collect()
    }

    fn batch(&self, windows: impl Iterator<Item = u64>) -> Result<Batch, TrainError> {
        let (mut inputs, mut targets, mut matches) = (Vec::new(), Vec::new(), Vec::new());
        let mut tokens = Vec::new();
        for window in windows {
            let i = self.before.partition_point(|&before| before <= window) - 1;
            let (shard, tags) = self.shards[i];
            let start = (window - self.before[i]) as usize * self.context;
            shard.read(start..start + self.context + 1, &mut tokens)?;
            inputs.extend_from_slice(&tokens[..self.context]);
            targets.extend_from_slice(&tokens[1..]);
            if let Some(tags) = tags {
                // A match that reaches before the window is clamped; by closure that is again the longest match.
                let tags = &tags[start..start + self.context];
                matches
                    .extend(tags.iter().enumerate().map(|(p, &n)| n.min(p.saturating_add(1).min(255) as u8)));
            }
        }
        Ok(Batch { inputs, targets: Arc::new(targets), matches, context: self.context })
    }
}
