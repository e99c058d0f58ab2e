use serde_json::{Map, Value};

use super::{Generation, MAX_LOGPROBS};
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;

/// A request to `/v1/chat/completions`.
#[derive(Debug)]
pub(in crate::server) struct ChatRequest {
    pub(in crate::server) generation: Generation,
    pub(in crate::server) conversation: Conversation,
    pub(in crate::server) logprobs: Option<usize>,
}

/// What a chat template writes out.
#[derive(Debug)]
pub(in crate::server) struct Conversation {
    /// Objects with at least a `role`; every `content` is a string or missing.
    pub(in crate::server) messages: Vec<Value>,
    /// Whether the text goes on to where the assistant's next words begin.
    pub(in crate::server) add_generation_prompt: bool,
    /// More variables of the template.
    pub(in crate::server) variables: Map<String, Value>,
}

impl ChatRequest {
    pub(in crate::server) fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let fields = &mut fields;
        let Some(conversation) = Conversation::take(fields)? else {
            return Err(ApiError::invalid("messages", "`messages` is missing: give a list of messages"));
        };
        refuse_tools(fields)?;
        Ok(Self {
            conversation,
            logprobs: take_logprobs(fields)?,
            generation: Generation::take(fields, &["max_completion_tokens", "max_tokens"])?,
        })
    }
}

impl Conversation {
    /// The conversation, if there are `messages`.
    pub(in crate::server) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let Some(messages) = fields.take_value("messages") else { return Ok(None) };
        let Value::Array(messages) = messages else {
            return Err(wrong("`messages` must be a list of messages"));
        };
        if messages.is_empty() {
            return Err(wrong("`messages` is empty: at least one message is needed"));
        }
        if fields.take_value("chat_template").is_some() {
            let why = "`chat_template` of a request is not supported: the model's own is used";
            return Err(ApiError::invalid("chat_template", why));
        }
        if fields.take_flag("continue_final_message")? {
            let why = "`continue_final_message` is not supported";
            return Err(ApiError::invalid("continue_final_message", why));
        }
        Ok(Some(Self {
            messages: messages.into_iter().map(message).collect::<Result<_, _>>()?,
            add_generation_prompt: fields.take("add_generation_prompt")?.unwrap_or(true),
            variables: fields.take("chat_template_kwargs")?.unwrap_or_default(),
        }))
    }
}

fn wrong(why: &str) -> ApiError {
    ApiError::invalid("messages", why)
}

/// A message with its content as one string. What else it has is for the template.
fn message(value: Value) -> Result<Value, ApiError> {
    let Value::Object(mut message) = value else { return Err(wrong("a message must be an object")) };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(wrong("each of `messages` must have a `role`, which is a string"));
    }
    match message.get_mut("content") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(text_part).collect::<Result<Vec<_>, _>>()?;
            let joined = texts.join("\n");
            message.insert("content".into(), joined.into());
        }
        Some(_) => return Err(wrong("a message's `content` must be a string or a list of parts")),
    }
    Ok(Value::Object(message))
}

fn text_part(part: &Value) -> Result<&str, ApiError> {
    let text = part["text"].as_str().filter(|_| part["type"] == "text");
    text.ok_or_else(|| {
        wrong("a part of a message must be {\"type\": \"text\", \"text\": ...}: the model reads text only")
    })
}

fn refuse_tools(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["tools", "functions"] {
        match fields.take_value(name) {
            None => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(_) => {
                let why = format!("`{name}` is not supported: the model's answer is text");
                return Err(ApiError::invalid(name, why));
            }
        }
    }
    Ok(())
}

fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let is_wanted = fields.take_flag("logprobs")?;
    let top = fields.take_integer("top_logprobs", 0..=MAX_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !is_wanted {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    Ok(is_wanted.then(|| top.unwrap_or(0) as usize))
}
