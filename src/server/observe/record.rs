use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Observe;
use super::metrics::REASONS;

/// What is known of one HTTP request. It is over when this is dropped.
#[derive(Debug)]
pub(in crate::server) struct Record {
    pub(super) observe: Arc<Observe>,
    /// What `x-request-id` says.
    pub(super) id: String,
    /// The route's pattern, never the path that was asked for: there are only so many patterns.
    pub(super) route: String,
    pub(super) start: Instant,
    /// 0 while there is no answer.
    pub(super) status: AtomicU16,
    /// What kind of request the engine was given, if any.
    pub(super) kind: OnceLock<&'static str>,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    /// From the start until the first sequence had its turn, and until the first token of any.
    pub(super) queued: OnceLock<Duration>,
    pub(super) first_token: OnceLock<Duration>,
    /// How many of its sequences ended how.
    pub(super) finished: [AtomicU64; REASONS.len()],
}

impl Record {
    pub(super) fn new(observe: &Arc<Observe>, id: String, route: String) -> Self {
        Self {
            observe: Arc::clone(observe),
            id,
            route,
            start: Instant::now(),
            status: AtomicU16::new(0),
            kind: OnceLock::new(),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            queued: OnceLock::new(),
            first_token: OnceLock::new(),
            finished: Default::default(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let milliseconds =
            |duration: Option<&Duration>| duration.map(|duration| duration.as_micros() as f64 / 1e3);
        tracing::info!(
            target: "scone::request",
            id = self.id,
            route = self.route,
            kind = self.kind.get(),
            status = self.status.load(Ordering::Relaxed),
            prompt_tokens = self.prompt_tokens.load(Ordering::Relaxed),
            cached_tokens = self.cached_tokens.load(Ordering::Relaxed),
            generated_tokens = self.generated_tokens.load(Ordering::Relaxed),
            queue_ms = milliseconds(self.queued.get()),
            first_token_ms = milliseconds(self.first_token.get()),
        );
    }
}
