//! The main model as it serves on a CPU: packed weights, a paged cache of keys and values, one workspace.
//!
//! It takes the input embeddings of a ragged batch and never hears of n-grams; the decoder that is trained is
//! [`Decoder`](super::Decoder), on candle. Buffers grow to the largest step and are used again. All work is
//! done by the [`kernels`](crate::kernels), each output number in one order: so what a sequence gets is the same, bit for
//! bit, whatever runs beside it. Another device is another such executor behind [`Model`](super::Model).

mod block;
mod load;
mod workspace;

use crate::kernels::{KvCache, KvShape, Matrix, Pool, Span, product};
use block::Block;
use workspace::Workspace;

pub(super) use load::Weights;

/// A Llama-shaped transformer with its embedding and its head.
pub(super) struct Transformer {
    blocks: Vec<Block>,
    /// `T` `[vocabulary, d]`: read by rows, and the head as well where they are tied.
    tokens: Matrix,
    head: Option<Matrix>,
    norm: Vec<f32>,
    shape: Shape,
    workspace: Workspace,
}

/// The sizes that a step needs.
#[derive(Clone, Debug)]
struct Shape {
    width: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    eps: f32,
    /// By pair of features: how far a position turns it, in radians.
    frequencies: Vec<f32>,
}

impl Shape {
    /// Features of all queries of a token.
    fn queries(&self) -> usize {
        self.heads * self.head
    }

    /// Features of all keys, or values, of a token.
    fn keys(&self) -> usize {
        self.kv_heads * self.head
    }

    /// Features of queries, keys and values, side by side in this order.
    fn qkv(&self) -> usize {
        self.queries() + 2 * self.keys()
    }
}

impl Transformer {
    /// What a position's keys and values take.
    pub(in crate::model) fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.blocks.len(), heads: self.shape.kv_heads, head: self.shape.head }
    }

    /// Bytes of the weights as they are held.
    pub(in crate::model) fn weight_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::bytes).sum();
        blocks + self.tokens.bytes() + self.head.as_ref().map_or(0, Matrix::bytes)
    }

    /// Room for the input embeddings `[tokens, d]` of the next step, and a way to read `T`.
    pub(in crate::model) fn input(&mut self, tokens: usize) -> (&mut [f32], &Matrix) {
        (self.workspace.residual(tokens * self.shape.width), &self.tokens)
    }

    /// One step over the spans of a ragged batch, whose input embeddings are in [`Transformer::input`]: stores the new
    /// positions' keys and values in `cache` and puts the logits of the batch's rows `wanted` (ascending) into `logits`
    /// `[wanted, vocabulary]`, in place of what was there.
    ///
    /// # Panics
    /// Where the cache is of another shape or has no such block.
    pub(in crate::model) fn forward(
        &mut self,
        pool: &Pool,
        cache: &mut KvCache,
        spans: &[Span<'_>],
        wanted: &[usize],
        logits: &mut Vec<f32>,
    ) {
        let (shape, work) = (&self.shape, &mut self.workspace);
        work.begin(pool, shape, spans);
        for (layer, block) in self.blocks.iter().enumerate() {
            block.attention(pool, shape, work, cache, layer, spans);
            if layer + 1 == self.blocks.len() {
                // Of the other rows nothing more is read.
                work.keep(shape, wanted);
            }
            if work.rows == 0 {
                break;
            }
            block.feed_forward(pool, shape, work);
        }
        if work.rows == 0 {
            logits.clear();
            return;
        }
        let head = self.head.as_ref().unwrap_or(&self.tokens);
        work.norm(pool, &self.norm, shape, head.is_quantised());
        // What is there is overwritten.
        logits.resize(wanted.len() * head.outputs(), 0.0);
        product(pool, &[(head, 0)], &work.x, logits, head.outputs());
    }
}
