use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::{Value, json};

use crate::server::App;
use crate::server::wire::error::ApiError;
use crate::table::Table;

/// What a client is told of the model.
#[derive(Debug, Clone)]
pub struct ModelCard {
    /// The name that requests use.
    pub id: String,
    /// When the server loaded it, in seconds since 1970.
    pub created: u64,
}

/// What a client is told of a table.
#[derive(Debug, Clone, Serialize)]
pub struct TableCard {
    /// How many f-grams have a row.
    pub rows: usize,
    /// The size of its file.
    pub bytes: u64,
    /// The type of its rows.
    pub dtype: String,
}

impl TableCard {
    /// What is told of `table`.
    pub fn of(table: &Table) -> Self {
        Self { rows: table.len(), bytes: table.bytes(), dtype: table.row_type().to_string() }
    }
}

/// `GET /v1/models`.
pub(in crate::server) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [describe(&app)]}))
}

/// `GET /v1/models/{id}`.
pub(in crate::server) async fn retrieve(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::bad_request(error.body_text()))?;
    if id == app.card.id { Ok(Json(describe(&app))) } else { Err(ApiError::unknown_model(&id, &app.card.id)) }
}

fn describe(app: &App) -> Value {
    let ModelCard { id, created } = &app.card;
    let mut model = json!({
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "scone",
        "max_model_len": app.engine.context(),
    });
    if let Some(live) = &app.table {
        model["scone"] = json!({"table": TableCard::of(&live.get())});
    }
    model
}
