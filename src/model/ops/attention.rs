use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{Matrix, Put, gemm};
#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::simd::{axpy, dot, softmax, sum2, vectorized};
use super::slices::{contiguous, elements, output};

/// Query rows of a block: scores are made block by block, so that what lies above the diagonal is never computed.
const BLOCK: usize = 64;
/// Sequences up to this length are done row by row: a matrix product's overhead would outweigh it.
const SHORT: usize = 16;
/// Rows a task handles at least, so that thousands of f-grams do not become thousands of tasks.
const TASK_ROWS: usize = 128;

/// Causal attention inside each sequence of a ragged batch, without a cache: `q` is `[tokens, heads * head]`, `k` and
/// `v` `[tokens, kv_heads * head]`; sequence after sequence, of the given lengths. Query head h reads the key and value
/// head `h / (heads / kv_heads)` (Ainslie et al., arXiv 2305.13245).
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Arc<Vec<usize>>,
    head: usize,
) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(q.device())? {
        return gpu::attention(&*gpu, q, k, v, lengths, head);
    }
    q.apply_op3(k, v, Attention { lengths: lengths.clone(), head, last: false })
}

/// As [`attention`], of the last token of each sequence only: `q` is `[sequences, heads * head]`. For sequences of at
/// most 16 tokens, such as f-grams.
pub fn last_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Arc<Vec<usize>>,
    head: usize,
) -> Result<Tensor> {
    if lengths.iter().any(|n| !(1..=SHORT).contains(n)) {
        bail!("last-attention is for sequences of 1 to {SHORT} tokens");
    }
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(q.device())? {
        return gpu::last_attention(&*gpu, q, k, v, lengths, head);
    }
    q.apply_op3(k, v, Attention { lengths: lengths.clone(), head, last: true })
}

struct Attention {
    lengths: Arc<Vec<usize>>,
    head: usize,
    /// There is one query a sequence, its last token's.
    last: bool,
}

/// Neighbouring sequences.
struct Task<'a> {
    lengths: &'a [usize],
    /// Rows of keys and values.
    rows: usize,
    /// Rows of queries.
    queries: usize,
}

/// The widths of the operands.
#[derive(Clone, Copy)]
struct Dims {
    head: usize,
    /// heads * head
    q: usize,
    /// kv_heads * head
    kv: usize,
    scale: f32,
}

impl Dims {
    fn heads(self) -> usize {
        self.q / self.head
    }

    /// Where the key and value head of query head `h` begins in a row.
    fn kv_at(self, h: usize) -> usize {
        h / (self.q / self.kv) * self.head
    }
}

impl Attention {
    fn dims(&self, q: &Shape, k: &Shape, v: &Shape) -> Result<Dims> {
        let ((queries, q), (tokens, kv)) = (q.dims2()?, k.dims2()?);
        let sum: usize = self.lengths.iter().sum();
        if k.dims() != v.dims()
            || queries != self.queries(&self.lengths)
            || sum != tokens
            || kv == 0
            || q % kv != 0
            || kv % self.head != 0
        {
            bail!(
                "attention: q {q} and k {k:?}, v {v:?} over {sum} tokens with heads of {} do not fit",
                self.head
            );
        }
        Ok(Dims { head: self.head, q, kv, scale: 1.0 / (self.head as f32).sqrt() })
    }

    /// How many queries sequences have.
    fn queries(&self, lengths: &[usize]) -> usize {
        if self.last { lengths.len() } else { lengths.iter().sum() }
    }

    /// The sequences, grouped into tasks of neighbours.
    fn tasks(&self) -> Vec<Task<'_>> {
        let mut tasks = Vec::new();
        let (mut from, mut rows) = (0, 0);
        for (i, &length) in self.lengths.iter().enumerate() {
            rows += length;
            if rows >= TASK_ROWS || i + 1 == self.lengths.len() {
                let lengths = &self.lengths[from..=i];
                tasks.push(Task { lengths, rows, queries: self.queries(lengths) });
                (from, rows) = (i + 1, 0);
            }
        }
        tasks
    }

    /// Where the sequences of a task lie in its parts: the length and the first row that has a query; the elements of
    /// the queries, and of keys or values.
    fn places<'a>(
        &'a self,
        dims: Dims,
        task: &'a Task<'a>,
    ) -> impl Iterator<Item = (usize, usize, Range<usize>, Range<usize>)> + 'a {
        let (mut row, mut query) = (0, 0);
        task.lengths.iter().map(move |&n| {
            let first = if self.last { n - 1 } else { 0 };
            let (q, kv) = (query * dims.q, row * dims.kv);
            (row, query) = (row + n, query + n - first);
            (n, first, q..query * dims.q, kv..row * dims.kv)
        })
    }
}

/// Splits a buffer into the tasks' parts, of so many numbers each.
fn split_mut(mut data: &mut [f32], parts: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    parts.map(|len| data.split_off_mut(..len).unwrap_or_default()).collect()
}

