use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::table::TableError;
use crate::tokenizer::TokenizerError;

/// What can go wrong with a model: each message names the file and says what to do.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error("cannot access {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A GPU that is not there, or cannot be used.
    #[error("{device}: {why}. --device cpu computes on the CPU")]
    Device {
        /// What was asked for.
        device: String,
        /// What is the matter.
        why: String,
    },
    /// A GPU that failed, or has not enough memory.
    #[error("{0}")]
    Gpu(String),
    /// A JSON file does not say what it should.
    #[error("{path}: {why}")]
    Config {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A weight file lacks a tensor or has one of another shape.
    #[error("{path}: {why}")]
    Weights {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A table that was made for something else.
    #[error(
        "{table} does not fit {model}: made for another {differs}. Rebuild it with `scone table build {model}`, or serve \
         the model it was built from"
    )]
    TableMismatch {
        /// The table.
        table: PathBuf,
        /// The model directory.
        model: PathBuf,
        /// Which of tokenizer, token embedding, f-gram model and f-gram set differ.
        differs: String,
    },
    /// A set that the model was not trained with.
    #[error("the f-gram set is not the one that {model} was trained with (scone.json has its hash)")]
    WrongSet {
        /// The model directory.
        model: PathBuf,
    },
    /// A row that the f-gram model does not give.
    #[error(
        "{table}: row {rank} is not what the f-gram model computes (off by {difference} of its largest number): the \
         table is damaged or was made by another model; rebuild it with `scone table build`"
    )]
    Row {
        /// The table.
        table: PathBuf,
        /// Which row.
        rank: u32,
        /// The largest difference, as a share of the row's largest number.
        difference: f32,
    },
    /// The table that a model needs is not there.
    #[error("there is no table at {table}: make it with `scone table build {model} --fgrams FILE`")]
    NoTable {
        /// Where it should be.
        table: PathBuf,
        /// The model directory.
        model: PathBuf,
    },
    /// The f-gram model is needed and not there.
    #[error(
        "{0} has no fgram_model/: rows can only be computed from a directory that `scone-train fit` wrote"
    )]
    NoFgramModel(PathBuf),
    /// A token id that the model does not have.
    #[error("token {token} is beyond the model's vocabulary of {vocabulary}")]
    Token {
        /// The id.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
    /// The table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The arithmetic.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl ModelError {
    /// For `map_err` on an I/O result.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn config(path: &Path, why: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn weights(path: &Path, why: impl Into<String>) -> Self {
        Self::Weights { path: path.to_owned(), why: why.into() }
    }
}

#[cfg(any(feature = "cuda", test))]
impl From<crate::gpu::GpuError> for ModelError {
    fn from(error: crate::gpu::GpuError) -> Self {
        Self::Gpu(error.to_string())
    }
}
