//! The same ops on a GPU: our kernels on candle's tensors, forward and backward. Activations are f32 or bf16, weights and
//! their gradients f32.
//!
//! An op's result is made first and then put into candle's graph as a node that only knows how to go back.

mod attention;
mod cross_entropy;
mod elementwise;
mod linear;
mod node;
mod norm;
mod operand;
mod rows;
#[cfg(test)]
mod tests;
mod update;

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use crate::gpu::{Buffer, Gpu, GpuError, Type};

pub(super) use attention::{attention, last_attention, tree_attention};
pub(super) use cross_entropy::cross_entropy;
pub(super) use elementwise::{add, rope, swiglu};
pub(super) use linear::linear;
pub(super) use norm::rms_norm;
pub(super) use rows::take_rows_of_two;
pub(crate) use update::{adamw, square_sums};

use node::node;
use operand::{Held, Output, held};

/// The GPU that a tensor is on, if it is on one.
pub(crate) fn gpu_of(device: &Device) -> Result<Option<Arc<dyn Gpu>>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Some(crate::gpu::Cuda::of(device).map_err(said)?)),
        #[cfg(test)]
        Device::Cpu if EMULATED.get() => Ok(Some(Arc::new(crate::gpu::emulator::Emulator::new(false)))),
        _ => Ok(None),
    }
}

#[cfg(test)]
thread_local! {
    /// Whether tensors on the CPU are taken for those of an emulated GPU.
    static EMULATED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Does something on the GPU that there is to test on: a real one, or the emulator in place of the CPU.
#[cfg(test)]
pub(crate) fn on_gpu<T>(work: impl FnOnce(&Device) -> T) -> T {
    if let Some(device) = crate::gpu::testing::real() {
        return work(&device);
    }
    EMULATED.set(true);
    let result = work(&Device::Cpu);
    EMULATED.set(false);
    result
}

#[allow(clippy::needless_pass_by_value, reason = "what `map_err` gives")]
fn said(error: GpuError) -> Error {
    Error::Msg(error.to_string())
}

/// Indices on the GPU.
fn indices(gpu: &dyn Gpu, indices: &[u32]) -> Result<Buffer> {
    let buffer = gpu.alloc(4 * indices.len()).map_err(said)?;
    gpu.upload(bytemuck::cast_slice(indices), buffer.of(Type::U32)).map_err(said)?;
    Ok(buffer)
}

/// An f32 weight in the type of the activations that it meets.
fn weight_as(gpu: &dyn Gpu, weight: &Tensor, kind: DType) -> Result<Tensor> {
    if weight.dtype() == kind {
        return weight.detach().contiguous();
    }
    let converted = Output::new(weight.shape(), kind, weight.device())?;
    crate::gpu::ops::convert(gpu, held(weight)?.slice()?, converted.slice()?).map_err(said)?;
    Ok(converted.into_tensor())
}
