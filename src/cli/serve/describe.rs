use std::path::Path;

use indicatif::{HumanBytes, HumanCount};

use crate::cli::open_model::ModelInfo;
use crate::engine::EngineHandle;
use crate::kernels::simd::Level;
use crate::model::LiveTable;
use crate::table::MetricsSnapshot;

/// What the table was asked for, in a line.
pub(super) fn summary(metrics: &MetricsSnapshot) -> String {
    let positions = HumanCount(metrics.positions.iter().sum());
    let [cache, memory, disk] = [metrics.rows_cache, metrics.rows_memory, metrics.rows_disk].map(HumanCount);
    format!(
        "table: {positions} tokens, hit rate {:.1} %; rows from the cache {cache}, memory {memory}, disk {disk}; {:.3} s \
         looking up, {:.3} s gathering",
        100.0 * metrics.hit_rate,
        metrics.lookup_seconds,
        metrics.gather_seconds
    )
}

/// What is served, for whoever started it.
pub(super) fn describe(
    name: &str,
    info: &ModelInfo,
    table: Option<&LiveTable>,
    engine: &EngineHandle,
    sequences: usize,
) -> String {
    let ModelInfo { parameters, layers, width, weight_bytes, kv_bytes, kv_positions, threads, .. } = info;
    let (parameters, vocabulary) = (HumanCount(*parameters as u64), HumanCount(engine.vocab_size() as u64));
    let context = HumanCount(engine.context() as u64);
    let table = match table {
        None => "none: token embeddings only".to_owned(),
        Some(live) => {
            let table = live.get();
            let (rows, bytes) = (HumanCount(table.len() as u64), HumanBytes(table.bytes()));
            let (mode, residence) = (live.placement(), table.residence());
            format!("{rows} rows of {}, {bytes}; {mode}: {residence}", table.row_type())
        }
    };
    let positions = HumanCount(*kv_positions as u64);
    let compute = match &info.gpu {
        Some(gpu) => format!("{gpu}; {threads} threads beside it"),
        None => format!("{} on {threads} threads", Level::best().name()),
    };
    let [weights, kv] = [*weight_bytes, *kv_bytes].map(HumanBytes);
    format!(
        "model   {name}: {parameters} parameters, {layers} layers of width {width}, {vocabulary} tokens, context {context}\n\
         table   {table}\n\
         memory  weights {weights}, keys and values up to {kv}: {positions} tokens of up to {sequences} sequences\n\
         compute {compute}\n"
    )
}

/// The last part of a model's path, without the ending of a GGUF file.
pub(super) fn directory_name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name =
        if full.extension().is_some_and(|end| end == "gguf") { full.file_stem() } else { full.file_name() };
    name.map_or_else(|| "default".into(), |name| name.to_string_lossy().into_owned())
}
