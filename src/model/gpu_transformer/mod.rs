//! The main model as it serves on a GPU: weights, keys and values there, one workspace, and steps that are recorded once
//! and asked for again.
//!
//! It is the counterpart of [`Transformer`](super::transformer) for the CPU and gives the same logits within the rounding of
//! its type. What it does not promise is the same bits: cuBLAS sums in another order where a batch has another size.
//!
//! The host puts what a step needs into one piece of staging memory, which is locked (`inbox`): the rows of f-grams, in f32, and where
//! each row comes from, its position, its place in the cache, the sequences' pages. That is copied, the step is asked for, and
//! the host waits once, for tokens or logits. Meanwhile it brings rows of prompts that the next step goes on with (`ahead`). A
//! step that only decodes is filled up to one of a few sizes and recorded (a CUDA graph), so that asking for it is one call.

mod ahead;
mod block;
mod graphs;
mod held;
mod inbox;
mod load;
mod plan;
mod table;
#[cfg(test)]
mod tests;
mod weight;
mod workspace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::executor::{Output, Step, Wanted};
use super::{Embedding, ModelError, Piece};
use crate::gpu::{Buffer, Gpu, GpuError, Slice, Type, ops};
use crate::table::{GpuPlace, Table};
use ahead::Ahead;
use block::Block;
use graphs::Graphs;
use held::Held;
use plan::Plan;
use weight::Weight;
use workspace::Workspace;

pub(super) use load::GpuWeights;

/// A Llama-shaped transformer with its embedding, its head, and its keys and values, on a GPU.
pub(super) struct GpuTransformer {
    gpu: Arc<dyn Gpu>,
    blocks: Vec<Block>,
    /// `T` `[vocabulary, d]` in the type of activations.
    tokens: Buffer,
    /// The head, as it is stored; `tokens` where there is none.
    head: Option<Weight>,
    norm: Buffer,
    frequencies: Buffer,
    shape: Shape,
    cache: Cache,
    workspace: Workspace,
    ahead: Ahead,
    graphs: Graphs,
    /// The table whose rows are read here and not gathered by the host.
    held: Held,
    /// How long the host took to ask for all of the last step.
    host_time: Duration,
}

/// The sizes that a step needs.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// The type of activations, keys and values.
    kind: Type,
    width: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    vocabulary: usize,
    /// Queries of a tile of attention.
    tile: usize,
    eps: f32,
}

impl Shape {
    fn queries(&self) -> usize {
        self.heads * self.head
    }

    /// Features of queries, keys and values, side by side.
    fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head
    }

    fn all_heads(&self) -> [usize; 3] {
        [self.heads, self.kv_heads, self.head]
    }
}

/// Keys and values by layer `[blocks, kv_heads, 16, head]`.
struct Cache {
    layers: Vec<[Buffer; 2]>,
    blocks: usize,
}

impl GpuTransformer {
    /// How many steps are recorded.
    #[cfg(test)]
    pub(super) fn recorded_steps(&self) -> usize {
        self.graphs.len()
    }

    /// Whether a table is held.
    #[cfg(test)]
    pub(super) fn holds_table(&self) -> bool {
        self.held.table().is_ok()
    }

    /// How often a row was brought ahead that a step needed.
    #[cfg(test)]
    pub(super) fn rows_taken(&self) -> usize {
        self.ahead.taken()
    }

    /// Blocks of the cache.
    pub(super) fn kv_blocks(&self) -> usize {
        self.cache.blocks
    }

    /// Bytes of the cache.
    pub(super) fn kv_bytes(&self) -> usize {
        self.cache.layers.iter().flatten().map(|part| part.of(Type::U8).len()).sum()
    }

