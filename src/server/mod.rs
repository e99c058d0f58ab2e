//! The HTTP side: OpenAI's completion endpoints on axum, and what goes with them.
//!
//! JSON, tokenizing, detokenizing, stop strings and formatting happen here; the engine sees token ids only. A request
//! goes through `wire` (JSON to checked fields), one of the `routes` (prompts to tokens, tokens to the engine), and `answer`
//! (the engine's events to text), and out through `wire` again, as one response or as a stream of them. Whatever is wrong
//! with a request becomes an error in OpenAI's form; nothing here answers in plain text. Before all of it stands `guard`:
//! connections, keys, limits, and how a server stops.
//!
//! A client that goes away drops its connection's future, with it the receivers of its events, and that is all the engine
//! needs to free its places.

mod answer;
mod chat;
mod guard;
mod observe;
mod routes;
mod wire;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;

use crate::engine::EngineHandle;
use crate::model::LiveTable;
use crate::tokenizer::Tokenizer;
use routes::{admin, docs, fgrams, health, models, tokenize};
use wire::error::ApiError;

pub use chat::Chat;
pub use guard::{Access, Cors, CorsError, Guard, Keys, KeysError, Limits, Stopping, Tls, TlsError};
#[cfg(feature = "otel")]
pub use observe::Traces;
pub use observe::{Observe, names};
pub use routes::models::{ModelCard, TableCard};

/// What the server serves.
#[derive(Debug)]
pub struct App {
    /// Where sequences are run.
    pub engine: EngineHandle,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations are written out.
    pub chat: Chat,
    /// What `/v1/models` says.
    pub card: ModelCard,
    /// The model's table, if it has one.
    pub table: Option<Arc<LiveTable>>,
    /// Tokens that end a completion unless `ignore_eos` is set.
    pub stop_tokens: Vec<u32>,
    /// What is counted and logged of requests.
    pub observe: Arc<Observe>,
    /// Who gets in, and how much of it.
    pub guard: Arc<Guard>,
}

/// Serves until `shutdown` completes; then takes no more requests and returns when all answers under way are finished, or
/// have had the time that `app.guard` gives them.
pub async fn run(listener: TcpListener, app: App, shutdown: impl Future<Output = ()>) {
    let guard = Arc::clone(&app.guard);
    run_when_loaded(listener, guard, std::future::ready(Some(app)), shutdown).await;
}

/// Like [`run`], for what is still being loaded: until `app` is there every request is answered with 503. If there will be
/// none, it returns. `guard` is that of `app`.
pub async fn run_when_loaded(
    listener: TcpListener,
    guard: Arc<Guard>,
    app: impl Future<Output = Option<App>>,
    shutdown: impl Future<Output = ()>,
) {
    let loading = Router::new().fallback(async || ApiError::unavailable("the model is still being loaded"));
    let routes = async { Some(router(app.await?)) };
    guard::serve(listener, guard, guard::request_ids(loading), routes, shutdown).await;
}

fn router(app: App) -> Router {
    let app = Arc::new(app);
    let observed = from_fn_with_state(Arc::clone(&app.observe), observe::layer);
    let routes = routes(Arc::clone(&app));
    guard::request_ids(guard::layers(routes, &app).layer(observed))
}

fn routes(app: Arc<App>) -> Router {
    let openapi = docs::document(&app);
    Router::new()
        .route("/v1/completions", post(routes::completions::create))
        .route("/v1/chat/completions", post(routes::chat::create))
        .route("/v1/fgrams", post(fgrams::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::info))
        .route("/openapi.json", get(|| async move { docs::openapi(&openapi) }))
        .route("/docs", get(docs::page))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(observe::scrape))
        .route("/admin/table", post(admin::reload_table))
        .fallback(|uri: Uri| async move { ApiError::unknown_path(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::wrong_method(&method, uri.path())
        })
        .with_state(app)
}
