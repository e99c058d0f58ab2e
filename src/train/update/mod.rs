//! From gradients to new weights.

mod adamw;
mod schedule;

pub use adamw::AdamW;
pub use schedule::learning_rate;
