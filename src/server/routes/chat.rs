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
use crate::server::wire::request::ChatRequest;
use crate::server::wire::response::Form;

/// `POST /v1/chat/completions`: a conversation, written out by the model's chat template, is continued.
pub(in crate::server) async fn create(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let watch = Watch::new(&app.observe, request.extensions(), "chat");
    let fields = Fields::read(request).await?;
    let work = tokio::task::spawn_blocking(move || {
        let job = job(&app, ChatRequest::from_fields(fields)?)?;
        begin(&app, job, &watch)
    });
    let answer = work.await.map_err(|_| ApiError::internal("the request could not be prepared"))??;
    answer.send().await
}

fn job(app: &App, request: ChatRequest) -> Result<Job, ApiError> {
    let ChatRequest { generation, conversation, logprobs } = request;
    check_model(app, generation.model.as_ref())?;
    let text = app.chat.render(&conversation)?;
    let most = generation.truncate.is_none().then(|| app.engine.context());
    // The template has written what begins the text, so nothing is put before it.
    let prompt = encode(&app.tokenizer, "messages", &text, false, most)?;
    let best_of = generation.n;
    Ok(Job {
        form: Form::Chat,
        generation,
        source: "messages",
        prompts: vec![prompt],
        best_of,
        echo: false,
        logprobs,
    })
}
