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
    /// Its place in a trace.
    #[cfg(feature = "otel")]
    pub(super) origin: Option<super::traces::Origin>,
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
            #[cfg(feature = "otel")]
            origin: None,
        }
    }

    /// What it comes to, now that it is over.
    fn summary(&self) -> Summary {
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = self.finished.iter().map(number);
        let reasons: Vec<_> = REASONS.into_iter().zip(counts).filter(|&(_, count)| count > 0).collect();
        let status = match self.status.load(Ordering::Relaxed) {
            0 => CLIENT_GONE,
            status => status,
        };
        let prompt = number(&self.prompt_tokens);
        let (cached, generated) = (number(&self.cached_tokens), number(&self.generated_tokens));
        let share = |&matched: &u64| (1e4 * matched as f64 / prompt.max(1) as f64).round() / 1e4;
        Summary {
            status,
            tokens: (prompt > 0).then_some(Tokens { prompt, cached, generated }),
            hit_rate: self.matched.get().map(share),
            is_error: status >= 500 || reasons.iter().any(|(reason, _)| *reason == "error"),
            reasons,
        }
    }

    fn log(&self, summary: &Summary) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "scone::request",
                    id = self.id,
                    method = self.method,
                    route = self.route,
                    status = summary.status,
                    prompt_tokens = summary.tokens.as_ref().map(|tokens| tokens.prompt),
                    cached_tokens = summary.tokens.as_ref().map(|tokens| tokens.cached),
                    generated_tokens = summary.tokens.as_ref().map(|tokens| tokens.generated),
                    hit_rate = summary.hit_rate,
                    queue_ms = self.queued.get().copied().map(milliseconds),
                    first_token_ms = self.first_token.get().copied().map(milliseconds),
                    total_ms = milliseconds(self.start.elapsed()),
                    finish = summary.finish(),
                    "request"
                )
            };
        }
        if summary.is_error {
            line!(warn);
        } else if self.is_quiet() {
            line!(debug);
        } else {
            line!(info);
        }
    }

    fn is_quiet(&self) -> bool {
        QUIET.contains(&self.route.as_str())
    }
}

/// What is told of a request that is over.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) status: u16,
    /// None if it never got as far as having a prompt.
    pub(super) tokens: Option<Tokens>,
    /// The share of the prompts' tokens that end an f-gram, where there is a table.
    pub(super) hit_rate: Option<f64>,
    /// How its sequences ended, and how many ended so.
    pub(super) reasons: Vec<(&'static str, u64)>,
    /// Whether the server failed.
    pub(super) is_error: bool,
}

#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) prompt: u64,
    pub(super) cached: u64,
    pub(super) generated: u64,
}

impl Summary {
    /// `stop`, or `length 2, abort 1`.
    fn finish(&self) -> Option<String> {
        match self.reasons.as_slice() {
            [] => None,
            [(reason, 1)] => Some((*reason).to_owned()),
            several => {
                let each = several.iter().map(|(reason, count)| format!("{reason} {count}"));
                Some(each.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

impl Drop for Record {
    fn drop(&mut self) {
        let summary = self.summary();
        self.observe.metrics.answered(&self.route, self.method, summary.status);
        self.log(&summary);
        #[cfg(feature = "otel")]
        if let (Some(traces), Some(origin), false) = (&self.observe.traces, &self.origin, self.is_quiet()) {
            traces.send(self, &summary, origin);
        }
    }
}
