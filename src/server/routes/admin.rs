use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Request};
use serde_json::{Value, json};

use super::models::TableCard;
use crate::server::App;
use crate::server::wire::body::Fields;
use crate::server::wire::error::ApiError;

/// What a proxy or a browser adds: the request comes from this machine, but whose it is nobody knows.
const FROM_ELSEWHERE: [&str; 6] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via", "origin"];

/// `POST /admin/table`: opens the table's file again, or the one of the field `path`, and serves it from then on if it
/// fits the model. Requests under way go on; each of their steps uses one of the two.
pub(in crate::server) async fn reload_table(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    if !is_local(peer, request.headers()) {
        return Err(ApiError::forbidden("/admin answers this machine only, and nobody through a proxy"));
    }
    let Some(live) = app.table.clone() else {
        return Err(ApiError::no_table());
    };
    let path: Option<PathBuf> = Fields::read_or_none(request).await?.take("path")?;
    // It may read the whole file.
    let reloaded = tokio::task::spawn_blocking(move || live.reload(path.as_deref()));
    let reloaded = reloaded.await.map_err(|_| ApiError::internal("the table could not be reloaded"))?;
    let table = reloaded.map_err(|error| {
        tracing::warn!("the table stays as it is: {error}");
        ApiError::conflict(error.to_string())
    })?;
    let mut answer = json!(TableCard::of(&table));
    answer["path"] = json!(table.path());
    Ok(Json(answer))
}

fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    peer.ip().to_canonical().is_loopback() && !FROM_ELSEWHERE.iter().any(|name| headers.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine() {
        let none = HeaderMap::new();
        for (peer, local) in [
            ("127.0.0.1:1", true),
            ("127.8.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
            ("[::ffff:10.0.0.1]:1", false),
            ("[fe80::1]:1", false),
        ] {
            assert_eq!(is_local(peer.parse().unwrap(), &none), local, "{peer}");
        }
        for name in FROM_ELSEWHERE {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), "127.0.0.1".parse().unwrap())]);
            assert!(!is_local("127.0.0.1:1".parse().unwrap(), &headers), "{name}");
        }
    }
}
