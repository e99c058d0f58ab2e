use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::fgram::parquet::FileError;
use crate::model::ModelError;

/// What can go wrong in a run.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The TOML file does not say what it should.
    #[error("{path}: {why}")]
    Config {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file of the run cannot be read or written.
    #[error("cannot access {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A checkpoint that cannot be continued from.
    #[error("{path}: {why}")]
    Checkpoint {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The run directory is in use already.
    #[error("{0} holds a run already: continue it with --resume, or choose another --output")]
    Exists(PathBuf),
    /// Another process has the run directory.
    #[error("{0} is being trained by another process: wait for it or stop it")]
    Busy(PathBuf),
    /// The data do not suffice.
    #[error("{0}")]
    Data(String),
    /// A number is not finite any more.
    #[error(
        "the run diverged at step {step}: {tensor} is not finite any more. The last checkpoint is from step \
         {checkpoint}; lower learning_rate or raise warmup_steps"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// Where it shows first: the loss, or a parameter's gradient.
        tensor: String,
        /// The step of the last checkpoint.
        checkpoint: u64,
    },
    /// An op cut the gradient of a parameter.
    #[error("the parameter {0} receives no gradient")]
    NoGradient(String),
    /// The other processes.
    #[error(transparent)]
    Group(#[from] super::parallel::GroupError),
    /// The corpus.
    #[error(transparent)]
    Corpus(#[from] crate::corpus::Error),
    /// The f-gram set.
    #[error(transparent)]
    Fgrams(#[from] FileError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The arithmetic.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl TrainError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
