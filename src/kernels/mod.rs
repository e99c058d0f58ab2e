//! What a CPU computes a transformer with: slices in, slices out. No tensors, no model, no requests.

mod encoding;
pub mod simd;

pub use encoding::Encoding;
