use super::histogram::{Counter, Histogram};

/// How a sequence can end, as `finished_reason` says it.
pub(super) const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// What is counted where it happens. What the engine and the table count themselves is read from them when it is asked for.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) prompt_tokens: Counter,
    pub(super) generation_tokens: Counter,
    /// Prompt tokens that were looked for among those of earlier requests, and those found.
    pub(super) prefix_queries: Counter,
    pub(super) prefix_hits: Counter,
    /// Sequences that ended, by [`REASONS`].
    pub(super) finished: [Counter; REASONS.len()],
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) e2e_latency: Histogram,
    pub(super) queue_time: Histogram,
    pub(super) prefill_time: Histogram,
    pub(super) decode_time: Histogram,
}
