use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::fgram::SetError;
use crate::fgram::parquet::FileError;
use crate::tokenizer::TokenizerError;

/// What goes wrong between a text and a tagged dataset.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be read, written or made.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Something is wrong at one place of an input.
    #[error("{}, {place}: {what}", .path.display())]
    Input {
        /// Which file.
        path: PathBuf,
        /// A line, or a byte offset.
        place: String,
        /// What is wrong there.
        what: String,
    },
    /// The inputs hold no text.
    #[error("the corpus is empty: {0}")]
    Empty(String),
    /// The output exists.
    #[error("{} exists and is not empty: remove it, or choose another output", .0.display())]
    Exists(PathBuf),
    /// The tokenizer cannot serve here.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// No token is known to separate documents.
    #[error(
        "the tokenizer has no end-of-text token by a usual name (<|endoftext|>, </s>, ...): \
         name the token that separates documents"
    )]
    NoEos,
    /// An option outside its range.
    #[error("{0}")]
    Option(String),
    /// A dataset's files do not agree with each other.
    #[error("{} is damaged or not a dataset: {what}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// Two things were made with different tokenizers.
    #[error(
        "the {what} was made with tokenizer {theirs}, the dataset with {ours}: mine the set from this dataset, \
         or prepare the dataset with the set's tokenizer"
    )]
    OtherTokenizer {
        /// What does not fit the dataset.
        what: &'static str,
        /// Its tokenizer's hash.
        theirs: String,
        /// The dataset's.
        ours: String,
    },
    /// The dataset's tags belong to another f-gram set.
    #[error("{} was tagged with f-gram set {theirs}, not {ours}: tag it again", .path.display())]
    OtherTags {
        /// The tags' `tags.json`.
        path: PathBuf,
        /// Its set's hash.
        theirs: String,
        /// The hash asked for.
        ours: String,
    },
    /// No n-gram is frequent enough.
    #[error(
        "no two tokens stand together {min_count} times in the {tokens} training tokens: \
         give more text, or lower the minimum count"
    )]
    NothingFrequent {
        /// The least count.
        min_count: u64,
        /// The size of the training split.
        tokens: u64,
    },
    /// Someone else works there.
    #[error("{} is taken: {what}", .path.display())]
    Busy {
        /// The work directory.
        path: PathBuf,
        /// By whom, and what to do.
        what: &'static str,
    },
    /// A file of n-grams and counts cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The mined n-grams are no f-gram set.
    #[error(transparent)]
    Set(#[from] SetError),
}

impl Error {
    /// For `map_err`: names the file and what was done to it.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}
