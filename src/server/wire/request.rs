use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::Value;

use super::body::Fields;
use super::error::ApiError;
use crate::engine::{Penalties, Sampling};

/// The most choices of one request, samples of all its prompts together.
pub(in crate::server) const MAX_CHOICES: usize = 128;

/// The most tokens of which each position lists the log-probabilities.
const MAX_LOGPROBS: i64 = 20;

/// The most stop strings, and the most bytes of one: both are looked for at every token.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// A request to `/v1/completions`, its fields checked one by one. What depends on the model is checked later.
#[derive(Debug)]
pub(in crate::server) struct CompletionRequest {
    pub(in crate::server) model: Option<String>,
    pub(in crate::server) prompts: Vec<Prompt>,
    /// None: as many as is usual, or as fit.
    pub(in crate::server) max_tokens: Option<usize>,
    pub(in crate::server) sampling: Sampling,
    /// Samples of each prompt.
    pub(in crate::server) n: usize,
    pub(in crate::server) echo: bool,
    pub(in crate::server) logprobs: Option<usize>,
    pub(in crate::server) stop: Vec<String>,
    pub(in crate::server) ignore_eos: bool,
    pub(in crate::server) stream: bool,
    pub(in crate::server) include_usage: bool,
}

/// A prompt as the client wrote it.
#[derive(Debug, PartialEq)]
pub(in crate::server) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl CompletionRequest {
    pub(in crate::server) fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let prompts = parse_prompts(fields.take_value("prompt"))?;
        let n = take_integer(&mut fields, "n", 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize;
        if prompts.len() * n > MAX_CHOICES {
            let message =
                format!("{} prompts with `n` = {n} are more than {MAX_CHOICES} choices", prompts.len());
            return Err(ApiError::invalid("n", message));
        }
        if fields.take::<i64>("best_of")?.is_some_and(|best_of| best_of != n as i64) {
            return Err(ApiError::invalid("best_of", "`best_of` other than `n` is not supported"));
        }
        if fields.take_value("suffix").is_some() {
            return Err(ApiError::invalid(
                "suffix",
                "`suffix` is not supported: the model continues text, it cannot fill in",
            ));
        }
        let (stream, include_usage) = parse_stream(&mut fields)?;
        Ok(Self {
            model: fields.take("model")?,
            prompts,
            max_tokens: take_integer(&mut fields, "max_tokens", 0..=i64::MAX)?.map(|count| count as usize),
            sampling: parse_sampling(&mut fields)?,
            n,
            echo: fields.take("echo")?.unwrap_or(false),
            logprobs: take_integer(&mut fields, "logprobs", 0..=MAX_LOGPROBS)?.map(|count| count as usize),
            stop: parse_stop(fields.take_value("stop"))?,
            ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
            stream,
            include_usage,
        })
    }
}

fn parse_sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let temperature = take_number(fields, "temperature", 0.0..=f64::MAX)?.unwrap_or(1.0);
    let top_p = take_number(fields, "top_p", 0.0..=1.0)?.unwrap_or(1.0);
    // -1 and 0 both stand for all tokens, as they do elsewhere.
    let top_k = take_integer(fields, "top_k", -1..=i64::MAX)?.unwrap_or(0).max(0) as usize;
    let seed = fields.take::<i64>("seed")?.map(i64::cast_unsigned);
    let min_p = take_number(fields, "min_p", 0.0..=1.0)?.unwrap_or(0.0);
    Ok(Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
        penalties: parse_penalties(fields)?,
        logit_bias: parse_logit_bias(fields)?,
        seed,
        stream: 0,
    })
}

