use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::simd::vectorized;
use super::slices::{contiguous, output};

/// Elements a task handles.
const CHUNK: usize = 16 * 1024;

/// `x + y`, elementwise. candle's own sum has a pool of threads beside rayon's, whose waiting takes the cores from it.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(x.device())? {
        return gpu::add(&*gpu, x, y);
    }
    x.apply_op2(y, Add)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if l1.shape() != l2.shape() {
            bail!("add: {:?} and {:?} differ", l1.shape(), l2.shape());
        }
        let (x, y) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let mut sum = x.to_vec();
        let chunk = |sum: &mut [f32], y: &[f32]| {
            vectorized(
                #[inline(always)]
                || sum.iter_mut().zip(y).for_each(|(sum, &y)| *sum += y),
            );
        };
        if sum.len() <= CHUNK {
            chunk(&mut sum, y);
        } else {
            sum.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(sum, y)| chunk(sum, y));
        }
        Ok(output(sum, l1.shape()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _y: &Tensor,
        _sum: &Tensor,
        dsum: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dsum.clone()), Some(dsum.clone())))
    }
}