    /// Bytes of the weights as they are held.
    pub(super) fn weight_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::bytes).sum();
        blocks + self.tokens.of(Type::U8).len() + self.head.as_ref().map_or(0, Weight::bytes)
    }

    /// How long the host took for the last step, from when the one before was done until all was asked for. Rows that it brings ahead
    /// are not counted, for the GPU computes meanwhile.
    pub(super) fn host_time(&self) -> Duration {
        self.host_time
    }

    /// Puts a table's rows where the GPU reads them by itself.
    ///
    /// # Errors
    /// Where there is no room, or they cannot be read.
    pub(super) fn hold(&mut self, table: &Arc<Table>, place: GpuPlace) -> Result<(), ModelError> {
        self.held.hold(&*self.gpu, table, place)
    }

    /// One step over the spans of a ragged batch: stores the new positions' keys and values, and waits for what is wanted. While it
    /// waits, it brings rows that the next one is likely to need.
    ///
    /// # Errors
    /// Where the table is damaged or was changed while in use, or the GPU fails.
    ///
    /// # Panics
    /// Where a token is beyond the vocabulary, or a block is not in the cache.
    pub(super) fn forward(
        &mut self,
        embedding: &Embedding,
        step: Step<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), ModelError> {
        let ahead = self.begin(embedding, step)?;
        let start = Instant::now();
        let Step { pieces, spans, wanted, .. } = step;
        let size = Graphs::size(spans, wanted.rows);
        let mut found = embedding.look_up(pieces, self.shape.vocabulary);
        // What is recorded reads all rows in one place.
        if size.is_none() {
            self.ahead.take(&mut found, self.shape.vocabulary);
        }
        // Sources count them from the last one backwards.
        found.ranks.reverse();
        let is_held = |(table, place)| self.held.holds(&*self.gpu, table, place, self.shape.vocabulary);
        let held = embedding.gpu_table(&found).is_some_and(is_held);
        let ranks = if held { found.ranks.as_slice() } else { &[] };
        let plan = Plan::new(spans, (&found.sources, ranks), wanted, size, self.shape);
        self.workspace.prepare(&*self.gpu, &plan, found.ranks.len(), self.shape)?;
        if !held {
            embedding.gather(&found, self.workspace.inbox.staged_rows())?;
        }
        self.workspace.inbox.send(&*self.gpu, &plan.numbers)?;
        if held {
            self.read_rows(&plan, &found.ranks)?;
        }
        match size {
            Some(_) => self.recorded(&plan)?,
            None => self.ask(&plan)?,
        }
        self.host_time = start.elapsed();
        if let Err(error) = self.ahead.bring(&*self.gpu, embedding, ahead, self.shape.width) {
            // Whatever is wrong is found by the step that needs them.
            tracing::debug!("no rows are brought ahead: {error}");
        }
        Ok(self.download(wanted, output)?)
    }

    /// Waits for the last step, where nothing was wanted of it: it may still read what was staged for it. Gives what rows can be
    /// brought ahead for.
    fn begin<'a>(&mut self, embedding: &Embedding, step: Step<'a>) -> Result<&'a [Piece<'a>], ModelError> {
        self.host_time = Duration::ZERO;
        let (gpu, limit) = (&*self.gpu, self.cache.blocks);
        assert!(
            step.spans.iter().all(|span| span
                .blocks
                .iter()
                .take((span.past + span.new).div_ceil(16))
                .all(|&b| (b as usize) < limit)),
            "a block that is not in the cache"
        );
        let ahead = if embedding.gathers() { step.ahead } else { &[] };
        let rows: usize = ahead.iter().map(Piece::new_tokens).sum();
        let is_room = self.ahead.reserve(gpu, rows * self.shape.width * Type::F32.bytes());
        gpu.wait()?;
        self.ahead.join(gpu)?;
        Ok(if is_room.is_ok() { ahead } else { &[] })
    }

    /// Asks for the rows of a step's f-grams, by rank, from the table that is held.
    fn read_rows(&self, plan: &Plan, ranks: &[u32]) -> Result<(), ModelError> {
        let (room, count) = (self.workspace.inbox.rows()?, ranks.len() * self.shape.width);
        let to = room.part(room.len() - count, count)?;
        self.held.table()?.read(&*self.gpu, (ranks, self.workspace.parts(plan, &self.shape)?.ranks), to)
    }

    /// Waits for the step, and takes what is wanted of it: of rows whose token was chosen here, no logits.
    fn download(&self, wanted: Wanted<'_>, output: &mut Output<'_>) -> Result<(), GpuError> {
        let (vocabulary, rows) = (self.shape.vocabulary, wanted.rows.len());
        let Output { logits, chosen } = output;
        chosen.clear();
        if wanted.choosing.iter().any(Option::is_some) {
            let mut all = vec![0u32; rows];
            let places = self.workspace.places.of(Type::U32).part(0, rows)?;
            self.gpu.download(places, bytemuck::cast_slice_mut(&mut all))?;
            chosen.extend(all.into_iter().zip(wanted.choosing).filter_map(|(token, own)| own.map(|_| token)));
        }
        logits.resize((rows - chosen.len()) * vocabulary, 0.0);
        let (mut row, mut to) = (0, logits.as_mut_slice());
        // Neighbours in one copy.
        for run in wanted.choosing.chunk_by(|a, b| a.is_some() == b.is_some()) {
            if run[0].is_some() {
                row += run.len();
                continue;
            }
            let len = run.len() * vocabulary;
            let (own, rest) = to.split_at_mut(len);
            let found = self.workspace.logits.of(Type::F32).part(row * vocabulary, len)?;
            self.gpu.download(found, bytemuck::cast_slice_mut(own))?;
            (row, to) = (row + run.len(), rest);
        }
        Ok(())
    }

    /// Asks for a step of a size that comes again: the second time it is recorded.
    fn recorded(&mut self, plan: &Plan) -> Result<(), GpuError> {
        let (key, generation) = (plan.key(), self.workspace.generation());
        match self.graphs.find(key, generation) {
            // SAFETY: the workspace is the one that it was recorded with, as its generation says; weights and cache stay.
            graphs::Found::Recorded(step) => unsafe { step.replay() },
            graphs::Found::New | graphs::Found::Never => self.ask(plan),
            graphs::Found::Again => match self.gpu.record(&mut || self.ask(plan)) {
                Ok(step) => {
                    // SAFETY: as above.
                    unsafe { step.replay()? };
                    self.graphs.keep(key, Some(step));
                    Ok(())
                }
                // Perhaps there is no memory for it: asked for piece by piece it still works.
                Err(error) => {
                    tracing::warn!("a step of {} rows is not recorded: {error}", key.0);
                    self.graphs.keep(key, None);
                    self.ask(plan)
                }
            },
        }
    }

    /// Asks for a step.
    fn ask(&self, plan: &Plan) -> Result<(), GpuError> {
        let (gpu, shape, work) = (&*self.gpu, &self.shape, &self.workspace);
        let parts = work.parts(plan, shape)?;
        ops::embed(
            gpu,
            self.tokens.of(shape.kind),
            work.inbox.rows()?,
            self.ahead.rows(),
            parts.sources,
            parts.residual,
            shape.width,
        )?;
        let mut change = Slice::none(Type::F32);
        for (i, (block, [keys, values])) in self.blocks.iter().zip(&self.cache.layers).enumerate() {
            let cache = [keys, values].map(|part| part.of(shape.kind));
            block.attention(gpu, shape, &parts, self.frequencies.of(Type::F32), cache, change, work)?;
            let last = i + 1 == self.blocks.len();
            if last && plan.wanted == 0 {
                return Ok(());
            }
            change = if last {
                block.last_feed_forward(gpu, shape, &parts, work)?
            } else {
                block.feed_forward(gpu, shape, &parts, work)?
            };
        }
        let rows = plan.wanted;
        let x = work.x.of(shape.kind).part(0, rows * shape.width)?;
        ops::add_norm(
            gpu,
            parts.kept,
            change,
            Slice::none(Type::F32),
            self.norm.of(Type::F32),
            x,
            shape.eps,
        )?;
        let found = work.logits.of(Type::F32).part(0, rows * shape.vocabulary)?;
        let logits = (found, shape.vocabulary);
        match &self.head {
            Some(head) => head.product(gpu, x, logits, rows, work)?,
            None => weight::plain_product(
                gpu,
                x,
                self.tokens.of(shape.kind),
                logits,
                [rows, shape.width, shape.vocabulary],
            )?,
        }
        // Of all rows: a recorded step is the same whoever wants what, and where nobody does it is the largest, which is next to
        // nothing.
        let places = work.places.of(Type::U32).part(0, rows)?;
        ops::choose(gpu, found, parts.draws, places, shape.vocabulary)
    }
}
