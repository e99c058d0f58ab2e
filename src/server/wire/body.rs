use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of a JSON object, taken out one by one. A null is as good as no field, and what is never asked for is ignored.
#[derive(Debug)]
pub(in crate::server) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a request's body.
    pub(in crate::server) async fn read(request: Request<Body>) -> Result<Self, ApiError> {
        check_content_type(&request)?;
        Self::parse(&read_all(request.into_body()).await?)
    }

    /// Reads a request's body, which may be left out.
    pub(in crate::server) async fn read_or_none(request: Request<Body>) -> Result<Self, ApiError> {
        check_content_type(&request)?;
        let body = read_all(request.into_body()).await?;
        if body.is_empty() { Ok(Self(Map::new())) } else { Self::parse(&body) }
    }

    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::bad_request("the body must be a JSON object")),
            Err(error) => Err(ApiError::bad_request(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// The field as it is, if it is there and not null.
    pub(in crate::server) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// The field as a `T`, if it is there and not null.
    pub(in crate::server) fn take<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, ApiError> {
        self.take_value(name)
            .map(|value| {
                serde_json::from_value(value)
                    .map_err(|error| ApiError::invalid(name, format!("`{name}`: {error}")))
            })
            .transpose()
    }
}

/// A missing content type passes for JSON; a wrong one is refused, since a form or a file would parse as nonsense.
fn check_content_type(request: &Request<Body>) -> Result<(), ApiError> {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"));
    if is_json { Ok(()) } else { Err(ApiError::wrong_content_type(&text)) }
}

/// The whole body, which `guard` has read and found to be of a size that is taken.
async fn read_all(body: Body) -> Result<Bytes, ApiError> {
    let broken = |error| ApiError::bad_request(format!("the body broke off: {error}"));
    axum::body::to_bytes(body, usize::MAX).await.map_err(broken)
}
