//! What a CPU computes a transformer with: slices in, slices out. No tensors, no model, no requests.

mod activations;
pub mod attention;
mod elementwise;
mod encode;
mod encoding;
mod exp;
mod matrix;
mod memory;
mod pool;
mod product;
mod shared;
pub mod simd;

pub use activations::Activations;
pub use attention::{AttentionPlan, BLOCK, KvCache, KvShape, KvType, KvWriter, Queries, Span};
pub use elementwise::{add, rms_norm, rms_norm_heads, rotate, swiglu};
pub use encoding::Encoding;
pub use exp::exp;
pub use matrix::Matrix;
pub use pool::Pool;
pub use product::product;
pub use shared::Shared;
