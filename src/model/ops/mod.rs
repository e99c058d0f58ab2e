//! The fused ops of the transformer, forward and backward, on the CPU.
//!
//! candle's own fused ops cut the gradient without a word, and its composed ones spend most of a step outside the
//! matrix products. Each op here is a candle `CustomOp` with both passes, on f32 activations of shape
//! `[tokens, features]`; the tests hold it against candle's composed ops and against finite differences. A device
//! other than the CPU gets candle's "no implementation" error until the op has a kernel there.

mod add;
mod attention;
mod cross_entropy;
mod gemm;
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
