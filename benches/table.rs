//! What a table costs: opening it, finding the longest match, fetching rows (against a plain copy as the bound).
//!
//! `cargo bench --bench table`. The tables are written to the temporary directory (`TMPDIR`) and are warm: all pages
//! are in memory.

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scone::fgram::{FgramSet, Policy, rank_order};
use scone::table::{Contents, Identity, RowFormat, RowType, Table, TableWriter, verify};

const FGRAMS: usize = 100_000;
const DIM: usize = 512;
/// Rows fetched at once: a batch of that many tokens.
const BATCH: usize = 1024;

/// A text with a Zipf-like choice of tokens, so that it has f-grams of every length.
fn text(len: usize) -> Vec<u32> {
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1_u64 << 24) as f64
    };
    (0..len).map(|_| 8192_f64.powf(random() * random()) as u32 + 1).collect()
}

fn set(text: &[u32]) -> FgramSet {
    let mut counts = HashMap::<&[u32], u64>::new();
    for n in 2..=5 {
        for ngram in text.windows(n) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    let mut ranked: Vec<_> = counts.into_iter().collect();
    ranked.sort_by(|a, b| rank_order((a.0, a.1), (b.0, b.1)));
    ranked.truncate(FGRAMS);
    let policy = Policy { max_n: 5, special_tokens: vec![0], tokenizer_sha256: "0".repeat(64) };
    FgramSet::from_ranked(policy, ranked).expect("n-grams of one text, ranked, are a set")
}

fn write(path: &Path, row_type: RowType, set: &FgramSet) -> Table {
    let hash = || "0".repeat(64);
    let identity =
        Identity { tokenizer: hash(), token_embedding: hash(), fgram_model: hash(), fgrams: set.sha256() };
    let mut writer =
        TableWriter::open(path, RowFormat::packed(row_type, DIM), Contents::of_set(set), &identity)
            .expect("a new table");
    let mut row = vec![0.0_f32; DIM];
    for rank in 0..set.len() {
        row.iter_mut().enumerate().for_each(|(i, x)| *x = ((rank * 31 + i) as f32).sin());
        writer.push(&row).expect("a row");
    }
    writer.finish().expect("the table's end");
    Table::open(path).expect("the table just written")
}

fn benches(c: &mut Criterion) {
    let text = text(400_000);
    let set = set(&text);
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Spread over the table, in no order.
    let ranks: Vec<u32> = (0..BATCH).map(|i| (i * 7_919_317 % set.len()) as u32).collect();
    let mut out = vec![0.0_f32; BATCH * DIM];

    let mut group = c.benchmark_group("gather");
    group.throughput(Throughput::Bytes((BATCH * DIM * 4) as u64));
    let source = vec![1.0_f32; BATCH * DIM];
    group.bench_function("memcpy", |b| b.iter(|| out.copy_from_slice(black_box(&source))));
    let mut last = None;
    for row_type in RowType::ALL {
        let table = write(&directory.path().join(row_type.to_string()), row_type, &set);
        group.bench_function(row_type.to_string(), |b| {
            b.iter(|| table.gather(black_box(&ranks), &mut out).expect("ranks of the table"));
        });
        last = Some(table);
    }
    group.finish();

    let table = last.expect("four were written");
    c.bench_function("open", |b| b.iter(|| Table::open(black_box(table.path())).expect("a table")));
    let mut group = c.benchmark_group("match");
    let tokens = &text[..4096];
    group.throughput(Throughput::Elements(tokens.len() as u64));
    group.bench_function("longest", |b| b.iter(|| table.index().matches(black_box(tokens), 0)));
    group.finish();
    let mut group = c.benchmark_group("verify");
    group.sample_size(10).throughput(Throughput::Elements(table.len() as u64));
    group.bench_function("int8", |b| b.iter(|| verify(&table, |_| ()).expect("an undamaged table")));
    group.finish();
}

criterion_group!(table, benches);
criterion_main!(table);
