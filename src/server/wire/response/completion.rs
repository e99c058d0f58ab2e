use serde::{Serialize, Serializer};

use super::{FinishReason, StopReason, finite};
use crate::server::answer::choice::Piece;
use crate::server::answer::transcript::Entry;

/// A choice of `/v1/completions`, whole or a chunk of it.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<FinishReason>,
    stop_reason: Option<StopReason>,
    /// In the first chunk, if token ids were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// Lists of equal length, an item a token.
#[derive(Debug, Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<TopLogprobs>>,
    text_offset: Vec<usize>,
}

/// An object from token to log-probability, the likeliest first.
#[derive(Debug)]
struct TopLogprobs(Vec<(String, f32)>);

impl Choice {
    pub(super) fn new(piece: Piece, has_logprobs: bool, has_token_ids: bool) -> Self {
        let (finish_reason, stop_reason) = piece.finish.map(|finish| (finish.reason, finish.stop)).unzip();
        Self {
            index: piece.index,
            text: piece.text,
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
        let mut lists = Self::default();
        for Entry { token, logprob, top, offset } in entries {
            lists.tokens.push(token.shown());
            lists.token_logprobs.push(logprob.map(finite));
            let top = top.map(|top| top.into_iter().map(|(token, logprob)| (token.shown(), logprob)));
            lists.top_logprobs.push(top.map(|top| TopLogprobs(top.collect())));
            lists.text_offset.push(offset);
        }
        lists
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Two tokens can have one text; a JSON object can have it once, with the higher value.
        let is_first = |i: usize| !self.0[..i].iter().any(|(token, _)| *token == self.0[i].0);
        let items = self.0.iter().enumerate().filter(|&(i, _)| is_first(i));
        serializer.collect_map(items.map(|(_, (token, logprob))| (token, finite(*logprob))))
    }
}