fn split(mut data: &[f32], parts: impl Iterator<Item = usize>) -> Vec<&[f32]> {
    parts.map(|len| data.split_off(..len).unwrap_or_default()).collect()
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims = self.dims(l1.shape(), l2.shape(), l3.shape())?;
        let (q, k, v) = (contiguous(s1, l1)?, contiguous(s2, l2)?, contiguous(s3, l3)?);
        let tasks = self.tasks();
        let (queries, rows) =
            (|| tasks.iter().map(|t| t.queries * dims.q), || tasks.iter().map(|t| t.rows * dims.kv));
        let mut out = vec![0f32; q.len()];
        let inputs = split(q, queries()).into_iter().zip(split(k, rows())).zip(split(v, rows()));
        let work: Vec<_> = split_mut(&mut out, queries()).into_iter().zip(inputs).zip(&tasks).collect();
        work.into_par_iter().for_each(|((out, ((q, k), v)), task)| {
            let mut scratch = Vec::new();
            for (n, first, rows, kv_rows) in self.places(dims, task) {
                let sequence =
                    Sequence { n, first, dims, q: &q[rows.clone()], k: &k[kv_rows.clone()], v: &v[kv_rows] };
                if n <= SHORT {
                    vectorized(
                        #[inline(always)]
                        || sequence.forward_short(&mut out[rows]),
                    );
                } else {
                    sequence.forward(&mut out[rows], &mut scratch);
                }
            }
        });
        Ok(output(out, l1.shape()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dims = self.dims(q.shape(), k.shape(), v.shape())?;
        let (q_e, k_e, v_e, do_e) = (elements(q)?, elements(k)?, elements(v)?, elements(dout)?);
        let (qs, ks, vs, dos) = (q_e.read()?, k_e.read()?, v_e.read()?, do_e.read()?);
        let tasks = self.tasks();
        let (mut dq, mut dk, mut dv) = (vec![0f32; qs.len()], vec![0f32; ks.len()], vec![0f32; vs.len()]);
        let (queries, rows) =
            (|| tasks.iter().map(|t| t.queries * dims.q), || tasks.iter().map(|t| t.rows * dims.kv));
        let gradients = split_mut(&mut dq, queries())
            .into_iter()
            .zip(split_mut(&mut dk, rows()))
            .zip(split_mut(&mut dv, rows()));
        let inputs = split(&qs, queries())
            .into_iter()
            .zip(split(&ks, rows()))
            .zip(split(&vs, rows()))
            .zip(split(&dos, queries()));
        let work: Vec<_> = gradients.zip(inputs).zip(&tasks).collect();
        work.into_par_iter().for_each(|((((dq, dk), dv), (((q, k), v), dout)), task)| {
            let mut scratch = Vec::new();
            for (n, first, rows, kv_rows) in self.places(dims, task) {
                let (q, k, v) = (&q[rows.clone()], &k[kv_rows.clone()], &v[kv_rows.clone()]);
                let sequence = Sequence { n, first, dims, q, k, v };
                let mut gradient = Gradient {
                    dout: &dout[rows.clone()],
                    dq: &mut dq[rows],
                    dk: &mut dk[kv_rows.clone()],
                    dv: &mut dv[kv_rows],
                };
                if n <= SHORT {
                    vectorized(
                        #[inline(always)]
                        || sequence.backward_short(&mut gradient),
                    );
                } else {
                    sequence.backward(&mut gradient, &mut scratch);
                }
            }
        });
        let device = q.device();
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), device)?),
            Some(Tensor::from_vec(dk, k.shape(), device)?),
            Some(Tensor::from_vec(dv, v.shape(), device)?),
        ))
    }
}

/// One sequence: rows `0..n` of keys and values, `first..n` of queries.
#[derive(Clone, Copy)]
struct Sequence<'a> {
    n: usize,
    first: usize,
    dims: Dims,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// What a sequence's backward pass reads and writes besides.
