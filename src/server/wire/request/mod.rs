//! Requests for text, their fields checked one by one. What depends on the model is checked later.

mod chat;
mod generation;
mod prompt;
mod sampling;

use super::body::Fields;
use super::error::ApiError;

pub(in crate::server) use chat::{ChatRequest, Conversation};
pub(in crate::server) use generation::{Generation, StreamOptions, Truncate};
pub(in crate::server) use prompt::{Prompt, take_prompt, take_tokens};

/// The most tokens of which each position lists the log-probabilities.
const MAX_LOGPROBS: i64 = 20;

/// A request to `/v1/completions`.
#[derive(Debug)]
pub(in crate::server) struct CompletionRequest {
    pub(in crate::server) generation: Generation,
    pub(in crate::server) prompts: Vec<Prompt>,
    /// Whether texts get what the tokenizer puts around one.
    pub(in crate::server) add_special_tokens: bool,
    /// Samples of each prompt, of which the best become choices.
    pub(in crate::server) best_of: usize,
    pub(in crate::server) echo: bool,
    pub(in crate::server) logprobs: Option<usize>,
}

impl CompletionRequest {
    pub(in crate::server) fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let fields = &mut fields;
        let prompts = prompt::take_prompts(fields)?;
        let generation = Generation::take(fields, &["max_tokens"])?;
        let best_of = take_best_of(fields, &generation)?;
        check_choices(prompts.len(), best_of, if best_of > generation.n { "best_of" } else { "n" })?;
        if fields.take_value("suffix").is_some() {
            return Err(ApiError::invalid(
                "suffix",
                "`suffix` is not supported: the model continues text, it cannot fill in",
            ));
        }
        Ok(Self {
            generation,
            prompts,
            add_special_tokens: fields.take("add_special_tokens")?.unwrap_or(true),
            best_of,
            echo: fields.take_flag("echo")?,
            logprobs: fields.take_integer("logprobs", 0..=MAX_LOGPROBS)?.map(|count| count as usize),
        })
    }
}

fn take_best_of(fields: &mut Fields, generation: &Generation) -> Result<usize, ApiError> {
    let n = generation.n;
    let Some(best_of) = fields.take_integer("best_of", 1..=generation::MAX_CHOICES as i64)? else {
        return Ok(n);
    };
    let best_of = best_of as usize;
    let wrong = |why: String| Err(ApiError::invalid("best_of", why));
    if best_of < n {
        return wrong(format!("`best_of` is {best_of}, but must be at least `n`, which is {n}"));
    }
    if best_of > n && generation.stream.is_some() {
        return wrong(
            "`best_of` more than `n` cannot be streamed: the best are known at the end only".into(),
        );
    }
    Ok(best_of)
}

fn check_choices(prompts: usize, samples: usize, name: &'static str) -> Result<(), ApiError> {
    let most = generation::MAX_CHOICES;
    if prompts > most {
        let message = format!("`prompt` has {prompts} prompts; {most} choices are the most");
        return Err(ApiError::invalid("prompt", message));
    }
    if prompts.saturating_mul(samples) > most {
        let message = format!("{prompts} prompts with `{name}` = {samples} are more than {most} choices");
        return Err(ApiError::invalid(name, message));
    }
    Ok(())
}
