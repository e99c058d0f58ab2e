//! How a conversation becomes a text: by the model's chat template, which is Jinja as Hugging Face's library runs it.

mod json;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Utc};
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat;

use super::wire::error::ApiError;
use super::wire::request::Conversation;
use crate::model::TokenizerInfo;

/// The template's name in its environment; one that ends with `.html` would have it escape.
const NAME: &str = "chat";

/// What a model says of conversations, ready to use.
#[derive(Debug)]
pub struct Chat {
    info: TokenizerInfo,
    /// With the template, or why there is none.
    environment: Result<Environment<'static>, String>,
}

impl Chat {
    /// Of the model that says this of its tokenizer. A template that cannot be read is as good as none, with a warning: the
    /// model's completions do not need it.
    pub fn new(info: TokenizerInfo) -> Self {
        let environment = match &info.chat_template {
            None => Err("the model has no chat template: use /v1/completions".to_owned()),
            Some(template) => environment(template).map_err(|error| {
                tracing::warn!("the model's chat template cannot be used: {error:#}");
                format!("the model's chat template cannot be used ({error}): use /v1/completions")
            }),
        };
        Self { info, environment }
    }

    /// What the model says of its tokenizer.
    pub(super) fn info(&self) -> &TokenizerInfo {
        &self.info
    }

    /// The conversation as the model was trained to read it.
    pub(super) fn render(&self, conversation: &Conversation) -> Result<String, ApiError> {
        let environment = self.environment.as_ref().map_err(|why| ApiError::no_chat_template(why.clone()))?;
        let variables = Value::from_serialize(&conversation.variables);
        // Of two with one name the first counts: what the server says of itself cannot be changed by a request.
        let context = context! {
            messages => Value::from_serialize(&conversation.messages),
            add_generation_prompt => conversation.add_generation_prompt,
            bos_token => self.info.bos.as_deref().unwrap_or_default(),
            eos_token => self.info.eos.as_deref().unwrap_or_default(),
            pad_token => self.info.pad.as_deref().unwrap_or_default(),
            unk_token => self.info.unknown.as_deref().unwrap_or_default(),
            ..variables
        };
        let rendered = environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| {
            let why = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            ApiError::invalid(
                "messages",
                format!("the model's chat template does not take these messages: {why}"),
            )
        })
    }
}

fn environment(template: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", json::to_json);
    environment.add_template_owned(NAME, without_marks(template))?;
    Ok(environment)
}

/// The template with a block that always applies where Hugging Face's own tag marks the assistant's words, for training.
fn without_marks(template: &str) -> String {
    let mut template = template.to_owned();
    for (mark, block) in [("generation", "if true"), ("endgeneration", "endif")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            template =
                template.replace(&format!("{open} {mark} {close}"), &format!("{open} {block} {close}"));
        }
    }
    template
}

fn raise_exception(message: &str) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// The time now, in UTC.
fn strftime_now(format: &str) -> Result<String, Error> {
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("`{format}` is no format of a time")));
    }
    let now: DateTime<Utc> = std::time::SystemTime::now().into();
    Ok(now.format_with_items(items.iter()).to_string())
}

#[cfg(test)]
mod tests;
