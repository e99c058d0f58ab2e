use super::Shape;
use super::workspace::Workspace;
use crate::kernels::{KvCache, Matrix, Pool, Queries, Span, add, product, swiglu};

/// One layer's weights.
pub(super) struct Block {
    pub(super) attention_norm: Vec<f32>,
    pub(super) q: Matrix,
    pub(super) k: Matrix,
    pub(super) v: Matrix,
    pub(super) turn: Turn,
    pub(super) o: Matrix,
    pub(super) o_bias: Option<Vec<f32>>,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
}

/// What is done to queries, keys and values besides turning them.
#[derive(Default)]
pub(super) struct Turn {
    /// Biases of queries, keys and values, side by side (Qwen2).
    pub(super) bias: Option<Vec<f32>>,
    /// The norms of queries and keys, by head (Qwen3).
    pub(super) norms: Option<(Vec<f32>, Vec<f32>)>,
}

impl Block {
    pub(super) fn bytes(&self) -> usize {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down].iter().map(|w| w.bytes()).sum()
    }

    /// Adds what the tokens attend to.
    pub(super) fn attention(
        &self,
        pool: &Pool,
        shape: &Shape,
        work: &mut Workspace,
        cache: &mut KvCache,
        layer: usize,
        spans: &[Span<'_>],
    ) {
        let is_quantised = [&self.q, &self.k, &self.v].iter().any(|w| w.is_quantised());
        work.norm(pool, &self.attention_norm, shape, is_quantised);
        let (queries, keys) = (shape.queries(), shape.keys());
        let weights = [(&self.q, 0), (&self.k, queries), (&self.v, queries + keys)];
        product(pool, &weights, &work.x, &mut work.wide[..work.rows * shape.qkv()], shape.qkv());
        work.turn(pool, &self.turn, shape, &mut cache.writer(layer), spans);
        let rows = Queries { rows: &work.wide, stride: shape.qkv(), heads: shape.heads };
        cache.attend(pool, layer, &mut work.plan, spans, &rows, &mut work.mixed);
        let mixed = &work.mixed;
        work.x.fill(pool, (work.rows, queries), self.o.is_quantised(), &|row, x| {
            x.copy_from_slice(&mixed[row * queries..][..queries]);
        });
        let d = shape.width;
        product(pool, &[(&self.o, 0)], &work.x, &mut work.change[..work.rows * d], d);
        if let Some(bias) = &self.o_bias {
            work.change[..work.rows * shape.width]
                .chunks_exact_mut(shape.width)
                .for_each(|row| add(row, bias));
        }
    }

    /// Adds the feed-forward layer. What attention gave is added with it.
    pub(super) fn feed_forward(&self, pool: &Pool, shape: &Shape, work: &mut Workspace) {
        work.norm(pool, &self.ffn_norm, shape, self.gate.is_quantised() || self.up.is_quantised());
        let ffn = shape.feed_forward;
        let weights = [(&self.gate, 0), (&self.up, ffn)];
        product(pool, &weights, &work.x, &mut work.wide[..work.rows * 2 * ffn], 2 * ffn);
        let wide = &work.wide;
        work.x.fill(pool, (work.rows, ffn), self.down.is_quantised(), &|row, x| {
            let (gate, up) = wide[row * 2 * ffn..][..2 * ffn].split_at(ffn);
            swiglu(gate, up, x);
        });
        let d = shape.width;
        product(pool, &[(&self.down, 0)], &work.x, &mut work.change[..work.rows * d], d);
    }
}
