use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::slices::{contiguous, elements, output, wanted};

/// `y[i] = x[rows[i]]`: the rows of a `[rows, d]` tensor, in any order, any of them more than once.
///
/// The backward pass adds the gradients in the order of `rows`, so that sums are reproducible.
pub fn take_rows(x: &Tensor, rows: &Arc<Vec<u32>>) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(x.device())? {
        return gpu::take_rows_of_two(&*gpu, x, None, rows);
    }
    x.apply_op1(TakeRows { rows: rows.clone() })
}

struct TakeRows {
    rows: Arc<Vec<u32>>,
}

impl CustomOp1 for TakeRows {
    fn name(&self) -> &'static str {
        "take-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let (len, d) = layout.shape().dims2()?;
        let mut y = Vec::with_capacity(self.rows.len() * d);
        for &row in self.rows.iter() {
            if row as usize >= len {
                bail!("row {row} of a tensor of {len} rows");
            }
            y.extend_from_slice(&x[row as usize * d..][..d]);
        }
        Ok(output(y, (self.rows.len(), d)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = elements(dy)?;
        let dy = dy.read()?;
        let d = x.dim(1)?;
        let mut dx = vec![0f32; x.elem_count()];
        for (&row, dy) in self.rows.iter().zip(dy.chunks_exact(d)) {
            for (dx, &dy) in dx[row as usize * d..][..d].iter_mut().zip(dy) {
                *dx += dy;
            }
        }
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// As [`take_rows`] from `a` `[n, d]` with `b` `[m, d]` below it: row `n` is the first of `b`.
pub fn take_rows_of_two(a: &Tensor, b: &Tensor, rows: &Arc<Vec<u32>>) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(a.device())? {
        return gpu::take_rows_of_two(&*gpu, a, Some(b), rows);
    }
    a.apply_op2(b, TakeRowsOfTwo { rows: rows.clone() })
}

struct TakeRowsOfTwo {
    rows: Arc<Vec<u32>>,
}

impl CustomOp2 for TakeRowsOfTwo {
    fn name(&self) -> &'static str {
        "take-rows-of-two"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let ((n, d), (m, d_b)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if d != d_b || self.rows.iter().any(|&row| row as usize >= n + m) {
            bail!("rows of two tensors of {n} and {m} rows, {d} and {d_b} wide");
        }
        let mut y = Vec::with_capacity(self.rows.len() * d);
        for &row in self.rows.iter() {
            let row = row as usize;
            y.extend_from_slice(if row < n { &a[row * d..][..d] } else { &b[(row - n) * d..][..d] });
        }
        Ok(output(y, (self.rows.len(), d)))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = elements(dy)?;
        let dy = dy.read()?;
        let (n, d) = a.dims2()?;
        let (mut da, mut db) = (vec![0f32; a.elem_count()], vec![0f32; b.elem_count()]);
        for (&row, dy) in self.rows.iter().zip(dy.chunks_exact(d)) {
            let row = row as usize;
            let to = if row < n { &mut da[row * d..][..d] } else { &mut db[(row - n) * d..][..d] };
            for (to, &dy) in to.iter_mut().zip(dy) {
                *to += dy;
            }
        }
        Ok((wanted(a, || da)?, wanted(b, || db)?))
    }
}