fn parse_penalties(fields: &mut Fields) -> Result<Penalties, ApiError> {
    let repetition = take_number(fields, "repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0);
    let frequency = take_number(fields, "frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let presence = take_number(fields, "presence_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    Ok(Penalties { repetition: repetition as f32, frequency: frequency as f32, presence: presence as f32 })
}

/// Token ids, as strings since JSON has no other keys, and what is added to their logits.
fn parse_logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias: Option<BTreeMap<u32, f32>> = fields.take("logit_bias")?;
    let bias: Vec<_> = bias.unwrap_or_default().into_iter().collect();
    if let Some((id, bias)) = bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
        let message = format!("`logit_bias` of token {id} is {bias}, but must be between -100 and 100");
        return Err(ApiError::invalid("logit_bias", message));
    }
    Ok(bias)
}

fn parse_stream(fields: &mut Fields) -> Result<(bool, bool), ApiError> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let options: Option<StreamOptions> = fields.take("stream_options")?;
    if options.is_some() && !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "`stream_options` is only for requests with `stream`: true",
        ));
    }
    Ok((stream, options.and_then(|options| options.include_usage).unwrap_or(false)))
}

fn take_integer(
    fields: &mut Fields,
    name: &'static str,
    range: RangeInclusive<i64>,
) -> Result<Option<i64>, ApiError> {
    let value = fields.take(name)?;
    match value {
        Some(value) if !range.contains(&value) => {
            Err(outside(name, value, range.start(), range.end(), i64::MAX))
        }
        value => Ok(value),
    }
}

fn take_number(
    fields: &mut Fields,
    name: &'static str,
    range: RangeInclusive<f64>,
) -> Result<Option<f64>, ApiError> {
    let value = fields.take(name)?;
    match value {
        Some(value) if !range.contains(&value) => {
            Err(outside(name, value, range.start(), range.end(), f64::MAX))
        }
        value => Ok(value),
    }
}

fn outside<T: Copy + PartialEq + std::fmt::Display>(
    name: &'static str,
    value: T,
    least: &T,
    most: &T,
    unbounded: T,
) -> ApiError {
    if *most == unbounded {
        ApiError::invalid(name, format!("`{name}` is {value}, but must be at least {least}"))
    } else {
        ApiError::invalid(name, format!("`{name}` is {value}, but must be from {least} to {most}"))
    }
}

/// A string, several, a list of token ids, or several.
fn parse_prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    match value {
        None => Err(ApiError::invalid(
            "prompt",
            "`prompt` is missing: give a string, token ids, or a list of either",
        )),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) => match items.first() {
            None => Ok(vec![Prompt::Tokens(Vec::new())]),
            Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(parse_tokens(&items)?)]),
            Some(_) => items.into_iter().map(parse_prompt).collect(),
        },
        Some(_) => Err(wrong_prompt()),
    }
}

fn parse_prompt(item: Value) -> Result<Prompt, ApiError> {
    match item {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) => Ok(Prompt::Tokens(parse_tokens(&items)?)),
        _ => Err(wrong_prompt()),
    }
}

fn wrong_prompt() -> ApiError {
    ApiError::invalid(
        "prompt",
        "`prompt` must be a string, a list of strings, a list of token ids, or a list of such lists",
    )
}

fn parse_tokens(items: &[Value]) -> Result<Vec<u32>, ApiError> {
    let token = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    items
        .iter()
        .map(|item| {
            token(item).ok_or_else(|| {
                // Only a number is short enough to be quoted.
                let found = if item.is_number() { item.to_string() } else { "something else".into() };
                ApiError::invalid("prompt", format!("`prompt` has {found} where a token id should be"))
            })
        })
        .collect()
}

fn parse_stop(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let stop = match value {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(list) => serde_json::from_value::<Vec<String>>(list).map_err(|error| {
            ApiError::invalid("stop", format!("`stop` must be a string or a list of strings: {error}"))
        })?,
    };
    if stop.len() > MAX_STOPS {
        return Err(ApiError::invalid(
            "stop",
            format!("`stop` has {} strings; {MAX_STOPS} are the most", stop.len()),
        ));
    }
    if stop.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "`stop` has an empty string, which would stop everything"));
    }
    if stop.iter().any(|one| one.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid(
            "stop",
            format!("`stop` has a string of more than {MAX_STOP_BYTES} bytes"),
        ));
    }
    Ok(stop)
}
