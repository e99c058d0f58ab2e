//! From the engine's events to text: a `choice` for each sequence, whose `transcript` holds back what may be a stop string.

pub(in crate::server) mod choice;
pub(in crate::server) mod stops;
pub(in crate::server) mod stream;
pub(in crate::server) mod transcript;

use futures_util::stream::BoxStream;

use super::wire::error::ApiError;
use super::wire::response::Head;
use choice::Piece;

/// The pieces of all of a request's choices, as they come.
pub(in crate::server) type Pieces = BoxStream<'static, Result<Piece, ApiError>>;

/// An answer under way.
pub(in crate::server) struct Answer {
    pub(in crate::server) head: Head,
    pub(in crate::server) pieces: Pieces,
    pub(in crate::server) prompt_tokens: usize,
    pub(in crate::server) has_logprobs: bool,
}
