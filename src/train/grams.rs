use std::sync::Arc;

use super::Batch;
use crate::model::Grams;

/// The f-grams of a batch, each once, and where each position's embedding comes from.
#[derive(Clone, Debug)]
pub struct BatchGrams {
    /// The different f-grams, by length and then by first occurrence: a fixed order, so that sums of gradients are
    /// reproducible, and neighbours of one length.
    pub grams: Grams,
    /// For each position a row: below the size of the vocabulary a token's, from there on an f-gram's.
    pub rows: Arc<Vec<u32>>,
    /// Positions that end an f-gram.
    pub hits: usize,
}

/// Finds the f-grams of a batch by the lengths of its matches.
pub fn unique_grams(batch: &Batch, vocabulary: usize) -> BatchGrams {
    let mut first: hashbrown::HashMap<&[u32], usize> = hashbrown::HashMap::new();
    let mut unique: Vec<&[u32]> = Vec::new();
    let mut found = Vec::with_capacity(batch.inputs.len());
    for (i, &n) in batch.matches.iter().enumerate() {
        found.push((n >= 2).then(|| {
            let gram = &batch.inputs[i + 1 - usize::from(n)..=i];
            *first.entry(gram).or_insert_with(|| {
                unique.push(gram);
                unique.len() - 1
            })
        }));
    }
    let mut order: Vec<usize> = (0..unique.len()).collect();
    order.sort_by_key(|&i| unique[i].len());
    let mut row = vec![0u32; unique.len()];
    let mut grams = Grams::default();
    for (at, &i) in order.iter().enumerate() {
        grams.push(unique[i]);
        row[i] = (vocabulary + at) as u32;
    }
    let rows = batch.inputs.iter().zip(&found).map(|(&token, found)| found.map_or(token, |i| row[i]));
    BatchGrams { rows: Arc::new(rows.collect()), hits: found.iter().flatten().count(), grams }
}
