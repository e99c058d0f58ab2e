use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use serde_json::{Value, json};

use super::text::encode;
use crate::server::App;
use crate::server::answer::begin::check_model;
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;
use crate::server::wire::request::{Conversation, take_tokens};

/// `POST /tokenize`: the tokens of the text `prompt`, or of the conversation `messages`.
pub(in crate::server) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::read(request).await?;
    in_background(move || {
        let mut fields = fields;
        check_model(&app, fields.take("model")?.as_ref())?;
        let add_special_tokens: Option<bool> = fields.take("add_special_tokens")?;
        let has_names = fields.take_flag("return_token_strs")?;
        let tokens = match (fields.take::<String>("prompt")?, Conversation::take(&mut fields)?) {
            (Some(text), None) => {
                encode(&app.tokenizer, "prompt", &text, add_special_tokens.unwrap_or(true), None)?
            }
            (None, Some(conversation)) => {
                let text = app.chat.render(&conversation)?;
                encode(&app.tokenizer, "messages", &text, add_special_tokens.unwrap_or(false), None)?
            }
            _ => return Err(ApiError::invalid("prompt", "give either `prompt`, a string, or `messages`")),
        };
        let names = || tokens.iter().map(|&id| app.tokenizer.id_to_token(id)).collect::<Vec<_>>();
        Ok(json!({
            "count": tokens.len(),
            "max_model_len": app.engine.context(),
            "token_strs": has_names.then(names),
            "tokens": tokens,
        }))
    })
    .await
}

/// `POST /detokenize`: the text of `tokens`.
pub(in crate::server) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::read(request).await?;
    in_background(move || {
        let mut fields = fields;
        check_model(&app, fields.take("model")?.as_ref())?;
        let Some(tokens) = take_tokens(&mut fields, "tokens")? else {
            return Err(ApiError::invalid("tokens", "`tokens` is missing: give a list of token ids"));
        };
        let size = app.engine.vocab_size();
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= size) {
            let message = format!("`tokens` has token {id}, but there are only {size} tokens");
            return Err(ApiError::invalid("tokens", message));
        }
        Ok(json!({"prompt": app.tokenizer.decode(&tokens)}))
    })
    .await
}

/// `GET /tokenizer_info`: what a client needs to tokenize and to write conversations out itself.
pub(in crate::server) async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let info = app.chat.info();
    Json(json!({
        "tokenizer_class": info.class,
        "bos_token": info.bos,
        "eos_token": info.eos,
        "pad_token": info.pad,
        "unk_token": info.unknown,
        "chat_template": info.chat_template,
        "model_max_length": app.engine.context(),
        "vocab_size": app.engine.vocab_size(),
    }))
}

/// Long texts take seconds, in which this thread would serve nobody else.
async fn in_background(
    work: impl FnOnce() -> Result<Value, ApiError> + Send + 'static,
) -> Result<Json<Value>, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("the request could not be answered"))?.map(Json)
}
