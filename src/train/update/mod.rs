//! From gradients to new weights.

mod adamw;
mod moments;
mod schedule;

pub use adamw::AdamW;
pub(in crate::train) use moments::Moments;
pub use schedule::learning_rate;
