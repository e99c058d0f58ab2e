use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::simd::{sum2, vectorized};
use super::slices::{contiguous, elements, output, wanted};

/// Rows a task handles.
const ROWS: usize = 64;

/// `y = x / sqrt(mean(x^2) + eps) * weight` by row (Zhang and Sennrich, arXiv 1910.07467): `x` is `[tokens, d]`,
/// `weight` `[d]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(x.device())? {
        return gpu::rms_norm(&*gpu, x, weight, eps);
    }
    x.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    #[inline(always)]
    fn inverse(&self, x: &[f32]) -> f32 {
        1.0 / (sum2(x, x, |a, b| a * b) / x.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let d = weight.len();
        let mut y = vec![0f32; x.len()];
        let rows = |(y, x): (&mut [f32], &[f32])| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let inverse = self.inverse(x);
                        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                            *y = x * inverse * w;
                        }
                    }
                },
            );
        };
        if x.len() <= ROWS * d {
            rows((&mut y, x));
        } else {
            y.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d)).for_each(rows);
        }
        Ok(output(y, l1.shape()))
    }

    /// With r = 1 / rms: `dx = r (w dy) - x r^3 / d * sum(w dy x)`, `dw = sum over rows of dy x r`.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_e, w_e, dy_e) = (elements(x)?, elements(weight)?, elements(dy)?);
        let (xs, w, dys) = (x_e.read()?, w_e.read()?, dy_e.read()?);
        let (xs, w, dys): (&[f32], &[f32], &[f32]) = (&xs, &w, &dys);
        let d = w.len();
        let mut dx = vec![0f32; xs.len()];
        let partial: Vec<Vec<f32>> = dx
            .par_chunks_mut(ROWS * d)
            .zip(xs.par_chunks(ROWS * d).zip(dys.par_chunks(ROWS * d)))
            .map(|(dx, (x, dy))| {
                vectorized(
                    #[inline(always)]
                    || self.backward_rows(x, w, dy, dx),
                )
            })
            .collect();
        // Summed in the order of the rows, so that the result does not depend on the threads.
        let mut dw = vec![0f32; d];
        for part in &partial {
            for (dw, &part) in dw.iter_mut().zip(part) {
                *dw += part;
            }
        }
        Ok((wanted(x, || dx)?, wanted(weight, || dw)?))
    }
}

impl RmsNorm {
    #[inline(always)]
    fn backward_rows(&self, x: &[f32], w: &[f32], dy: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let d = w.len();
        let mut dw = vec![0f32; d];
        let mut wdy = vec![0f32; d];
        for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
            let inverse = self.inverse(x);
            for i in 0..d {
                wdy[i] = w[i] * dy[i];
                dw[i] += dy[i] * x[i] * inverse;
            }
            let along = sum2(&wdy, x, |a, b| a * b) * inverse * inverse * inverse / d as f32;
            for i in 0..d {
                dx[i] = wdy[i] * inverse - x[i] * along;
            }
        }
        dw
    }
}
