//! The HTTP side: OpenAI's completion endpoints on axum, and what goes with them.
//!
//! JSON, tokenizing, detokenizing, stop strings and formatting happen here; the engine sees token ids only. A request
//! goes through `wire` (JSON to checked fields), one of the `routes` (prompts to tokens, tokens to the engine), and `answer`
//! (the engine's events to text), and out through `wire` again, as one response or as a stream of them. Whatever is wrong
//! with a request becomes an error in OpenAI's form; nothing here answers in plain text.
//!
//! A client that goes away drops its connection's future, with it the receivers of its events, and that is all the engine
//! needs to free its places.

mod answer;
mod chat;
mod observe;
mod routes;
mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use crate::engine::EngineHandle;
use crate::model::LiveTable;
use crate::tokenizer::Tokenizer;
use routes::{admin, docs, fgrams, models, tokenize};
use wire::error::ApiError;

pub use chat::Chat;
#[cfg(feature = "otel")]
pub use observe::Traces;
pub use observe::{Observe, names};
pub use routes::models::{ModelCard, TableCard};

/// How long answers that are under way may take to finish after the signal to stop.
const DRAIN: Duration = Duration::from_secs(5);

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
}

/// Serves until `shutdown` completes; then takes no more connections and returns when all answers under way are finished,
/// or after five seconds.
///
/// # Errors
/// As the listener's.
pub async fn run(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let signal = async move {
        shutdown.await;
        let _ = tell.send(());
    };
    let overdue = async move {
        let _ = told.await;
        tokio::time::sleep(DRAIN).await;
    };
    // Tokens are small packets that must not wait for each other.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    // Who asks, for what only this machine may.
    let service = router(app).into_make_service_with_connect_info::<SocketAddr>();
    tokio::select! {
        result = axum::serve(listener, service).with_graceful_shutdown(signal).into_future() => result,
        () = overdue => Ok(()),
    }
}

fn router(app: App) -> Router {
    let observed = from_fn_with_state(Arc::clone(&app.observe), observe::layer);
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
        .route("/health", get(models::health))
        .route("/metrics", get(observe::scrape))
        .route("/admin/table", post(admin::reload_table))
        .fallback(|uri: Uri| async move { ApiError::unknown_path(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::wrong_method(&method, uri.path())
        })
        .layer(observed)
        .with_state(Arc::new(app))
}
