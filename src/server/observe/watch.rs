use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::http::Extensions;

use super::metrics::{Metrics, REASONS};
use super::{Observe, Record};
use crate::table::Table;

/// Watches one HTTP request that is handed to the engine.
#[derive(Debug)]
pub(in crate::server) struct Watch {
    record: Arc<Record>,
}

/// Watches one sequence of a request. Dropped before [`ChoiceWatch::finished`], the sequence was aborted.
#[derive(Debug)]
pub(in crate::server) struct ChoiceWatch {
    record: Arc<Record>,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    is_over: bool,
}

impl Watch {
    /// Of the request with these extensions; `kind` is what it asks for: `completion`, `chat`.
    pub(in crate::server) fn new(
        observe: &Arc<Observe>,
        extensions: &Extensions,
        kind: &'static str,
    ) -> Self {
        // Without the layer the request is still counted, under no name.
        let unnamed = || Arc::new(Record::new(observe, String::new(), "other", String::new()));
        let record = extensions.get::<Arc<Record>>().cloned().unwrap_or_else(unnamed);
        // The first to say so is right: there is one watch a request.
        let _ = record.kind.set(kind);
        Self { record }
    }

    /// How many tokens all its prompts have together, each prompt once however many samples are taken of it.
    pub(in crate::server) fn prompt(&self, tokens: usize) {
        self.record.prompt_tokens.store(tokens as u64, Ordering::Relaxed);
    }

    /// Notes how many tokens of the prompts end an f-gram of the table.
    pub(in crate::server) fn matches<'a>(&self, table: &Table, prompts: impl IntoIterator<Item = &'a [u32]>) {
        let index = table.index();
        let found = index.matches_of(prompts.into_iter().map(|prompt| (prompt, 0)));
        let _ = self.record.matched.set(found.iter().flatten().count() as u64);
    }

    /// To be called for each sequence as soon as the engine has it.
    pub(in crate::server) fn choice(&self) -> ChoiceWatch {
        ChoiceWatch {
            record: Arc::clone(&self.record),
            submitted: Instant::now(),
            started: None,
            first_token: None,
            last_token: None,
            is_over: false,
        }
    }
}

impl ChoiceWatch {
    fn metrics(&self) -> &Metrics {
        &self.record.observe.metrics
    }

    /// The engine has given it a place; so many of its prompt's tokens need not be computed.
    pub(in crate::server) fn started(&mut self, cached_tokens: usize) {
        let now = Instant::now();
        self.started = Some(now);
        self.metrics().queue_time.add(now - self.submitted);
        self.record.cached_tokens.fetch_add(cached_tokens as u64, Ordering::Relaxed);
        let _ = self.record.queued.set(now - self.submitted);
        if !self.record.has_started.swap(true, Ordering::Relaxed) {
            self.metrics().prompt_tokens.add(self.record.prompt_tokens.load(Ordering::Relaxed));
        }
    }

    /// A token was generated.
    pub(in crate::server) fn token(&mut self) {
        let now = Instant::now();
        self.metrics().generation_tokens.add(1);
        self.record.generated_tokens.fetch_add(1, Ordering::Relaxed);
        match self.last_token.replace(now) {
            Some(last) => self.metrics().inter_token_latency.add(now - last),
            None => {
                self.first_token = Some(now);
                self.metrics().time_to_first_token.add(now - self.record.start);
                self.metrics().prefill_time.add(now - self.started.unwrap_or(self.submitted));
                let _ = self.record.first_token.set(now - self.record.start);
            }
        }
    }

    /// It is over: `stop`, `length` or `error`.
    pub(in crate::server) fn finished(&mut self, reason: &'static str) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let reason = REASONS.iter().position(|known| *known == reason).unwrap_or(0);
        self.metrics().finished[reason].add(1);
        self.record.finished[reason].fetch_add(1, Ordering::Relaxed);
        self.metrics().e2e_latency.add(self.record.start.elapsed());
        if let (Some(first), Some(last)) = (self.first_token, self.last_token) {
            self.metrics().decode_time.add(last - first);
        }
    }
}

impl Drop for ChoiceWatch {
    fn drop(&mut self) {
        self.finished("abort");
    }
}
