use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use crate::server::App;

/// What this server takes and answers; `tests/openapi.rs` holds it to what it does.
const DOCUMENT: &str = include_str!("openapi.json");

/// A page that shows the document; it loads nothing else.
const PAGE: &str = include_str!("docs.html");

/// The document, with what depends on the model that is served.
pub(in crate::server) fn document(app: &App) -> String {
    // It is a part of the program, and tests read it.
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    let schemas = &mut document["components"]["schemas"];
    schemas["Model"]["enum"] = json!([app.card.id, null]);
    schemas["TokenId"]["maximum"] = json!(app.engine.vocab_size() - 1);
    document.to_string()
}

/// `GET /openapi.json`.
pub(in crate::server) fn openapi(document: &str) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.to_owned()).into_response()
}

/// `GET /docs`.
pub(in crate::server) async fn page() -> Html<&'static str> {
    Html(PAGE)
}
