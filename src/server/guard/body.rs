use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::timeout;

use super::request_id::RequestId;
use crate::server::App;
use crate::server::wire::error::ApiError;

/// How much of a body that is not wanted is read and thrown away. A client that is still sending when the connection closes
/// would see a reset instead of the answer.
const DISCARD_LIMIT: usize = 64 << 20;

type Chunks = BoxStream<'static, Result<Bytes, axum::Error>>;

/// Reads the body of a POST before anything is done with it: within the limit, and in time.
pub(super) async fn read_whole(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let limits = app.guard.limits;
    let (head, body) = request.into_parts();
    let is_too_large = body.size_hint().lower() > limits.body as u64;
    let mut chunks = body.into_data_stream().boxed();
    if is_too_large {
        discard(&app, chunks);
        return ApiError::too_large(limits.body).into_response();
    }
    match timeout(limits.body_timeout, read(&mut chunks, limits.body)).await {
        Ok(Ok(Some(bytes))) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Ok(None)) => {
            discard(&app, chunks);
            ApiError::too_large(limits.body).into_response()
        }
        Ok(Err(error)) => ApiError::bad_request(format!("the body broke off: {error}")).into_response(),
        Err(_) => ApiError::slow_body(limits.body_timeout.as_secs_f64()).into_response(),
    }
}

/// All chunks together, or None if they are more than `limit` bytes.
async fn read(chunks: &mut Chunks, limit: usize) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if bytes.len() + chunk.len() > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// Answers a request with an error, whatever it wanted, without waiting for its body.
pub(super) fn refuse(app: &App, request: Request, error: ApiError) -> Response {
    if let Some(RequestId(id)) = request.extensions().get() {
        tracing::debug!("{id} is refused: {error:?}");
    }
    let body = request.into_body();
    if !body.is_end_stream() {
        discard(app, body.into_data_stream().boxed());
    }
    error.into_response()
}

/// Reads on beside the answer, which does not wait for it, until the limit or the body's time is reached.
fn discard(app: &App, mut chunks: Chunks) {
    let time = app.guard.limits.body_timeout;
    tokio::spawn(timeout(time, async move {
        let mut seen = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            seen += chunk.len();
            if seen > DISCARD_LIMIT {
                break;
            }
        }
    }));
}
