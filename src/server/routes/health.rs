use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::server::App;
use crate::server::guard::phase::Phase;
use crate::server::wire::error::ApiError;

/// `GET /health`: whether requests are served, and how many are; and whether the table can be trusted.
pub(in crate::server) async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    check(&app)?;
    let mut health =
        json!({"status": "ok", "running": app.engine.running(), "waiting": app.engine.waiting()});
    if let Some(live) = &app.table {
        let table = live.get();
        // Another file lies there by now, and a reload would take it.
        let (mode, replaced) = (live.placement().to_string(), table.is_replaced());
        health["table"] = json!({"path": table.path(), "mode": mode, "replaced": replaced});
    }
    Ok(Json(health))
}

/// `GET /ready`: whether requests should be sent here: not to a server that is about to stop.
pub(in crate::server) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.guard.phase() != Phase::Serving {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    check(&app)?;
    Ok(Json(json!({"status": "ready"})))
}

fn check(app: &App) -> Result<(), ApiError> {
    if !app.engine.is_alive() {
        return Err(ApiError::unavailable("the engine has stopped"));
    }
    match &app.table {
        Some(live) => live.get().check().map_err(|error| ApiError::unavailable(error.to_string())),
        None => Ok(()),
    }
}
