use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use serde::Serialize;

use super::text::encode;
use crate::model::LiveTable;
use crate::server::App;
use crate::server::answer::begin::check_model;
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;
use crate::server::wire::request::{Prompt, take_prompt};
use crate::table::{Explained, Totals, explain};

/// The most tokens that are explained at a time: the answer has a hundred bytes for each and more.
const MAX_TOKENS: usize = 65_536;

/// What is said of a text.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Explanation {
    object: &'static str,
    model: String,
    max_n: usize,
    tokens: Vec<Explained>,
    totals: Totals,
}

/// `POST /v1/fgrams`: which f-gram each token of `prompt`, a text or token ids, matched.
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Explanation>, ApiError> {
    let fields = Fields::read(request).await?;
    let work = tokio::task::spawn_blocking(move || explanation(&app, fields));
    work.await.map_err(|_| ApiError::internal("the text could not be explained"))?.map(Json)
}

fn explanation(app: &App, mut fields: Fields) -> Result<Explanation, ApiError> {
    check_model(app, fields.take("model")?.as_ref())?;
    let add_special_tokens = fields.take("add_special_tokens")?.unwrap_or(true);
    let tokens = match take_prompt(&mut fields)? {
        Prompt::Tokens(tokens) => tokens,
        Prompt::Text(text) => encode(&app.tokenizer, "prompt", &text, add_special_tokens, Some(MAX_TOKENS))?,
    };
    if tokens.len() > MAX_TOKENS {
        let message = format!("`prompt` has {} tokens; {MAX_TOKENS} are the most", tokens.len());
        return Err(ApiError::too_long("prompt", message));
    }
    let size = app.engine.vocab_size();
    if let Some(&token) = tokens.iter().find(|&&id| id as usize >= size) {
        let message = format!("token {token} of the prompt is not below the vocabulary's size, {size}");
        return Err(ApiError::invalid("prompt", message));
    }
    let table = app.table.as_deref().map(LiveTable::get).ok_or_else(ApiError::no_table)?;
    let explained = explain(&app.tokenizer, &table, &tokens);
    // A file that was cut under its reader has given nonsense.
    table.check().map_err(|error| ApiError::unavailable(error.to_string()))?;
    Ok(Explanation {
        object: "fgrams",
        model: app.card.id.clone(),
        max_n: table.policy().max_n,
        totals: Totals::of(&explained),
        tokens: explained,
    })
}
