//! Attention over keys and values in blocks (paged), with grouped heads, for a ragged batch.
//!
//! The positions before a token are taken in chunks of 256: each chunk by itself gives scores, their largest, a sum
//! of exponentials and a weighted sum of values, and chunks are merged from the first to the last (as in
//! FlashAttention, Dao et al., arXiv 2205.14135, and its split form for decoding). Where chunks begin depends on nothing
//! but the position, so what a token gets is the same, bit for bit, in a prompt, in decoding and beside anything else.

mod kv;
mod plan;
#[cfg(test)]
mod tests;
mod tile;

pub use kv::{BLOCK, KvCache, KvShape, KvType, KvWriter, Span};
pub use plan::AttentionPlan;

use half::f16;

use super::Pool;
use super::Shared;
use super::simd;
use kv::Numbers;
use plan::Task;
use tile::{Element, Tile};

/// Positions of a chunk.
const CHUNK: usize = 256;

/// Query rows of a tile: as many as the 32 registers of AVX-512 hold sums of, four each, beside the operands.
const ROWS: usize = 6;

/// Where queries come from and results go to: rows of the same batch, of different widths.
pub struct Queries<'a> {
    /// `[tokens, stride]`; a row begins with its heads' queries, rotated.
    pub rows: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
    /// Query heads; a multiple of the cache's heads, neighbours share a key and value head.
    pub heads: usize,
}

impl KvCache {
    /// Softmax attention of each new token of `plan`'s spans over the positions up to its own, in layer `layer`:
    /// `out` is `[tokens, heads * head]`. The keys and values of the new tokens are in the cache already.
    ///
    /// # Panics
    /// Where the plan is of another batch.
    pub fn attend(
        &self,
        pool: &Pool,
        layer: usize,
        plan: &mut AttentionPlan,
        spans: &[Span<'_>],
        q: &Queries<'_>,
        out: &mut [f32],
    ) {
        assert!(plan.is_of(spans, q.heads, self.shape), "attention by the plan of another batch");
        let (tasks, partials) = plan.parts();
        {
            let (out, partials) = (Shared::new(out), Shared::new(partials));
            pool.run(tasks.len(), &|task| {
                let task = &tasks[task];
                match &self.numbers {
                    Numbers::F32(numbers) => {
                        self.task::<f32>(numbers, layer, task, spans, q, &out, &partials);
                    }
                    Numbers::F16(numbers) => {
                        self.task::<f16>(numbers, layer, task, spans, q, &out, &partials);
                    }
                }
            });
        }
        plan.merge(q.heads, self.shape, out);
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of attention")]
    fn task<E: Element>(
        &self,
        numbers: &[E],
        layer: usize,
        task: &Task,
        spans: &[Span<'_>],
        q: &Queries<'_>,
        out: &Shared<'_, f32>,
        partials: &Shared<'_, f32>,
    ) {
        let span = &spans[task.span];
        let (head, group) = (self.shape.head, q.heads / self.shape.heads);
        let mut queries: [&[f32]; ROWS] = [&[]; ROWS];
        let mut limits = [0; ROWS];
        let mut results: [&mut [f32]; ROWS] = Default::default();
        for i in 0..task.rows {
            let (token, member) = ((task.row + i) / group, (task.row + i) % group);
            let column = (task.head * group + member) * head;
            let row = task.first_token + token;
            queries[i] = &q.rows[row * q.stride + column..][..head];
            limits[i] = span.past + token + 1;
            results[i] = match task.partial.map(|at| at + i * (head + 2)) {
                None => {
                    let at = row * q.heads * head + column;
                    // SAFETY: each task has rows and heads of its own.
                    unsafe { out.part(at..at + head) }
                }
                // SAFETY: each task has a partial result of its own.
                Some(at) => unsafe { partials.part(at..at + head) },
            };
        }
        let tile = Tile {
            numbers,
            cache: self,
            layer,
            head: task.head,
            blocks: span.blocks,
            queries: &queries[..task.rows],
            limits: &limits[..task.rows],
            results: &mut results[..task.rows],
            chunks: task.chunks.clone(),
            divide: task.partial.is_none(),
        };
        let sums = simd::dispatch(tile);
        if let Some(at) = task.partial {
            for (i, (max, sum)) in sums.into_iter().take(task.rows).enumerate() {
                let last = at + i * (head + 2) + head;
                // SAFETY: as above.
                unsafe { partials.part(last..last + 2) }.copy_from_slice(&[max, sum]);
            }
        }
    }
}
