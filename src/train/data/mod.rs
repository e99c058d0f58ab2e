//! The stream of batches: which tokens a step sees, for every seed and step the same.

mod batches;
mod permutation;

pub use batches::{Batch, Batches};
