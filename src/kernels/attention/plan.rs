use std::ops::Range;

use super::{CHUNK, KvShape, ROWS, Span};
use crate::kernels::exp;

/// Tiles a thread, below which chunks of one tile are shared between threads.
const TILES_A_THREAD: usize = 4;

/// How a step's attention is divided into tasks: the same for every layer.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    tasks: Vec<Task>,
    /// Results of chunks that are still to be merged: `head` numbers, their maximum and their sum a row.
    partials: Vec<f32>,
    /// Tiles whose chunks are tasks of their own: `chunks` is all of them, `partial` the first one's result.
    split: Vec<Task>,
    /// What it is a plan of: query heads, key and value heads, features of a head; and past and new positions of spans.
    heads: (usize, usize, usize),
    spans: Vec<(usize, usize)>,
}

/// Some query rows of one key and value head of one span. Row `r` of a span is head `r % group` of token `r / group`.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) span: usize,
    pub(super) head: usize,
    /// The span's first token in the batch.
    pub(super) first_token: usize,
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) chunks: Range<usize>,
    /// Where the result goes, where it is one chunk of several.
    pub(super) partial: Option<usize>,
}

impl AttentionPlan {
    /// Divides the attention of `spans` between `threads`; `heads` are the query heads. What is computed does not
    /// depend on how it is divided.
    pub fn set(&mut self, spans: &[Span<'_>], heads: usize, shape: KvShape, threads: usize) {
        self.tasks.clear();
        self.split.clear();
        self.heads = (heads, shape.heads, shape.head);
        self.spans.clear();
        self.spans.extend(spans.iter().map(|span| (span.past, span.new)));
        let group = heads / shape.heads;
        let tiles: usize = spans.iter().map(|span| (span.new * group).div_ceil(ROWS) * shape.heads).sum();
        let is_split = threads > 1 && tiles < TILES_A_THREAD * threads;
        let (mut first_token, mut partial) = (0, 0);
        for (i, span) in spans.iter().enumerate() {
            for head in 0..shape.heads {
                for row in (0..span.new * group).step_by(ROWS) {
                    let rows = ROWS.min(span.new * group - row);
                    let keys = span.past + (row + rows - 1) / group + 1;
                    let chunks = 0..keys.div_ceil(CHUNK);
                    let task = Task { span: i, head, first_token, row, rows, chunks, partial: None };
                    if !is_split || task.chunks.len() == 1 {
                        self.tasks.push(task);
                        continue;
                    }
                    let size = rows * (shape.head + 2);
                    for chunk in task.chunks.clone() {
                        let at = Some(partial + chunk * size);
                        self.tasks.push(Task { chunks: chunk..chunk + 1, partial: at, ..task.clone() });
                    }
                    let chunks = task.chunks.len();
                    self.split.push(Task { partial: Some(partial), ..task });
                    partial += chunks * size;
                }
            }
            first_token += span.new;
        }
        // The long ones first, so that no thread is left alone with one at the end.
        self.tasks.sort_unstable_by_key(|task| std::cmp::Reverse(task.rows * task.chunks.len()));
        self.partials.resize(partial, 0.0);
    }

    pub(super) fn is_of(&self, spans: &[Span<'_>], heads: usize, shape: KvShape) -> bool {
        let are_equal = self.spans.iter().copied().eq(spans.iter().map(|span| (span.past, span.new)));
        are_equal && self.heads == (heads, shape.heads, shape.head)
    }

    pub(super) fn parts(&mut self) -> (&[Task], &mut [f32]) {
        (&self.tasks, &mut self.partials)
    }

    /// Puts chunks together that were computed apart, in their order.
    pub(super) fn merge(&self, heads: usize, shape: KvShape, out: &mut [f32]) {
        let (head, group) = (shape.head, heads / shape.heads);
        for task in &self.split {
            let size = task.rows * (head + 2);
            for i in 0..task.rows {
                let (token, member) = ((task.row + i) / group, (task.row + i) % group);
                let at = (task.first_token + token) * heads * head + (task.head * group + member) * head;
                let result = &mut out[at..at + head];
                let mut state = (f32::NEG_INFINITY, 0.0);
                for chunk in task.chunks.clone() {
                    let from = task.partial.unwrap_or_default() + chunk * size + i * (head + 2);
                    let (sums, last) = self.partials[from..from + head + 2].split_at(head);
                    state = merge(state, (last[0], last[1]), result, |j| sums[j]);
                }
                divide(result, state.1);
            }
        }
    }
}

/// Adds a chunk's (maximum, sum of exponentials) and weighted sums to those of the chunks before it.
#[inline(always)]
pub(super) fn merge(
    (max, sum): (f32, f32),
    (chunk_max, chunk_sum): (f32, f32),
    result: &mut [f32],
    chunk: impl Fn(usize) -> f32,
) -> (f32, f32) {
    if chunk_sum == 0.0 {
        return (max, sum);
    }
    if sum == 0.0 {
        result.iter_mut().enumerate().for_each(|(j, x)| *x = chunk(j));
        return (chunk_max, chunk_sum);
    }
    let most = if chunk_max > max { chunk_max } else { max };
    let (old, new) = (exp(max - most), exp(chunk_max - most));
    result.iter_mut().enumerate().for_each(|(j, x)| *x = *x * old + chunk(j) * new);
    (most, sum * old + chunk_sum * new)
}

/// Makes weights out of exponentials.
#[inline(always)]
pub(super) fn divide(result: &mut [f32], sum: f32) {
    let scale = 1.0 / sum;
    result.iter_mut().for_each(|x| *x *= scale);
}
