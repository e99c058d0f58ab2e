use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

/// The header that a request may bring its id in, and that each response has.
pub(in crate::server) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over.
const LONGEST: usize = 128;

/// What the logs of all who handle a request know it by: an extension of every request.
#[derive(Debug, Clone)]
pub(in crate::server) struct RequestId(pub(in crate::server) String);

/// Takes the client's id over if it is fit for a log line, or else makes one.
pub(super) async fn name(mut request: Request, next: Next) -> Response {
    let brought = request.headers().get(&X_REQUEST_ID).and_then(accept);
    let id = brought.unwrap_or_else(make);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

/// The id, if it is neither empty nor too long and all of it can be seen.
fn accept(value: &HeaderValue) -> Option<String> {
    let id = value.to_str().ok()?;
    let is_fit = (1..=LONGEST).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_fit.then(|| id.to_owned())
}

/// An id that no other request has, of this process or another.
fn make() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("req-{:016x}{:08x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_seen_is_taken_over() {
        for (value, is_fit) in [
            ("abc-1_2.3/~!", true),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
            ("", false),
            ("a b", false),
            ("a\tb", false),
        ] {
            let value = HeaderValue::from_str(value).unwrap();
            assert_eq!(accept(&value).is_some(), is_fit, "{value:?}");
        }
        assert_eq!(accept(&HeaderValue::from_bytes(b"caf\xc3\xa9").unwrap()), None);
        assert_ne!(make(), make());
    }
}
