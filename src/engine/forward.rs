use std::sync::Arc;

use candle_core::Device;

use crate::model::embedding::prefetch_rows;
use crate::model::{KvCache, Model, Piece};

/// What a forward pass failed with. It ends the requests of its batch, not the engine.
pub type ForwardError = Box<dyn std::error::Error + Send + Sync>;

/// Brings nearer what a model will need of a sequence's tokens. Called from a thread of its own.
pub type Prefetch = Arc<dyn Fn(&[u32]) + Send + Sync>;

/// What the engine needs of a model: a forward pass over a ragged batch, and places ("slots") that each keep the keys and
/// values of one sequence between passes.
pub trait Forward: Send {
    /// Logits of a position: one for each token id below this.
    fn vocab_size(&self) -> usize;

    /// The most tokens of one sequence, prompt and output together.
    fn context(&self) -> usize;

    /// How many sequences can have keys and values at a time. Slots are numbered from 0.
    fn slots(&self) -> usize;

    /// Runs one pass over `batch`, in which no slot occurs twice, and returns the wanted logits: for each piece, for each
    /// wanted position, `vocab_size` values, all in one vector in that order.
    ///
    /// # Errors
    /// Whatever keeps the model from computing; the sequences of the batch are then ended.
    fn forward(&mut self, batch: &[Piece<'_>]) -> Result<Vec<f32>, ForwardError>;

    /// What to call with the prompt of each request that was taken, before its turn comes; None if there is nothing to do.
    fn prefetch(&self) -> Option<Prefetch> {
        None
    }
}

impl Forward for Model {
    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn context(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn slots(&self) -> usize {
        self.cache().map_or(0, KvCache::slots)
    }

    fn forward(&mut self, batch: &[Piece<'_>]) -> Result<Vec<f32>, ForwardError> {
        Ok(Model::forward(self, batch)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    fn prefetch(&self) -> Option<Prefetch> {
        let live = Arc::clone(self.embedding().live_table()?);
        Some(Arc::new(move |prompt| prefetch_rows(&live.get(), prompt)))
    }
}
