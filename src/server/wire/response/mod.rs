//! Answers as JSON, in the two forms that text is answered in.

mod chat;
mod completion;

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::server::answer::choice::Piece;

/// Which of OpenAI's forms an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Form {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

/// The body of an answer, or of one chunk of it.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice>,
    /// Left out, or null in the chunks of a stream whose last one has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(in crate::server) enum Choice {
    Completion(completion::Choice),
    Message(chat::Choice),
    Delta(chat::Delta),
}

/// What every chunk of an answer repeats, and how its choices are written.
#[derive(Debug)]
pub(in crate::server) struct Head {
    form: Form,
    id: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    has_logprobs: bool,
    has_token_ids: bool,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum FinishReason {
    Stop,
    Length,
}

/// What stopped a choice, where the request named it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(in crate::server) enum StopReason {
    String(String),
    Token(u32),
}

/// The end of a choice.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::server) struct Finished {
    pub(in crate::server) reason: FinishReason,
    pub(in crate::server) stop: Option<StopReason>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(in crate::server) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

impl FinishReason {
    pub(in crate::server) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl Usage {
    pub(in crate::server) fn new(
        prompt_tokens: usize,
        completion_tokens: usize,
        cached_tokens: usize,
    ) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

impl Head {
    /// Of an answer that begins now.
    pub(in crate::server) fn new(form: Form, model: &str, has_logprobs: bool, has_token_ids: bool) -> Self {
        Self {
            form,
            id: next_id(form),
            created: seconds(),
            model: model.to_owned(),
            has_logprobs,
            has_token_ids,
        }
    }

    pub(in crate::server) fn form(&self) -> Form {
        self.form
    }

    /// The answer as a whole.
    pub(in crate::server) fn whole(&self, choices: Vec<Piece>, usage: Usage) -> Body<'_> {
        let object = match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion",
        };
        let choices = choices.into_iter().map(|piece| match self.form {
            Form::Completion => self.completion(piece),
            Form::Chat => Choice::Message(chat::Choice::new(piece, self.has_logprobs, self.has_token_ids)),
        });
        self.body(object, choices.collect(), Some(Some(usage)))
    }

    /// A chunk of one choice.
    pub(in crate::server) fn chunk(&self, piece: Piece, usage: Option<Option<Usage>>) -> Body<'_> {
        let choice = match self.form {
            Form::Completion => self.completion(piece),
            Form::Chat => Choice::Delta(chat::Delta::new(piece, self.has_logprobs, self.has_token_ids)),
        };
        self.body(self.chunk_object(), vec![choice], usage)
    }

    /// The chunk with which a choice of a conversation begins: who speaks.
    pub(in crate::server) fn role(&self, index: usize, usage: Option<Option<Usage>>) -> Body<'_> {
        self.body(self.chunk_object(), vec![Choice::Delta(chat::Delta::role(index))], usage)
    }

    /// The chunk after all others.
    pub(in crate::server) fn usage(&self, usage: Usage) -> Body<'_> {
        self.body(self.chunk_object(), Vec::new(), Some(Some(usage)))
    }

    fn chunk_object(&self) -> &'static str {
        match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion.chunk",
        }
    }

    fn completion(&self, piece: Piece) -> Choice {
        Choice::Completion(completion::Choice::new(piece, self.has_logprobs, self.has_token_ids))
    }

    fn body(&self, object: &'static str, choices: Vec<Choice>, usage: Option<Option<Usage>>) -> Body<'_> {
        Body { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// JSON has no infinity: an impossible token gets what other servers give it.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// An id that no other answer has, of this process or another.
fn next_id(form: Form) -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let kind = match form {
        Form::Completion => "cmpl",
        Form::Chat => "chatcmpl",
    };
    format!("{kind}-{:016x}{:08x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
