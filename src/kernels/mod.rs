//! What a CPU computes a transformer with: slices in, slices out. No tensors, no model, no requests.

mod activations;
mod encode;
mod encoding;
mod matrix;
mod memory;
mod pool;
mod product;
mod shared;
pub mod simd;

pub use activations::Activations;
pub use encoding::Encoding;
pub use matrix::Matrix;
pub use pool::Pool;
pub use product::product;
pub use shared::Shared;