struct Gradient<'a> {
    dout: &'a [f32],
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl Sequence<'_> {
    #[inline(always)]
    fn head<'a>(&self, data: &'a [f32], row: usize, width: usize, at: usize) -> &'a [f32] {
        &data[row * width + at..][..self.dims.head]
    }

    /// The attention weights of one row, for a short sequence.
    #[inline(always)]
    fn weights(&self, row: usize, h: usize, weights: &mut [f32; SHORT]) {
        let Dims { head, q: q_width, kv, scale, .. } = self.dims;
        let q = self.head(self.q, row - self.first, q_width, h * head);
        for (j, weight) in weights[..=row].iter_mut().enumerate() {
            *weight = dot(q, self.head(self.k, j, kv, self.dims.kv_at(h))) * scale;
        }
        softmax(&mut weights[..=row]);
    }

    #[inline(always)]
    fn forward_short(&self, out: &mut [f32]) {
        let Dims { head, q: q_width, kv, .. } = self.dims;
        let mut weights = [0f32; SHORT];
        for h in 0..self.dims.heads() {
            for row in self.first..self.n {
                self.weights(row, h, &mut weights);
                let out = &mut out[(row - self.first) * q_width + h * head..][..head];
                for (j, &weight) in weights[..=row].iter().enumerate() {
                    axpy(out, weight, self.head(self.v, j, kv, self.dims.kv_at(h)));
                }
            }
        }
    }

    #[inline(always)]
    fn backward_short(&self, g: &mut Gradient<'_>) {
        let Dims { head, q: q_width, kv, scale, .. } = self.dims;
        let mut weights = [0f32; SHORT];
        let mut dweights = [0f32; SHORT];
        for h in 0..self.dims.heads() {
            let (q_at, kv_at) = (h * head, self.dims.kv_at(h));
            for row in self.first..self.n {
                self.weights(row, h, &mut weights);
                let query = row - self.first;
                let dout = self.head(g.dout, query, q_width, q_at);
                for j in 0..=row {
                    dweights[j] = dot(dout, self.head(self.v, j, kv, kv_at));
                    axpy(&mut g.dv[j * kv + kv_at..][..head], weights[j], dout);
                }
                let mean = dot(&weights[..=row], &dweights[..=row]);
                let q = self.head(self.q, query, q_width, q_at);
                for j in 0..=row {
                    let dscore = weights[j] * (dweights[j] - mean) * scale;
                    axpy(
                        &mut g.dq[query * q_width + q_at..][..head],
                        dscore,
                        self.head(self.k, j, kv, kv_at),
                    );
                    axpy(&mut g.dk[j * kv + kv_at..][..head], dscore, q);
                }
            }
        }
    }

    /// Rows `from..to` of the attention weights of head `h`, into `weights` `[to - from, to]`.
    fn block(&self, from: usize, to: usize, h: usize, weights: &mut [f32]) {
        let Dims { head, q: q_width, kv, scale, .. } = self.dims;
        let rows = to - from;
        let q = Matrix::new(&self.q[from * q_width + h * head..], rows, head, q_width);
        let k = Matrix::new(&self.k[self.dims.kv_at(h)..], to, head, kv);
        gemm(weights, to, Put::Replace, q, k.t(), scale, false);
        vectorized(
            #[inline(always)]
            || {
                for (i, row) in weights[..rows * to].chunks_exact_mut(to).enumerate() {
                    let (seen, unseen) = row.split_at_mut(from + i + 1);
                    softmax(seen);
                    unseen.fill(0.0);
                }
            },
        );
    }

    fn forward(&self, out: &mut [f32], scratch: &mut Vec<f32>) {
        let Dims { head, q: q_width, kv, .. } = self.dims;
        scratch.resize(BLOCK * self.n, 0.0);
        for h in 0..self.dims.heads() {
            for from in (0..self.n).step_by(BLOCK) {
                let to = (from + BLOCK).min(self.n);
                self.block(from, to, h, scratch);
                let weights = Matrix::new(scratch, to - from, to, to);
                let v = Matrix::new(&self.v[self.dims.kv_at(h)..], to, head, kv);
                gemm(&mut out[from * q_width + h * head..], q_width, Put::Replace, weights, v, 1.0, false);
            }
        }
    }

    fn backward(&self, g: &mut Gradient<'_>, scratch: &mut Vec<f32>) {
        let Dims { head, q: q_width, kv, scale, .. } = self.dims;
        scratch.resize(2 * BLOCK * self.n, 0.0);
        let (weights, dweights) = scratch.split_at_mut(BLOCK * self.n);
        for h in 0..self.dims.heads() {
            let (q_at, kv_at) = (h * head, self.dims.kv_at(h));
            for from in (0..self.n).step_by(BLOCK) {
                let to = (from + BLOCK).min(self.n);
                let rows = to - from;
                self.block(from, to, h, weights);
                let dout = Matrix::new(&g.dout[from * q_width + q_at..], rows, head, q_width);
                let v = Matrix::new(&self.v[kv_at..], to, head, kv);
                gemm(dweights, to, Put::Replace, dout, v.t(), 1.0, false);
                let p = Matrix::new(weights, rows, to, to);
                gemm(&mut g.dv[kv_at..], kv, Put::Add, p.t(), dout, 1.0, false);
                vectorized(
                    #[inline(always)]
                    || {
                        for (p, dp) in weights.chunks_exact(to).zip(dweights.chunks_exact_mut(to)).take(rows)
                        {
                            let mean = sum2(p, dp, |p, dp| p * dp);
                            for (&p, dp) in p.iter().zip(dp) {
                                *dp = p * (*dp - mean);
                            }
                        }
                    },
                );
                let ds = Matrix::new(dweights, rows, to, to);
                let k = Matrix::new(&self.k[kv_at..], to, head, kv);
                gemm(&mut g.dq[from * q_width + q_at..], q_width, Put::Replace, ds, k, scale, false);
                let q = Matrix::new(&self.q[from * q_width + q_at..], rows, head, q_width);
                gemm(&mut g.dk[kv_at..], kv, Put::Add, ds.t(), q, scale, false);
            }
        }
    }
}
