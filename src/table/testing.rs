//! Small tables for the tests of this layer.

use std::fs;
use std::path::Path;

use super::{Contents, Identity, RowFormat, RowType, Table, TableWriter};
use crate::fgram::{FgramSet, Policy, rank_order};

/// A closed set of about `n` f-grams: all n-grams, up to 5 tokens, of a random text, cut by rank.
pub(crate) fn set(n: usize, seed: u64) -> FgramSet {
    let mut state = seed | 1;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let text: Vec<u32> = (0..n.max(4) * 2).map(|_| 3 + (random() % 9) * (random() % 9)).collect();
    let mut counts = std::collections::HashMap::<&[u32], u64>::new();
    for len in 2..=5 {
        for ngram in text.windows(len) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    let mut ranked: Vec<_> = counts.into_iter().collect();
    ranked.sort_by(|a, b| rank_order((a.0, a.1), (b.0, b.1)));
    ranked.truncate(n);
    let policy = Policy { max_n: 5, special_tokens: vec![0, 2], tokenizer_sha256: "ab".repeat(32) };
    FgramSet::from_ranked(policy, ranked).unwrap()
}

pub(super) fn identity(set: &FgramSet) -> Identity {
    Identity {
        tokenizer: set.policy().tokenizer_sha256.clone(),
        token_embedding: "01".repeat(32),
        fgram_model: "23".repeat(32),
        fgrams: set.sha256(),
    }
}

/// Numbers between -1 and 1, all rows different.
pub(super) fn rows(n: usize, dim: usize) -> Vec<f32> {
    (0..n * dim).map(|i| ((i as f32) * 0.731 + (i / dim) as f32).sin()).collect()
}

/// Writes the table of `set` with [`rows`] at `path`.
pub(super) fn write(path: &Path, row_type: RowType, dim: usize, set: &FgramSet) {
    write_as(path, RowFormat::packed(row_type, dim), set);
}

/// As [`write`], in any format.
pub(crate) fn write_as(path: &Path, format: RowFormat, set: &FgramSet) {
    let dim = format.dim;
    let mut writer = TableWriter::open(path, format, Contents::of_set(set), &identity(set)).unwrap();
    for some in rows(set.len(), dim).chunks(dim * 3) {
        writer.push(some).unwrap();
    }
    writer.finish().unwrap();
}

/// Changes a table with `change` (of the bytes from `rows` on) and makes the checksums right again.
pub(super) fn tamper(path: &Path, change: impl FnOnce(&mut [u8], &super::format::Layout)) {
    let (layout, start) = {
        let table = Table::open(path).unwrap();
        (table.layout().clone(), table.header().len())
    };
    let mut file = fs::read(path).unwrap();
    change(&mut file[start..], &layout);
    let mut all = vec![crc32fast::hash(&file[..start])];
    all.extend(file[start..start + layout.checksums.start].chunks(super::format::BLOCK).map(crc32fast::hash));
    all.push(crc32fast::hash(bytemuck::cast_slice(&all)));
    file[start + layout.checksums.start..].copy_from_slice(bytemuck::cast_slice(&all));
    fs::write(path, file).unwrap();
}
