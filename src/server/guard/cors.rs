use std::time::Duration;

use axum::http::{HeaderValue, Method, header};
use thiserror::Error;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::request_id::X_REQUEST_ID;

/// How long a browser may remember what it was allowed.
const MAX_AGE: Duration = Duration::from_secs(600);

/// The web pages that may ask from a browser.
#[derive(Debug, Clone)]
pub struct Cors {
    origins: AllowOrigin,
}

/// An origin that no browser would send.
#[derive(Debug, Error)]
#[error("`{0}` is no origin: write it as a browser sends it, as https://example.org, or `*` for any")]
pub struct CorsError(String);

impl Cors {
    /// For pages of these origins, or of any if `*` is among them.
    ///
    /// # Errors
    /// If one of them is no origin.
    pub fn new(origins: &[String]) -> Result<Self, CorsError> {
        if origins.iter().any(|origin| origin == "*") {
            return Ok(Self { origins: AllowOrigin::any() });
        }
        let origins = origins.iter().map(|origin| {
            let origin = origin.trim();
            let (_, host) = origin.split_once("://").unwrap_or_default();
            let is_other = |c: char| c.is_whitespace() || c.is_ascii_uppercase() || "/?#@,".contains(c);
            let value = HeaderValue::from_str(origin).ok();
            let value = value.filter(|_| !host.is_empty() && !host.contains(is_other));
            value.ok_or_else(|| CorsError(origin.to_owned()))
        });
        Ok(Self { origins: AllowOrigin::list(origins.collect::<Result<Vec<_>, _>>()?) })
    }

    /// It answers preflights itself. Whatever headers a page wants to send, it may: `*` would leave out the one with the key.
    pub(super) fn layer(&self) -> CorsLayer {
        CorsLayer::new()
            .allow_origin(self.origins.clone())
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([X_REQUEST_ID, header::RETRY_AFTER])
            .max_age(MAX_AGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_write_them() {
        let new = |origin: &str| Cors::new(&[origin.to_owned()]);
        for good in ["*", "https://example.org", "http://localhost:3000"] {
            assert!(new(good).is_ok(), "{good}");
        }
        for bad in ["example.org", "https://example.org/", "https://", "", "https://a\nb"] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }
}
