use std::sync::Arc;
use std::time::Duration;

use super::{Forward, ForwardError, Piece, Prefetch};
use crate::kernels::BLOCK;
use crate::model::embedding::prefetch_rows;
use crate::model::{Model, Pass};
use crate::table::Placement;

impl Forward for Model {
    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn context(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn block_tokens(&self) -> usize {
        BLOCK
    }

    fn blocks(&self) -> usize {
        self.kv_blocks()
    }

    fn forward(&mut self, batch: &[Piece<'_>], logits: &mut Vec<f32>) -> Result<(), ForwardError> {
        Ok(Model::forward(self, batch, logits)?)
    }

    fn chooses(&self) -> bool {
        self.is_on_gpu()
    }

    fn forward_choosing(
        &mut self,
        pass: &Pass<'_>,
        logits: &mut Vec<f32>,
        chosen: &mut Vec<u32>,
    ) -> Result<(), ForwardError> {
        Ok(Model::forward_choosing(self, pass, logits, chosen)?)
    }

    fn parallel(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        self.pool().run(tasks, work);
    }

    fn prefetch(&self) -> Option<Prefetch> {
        let live = Arc::clone(self.embedding().live_table()?);
        // In memory there is nothing to bring nearer.
        if matches!(live.placement(), Placement::Ram { .. } | Placement::Gpu(_)) {
            return None;
        }
        Some(Arc::new(move |prompt| prefetch_rows(&live.get(), prompt)))
    }

    fn host_time(&self) -> Duration {
        Model::host_time(self)
    }

    fn epoch(&self) -> u64 {
        self.embedding().live_table().map_or(0, |live| live.generation())
    }
}
