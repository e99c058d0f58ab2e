use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Observe;
use super::metrics::REASONS;

/// The status that is logged of a request whose client went away before its answer began.
const CLIENT_GONE: u16 = 499;

/// Routes that machines ask for every few seconds: they are logged only where debugging is.
const QUIET: [&str; 3] = ["/health", "/ready", "/metrics"];

/// What is known of one HTTP request: numbers, never what it says. It is over when this is dropped.
#[derive(Debug)]
pub(in crate::server) struct Record {
    pub(super) observe: Arc<Observe>,
    /// What `x-request-id` says.
    pub(super) id: String,
    pub(super) method: &'static str,
    /// The route's pattern, never the path that was asked for: there are only so many patterns.
    pub(super) route: String,
    pub(super) start: Instant,
    /// 0 while there is no answer.
    pub(super) status: AtomicU16,
    /// What kind of request the engine was given, if any.
    pub(super) kind: OnceLock<&'static str>,
    pub(super) prompt_tokens: AtomicU64,
    /// Whether they have been counted.
    pub(super) has_started: AtomicBool,
    /// How many of them end an f-gram, where there is a table.
    pub(super) matched: OnceLock<u64>,
    pub(super) cached_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    /// From handing them to the engine until the first of the sequences had its turn.
    pub(super) queued: OnceLock<Duration>,
    /// From the start until the first token of any.
    pub(super) first_token: OnceLock<Duration>,
    /// How many of its sequences ended how.
    pub(super) finished: [AtomicU64; REASONS.len()],
}

impl Record {
    pub(super) fn new(observe: &Arc<Observe>, id: String, method: &'static str, route: String) -> Self {
        Self {
            observe: Arc::clone(observe),
            id,
            method,
            route,
            start: Instant::now(),
            status: AtomicU16::new(0),
            kind: OnceLock::new(),
            prompt_tokens: AtomicU64::new(0),
            has_started: AtomicBool::new(false),
            matched: OnceLock::new(),
            cached_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            queued: OnceLock::new(),
            first_token: OnceLock::new(),
            finished: Default::default(),
        }
    }

    fn status(&self) -> u16 {
        match self.status.load(Ordering::Relaxed) {
            0 => CLIENT_GONE,
            status => status,
        }
    }

    /// How its sequences ended: `stop`, or `length 2, abort 1`.
    fn finish(&self) -> Option<String> {
        let counts = self.finished.iter().map(|count| count.load(Ordering::Relaxed));
        let reasons: Vec<(&str, u64)> =
            REASONS.into_iter().zip(counts).filter(|&(_, count)| count > 0).collect();
        match reasons.as_slice() {
            [] => None,
            [(reason, 1)] => Some((*reason).to_owned()),
            several => {
                let each = several.iter().map(|(reason, count)| format!("{reason} {count}"));
                Some(each.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// The share of the prompts' tokens that end an f-gram.
    fn hit_rate(&self) -> Option<f64> {
        let tokens = self.prompt_tokens.load(Ordering::Relaxed).max(1);
        self.matched.get().map(|&matched| (1e4 * matched as f64 / tokens as f64).round() / 1e4)
    }

    fn log(&self) {
        let [_, _, _, errors] = &self.finished;
        let status = self.status();
        let is_error = status >= 500 || errors.load(Ordering::Relaxed) > 0;
        let has_tokens = self.kind.get().is_some();
        let tokens = |count: &AtomicU64| has_tokens.then(|| count.load(Ordering::Relaxed));
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "scone::request",
                    id = self.id,
                    method = self.method,
                    route = self.route,
                    status,
                    prompt_tokens = tokens(&self.prompt_tokens),
                    cached_tokens = tokens(&self.cached_tokens),
                    generated_tokens = tokens(&self.generated_tokens),
                    hit_rate = self.hit_rate(),
                    queue_ms = self.queued.get().copied().map(milliseconds),
                    first_token_ms = self.first_token.get().copied().map(milliseconds),
                    total_ms = milliseconds(self.start.elapsed()),
                    finish = self.finish(),
                    "request"
                )
            };
        }
        if is_error {
            line!(warn);
        } else if QUIET.contains(&self.route.as_str()) {
            line!(debug);
        } else {
            line!(info);
        }
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

impl Drop for Record {
    fn drop(&mut self) {
        self.observe.metrics.answered(&self.route, self.method, self.status());
        self.log();
    }
}
