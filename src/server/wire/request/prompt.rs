use serde_json::Value;

use crate::server::wire::body::{Fields, whole};
use crate::server::wire::error::ApiError;

/// A prompt as the client wrote it.
#[derive(Debug, PartialEq)]
pub(in crate::server) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// The field `prompt`: a string, several, a list of token ids, or several.
pub(super) fn take_prompts(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    match fields.take_value("prompt") {
        None => Err(ApiError::invalid(
            "prompt",
            "`prompt` is missing: give a string, token ids, or a list of either",
        )),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) => match items.first() {
            None => Ok(vec![Prompt::Tokens(Vec::new())]),
            Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(parse_tokens("prompt", &items)?)]),
            Some(_) => items.into_iter().map(parse_prompt).collect(),
        },
        Some(_) => Err(wrong_prompt()),
    }
}

/// The field `prompt` where there is one only: a string or a list of token ids.
pub(in crate::server) fn take_prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    match fields.take_value("prompt") {
        Some(value @ (Value::String(_) | Value::Array(_))) => parse_prompt(value),
        _ => Err(ApiError::invalid("prompt", "`prompt` must be a string or a list of token ids")),
    }
}

fn parse_prompt(item: Value) -> Result<Prompt, ApiError> {
    match item {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) => Ok(Prompt::Tokens(parse_tokens("prompt", &items)?)),
        _ => Err(wrong_prompt()),
    }
}

fn wrong_prompt() -> ApiError {
    ApiError::invalid(
        "prompt",
        "`prompt` must be a string, a list of strings, a list of token ids, or a list of such lists",
    )
}

/// A field that is a list of token ids.
pub(in crate::server) fn take_tokens(
    fields: &mut Fields,
    name: &'static str,
) -> Result<Option<Vec<u32>>, ApiError> {
    match fields.take_value(name) {
        None => Ok(None),
        Some(Value::Array(items)) => parse_tokens(name, &items).map(Some),
        Some(_) => Err(ApiError::invalid(name, format!("`{name}` must be a list of token ids"))),
    }
}

fn parse_tokens(name: &'static str, items: &[Value]) -> Result<Vec<u32>, ApiError> {
    let token = |item: &Value| item.as_number().and_then(whole).and_then(|id| u32::try_from(id).ok());
    items
        .iter()
        .map(|item| {
            token(item).ok_or_else(|| {
                // Only a number is short enough to be quoted.
                let found = if item.is_number() { item.to_string() } else { "something else".into() };
                ApiError::invalid(name, format!("`{name}` has {found} where a token id should be"))
            })
        })
        .collect()
}
