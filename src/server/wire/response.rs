use serde::{Serialize, Serializer};

use crate::server::answer::choice::Piece;
use crate::server::answer::transcript::Entry;

/// The body of an answer, or of one chunk of it.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Completion<'a> {
    #[serde(flatten)]
    pub(in crate::server) head: &'a Head,
    pub(in crate::server) choices: Vec<ChoiceBody>,
    /// Left out, or null in the chunks of a stream whose last one has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) usage: Option<Option<Usage>>,
}

/// What every chunk of an answer repeats.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Head {
    pub(in crate::server) id: String,
    pub(in crate::server) object: &'static str,
    /// Seconds since 1970.
    pub(in crate::server) created: u64,
    pub(in crate::server) model: String,
}

#[derive(Debug, Serialize)]
pub(in crate::server) struct ChoiceBody {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<FinishReason>,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    /// As it is written.
    pub(in crate::server) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(in crate::server) struct Usage {
    pub(in crate::server) prompt_tokens: usize,
    pub(in crate::server) completion_tokens: usize,
    pub(in crate::server) total_tokens: usize,
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

impl Usage {
    pub(in crate::server) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

impl ChoiceBody {
    pub(in crate::server) fn new(piece: Piece, has_logprobs: bool) -> Self {
        let Piece { index, text, entries, finish, .. } = piece;
        Self { index, text, logprobs: has_logprobs.then(|| Logprobs::new(entries)), finish_reason: finish }
    }
}

impl Logprobs {
    fn new(entries: Vec<Entry>) -> Self {
        let mut lists = Self::default();
        for Entry { token, logprob, top, offset } in entries {
            lists.tokens.push(token);
            lists.token_logprobs.push(logprob.map(finite));
            lists.top_logprobs.push(top.map(TopLogprobs));
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

/// JSON has no infinity: an impossible token gets what other servers give it.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
