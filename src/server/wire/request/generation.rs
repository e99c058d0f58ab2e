use serde_json::Value;

use super::prompt::take_tokens;
use super::sampling::take_sampling;
use crate::engine::Sampling;
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;

/// The most choices of one request, samples of all its prompts together.
pub(in crate::server) const MAX_CHOICES: usize = 128;

/// The most stop strings, and the most characters of one: both are looked for at every token.
const MAX_STOPS: usize = 16;
const MAX_STOP_CHARACTERS: usize = 1024;

/// The most tokens of a request that end a sequence: each generated token is looked up among them.
const MAX_STOP_TOKENS: usize = 128;

/// What every request for text says: how much of it, how it is chosen, where it ends and how it is sent.
#[derive(Debug)]
pub(in crate::server) struct Generation {
    pub(in crate::server) model: Option<String>,
    /// None: as many as is usual, or as fit.
    pub(in crate::server) max_tokens: Option<usize>,
    /// Before so many are generated, nothing ends a sequence.
    pub(in crate::server) min_tokens: usize,
    pub(in crate::server) sampling: Sampling,
    /// Choices of each prompt.
    pub(in crate::server) n: usize,
    pub(in crate::server) ends: Ends,
    pub(in crate::server) truncate: Option<Truncate>,
    pub(in crate::server) return_token_ids: bool,
    pub(in crate::server) skip_special_tokens: bool,
    /// None: the answer is sent whole.
    pub(in crate::server) stream: Option<StreamOptions>,
}

/// What ends a sequence before it has as many tokens as were asked for.
#[derive(Debug)]
pub(in crate::server) struct Ends {
    pub(in crate::server) strings: Vec<String>,
    pub(in crate::server) tokens: Vec<u32>,
    /// The model's own end of text does not.
    pub(in crate::server) ignore_eos: bool,
    /// What ended it stays in the text.
    pub(in crate::server) is_included: bool,
}

/// How a prompt is cut: its end is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Truncate {
    /// To so many tokens.
    To(usize),
    /// So that what is asked for fits behind it.
    ToFit,
}

/// What a stream says beside the text.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::server) struct StreamOptions {
    /// The tokens used, in a last chunk.
    pub(in crate::server) include_usage: bool,
    /// The tokens used so far, in every chunk.
    pub(in crate::server) continuous_usage: bool,
}

impl Generation {
    /// Takes the fields; `max_tokens` goes by the first of `max_names` that is there.
    pub(super) fn take(fields: &mut Fields, max_names: &[&'static str]) -> Result<Self, ApiError> {
        refuse_what_is_not_there(fields)?;
        let mut max_tokens = None;
        for &name in max_names {
            let count = fields.take_integer(name, 0..=i64::MAX)?.map(|count| count as usize);
            max_tokens = max_tokens.or(count);
        }
        // Whose request it is makes no difference.
        let _: Option<String> = fields.take("user")?;
        Ok(Self {
            model: fields.take("model")?,
            max_tokens,
            min_tokens: fields.take_integer("min_tokens", 0..=i64::MAX)?.unwrap_or(0) as usize,
            sampling: take_sampling(fields)?,
            n: fields.take_integer("n", 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize,
            ends: Ends::take(fields)?,
            truncate: take_truncate(fields)?,
            return_token_ids: fields.take_flag("return_token_ids")?,
            skip_special_tokens: fields.take("skip_special_tokens")?.unwrap_or(true),
            stream: take_stream(fields)?,
        })
    }
}

impl Ends {
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let tokens = take_tokens(fields, "stop_token_ids")?.unwrap_or_default();
        if tokens.len() > MAX_STOP_TOKENS {
            let message =
                format!("`stop_token_ids` has {} tokens; {MAX_STOP_TOKENS} are the most", tokens.len());
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        Ok(Self {
            strings: parse_stop(fields.take_value("stop"))?,
            tokens,
            ignore_eos: fields.take_flag("ignore_eos")?,
            is_included: fields.take_flag("include_stop_str_in_output")?,
        })
    }
}

/// What others offer and this server does not, so that nobody takes an answer for what it is not.
fn refuse_what_is_not_there(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.take_value("prompt_logprobs").is_some() {
        let why = "`prompt_logprobs` is not supported: ask for `logprobs` of a completion with `echo`";
        return Err(ApiError::invalid("prompt_logprobs", why));
    }
    if fields.take_flag("use_beam_search")? {
        return Err(ApiError::invalid("use_beam_search", "`use_beam_search` is not supported"));
    }
    let format = fields.take_value("response_format");
    if format.is_some_and(|format| format["type"] != "text") {
        let why = "`response_format` other than {\"type\": \"text\"} is not supported";
        return Err(ApiError::invalid("response_format", why));
    }
    Ok(())
}

fn parse_stop(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let stop = match value {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list.into_iter().map(stop_string).collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong_stop()),
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
    if stop.iter().any(|one| one.chars().count() > MAX_STOP_CHARACTERS) {
        return Err(ApiError::invalid(
            "stop",
            format!("`stop` has a string of more than {MAX_STOP_CHARACTERS} characters"),
        ));
    }
    Ok(stop)
}

fn stop_string(value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(wrong_stop()),
    }
}

fn wrong_stop() -> ApiError {
    ApiError::invalid("stop", "`stop` must be a string or a list of strings")
}

fn take_truncate(fields: &mut Fields) -> Result<Option<Truncate>, ApiError> {
    Ok(match fields.take_integer("truncate_prompt_tokens", -1..=i64::MAX)? {
        None => None,
        Some(-1) => Some(Truncate::ToFit),
        Some(0) => {
            let why = "`truncate_prompt_tokens` is 0, but a prompt needs a token; -1 keeps what fits";
            return Err(ApiError::invalid("truncate_prompt_tokens", why));
        }
        Some(count) => Some(Truncate::To(count as usize)),
    })
}

fn take_stream(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let is_streamed = fields.take_flag("stream")?;
    let Some(value) = fields.take_value("stream_options") else {
        return Ok(is_streamed.then(StreamOptions::default));
    };
    let wrong = |why: &str| ApiError::invalid("stream_options", why);
    if !is_streamed {
        return Err(wrong("`stream_options` is only for requests with `stream`: true"));
    }
    let Value::Object(options) = value else { return Err(wrong("`stream_options` must be an object")) };
    let flag = |name: &str| match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(wrong(&format!("`{name}` of `stream_options` must be true or false"))),
    };
    let (include_usage, continuous) = (flag("include_usage")?, flag("continuous_usage_stats")?);
    Ok(Some(StreamOptions { include_usage, continuous_usage: include_usage && continuous }))
}
