//! From prompts to sequences of the engine (`begin`), and from the engine's events to text: a `choice` for each sequence,
//! whose `transcript` holds back what may be a stop string. An answer is sent `whole` or as a `stream`.

pub(in crate::server) mod begin;
pub(in crate::server) mod choice;
pub(in crate::server) mod stops;
mod stream;
pub(in crate::server) mod transcript;
mod whole;

use std::sync::Arc;

use axum::response::Response;
use futures_util::stream::BoxStream;

use super::wire::error::ApiError;
use super::wire::request::StreamOptions;
use super::wire::response::{Head, Usage};
use choice::Piece;

/// An answer under way.
pub(in crate::server) struct Answer {
    head: Head,
    /// The pieces of all of its choices, as they come.
    pieces: BoxStream<'static, Result<Piece, ApiError>>,
    tally: Tally,
    samples: Samples,
    stream: Option<StreamOptions>,
}

/// How many sequences a prompt has, and how many of them become choices.
#[derive(Debug, Clone, Copy)]
struct Samples {
    drawn: usize,
    kept: usize,
}

/// The tokens that a request has used so far.
#[derive(Debug)]
struct Tally {
    prompt_tokens: usize,
    completion_tokens: usize,
    samples: usize,
    /// Of each prompt, the tokens that had been computed before: of its samples that which was first found the fewest, for
    /// the others find what it computes.
    cached: Vec<Option<usize>>,
}

impl Answer {
    /// The answer as it is sent.
    pub(in crate::server) async fn send(mut self) -> Result<Response, ApiError> {
        match self.stream.take() {
            Some(options) => Ok(stream::stream(self, options)),
            None => whole::whole(self).await,
        }
    }

    fn sequences(&self) -> usize {
        self.tally.cached.len() * self.samples.drawn
    }
}

impl Tally {
    fn new(prompts: &[Arc<[u32]>], samples: usize) -> Self {
        let prompt_tokens = prompts.iter().map(|prompt| prompt.len()).sum();
        Self { prompt_tokens, completion_tokens: 0, samples, cached: vec![None; prompts.len()] }
    }

    fn add(&mut self, piece: &Piece) {
        self.completion_tokens += piece.tokens.len();
        if let (Some(new), Some(cached)) =
            (piece.cached_tokens, self.cached.get_mut(piece.index / self.samples))
        {
            *cached = Some(cached.map_or(new, |old| old.min(new)));
        }
    }

    fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.completion_tokens, self.cached.iter().flatten().sum())
    }
}
