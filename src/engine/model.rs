use std::sync::Arc;

use candle_core::Device;
use rayon::prelude::*;

use super::{Forward, ForwardError, Piece, Prefetch};
use crate::model::embedding::prefetch_rows;
use crate::model::{KvCache, Model};

/// A block is a whole sequence's place.
impl Forward for Model {
    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn context(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn block_tokens(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn blocks(&self) -> usize {
        self.cache().map_or(0, KvCache::slots)
    }

    fn forward(&mut self, batch: &[Piece<'_>], logits: &mut Vec<f32>) -> Result<(), ForwardError> {
        *logits = Model::forward(self, batch)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        Ok(())
    }

    fn parallel(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..tasks).into_par_iter().for_each(work);
    }

    fn prefetch(&self) -> Option<Prefetch> {
        let live = Arc::clone(self.embedding().live_table()?);
        Some(Arc::new(move |prompt| prefetch_rows(&live.get(), prompt)))
    }
}
