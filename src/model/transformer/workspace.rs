use super::Shape;
use super::block::Turn;
use crate::kernels::{
    Activations, AttentionPlan, BLOCK, KvWriter, Pool, Shared, Span, add, rms_norm, rms_norm_heads, rotate,
};

/// Rows of a task where rows are shared between threads.
const ROWS: usize = 8;

/// Where a step's numbers are; it grows to the largest step.
#[derive(Default)]
pub(super) struct Workspace {
    /// Rows of the batch; fewer from the last layer's feed-forward on.
    pub(super) rows: usize,
    /// The residual stream `[rows, d]`.
    residual: Vec<f32>,
    /// What the last product has to add to it `[rows, d]`.
    pub(super) change: Vec<f32>,
    /// Whether there is something to add.
    has_change: bool,
    /// The input of the next product.
    pub(super) x: Activations,
    /// Queries, keys and values, or gate and up, of each row.
    pub(super) wide: Vec<f32>,
    /// What attention gives `[rows, heads * head]`.
    pub(super) mixed: Vec<f32>,
    /// Cosines and sines of the angles of each row's position.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Span and position of each row.
    places: Vec<(usize, usize)>,
    pub(super) plan: AttentionPlan,
}

/// Makes room. What is there stays as it was, for every element that is read is written before.
fn room(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

impl Workspace {
    pub(super) fn residual(&mut self, len: usize) -> &mut [f32] {
        room(&mut self.residual, len);
        &mut self.residual[..len]
    }

    /// Prepares a step, of which the residual stream holds the input.
    pub(super) fn begin(&mut self, pool: &Pool, shape: &Shape, spans: &[Span<'_>]) {
        self.places.clear();
        for (i, span) in spans.iter().enumerate() {
            self.places.extend((span.past..span.past + span.new).map(|position| (i, position)));
        }
        self.rows = self.places.len();
        self.has_change = false;
        room(&mut self.change, self.rows * shape.width);
        room(&mut self.wide, self.rows * shape.qkv().max(2 * shape.feed_forward));
        room(&mut self.mixed, self.rows * shape.queries());
        self.cos.clear();
        self.sin.clear();
        for &(_, position) in &self.places {
            for frequency in &shape.frequencies {
                // In f32 as the reference has it, or the last digits of far positions would differ from it.
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
        let kv = crate::kernels::KvShape { layers: 1, heads: shape.kv_heads, head: shape.head };
        self.plan.set(spans, shape.heads, kv, pool.threads());
    }

    /// Adds what is to be added to the residual stream, and normalises it into the input of the next product.
    pub(super) fn norm(&mut self, pool: &Pool, weight: &[f32], shape: &Shape, is_quantised: bool) {
        let (d, change) = (shape.width, self.has_change.then_some(&self.change));
        let residual = Shared::new(&mut self.residual);
        self.x.fill(pool, (self.rows, d), is_quantised, &|row, x| {
            // SAFETY: each row is filled by one task.
            let residual = unsafe { residual.part(row * d..(row + 1) * d) };
            if let Some(change) = change {
                add(residual, &change[row * d..][..d]);
            }
            rms_norm(residual, weight, shape.eps, x);
        });
        // Each norm is followed by products that end in `change`.
        self.has_change = true;
    }

    /// Biases, norms and turns queries and keys, and stores keys and values in a layer of the cache.
    pub(super) fn turn(
        &mut self,
        pool: &Pool,
        turn: &Turn,
        shape: &Shape,
        cache: &mut KvWriter<'_>,
        spans: &[Span<'_>],
    ) {
        let (width, half) = (shape.qkv(), shape.head / 2);
        let wide = Shared::new(&mut self.wide);
        let (places, cos, sin, cache) = (&self.places, &self.cos, &self.sin, &*cache);
        pool.run(places.len().div_ceil(ROWS), &|task| {
            for (row, &(span, position)) in places.iter().enumerate().skip(task * ROWS).take(ROWS) {
                // SAFETY: each row belongs to one task.
                let qkv = unsafe { wide.part(row * width..(row + 1) * width) };
                if let Some(bias) = &turn.bias {
                    add(qkv, bias);
                }
                let (q, kv) = qkv.split_at_mut(shape.queries());
                let (k, v) = kv.split_at_mut(shape.keys());
                if let Some((q_norm, k_norm)) = &turn.norms {
                    rms_norm_heads(q, q_norm, shape.eps);
                    rms_norm_heads(k, k_norm, shape.eps);
                }
                let angles = row * half..(row + 1) * half;
                rotate(q, &cos[angles.clone()], &sin[angles.clone()]);
                rotate(k, &cos[angles.clone()], &sin[angles]);
                // SAFETY: a position of a sequence is one row of the batch, and blocks that are written to belong to
                // one sequence; reading begins when all is written.
                unsafe { cache.write(spans[span].blocks[position / BLOCK], position, k, v) };
            }
        });
    }

    /// Keeps these rows, in ascending order, and drops the others.
    pub(super) fn keep(&mut self, shape: &Shape, wanted: &[usize]) {
        let d = shape.width;
        for (to, &from) in wanted.iter().enumerate() {
            self.residual.copy_within(from * d..(from + 1) * d, to * d);
            self.change.copy_within(from * d..(from + 1) * d, to * d);
        }
        self.rows = wanted.len();
    }
}
