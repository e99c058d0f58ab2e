//! The engine: many requests at a time through one model.
//!
//! One thread owns the model ([`Engine::start`]). Everyone else holds an [`EngineHandle`], hands it [`Request`]s and
//! reads [`Event`]s from a channel a request. The thread repeats one step: let waiting requests into free places, share
//! out the step's token budget (one token to each sequence that is decoding, the rest to prompts, in chunks), run one
//! forward pass over all of it, then sample. A request that ends, fails or is abandoned (its receiver dropped) frees its
//! place before the next step.
//!
//! What the engine asks of a model is [`Forward`]; token ids are all it knows of text. Sampling draws from a generator of
//! the request's own, so what a seed gives does not depend on what runs beside it.

mod error;
mod forward;
mod hints;
mod model;
mod queue;
mod request;
mod sampler;
mod schedule;
mod score;
mod sequence;
mod worker;

pub use crate::model::Piece;
pub use error::EngineError;
pub use forward::{Forward, ForwardError, Prefetch};
pub use request::{Event, Finish, Request, Sampling, Score};
pub use sampler::{NotANumber, Sampler};
pub use score::score;
pub use worker::{Config, Engine, EngineHandle};
