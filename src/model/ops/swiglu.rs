use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::simd::vectorized;
use super::slices::{contiguous, elements, output};
use crate::kernels::exp;

/// Elements a task handles.
const CHUNK: usize = 16 * 1024;

/// `silu(gate) * up`, elementwise (Shazeer, arXiv 2002.05202).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(gate.device())? {
        return gpu::swiglu(&*gpu, gate, up);
    }
    gate.apply_op2(up, SwiGlu)
}

struct SwiGlu;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let mut y = vec![0f32; gate.len()];
        let chunk = |y: &mut [f32], gate: &[f32], up: &[f32]| {
            vectorized(
                #[inline(always)]
                || {
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = g * sigmoid(g) * u;
                    }
                },
            );
        };
        if gate.len() <= CHUNK {
            chunk(&mut y, gate, up);
        } else {
            y.par_chunks_mut(CHUNK)
                .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
                .for_each(|(y, (gate, up))| chunk(y, gate, up));
        }
        Ok(output(y, l1.shape()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (g_e, u_e, dy_e) = (elements(gate)?, elements(up)?, elements(dy)?);
        let (g, u, dys) = (g_e.read()?, u_e.read()?, dy_e.read()?);
        let (g, u, dys): (&[f32], &[f32], &[f32]) = (&g, &u, &dys);
        let (mut dg, mut du) = (vec![0f32; g.len()], vec![0f32; g.len()]);
        dg.par_chunks_mut(CHUNK)
            .zip(du.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dys.par_chunks(CHUNK)))
            .for_each(|((dg, du), ((g, u), dy))| {
                vectorized(
                    #[inline(always)]
                    || {
                        for i in 0..g.len() {
                            let s = sigmoid(g[i]);
                            du[i] = dy[i] * g[i] * s;
                            dg[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
                        }
                    },
                );
            });
        let device = gate.device();
        Ok((
            Some(Tensor::from_vec(dg, gate.shape(), device)?),
            Some(Tensor::from_vec(du, gate.shape(), device)?),
        ))
    }
}
