//! The stream of batches: which tokens a step sees, for every seed and step the same.

mod batch;
mod batches;
mod corpora;
mod mixture;
mod permutation;
mod windows;

pub use batch::Batch;
pub use batches::Batches;
pub use corpora::{Corpora, Corpus, HeldOut};
