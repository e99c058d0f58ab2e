use std::ops::RangeInclusive;

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// A body of so many bytes is parsed in less than a millisecond.
const SMALL: usize = 64 << 10;

/// The most characters of a parser's message: it may quote what it found.
const MESSAGE_LIMIT: usize = 300;

/// The fields of a JSON object, taken out one by one. A null is as good as no field, and what is never asked for is ignored.
#[derive(Debug)]
pub(in crate::server) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a request's body.
    pub(in crate::server) async fn read(request: Request<Body>) -> Result<Self, ApiError> {
        check_content_type(&request)?;
        let body = read_all(request.into_body()).await?;
        if body.len() <= SMALL {
            return Self::parse(&body);
        }
        // It takes a while, in which this thread would serve nobody else.
        let parsed = tokio::task::spawn_blocking(move || Self::parse(&body)).await;
        parsed.map_err(|_| ApiError::internal("the body could not be parsed"))?
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
                serde_json::from_value(value).map_err(|error| {
                    let why: String = error.to_string().chars().take(MESSAGE_LIMIT).collect();
                    ApiError::invalid(name, format!("`{name}`: {why}"))
                })
            })
            .transpose()
    }

    /// A field that is true or false; false where it is not there.
    pub(in crate::server) fn take_flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        Ok(self.take(name)?.unwrap_or(false))
    }

    /// A whole number, which may also be written as `16.0`.
    pub(in crate::server) fn take_integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(number) = self.take::<Number>(name)? else { return Ok(None) };
        match whole(&number) {
            Some(value) if range.contains(&value) => Ok(Some(value)),
            Some(_) => Err(outside(name, &number, range.start(), range.end(), &i64::MAX)),
            None => Err(ApiError::invalid(name, format!("`{name}` is {number}, but must be a whole number"))),
        }
    }

    /// A number.
    pub(in crate::server) fn take_number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(number) = self.take::<Number>(name)? else { return Ok(None) };
        match number.as_f64() {
            Some(value) if range.contains(&value) => Ok(Some(value)),
            _ => Err(outside(name, &number, range.start(), range.end(), &f64::MAX)),
        }
    }
}

/// A JSON number as a whole one, the nearest there is where it is too large; None if it has a fraction.
pub(in crate::server) fn whole(number: &Number) -> Option<i64> {
    let from_float = || number.as_f64().filter(|float| float.fract() == 0.0).map(|float| float as i64);
    number.as_i64().or_else(|| number.as_u64().map(|_| i64::MAX)).or_else(from_float)
}

fn outside<T: PartialEq + std::fmt::Display>(
    name: &'static str,
    found: &Number,
    least: &T,
    most: &T,
    unbounded: &T,
) -> ApiError {
    if most == unbounded {
        ApiError::invalid(name, format!("`{name}` is {found}, but must be at least {least}"))
    } else {
        ApiError::invalid(name, format!("`{name}` is {found}, but must be from {least} to {most}"))
    }
}

/// A missing content type passes for JSON; a wrong one is refused, since a form or a file would parse as nonsense.
fn check_content_type(request: &Request<Body>) -> Result<(), ApiError> {
    if let Some(value) = request.headers().get(header::CONTENT_ENCODING).filter(|value| *value != "identity")
    {
        return Err(ApiError::encoded(&String::from_utf8_lossy(value.as_bytes())));
    }
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
