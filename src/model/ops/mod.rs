//! The fused ops of the transformer, forward and backward, on the CPU and, in `gpu/`, on an NVIDIA GPU.
//!
//! candle's own fused ops cut the gradient without a word, and its composed ones spend most of a step outside the
//! matrix products. Each op here is a candle `CustomOp` with both passes, on activations of shape `[tokens, features]`: f32 on
//! the CPU, f32 or bf16 on a GPU. The tests hold it against candle's composed ops and against finite differences, and the
//! GPU's against the CPU's.

mod add;
mod attention;
mod cross_entropy;
mod gemm;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod gpu;
mod linear;
mod panels;
mod recompute;
mod rms_norm;
mod rope;
mod rows;
mod simd;
mod slices;
mod swiglu;
#[cfg(test)]
mod tests;
mod tree_attention;

pub use add::add;
pub use attention::{attention, last_attention};
pub use cross_entropy::cross_entropy;
pub use linear::Linear;
pub use recompute::recompute;
pub use rms_norm::rms_norm;
pub use rope::{Rope, rope};
pub use rows::{take_rows, take_rows_of_two};
pub use swiglu::swiglu;
pub use tree_attention::tree_attention;

pub(crate) use slices::contiguous_mut;

/// Whether tensors of a device are a GPU's.
///
/// # Errors
/// Where the GPU is lost.
pub(crate) fn is_gpu(device: &candle_core::Device) -> candle_core::Result<bool> {
    #[cfg(any(feature = "cuda", test))]
    return Ok(gpu::gpu_of(device)?.is_some());
    #[cfg(not(any(feature = "cuda", test)))]
    Ok(!device.is_cpu())
}
