//! Joint training of the main model and the f-gram model.
//!
//! One run is one TOML file ([`RunConfig`]). With an `[fgram]` section the f-grams of a batch are embedded by the
//! f-gram model, each once, and put in place of their last token's embedding; without it the same code trains the
//! baseline: same data order, same initial weights, same everything.

mod adamw;
mod batches;
mod checkpoint;
mod config;
mod error;
mod export;
mod grams;
mod joint;
mod metrics;
mod parameters;
mod permutation;
mod run;
mod schedule;
mod synthetic;
#[cfg(test)]
mod tests;

pub use adamw::AdamW;
pub use batches::{Batch, Batches};
pub use config::{
    CheckpointConfig, DataConfig, FgramSection, ModelSection, OptimizerConfig, RunConfig, ValidationConfig,
};
pub use error::TrainError;
pub use grams::{BatchGrams, unique_grams};
pub use joint::JointModel;
pub use metrics::Progress;
pub use parameters::Parameters;
pub use run::{Outcome, Run};
pub use schedule::learning_rate;
pub use synthetic::synthesize;
