use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::{EngineError, Failure};

/// An error as OpenAI's clients expect it: a status, and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug)]
pub(in crate::server) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// The request is wrong as a whole.
    pub(in crate::server) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request is wrong.
    pub(in crate::server) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::bad_request(message) }
    }

    /// A field asks for more tokens than the context has.
    pub(in crate::server) fn too_long(param: &'static str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    pub(in crate::server) fn unknown_model(name: &str, ours: &str) -> Self {
        // A name may have megabytes.
        let name: String = name.chars().take(200).collect();
        let message = format!("the model `{name}` does not exist; this server has `{ours}`");
        Self {
            param: Some("model"),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, message)
        }
    }

    pub(in crate::server) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Something is asked of the table of a model that has none.
    pub(in crate::server) fn no_table() -> Self {
        Self { code: Some("no_table"), ..Self::not_found("the model is a baseline: it has no table") }
    }

    /// A conversation cannot be written out: `why`.
    pub(in crate::server) fn no_chat_template(why: String) -> Self {
        Self { code: Some("no_chat_template"), ..Self::invalid("messages", why) }
    }

    pub(in crate::server) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// What was asked for does not go with what there is.
    pub(in crate::server) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(in crate::server) fn unknown_path(path: &str) -> Self {
        Self::not_found(format!("there is nothing at {path}"))
    }

    pub(in crate::server) fn wrong_method(method: &Method, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"))
    }

    pub(in crate::server) fn wrong_content_type(found: &str) -> Self {
        let message =
            format!("the body's content type is `{found}`; send JSON, with `Content-Type: application/json`");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub(in crate::server) fn encoded(found: &str) -> Self {
        let message = format!("the body's content encoding is `{found}`; send it as it is, not compressed");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub(in crate::server) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {limit} bytes, the most that is taken"),
        )
    }

    /// There is no key, or it is none of ours. What was sent is not repeated: it may be a slip of a real one.
    pub(in crate::server) fn unauthorized(message: impl Into<String>) -> Self {
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// The body did not come in time.
    pub(in crate::server) fn slow_body(seconds: f64) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {seconds} s"))
    }

    /// As many requests are being answered as may be.
    pub(in crate::server) fn busy(most: usize) -> Self {
        let message = format!("the server is busy: it answers {most} requests at a time; try again later");
        Self { code: Some("too_many_requests"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// The answer took longer than it may.
    pub(in crate::server) fn overdue(seconds: f64) -> Self {
        let message = format!("the request was not answered within {seconds} s, and was given up");
        Self { code: Some("request_timeout"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, message) }
    }

    /// The server's own fault.
    pub(in crate::server) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(in crate::server) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The object that goes into the body, or into a stream that has begun.
    pub(in crate::server) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl ApiError {
    /// Why the engine did not take a request, whose prompts came from the field `source`.
    pub(in crate::server) fn of_engine(error: &EngineError, source: &'static str) -> Self {
        let message = error.to_string();
        match error {
            EngineError::QueueFull { .. } | EngineError::TooManyTokens { .. } => {
                Self { code: Some("queue_full"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
            }
            EngineError::Stopped => Self::unavailable(message),
            EngineError::EmptyPrompt | EngineError::UnknownToken { .. } => Self::invalid(source, message),
            EngineError::TooLong { .. } | EngineError::TooLarge { .. } => {
                Self::too_long("max_tokens", message)
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Expired(_) => Self { code: Some("queue_timeout"), ..Self::unavailable(message) },
            Failure::Stopped => Self::unavailable(message),
            Failure::Model(_) => Self::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What of the body is still to come would be taken for the next request.
            StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
