//! Joint training of the main model and the f-gram model.
//!
//! One run is one TOML file ([`RunConfig`]). With an `[fgram]` section the f-grams of a batch are embedded by the
//! f-gram model, each once, and put in place of their last token's embedding; without it the same code trains the
//! baseline: same data order, same initial weights, same everything.

mod card;
mod config;
mod cost;
mod data;
mod error;
mod export;
mod gradient;
mod grams;
mod joint;
mod lookup;
pub mod parallel;
mod parameters;
mod precision;
mod report;
mod results;
mod run;
mod start;
mod synthetic;
#[cfg(test)]
mod tests;
mod update;

pub use card::{Card, CardSection};
pub use config::{
    CheckpointConfig, CorpusConfig, DataConfig, Documents, FgramSection, Freeze, ModelSection,
    OptimizerConfig, RunConfig, SamplesConfig, ValidationConfig,
};
pub use cost::{Costs, FgramWork, StoredBytes, Work, inference_flops};
pub use data::{Batch, Batches, Corpora, Corpus, HeldOut};
pub use error::TrainError;
pub use gradient::{Gradient, Gradients, RowGradient, add_gradients, square_sums};
pub use grams::{BatchGrams, unique_grams};
pub use joint::JointModel;
pub use parameters::Parameters;
pub use precision::Precision;
pub use report::{Axes, Comparison, Grid, RunRecord};
pub use results::{History, ParameterCounts, Results, TextResult, ValidationResult, words_and_line_ends};
pub use run::{CorpusProgress, Outcome, Progress, Run};
pub use synthetic::synthesize;
pub use update::{AdamW, learning_rate};
