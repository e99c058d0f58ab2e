use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::http::{Method, Request};
use axum::middleware::Next;
use axum::response::Response;

use super::{Observe, Record};
use crate::server::guard::request_id::RequestId;

/// Where a request without a route is counted: paths are as many as clients make up.
const NO_ROUTE: &str = "unmatched";

/// Keeps a [`Record`] of each request. Of the layers, only the one that gives the request its id comes before.
pub(in crate::server) async fn layer(
    State(observe): State<Arc<Observe>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    #[cfg_attr(not(feature = "otel"), expect(unused_mut, reason = "only a trace is added"))]
    let mut record = Record::new(&observe, id, name(request.method()), route);
    #[cfg(feature = "otel")]
    {
        record.origin = Some(super::Traces::origin(request.headers()));
    }
    let record = Arc::new(record);
    request.extensions_mut().insert(Arc::clone(&record));
    let response = next.run(request).await;
    record.status.store(response.status().as_u16(), Ordering::Relaxed);
    response
}

/// A method's name; one for all that clients make up.
fn name(method: &Method) -> &'static str {
    const NAMES: [&str; 7] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"];
    NAMES.into_iter().find(|name| *name == method.as_str()).unwrap_or("other")
}
