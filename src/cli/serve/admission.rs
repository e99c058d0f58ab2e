use std::time::Duration;

use super::at_least_one;
use crate::cli::bytes::parse_bytes;
use crate::cli::duration::{parse_duration, parse_some_duration};
use crate::server::Limits;

/// How much is let in at a time, and for how long.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct Admission {
    /// HTTP requests that are answered at a time, those that wait for the model included; more are answered with 429 at once
    #[arg(long, value_name = "N", env = "SCONE_MAX_CONCURRENT_REQUESTS", default_value_t = 512, value_parser = at_least_one)]
    max_concurrent_requests: usize,
    /// Sequences that may wait for a place (a request has one for each prompt and sample); beyond them requests are
    /// answered with 429
    #[arg(long, value_name = "N", env = "SCONE_MAX_QUEUE", default_value_t = 256, value_parser = at_least_one)]
    pub(super) max_queue: usize,
    /// Tokens that the prompts of those who wait may have together; beyond them requests are answered with 429
    /// [default: no limit]
    #[arg(long, value_name = "N", env = "SCONE_MAX_QUEUE_TOKENS", value_parser = at_least_one)]
    pub(super) max_queue_tokens: Option<usize>,
    /// How long a request may wait for the model before it is answered with 503, as 30s or 500ms; 0 is for ever
    #[arg(long, value_name = "TIME", env = "SCONE_QUEUE_TIMEOUT", default_value = "0", value_parser = parse_duration)]
    queue_timeout: Duration,
    /// How long a request may take altogether before it is answered with 504, or its stream with an error; 0 is for ever
    #[arg(long, value_name = "TIME", env = "SCONE_REQUEST_TIMEOUT", default_value = "0", value_parser = parse_duration)]
    request_timeout: Duration,
    /// The largest body of a request; larger ones are answered with 413
    #[arg(long, value_name = "SIZE", env = "SCONE_MAX_BODY", default_value = "8MiB", value_parser = parse_bytes)]
    max_body: u64,
    /// How long a request's body may take to arrive before it is answered with 408
    #[arg(long, value_name = "TIME", env = "SCONE_BODY_TIMEOUT", default_value = "30s", value_parser = parse_some_duration)]
    body_timeout: Duration,
    /// How long a connection may be open without a whole request head, at first or after an answer; then it is closed
    #[arg(long, value_name = "TIME", env = "SCONE_HEADER_TIMEOUT", default_value = "75s", value_parser = parse_some_duration)]
    header_timeout: Duration,
    /// Connections that are open at a time; more wait until one is closed
    #[arg(long, value_name = "N", env = "SCONE_MAX_CONNECTIONS", default_value_t = 4096, value_parser = at_least_one)]
    max_connections: usize,
}

impl Admission {
    /// What holds before the engine.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            requests: self.max_concurrent_requests,
            connections: self.max_connections.min(tokio::sync::Semaphore::MAX_PERMITS),
            body: usize::try_from(self.max_body).unwrap_or(usize::MAX),
            body_timeout: self.body_timeout,
            header_timeout: self.header_timeout,
            request_timeout: limit(self.request_timeout),
        }
    }

    /// How long a request may wait for its turn.
    pub(super) fn queue_timeout(&self) -> Option<Duration> {
        limit(self.queue_timeout)
    }
}

/// The time, where 0 means none.
fn limit(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}
