use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::histogram::{Counter, Histogram};

/// How a sequence can end, as `finished_reason` says it.
pub(super) const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// What is counted where it happens.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) prompt_tokens: Counter,
    pub(super) generation_tokens: Counter,
    /// Sequences that ended, by [`REASONS`].
    pub(super) finished: [Counter; REASONS.len()],
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) e2e_latency: Histogram,
    pub(super) queue_time: Histogram,
    pub(super) prefill_time: Histogram,
    pub(super) decode_time: Histogram,
    /// Requests that are over.
    http: Mutex<Answers>,
}

/// How many requests had each route, method and status.
pub(super) type Answers = BTreeMap<(String, &'static str, u16), u64>;

impl Metrics {
    pub(super) fn answered(&self, route: &str, method: &'static str, status: u16) {
        *self.http().entry((route.to_owned(), method, status)).or_default() += 1;
    }

    pub(super) fn answers(&self) -> Answers {
        self.http().clone()
    }

    fn http(&self) -> MutexGuard<'_, Answers> {
        // A count is whole before the lock is released.
        self.http.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
