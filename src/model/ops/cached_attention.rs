use candle_core::{CpuStorage, CustomOp3, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::{axpy, dot, softmax, vectorized};
use super::slices::{contiguous, contiguous_mut, output};

/// The new tokens of one sequence of a ragged batch, and where its keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPiece {
    /// The sequence's place in the cache.
    pub slot: usize,
    /// Tokens before the new ones.
    pub past: usize,
    /// New tokens.
    pub new: usize,
}

/// Writes the keys or values `new` `[tokens, kv_heads * head]` of a ragged batch into `cache`
/// `[slots, context, kv_heads * head]`, at positions `past..past + new` of each piece's slot.
pub fn write_cache(cache: &Tensor, new: &Tensor, pieces: &[CachedPiece]) -> Result<()> {
    cache.inplace_op2(new, &WriteCache { pieces })
}

struct WriteCache<'a> {
    pieces: &'a [CachedPiece],
}

impl InplaceOp2 for WriteCache<'_> {
    fn name(&self) -> &'static str {
        "write-cache"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (slots, context, width) = l1.shape().dims3()?;
        let (cache, mut new) = (contiguous_mut(s1, l1)?, contiguous(s2, l2)?);
        for piece in self.pieces {
            if piece.slot >= slots || piece.past + piece.new > context || new.len() < piece.new * width {
                bail!("a piece beyond the cache of {slots} sequences of {context} tokens: {piece:?}");
            }
            let (rows, rest) = new.split_at(piece.new * width);
            cache[(piece.slot * context + piece.past) * width..][..rows.len()].copy_from_slice(rows);
            new = rest;
        }
        Ok(())
    }
}

/// Causal attention of new tokens `q` `[tokens, heads * head]` over cached keys and values
/// `[slots, context, kv_heads * head]`, which already hold those of the new tokens ([`write_cache`]).
///
/// Every row is computed by itself and in the same order, so that it does not depend on the batch or on how a prompt
/// was cut into pieces.
pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    pieces: &[CachedPiece],
    head: usize,
) -> Result<Tensor> {
    q.apply_op3_no_bwd(keys, values, &CachedAttention { pieces, head })
}

struct CachedAttention<'a> {
    pieces: &'a [CachedPiece],
    head: usize,
}

/// Below this many key and value elements a second thread costs more than it saves.
const PARALLEL_FROM: usize = 128 * 1024;

impl CustomOp3 for CachedAttention<'_> {
    fn name(&self) -> &'static str {
        "cached-attention"
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
        let ((tokens, q_width), (slots, context, kv)) = (l1.shape().dims2()?, l2.shape().dims3()?);
        let (q, keys, values) = (contiguous(s1, l1)?, contiguous(s2, l2)?, contiguous(s3, l3)?);
        let fits = |piece: &CachedPiece| piece.slot < slots && piece.past + piece.new <= context;
        let rows: Vec<(usize, usize)> = self
            .pieces
            .iter()
            .flat_map(|piece| (0..piece.new).map(|i| (piece.slot, piece.past + i + 1)))
            .collect();
        if rows.len() != tokens || !self.pieces.iter().all(fits) || kv == 0 || q_width % kv != 0 {
            bail!("cached attention: the pieces do not fit {tokens} tokens or the cache");
        }
        let mut out = vec![0f32; q.len()];
        let row = |out: &mut [f32], q: &[f32], (slot, seen): (usize, usize)| {
            let at = slot * context * kv;
            let (keys, values) = (&keys[at..][..seen * kv], &values[at..][..seen * kv]);
            vectorized(
                #[inline(always)]
                || attend(q, keys, values, self.head, kv, out),
            );
        };
        let read: usize = rows.iter().map(|&(_, seen)| seen * q_width).sum();
        if read < PARALLEL_FROM {
            out.chunks_exact_mut(q_width)
                .zip(q.chunks_exact(q_width))
                .zip(&rows)
                .for_each(|((out, q), &seen)| row(out, q, seen));
        } else {
            out.par_chunks_exact_mut(q_width)
                .zip(q.par_chunks_exact(q_width))
                .zip(&rows)
                .for_each(|((out, q), &seen)| row(out, q, seen));
        }
        Ok(output(out, l1.shape()))
    }
}

/// One token's heads over the keys and values it sees.
#[inline(always)]
fn attend(q: &[f32], keys: &[f32], values: &[f32], head: usize, kv: usize, out: &mut [f32]) {
    let scale = 1.0 / (head as f32).sqrt();
    let group = q.len() / kv;
    let mut weights = vec![0f32; keys.len() / kv];
    for (h, (q, out)) in q.chunks_exact(head).zip(out.chunks_exact_mut(head)).enumerate() {
        let at = h / group * head;
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(kv)) {
            *weight = dot(q, &key[at..at + head]) * scale;
        }
        softmax(&mut weights);
        for (&weight, value) in weights.iter().zip(values.chunks_exact(kv)) {
            axpy(out, weight, &value[at..at + head]);
        }
    }
}
