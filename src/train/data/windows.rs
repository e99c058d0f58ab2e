use super::Batch;
use super::permutation::{Permutation, mix};
use crate::corpus::{Dataset, Shard, Tags};
use crate::train::{Documents, TrainError};

/// What of a dataset is read, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// The validation split instead of the training split.
    pub(super) validation: bool,
    /// Tokens of a window.
    pub(super) context: usize,
    pub(super) documents: Documents,
}

/// A split of one corpus in windows of `context` tokens and one more to predict, in shuffled order: each epoch is a
/// permutation of its own. Nothing is loaded: shards and tags stay mapped.
pub(super) struct Windows<'a> {
    shards: Vec<(&'a Shard, Option<&'a [u8]>)>,
    /// Windows in all shards before this one.
    before: Vec<u64>,
    count: u64,
    context: usize,
    /// The token that keeps documents apart, if they are.
    apart: Option<u32>,
    seed: u64,
}

impl<'a> Windows<'a> {
    pub(super) fn new(
        dataset: &'a Dataset,
        tags: Option<&'a Tags>,
        cut: Cut,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let Cut { validation, context, documents } = cut;
        let (split, name) =
            if validation { (dataset.validation(), "validation") } else { (dataset.train(), "training") };
        let tags: Vec<&[u8]> = match tags {
            Some(tags) if validation => tags.validation().collect(),
            Some(tags) => tags.train().collect(),
            None => Vec::new(),
        };
        let mut shards = Vec::new();
        let (mut before, mut count) = (Vec::new(), 0);
        for (i, shard) in split.shards.iter().enumerate() {
            shards.push((shard, tags.get(i).copied()));
            before.push(count);
            count += (shard.len().saturating_sub(1) / context) as u64;
        }
        if count == 0 {
            return Err(TrainError::Data(format!(
                "the {name} split of {} has {} tokens, not enough for one window of {context} and a token to predict: \
                 prepare more text, or lower context",
                dataset.directory().display(),
                split.tokens
            )));
        }
        let apart = (documents == Documents::Apart).then(|| dataset.eos());
        Ok(Self { shards, before, count, context, apart, seed })
    }

    /// How many different windows there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The window that comes after `at` others.
    pub(super) fn shuffled(&self, at: u64) -> u64 {
        let epoch = at / self.count;
        Permutation::new(self.count, mix(self.seed ^ mix(epoch))).get(at % self.count)
    }

    /// About `tokens` tokens in batches of `size` windows, spread evenly over the split and always the same.
    pub(super) fn spread(&self, tokens: usize, size: usize) -> Result<Vec<Batch>, TrainError> {
        let count = (tokens.div_ceil(self.context) as u64).clamp(1, self.count);
        let windows: Vec<u64> = (0..count).map(|i| i * self.count / count).collect();
        let batches = windows.chunks(size).map(|windows| {
            let (mut batch, mut tokens) = (Batch::default(), Vec::new());
            for &window in windows {
                self.read(window, &mut tokens, &mut batch)?;
            }
            Ok(batch)
        });
        batches.collect()
    }

    /// Adds a window to a batch; `tokens` is room to read it into.
    pub(super) fn read(
        &self,
        window: u64,
        tokens: &mut Vec<u32>,
        batch: &mut Batch,
    ) -> Result<(), TrainError> {
        let i = self.before.partition_point(|&before| before <= window) - 1;
        let (shard, tags) = self.shards[i];
        let start = (window - self.before[i]) as usize * self.context;
        shard.read(start..start + self.context + 1, tokens)?;
        batch.push(tokens, self.apart);
        if let Some(tags) = tags {
            batch.push_matches(&tags[start..start + self.context]);
        }
        Ok(())
    }
}
