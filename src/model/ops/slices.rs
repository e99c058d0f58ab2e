//! Tensors as slices of f32.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};

/// The elements of a contiguous f32 operand.
pub(super) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a fused op needs contiguous operands")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The elements of a contiguous f32 tensor that is changed in place.
pub(crate) fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a fused op needs contiguous operands")
    };
    match storage {
        CpuStorage::F32(data) => Ok(&mut data[start..end]),
        _ => bail!("a fused op works on f32"),
    }
}

/// An op's result.
pub(super) fn output(data: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(data), shape.into())
}

/// The gradient of an operand, unless nothing behind it is trained: then it is not even computed.
pub(super) fn wanted(operand: &Tensor, gradient: impl FnOnce() -> Vec<f32>) -> Result<Option<Tensor>> {
    if !operand.track_op() {
        return Ok(None);
    }
    Tensor::from_vec(gradient(), operand.shape(), operand.device()).map(Some)
}

/// The elements of a tensor, for backward passes: borrowed where it is contiguous.
pub(super) struct Elements {
    tensor: Tensor,
}

/// Makes a tensor's elements readable.
pub(super) fn elements(tensor: &Tensor) -> Result<Elements> {
    let tensor = tensor.detach().contiguous()?;
    if !tensor.device().is_cpu() {
        bail!("this op has no kernel for the device");
    }
    Ok(Elements { tensor })
}

impl Elements {
    /// Holds the tensor's lock while it is read.
    pub(super) fn read(&self) -> Result<Guard<'_>> {
        let (storage, layout) = self.tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("not contiguous") };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Guard { storage, start, end }),
            _ => bail!("a fused op works on f32 on the CPU"),
        }
    }
}

/// A read lock on a tensor's elements.
pub(super) struct Guard<'a> {
    storage: candle_core::StorageRef<'a>,
    start: usize,
    end: usize,
}

impl Deref for Guard<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            _ => &[],
        }
    }
}
