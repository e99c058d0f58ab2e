//! The engine: many requests at a time through one model.
//!
//! One thread owns the model ([`Engine::start`]). Everyone else holds an [`EngineHandle`], hands it [`Request`]s and
//! reads [`Event`]s from a channel a request. The thread repeats one step (`worker`): let waiting requests in, share out
//! the step's token budget (`schedule`: one token to each sequence that is decoding, the rest to prompts, in chunks), put
//! drafts behind what decodes if they pay (`speculate`), run one forward pass over all of it, then sample (`pass`). A
//! request that ends, fails or is abandoned (its receiver dropped) frees its place before the next step.
//!
//! Keys and values are in blocks of a few positions (`blocks`). A sequence gets them as it grows; full ones are shared by
//! all who begin with the same tokens, now or later. Where there are none left, the youngest sequence gives up its own and
//! computes them again when there are.
//!
//! What the engine asks of a model is [`Forward`]; token ids are all it knows of text. What a sequence gets from the model
//! does not depend on what runs beside it, and sampling draws from a generator of the request's own, so nothing of all
//! this (chunks, sharing, speculation, preemption) changes what a request gets.

mod blocks;
mod cost;
mod counters;
mod error;
mod forward;
mod handle;
mod hints;
mod model;
mod pass;
mod queue;
mod request;
mod sampler;
mod schedule;
mod score;
mod sequence;
mod speculate;
mod weights;
mod worker;

pub use crate::model::Piece;
pub use counters::Counters;
pub use error::{EngineError, Failure};
pub use forward::{Forward, ForwardError, Prefetch};
pub use handle::{Config, Engine, EngineHandle};
pub use request::{Event, Finish, Penalties, Request, Sampling, Score};
pub use sampler::{NotANumber, Sampler};
pub use score::score;
