use serde::Serialize;

use super::{FinishReason, StopReason, finite};
use crate::server::answer::choice::Piece;
use crate::server::answer::transcript::{Entry, TokenText};

/// A choice of `/v1/chat/completions`.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Choice {
    message: Message,
    #[serde(flatten)]
    rest: Rest,
}

/// A chunk of a choice.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Delta {
    delta: DeltaMessage,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: String,
    /// The model refuses nothing; clients expect the field.
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct DeltaMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: String,
}

/// What a choice and a chunk of it have in common.
#[derive(Debug, Serialize)]
struct Rest {
    index: usize,
    logprobs: Option<Logprobs>,
    finish_reason: Option<FinishReason>,
    stop_reason: Option<StopReason>,
    /// In the first chunk, if token ids were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct Logprobs {
    content: Vec<Token>,
    refusal: Option<Vec<Token>>,
}

#[derive(Debug, Serialize)]
struct Token {
    #[serde(flatten)]
    likely: Likely,
    top_logprobs: Vec<Likely>,
}

#[derive(Debug, Serialize)]
struct Likely {
    token: String,
    logprob: f32,
    /// Null for a token that is a part of a character.
    bytes: Option<Vec<u8>>,
}

const ASSISTANT: &str = "assistant";

impl Choice {
    pub(super) fn new(mut piece: Piece, has_logprobs: bool, has_token_ids: bool) -> Self {
        let content = std::mem::take(&mut piece.text);
        let message = Message { role: ASSISTANT, content, refusal: None };
        Self { message, rest: Rest::new(piece, has_logprobs, has_token_ids) }
    }
}

impl Delta {
    pub(super) fn new(mut piece: Piece, has_logprobs: bool, has_token_ids: bool) -> Self {
        let delta = DeltaMessage { role: None, content: std::mem::take(&mut piece.text) };
        Self { delta, rest: Rest::new(piece, has_logprobs, has_token_ids) }
    }

    pub(super) fn role(index: usize) -> Self {
        let delta = DeltaMessage { role: Some(ASSISTANT), content: String::new() };
        Self { delta, rest: Rest::new(Piece::new(index), false, false) }
    }
}

impl Rest {
    fn new(piece: Piece, has_logprobs: bool, has_token_ids: bool) -> Self {
        let (finish_reason, stop_reason) = piece.finish.map(|finish| (finish.reason, finish.stop)).unzip();
        Self {
            index: piece.index,
            logprobs: has_logprobs.then(|| Logprobs::new(piece.entries)),
            finish_reason,
            stop_reason: stop_reason.flatten(),
            prompt_token_ids: piece.prompt.filter(|_| has_token_ids).map(|prompt| prompt.to_vec()),
            token_ids: has_token_ids.then_some(piece.tokens),
        }
    }
}

impl Logprobs {
    fn new(entries: Vec<Entry>) -> Self {
        let content = entries.into_iter().map(|entry| Token {
            likely: Likely::new(entry.token, entry.logprob.unwrap_or_default()),
            top_logprobs: entry.top.unwrap_or_default().into_iter().map(|(t, l)| Likely::new(t, l)).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl Likely {
    fn new(token: TokenText, logprob: f32) -> Self {
        let bytes = token.text().map(|text| text.as_bytes().to_vec());
        Self { token: token.shown(), logprob: finite(logprob), bytes }
    }
}
