use std::time::Duration;

use thiserror::Error;

/// Why the engine did not take a request.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// As many sequences wait as may.
    #[error("the server is busy: {waiting} sequences wait and {limit} may; try again later")]
    QueueFull {
        /// Sequences that wait now.
        waiting: usize,
        /// The most that may.
        limit: usize,
    },
    /// As many tokens of prompts wait as may.
    #[error("the server is busy: prompts of {waiting} tokens wait and of {limit} may; try again later")]
    TooManyTokens {
        /// Tokens of the prompts that wait now.
        waiting: usize,
        /// The most that may.
        limit: usize,
    },
    /// The engine's thread has ended, or is about to.
    #[error("the engine has stopped and takes no more requests")]
    Stopped,
    /// A sequence needs a token to start from.
    #[error("the prompt is empty: at least one token is needed to start from")]
    EmptyPrompt,
    /// A token of the prompt is not in the vocabulary.
    #[error("token {token} of the prompt is not below the vocabulary's size, {vocab_size}")]
    UnknownToken {
        /// The token's id.
        token: u32,
        /// The number of ids that there are.
        vocab_size: usize,
    },
    /// Prompt and output together do not fit.
    #[error(
        "{prompt} prompt tokens and up to {max_tokens} more do not fit into the context of {context} tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// The most tokens of a sequence.
        context: usize,
    },
    /// Prompt and output together need more keys and values than are kept for all sequences.
    #[error(
        "the keys and values of {needed} tokens would have to be kept, but there is memory for {room} (the server's \
         --kv-memory); ask for fewer tokens"
    )]
    TooLarge {
        /// Tokens of prompt and output whose keys and values are needed.
        needed: usize,
        /// Tokens for which there is memory.
        room: usize,
    },
}

/// Why a sequence that was taken ended without being complete.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Its turn did not come in time.
    #[error("the request waited {} s without a turn; the server is busy: try again later", .0.as_secs_f64())]
    Expired(Duration),
    /// The engine was stopped.
    #[error("the engine has stopped and takes no more requests")]
    Stopped,
    /// The model could not compute it, as this says.
    #[error("{0}")]
    Model(String),
}
