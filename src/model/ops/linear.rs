use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::{self, Matrix};
use super::slices::{contiguous, elements, output};

/// `x * weight^T`: `x` is `[tokens, in]`, `weight` `[out, in]` as Hugging Face stores it.
///
/// A weight that is being trained goes through the gemm crate, the fastest for large batches. A fixed weight goes
/// through row-dots whose order of summation does not depend on the batch, so that what is served for one sequence
/// is the same, bit for bit, whatever runs beside it.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op2(weight, Linear { trained: weight.track_op() })
}

struct Linear {
    trained: bool,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let ((tokens, k), (features, k_w)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if k != k_w {
            bail!("linear: {k} features meet a weight for {k_w}");
        }
        let mut y = vec![0f32; tokens * features];
        if self.trained {
            let (x, w) = (Matrix::new(x, tokens, k, k), Matrix::new(w, features, k, k));
            gemm::gemm(&mut y, features, gemm::Put::Replace, x, w.t(), 1.0, true);
        } else {
            row_dots(x, w, k, &mut y, features);
        }
        Ok(output(y, (tokens, features)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_e, w_e, dy_e) = (elements(x)?, elements(weight)?, elements(dy)?);
        let (xs, w, dys) = (x_e.read()?, w_e.read()?, dy_e.read()?);
        let ((tokens, k), features) = (x.dims2()?, weight.dim(0)?);
        let (xs, w) = (Matrix::new(&xs, tokens, k, k), Matrix::new(&w, features, k, k));
        let dys = Matrix::new(&dys, tokens, features, features);
        let mut dx = vec![0f32; tokens * k];
        gemm::gemm(&mut dx, k, gemm::Put::Replace, dys, w, 1.0, true);
        let mut dw = vec![0f32; features * k];
        gemm::gemm(&mut dw, k, gemm::Put::Replace, dys.t(), xs, 1.0, true);
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(dw, weight.shape(), device)?),
        ))
    }
}

/// Below this many multiplications waking a second thread costs more than it saves.
const PARALLEL_FROM: usize = 256 * 1024;

/// Tokens a tile of the small matrix product holds in registers, and features.
const TILE_TOKENS: usize = 4;
const TILE_FEATURES: usize = 2;
/// Features at a time where there is one token left: enough independent sums to hide the latency of an FMA.
const LONE_FEATURES: usize = 8;

/// `y[t, f] = x[t] . w[f]`.
fn row_dots(x: &[f32], w: &[f32], k: usize, y: &mut [f32], features: usize) {
    let tokens = y.len() / features;
    if tokens == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    if y.len() * k < PARALLEL_FROM || threads == 1 {
        Arch::new().dispatch(RowDots { x, w, k, y, features });
    } else if tokens == 1 {
        // Every thread reads its part of the weight and no other.
        let part = features.div_ceil(threads).next_multiple_of(LONE_FEATURES);
        y.par_chunks_mut(part).zip(w.par_chunks(part * k)).for_each(|(y, w)| {
            let features = y.len();
            Arch::new().dispatch(RowDots { x, w, k, y, features });
        });
    } else {
        let part = features.div_ceil(threads).next_multiple_of(LONE_FEATURES);
        let parts: Vec<Vec<f32>> = w
            .par_chunks(part * k)
            .map(|w| {
                let features = w.len() / k;
                let mut y = vec![0f32; tokens * features];
                Arch::new().dispatch(RowDots { x, w, k, y: &mut y, features });
                y
            })
            .collect();
        y.par_chunks_mut(features).enumerate().with_min_len(64).for_each(|(t, y)| {
            for (y, from) in y.chunks_mut(part).zip(&parts) {
                let width = y.len();
                y.copy_from_slice(&from[t * width..][..width]);
            }
        });
    }
}

struct RowDots<'a> {
    x: &'a [f32],
    w: &'a [f32],
    k: usize,
    y: &'a mut [f32],
    features: usize,
}

impl WithSimd for RowDots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let tokens = self.y.len() / self.features;
        // A few features against all tokens, so that the weight is read once and the tokens come from cache.
        let mut t = 0;
        while t + TILE_TOKENS <= tokens {
            t += TILE_TOKENS;
        }
        let (tiled, y) = (t, self.y);
        let mut f = 0;
        while f < self.features {
            if f + TILE_FEATURES <= self.features {
                for t in (0..tiled).step_by(TILE_TOKENS) {
                    tile::<S, TILE_TOKENS, TILE_FEATURES>(
                        simd,
                        self.x,
                        self.w,
                        self.k,
                        y,
                        self.features,
                        t,
                        f,
                    );
                }
                f += TILE_FEATURES;
            } else {
                for t in (0..tiled).step_by(TILE_TOKENS) {
                    tile::<S, TILE_TOKENS, 1>(simd, self.x, self.w, self.k, y, self.features, t, f);
                }
                f += 1;
            }
        }
        for t in tiled..tokens {
            let mut f = 0;
            while f + LONE_FEATURES <= self.features {
                tile::<S, 1, LONE_FEATURES>(simd, self.x, self.w, self.k, y, self.features, t, f);
                f += LONE_FEATURES;
            }
            for f in f..self.features {
                tile::<S, 1, 1>(simd, self.x, self.w, self.k, y, self.features, t, f);
            }
        }
    }
}

/// `T x F` inner products at once. Each is summed in the same order whatever `T` and `F` are.
#[allow(clippy::too_many_arguments, reason = "the operands of a matrix product and a place in it")]
#[inline(always)]
fn tile<S: Simd, const T: usize, const F: usize>(
    simd: S,
    x: &[f32],
    w: &[f32],
    k: usize,
    y: &mut [f32],
    features: usize,
    t: usize,
    f: usize,
) {
    let xs: [_; T] = std::array::from_fn(|i| S::as_simd_f32s(&x[(t + i) * k..][..k]));
    let ws: [_; F] = std::array::from_fn(|i| S::as_simd_f32s(&w[(f + i) * k..][..k]));
    let mut sums = [[simd.splat_f32s(0.0); F]; T];
    for step in 0..xs[0].0.len() {
        let w: [S::f32s; F] = std::array::from_fn(|i| ws[i].0[step]);
        for i in 0..T {
            let x = xs[i].0[step];
            for j in 0..F {
                sums[i][j] = simd.mul_add_e_f32s(x, w[j], sums[i][j]);
            }
        }
    }
    for i in 0..T {
        for j in 0..F {
            let rest: f32 = xs[i].1.iter().zip(ws[j].1).map(|(&x, &w)| x * w).sum();
            y[(t + i) * features + f + j] = simd.reduce_sum_f32s(sums[i][j]) + rest;
        }
    }
}
