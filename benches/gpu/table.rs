//! What a table costs: the same model with its rows in each place, and without a table, step by step in turns. Every token
//! of every step matches a bigram, and rows are read all over the table.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use scone::fgram::{FgramSet, Policy};
use scone::model::{Fgrams, LiveTable, Model, TableFit};
use scone::table::{Contents, GpuPlace, Identity, Placement, RowFormat, RowType, TableWriter};
use serde_json::{Value, json};

use crate::machine::median;
use crate::sequences::Sequences;

/// The second tokens that a first one has bigrams with, so many that their table has enough rows.
const SECOND: usize = 4096;

/// Tokens of a prompt, and of the pieces that it is read in.
pub(crate) const PROMPT: (usize, usize) = (1024, 256);

/// How often the prompt is read.
const READINGS: usize = 9;

/// Which table, and how it is read.
pub(crate) struct Case {
    pub(crate) rows: usize,
    pub(crate) batch: usize,
    pub(crate) past: usize,
    pub(crate) steps: usize,
    /// Whether there is a GPU to read rows by itself.
    pub(crate) gpu: bool,
}

fn identity(set: &FgramSet) -> Identity {
    let hash = || "0".repeat(64);
    Identity { tokenizer: hash(), token_embedding: hash(), fgram_model: hash(), fgrams: set.sha256() }
}

/// A table of so many bigrams, with rows of bf16.
fn write(path: &Path, rows: usize, d: usize) -> Identity {
    let policy = Policy { max_n: 2, special_tokens: vec![0], tokenizer_sha256: "0".repeat(64) };
    let bigrams: Vec<[u32; 2]> =
        (0..rows).map(|i| [1 + (i / SECOND) as u32, 1 + (i % SECOND) as u32]).collect();
    let set = FgramSet::from_ranked(policy, bigrams.iter().map(|gram| (gram.as_slice(), 5))).expect("a set");
    let (identity, format) = (identity(&set), RowFormat::packed(RowType::Bf16, d));
    let mut writer = TableWriter::open(path, format, Contents::of_set(&set), &identity).expect("a new table");
    let mut numbers = vec![0f32; d * SECOND];
    for first in (0..rows).step_by(SECOND) {
        let some = &mut numbers[..d * SECOND.min(rows - first)];
        some.par_chunks_mut(d).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, x)| *x = ((first + i + j) % 251) as f32 * 1e-4 - 0.0125);
        });
        writer.push(some).expect("rows");
    }
    writer.finish().expect("the table's end");
    identity
}

/// Bytes of the machine's memory that nobody uses, the page cache not counted as free.
fn free_memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Gives up what is cached of a file, but for what is mapped.
fn forget(path: &Path) {
    let file = std::fs::File::open(path).expect("the table");
    file.sync_all().expect("the table on the disk");
    // SAFETY: a hint about a file that is open, without pointers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Measures each way in turns, and prints a row of Markdown for each. `open` makes the model with a table.
pub(crate) fn measure(case: &Case, d: usize, directory: &Path, open: impl Fn(Fgrams) -> Model) -> Vec<Value> {
    let path = directory.join("table.safetensors");
    let identity = write(&path, case.rows, d);
    let bytes = std::fs::metadata(&path).expect("the table").len();
    let mut ways = vec![("no table", None)];
    if case.gpu {
        ways.push(("device", Some(Placement::Gpu(GpuPlace::Device))));
        ways.push(("pinned", Some(Placement::Gpu(GpuPlace::Host))));
    }
    // The last, for it keeps the file's pages in memory.
    ways.push(("ram", Some(Placement::Ram { lock: false, huge_pages: false })));
    let mut models = Vec::new();
    for (name, placement) in ways {
        forget(&path);
        let (before, start) = (free_memory(), Instant::now());
        let fgrams = placement.map_or(Fgrams::None, |placement| {
            let fit = TableFit::of_identity(identity.clone(), d);
            let live = LiveTable::open(&path, fit, placement, &mut |_, _| ()).expect("the table");
            Fgrams::Table(Arc::new(live))
        });
        // With the weights, which are the same each time.
        let model = open(fgrams);
        models.push((name, model, start.elapsed().as_secs_f64(), before.saturating_sub(free_memory())));
    }
    let end = case.past + case.steps + 8;
    let sequences = Sequences::new(case.batch, end, (case.rows / SECOND).clamp(1, SECOND));
    let mut times = vec![(Vec::new(), Vec::new()); models.len()];
    for (_, model, ..) in &mut models {
        sequences.read(model, case.past);
    }
    for past in case.past..end {
        for ((_, model, ..), (all, host)) in models.iter_mut().zip(&mut times) {
            let (step, in_host) = sequences.step(model, past, past + 1);
            if past >= case.past + 8 {
                all.push(step.as_secs_f64());
                host.push(in_host.as_secs_f64());
            }
        }
    }
    let prompt = Sequences::new(1, PROMPT.0, (case.rows / SECOND).clamp(1, SECOND));
    let mut readings = vec![[Vec::new(), Vec::new()]; models.len()];
    for _ in 0..READINGS {
        for ((_, model, ..), reading) in models.iter_mut().zip(&mut readings) {
            for (looks_ahead, times) in [true, false].into_iter().zip(reading) {
                times.push(prompt.read_pieces(model, PROMPT, looks_ahead).as_secs_f64());
            }
        }
    }
    println!(
        "\n{} rows of {d} numbers in bf16, {:.1} GB; decode, {} at {}, and reading {} tokens by {}, in turns:\n",
        case.rows,
        bytes as f64 / 1e9,
        case.batch,
        case.past,
        PROMPT.0,
        PROMPT.1
    );
    println!(
        "| rows in | ms a step | of no table | host, ms | reading, ms | not told what is next, ms | start to ready, s | host memory, page cache too, GB |\n|---|---|---|---|---|---|---|---|"
    );
    let baseline = median(times[0].0.clone());
    let mut found = Vec::new();
    for (((name, model, ready, memory), (all, host)), readings) in models.into_iter().zip(times).zip(readings)
    {
        let (all, host, [reading, untold]) = (median(all), median(host), readings.map(median));
        println!(
            "| {name} | {:.3} | {:.3} | {:.3} | {:.2} | {:.2} | {ready:.1} | {:.2} |",
            1e3 * all,
            all / baseline,
            1e3 * host,
            1e3 * reading,
            1e3 * untold,
            memory as f64 / 1e9
        );
        let hits = model.embedding().table().map(|table| table.metrics().snapshot().hit_rate);
        found.push(json!({
            "rows_in": name, "rows": case.rows, "table_bytes": bytes, "batch": case.batch, "seconds": all, "host_seconds": host,
            "reading_seconds": reading, "untold_reading_seconds": untold,
            "of_no_table": all / baseline, "ready_seconds": ready, "host_memory_bytes": memory, "hit_rate": hits,
        }));
    }
    found
}
