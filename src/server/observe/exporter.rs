use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::exposition::{self, Exposition};
use super::metrics::{Metrics, REASONS};
use super::names;
use super::process::process;
use crate::engine::EngineHandle;
use crate::model::LiveTable;
use crate::server::App;

/// `GET /metrics`: all of [`names::ALL`], those of the table where there is one.
pub(in crate::server) async fn scrape(State(app): State<Arc<App>>) -> impl IntoResponse {
    let mut page = Exposition::default();
    engine(&mut page, &app.engine);
    requests(&mut page, &app.observe.metrics);
    if let Some(live) = &app.table {
        table(&mut page, live);
    }
    page.sample(&names::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
    page.sample(&names::MODEL_INFO, &[&app.card.id, &app.engine.context().to_string()], 1.0);
    process(&mut page);
    ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], page.into_text())
}

fn engine(page: &mut Exposition, engine: &EngineHandle) {
    let counters = engine.counters();
    let blocks =
        [("free", counters.free_blocks), ("kept", counters.kept_blocks), ("held", counters.held_blocks)];
    let all: usize = blocks.iter().map(|(_, count)| count).sum();
    page.number(&names::ENGINE_UP, f64::from(u8::from(engine.is_alive())));
    page.number(&names::RUNNING, engine.running() as f64);
    page.number(&names::WAITING, engine.waiting() as f64);
    page.number(&names::KV_USAGE, counters.held_blocks as f64 / all.max(1) as f64);
    for (state, count) in blocks {
        page.sample(&names::KV_BLOCKS, &[state], count as f64);
    }
    for (metric, count) in [
        (&names::PREFIX_QUERIES, counters.prompt_tokens),
        (&names::PREFIX_HITS, counters.cached_tokens),
        (&names::PREEMPTIONS, counters.preemptions),
        (&names::DRAFTS, counters.drafted),
        (&names::ACCEPTED, counters.accepted),
        (&names::STEPS, counters.steps),
        (&names::STEP_TOKENS, counters.step_tokens),
    ] {
        page.number(metric, count as f64);
    }
    page.number(&names::STEP_SECONDS, counters.step_time.as_secs_f64());
    page.number(&names::HOST_SECONDS, counters.host_time.as_secs_f64());
}

fn requests(page: &mut Exposition, metrics: &Metrics) {
    page.number(&names::PROMPT_TOKENS, metrics.prompt_tokens.get() as f64);
    page.number(&names::GENERATION_TOKENS, metrics.generation_tokens.get() as f64);
    for (reason, count) in REASONS.iter().zip(&metrics.finished) {
        page.sample(&names::REQUEST_SUCCESS, &[reason], count.get() as f64);
    }
    for (metric, histogram) in [
        (&names::TIME_TO_FIRST_TOKEN, &metrics.time_to_first_token),
        (&names::INTER_TOKEN_LATENCY, &metrics.inter_token_latency),
        (&names::E2E_LATENCY, &metrics.e2e_latency),
        (&names::QUEUE_TIME, &metrics.queue_time),
        (&names::PREFILL_TIME, &metrics.prefill_time),
        (&names::DECODE_TIME, &metrics.decode_time),
    ] {
        page.histogram(metric, &histogram.get());
    }
    for ((route, method, status), count) in metrics.answers() {
        page.sample(&names::HTTP_REQUESTS, &[&route, method, &status.to_string()], count as f64);
    }
}

fn table(page: &mut Exposition, live: &LiveTable) {
    let table = live.get();
    let counted = table.metrics().snapshot();
    for n in 2..=table.policy().max_n {
        page.sample(&names::FGRAM_MATCHES, &[&n.to_string()], counted.positions[n] as f64);
    }
    let fgrams: u64 = counted.positions[2..].iter().sum();
    for (kind, count) in
        [("fgram", fgrams), ("token", counted.positions[1]), ("special", counted.positions[0])]
    {
        page.sample(&names::FGRAM_POSITIONS, &[kind], count as f64);
    }
    page.number(&names::FGRAM_HIT_RATE, counted.hit_rate);
    page.number(&names::TABLE_OK, f64::from(u8::from(table.check().is_ok())));
    page.number(&names::TABLE_ROWS, table.len() as f64);
    page.number(&names::TABLE_BYTES, table.bytes() as f64);
    let (mode, dtype) = (live.placement().to_string(), table.row_type().to_string());
    page.sample(&names::TABLE_INFO, &[&mode, &dtype], 1.0);
    page.number(&names::TABLE_RELOADS, live.generation() as f64);
    for (tier, rows) in
        [("cache", counted.rows_cache), ("memory", counted.rows_memory), ("disk", counted.rows_disk)]
    {
        page.sample(&names::TABLE_ROWS_READ, &[tier], rows as f64);
    }
    page.number(&names::TABLE_ROWS_PREFETCHED, counted.rows_prefetched as f64);
    page.number(&names::TABLE_CACHE_HIT_RATE, counted.cache_hit_rate);
    page.number(&names::TABLE_ROW_BYTES, counted.row_bytes as f64);
    page.number(&names::TABLE_DISK_BYTES, counted.disk_bytes as f64);
    page.number(&names::TABLE_GATHERS, counted.gathers as f64);
    page.number(&names::TABLE_LOOKUP_SECONDS, counted.lookup_seconds);
    page.number(&names::TABLE_GATHER_SECONDS, counted.gather_seconds);
}
