//! What a CPU computes a transformer with: slices in, slices out. No tensors, no model, no requests.

mod encoding;
mod pool;

pub use encoding::Encoding;
pub use pool::Pool;
