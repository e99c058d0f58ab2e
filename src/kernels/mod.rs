//! What a CPU computes a transformer with: slices in, slices out. No tensors, no model, no requests.

pub mod attention;
mod disjoint;
mod elementwise;
mod encoding;
mod exp;
mod matrix;
mod pool;
pub mod simd;

pub use attention::{AttentionPlan, BLOCK, KvCache, KvShape, KvType, KvWriter, Queries, Span};
pub(crate) use disjoint::Disjoint;
pub use elementwise::{add, rms_norm, rms_norm_heads, rotate, swiglu};
pub use encoding::Encoding;
pub use exp::exp;
pub use matrix::{Activations, Matrix, product};
pub use pool::Pool;
