use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;

use crate::server::App;
use crate::server::answer::begin::{Job, begin, check_model};
use crate::server::observe::Watch;
use crate::server::routes::text::encode;
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;
use crate::server::wire::request::{CompletionRequest, Prompt};
use crate::server::wire::response::Form;

/// `POST /v1/completions`.
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let watch = Watch::new(&app.observe, request.extensions(), "completion");
    let fields = Fields::read(request).await?;
    // A long prompt takes a while to tokenize, in which this thread would serve nobody else.
    let work = tokio::task::spawn_blocking(move || {
        let job = job(&app, CompletionRequest::from_fields(fields)?)?;
        begin(&app, job, &watch)
    });
    let answer = work.await.map_err(|_| ApiError::internal("the request could not be prepared"))??;
    answer.send().await
}

fn job(app: &App, request: CompletionRequest) -> Result<Job, ApiError> {
    let CompletionRequest { generation, prompts, add_special_tokens, best_of, echo, logprobs } = request;
    check_model(app, generation.model.as_ref())?;
    // A text that will be cut may have any length.
    let most = generation.truncate.is_none().then(|| app.engine.context());
    let tokens = |prompt| match prompt {
        Prompt::Tokens(tokens) => Ok(tokens),
        Prompt::Text(text) => encode(&app.tokenizer, "prompt", &text, add_special_tokens, most),
    };
    let prompts = prompts.into_iter().map(tokens).collect::<Result<_, _>>()?;
    Ok(Job { form: Form::Completion, generation, source: "prompt", prompts, best_of, echo, logprobs })
}
