use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::{Limited, end_of};
use super::body::refuse;
use super::phase::Phase;
use super::places::Place;
use crate::server::App;
use crate::server::wire::error::ApiError;

/// Addresses whose requests go through the engine's queue.
const GENERATING: [&str; 2] = ["/v1/completions", "/v1/chat/completions"];

/// Gives a request a place before anything is done for it, holds its answer to its time, and frees the place with the
/// answer's last byte. What asks only how things stand needs no place.
pub(super) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if request.method() != Method::POST || path.starts_with("/admin/") {
        return next.run(request).await;
    }
    let place = match place(&app, GENERATING.contains(&path)) {
        Ok(place) => place,
        Err(error) => return refuse(&app, request, error),
    };
    let mut end = end_of(&app.guard);
    tokio::select! {
        biased;
        response = next.run(request) => {
            let (head, body) = response.into_parts();
            let body = Body::new(Limited::new(&head, body, end, place, app.guard.limits.request_timeout));
            Response::from_parts(head, body)
        }
        error = &mut end => error.into_response(),
    }
}

fn place(app: &App, generates: bool) -> Result<Place, ApiError> {
    let places = &app.guard.places;
    let place = places.take().ok_or_else(|| ApiError::busy(places.most()))?;
    // In this order: whoever waits for all places to be free then either sees this one, or is seen here.
    if app.guard.phase() >= Phase::Draining {
        return Err(ApiError::unavailable("the server is stopping and takes no more requests"));
    }
    if generates {
        // Where the queue is full, a prompt would be tokenized in vain.
        app.engine.check_queue().map_err(|error| ApiError::of_engine(&error, "prompt"))?;
    }
    Ok(place)
}
