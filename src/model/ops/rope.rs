use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::simd::vectorized;
use super::slices::{contiguous, output};

/// Rows a task handles.
const ROWS: usize = 64;

/// The angles of rotary position embedding (Su et al., arXiv 2104.09864): position `p` turns the pair
/// `(i, i + head / 2)` by `p * theta^(-2 i / head)`, the pairing of Hugging Face's Llama.
pub struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    #[cfg(any(feature = "cuda", test))]
    on_gpu: std::sync::OnceLock<[crate::gpu::Buffer; 2]>,
}

impl Rope {
    /// Angles for positions `0..positions` and heads of `head` features.
    pub fn new(positions: usize, head: usize, theta: f64) -> Arc<Self> {
        let half = head / 2;
        let angles = (0..positions).flat_map(|p| {
            // In f32 as the reference has it, or the last digits of far positions would differ from it.
            (0..half).map(move |i| p as f32 * (1.0 / theta.powf(2.0 * i as f64 / head as f64)) as f32)
        });
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Arc::new(Self {
            cos,
            sin,
            half,
            #[cfg(any(feature = "cuda", test))]
            on_gpu: std::sync::OnceLock::new(),
        })
    }

    /// How many positions there are angles for.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Pairs of a head.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn half(&self) -> usize {
        self.half
    }

    /// Cosines and sines `[positions, head / 2]` on the GPU, brought there once: a model is on one GPU.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn on_gpu(
        &self,
        gpu: &dyn crate::gpu::Gpu,
    ) -> std::result::Result<&[crate::gpu::Buffer; 2], crate::gpu::GpuError> {
        if let Some(tables) = self.on_gpu.get() {
            return Ok(tables);
        }
        let tables = [gpu.alloc(4 * self.cos.len())?, gpu.alloc(4 * self.sin.len())?];
        for (table, values) in tables.iter().zip([&self.cos, &self.sin]) {
            gpu.upload(bytemuck::cast_slice(values), table.of(crate::gpu::Type::F32))?;
        }
        Ok(self.on_gpu.get_or_init(|| tables))
    }
}

/// Turns every head of `x` `[tokens, heads * head]` by its token's position.
pub fn rope(x: &Tensor, rope: &Arc<Rope>, positions: &Arc<Vec<u32>>) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(x.device())? {
        return gpu::rope(&*gpu, x, rope, positions);
    }
    x.apply_op1(Turn { rope: rope.clone(), positions: positions.clone(), back: false })
}

struct Turn {
    rope: Arc<Rope>,
    positions: Arc<Vec<u32>>,
    /// By the negative angle: the backward pass, for a rotation's transpose is its inverse.
    back: bool,
}

impl Turn {
    #[inline(always)]
    fn row(&self, position: u32, x: &[f32], y: &mut [f32]) {
        let half = self.rope.half;
        let at = position as usize * half;
        let (cos, sin) = (&self.rope.cos[at..at + half], &self.rope.sin[at..at + half]);
        let sign = if self.back { -1.0 } else { 1.0 };
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let (x1, x2) = x.split_at(half);
            let (y1, y2) = y.split_at_mut(half);
            for i in 0..half {
                let s = sign * sin[i];
                y1[i] = x1[i] * cos[i] - x2[i] * s;
                y2[i] = x2[i] * cos[i] + x1[i] * s;
            }
        }
    }
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let width = x.len() / self.positions.len().max(1);
        if self.positions.iter().any(|&p| p as usize >= self.rope.positions())
            || !width.is_multiple_of(2 * self.rope.half)
        {
            bail!("a position beyond the model's context, or heads of another size");
        }
        let mut y = vec![0f32; x.len()];
        let rows = |positions: &[u32], x: &[f32], y: &mut [f32]| {
            vectorized(
                #[inline(always)]
                || {
                    for ((&p, x), y) in
                        positions.iter().zip(x.chunks_exact(width)).zip(y.chunks_exact_mut(width))
                    {
                        self.row(p, x, y);
                    }
                },
            );
        };
        if self.positions.len() <= ROWS {
            rows(&self.positions, x, &mut y);
        } else {
            y.par_chunks_mut(ROWS * width)
                .zip(x.par_chunks(ROWS * width).zip(self.positions.par_chunks(ROWS)))
                .for_each(|(y, (x, positions))| rows(positions, x, y));
        }
        Ok(output(y, layout.shape()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let back = Turn { rope: self.rope.clone(), positions: self.positions.clone(), back: !self.back };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
