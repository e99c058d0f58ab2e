//! Joint training of the main model and the f-gram model.
//!
//! One run is one TOML file ([`RunConfig`]). With an `[fgram]` section the f-grams of a batch are embedded by the
//! f-gram model, each once, and put in place of their last token's embedding; without it the same code trains the
//! baseline: same data order, same initial weights, same everything.

mod config;
mod data;
mod error;
mod export;
mod grams;
mod joint;
mod parameters;
mod run;
mod start;
mod synthetic;
#[cfg(test)]
mod tests;
mod update;

pub use config::{
    CheckpointConfig, DataConfig, FgramSection, Freeze, ModelSection, OptimizerConfig, RunConfig,
    ValidationConfig,
};
pub use data::{Batch, Batches};
pub use error::TrainError;
pub use grams::{BatchGrams, unique_grams};
pub use joint::JointModel;
pub use parameters::Parameters;
pub use run::{Outcome, Progress, Run};
pub use synthetic::synthesize;
pub use update::{AdamW, learning_rate};
