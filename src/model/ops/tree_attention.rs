use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::simd::{axpy, dot, softmax, vectorized};
use super::slices::{contiguous, output};

/// Rows a task handles.
const ROWS: usize = 64;

/// Attention in a tree of tokens, where a token sees itself and its ancestors: sequences that begin alike share rows.
/// `q` is `[tokens, heads * head]`, `k` and `v` `[tokens, kv_heads * head]`; `parents[i]` is the row before row `i`, an
/// earlier one, or `i` itself where a sequence begins. Not differentiable; row by row the same as
/// [`attention`](super::attention) of a short sequence, bit for bit.
pub fn tree_attention(q: &Tensor, k: &Tensor, v: &Tensor, parents: &[u32], head: usize) -> Result<Tensor> {
    if q.track_op() || k.track_op() || v.track_op() {
        bail!("attention in a tree passes no gradient on");
    }
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(q.device())? {
        return gpu::tree_attention(&*gpu, q, k, v, parents, head);
    }
    q.apply_op3_no_bwd(k, v, &TreeAttention { parents, head })
}

struct TreeAttention<'a> {
    parents: &'a [u32],
    head: usize,
}

impl CustomOp3 for TreeAttention<'_> {
    fn name(&self) -> &'static str {
        "tree-attention"
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
        let ((tokens, width), (k_tokens, kv)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if k_tokens != tokens
            || l3.shape() != l2.shape()
            || self.parents.len() != tokens
            || kv == 0
            || !kv.is_multiple_of(self.head)
            || !width.is_multiple_of(kv)
            || self.parents.iter().enumerate().any(|(i, &parent)| parent as usize > i)
        {
            bail!("attention in a tree: the operands or the parents do not fit");
        }
        let (q, k, v) = (contiguous(s1, l1)?, contiguous(s2, l2)?, contiguous(s3, l3)?);
        let mut out = vec![0f32; q.len()];
        out.par_chunks_mut(ROWS * width).zip(q.par_chunks(ROWS * width)).enumerate().for_each(
            |(task, (out, q))| {
                vectorized(
                    #[inline(always)]
                    || {
                        let (mut path, mut weights) = (Vec::new(), Vec::new());
                        let rows = out.chunks_exact_mut(width).zip(q.chunks_exact(width));
                        for (row, (out, q)) in rows.enumerate() {
                            self.path(task * ROWS + row, &mut path);
                            self.row(q, k, v, kv, &path, &mut weights, out);
                        }
                    },
                );
            },
        );
        Ok(output(out, l1.shape()))
    }
}

impl TreeAttention<'_> {
    /// The rows that row `at` sees, the first token of its sequence first.
    #[inline(always)]
    fn path(&self, mut at: usize, path: &mut Vec<usize>) {
        path.clear();
        path.push(at);
        while self.parents[at] as usize != at {
            at = self.parents[at] as usize;
            path.push(at);
        }
        path.reverse();
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of attention and a place to work")]
    #[inline(always)]
    fn row(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        kv: usize,
        path: &[usize],
        weights: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (head, scale) = (self.head, 1.0 / (self.head as f32).sqrt());
        let shared = q.len() / kv;
        for (h, (q, out)) in q.chunks_exact(head).zip(out.chunks_exact_mut(head)).enumerate() {
            let at = h / shared * head;
            weights.clear();
            weights.extend(path.iter().map(|&j| dot(q, &k[j * kv + at..][..head]) * scale));
            softmax(weights);
            for (&j, &weight) in path.iter().zip(weights.iter()) {
                axpy(out, weight, &v[j * kv + at..][..head]);
            }
        }
    }
}
