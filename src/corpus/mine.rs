use rayon::prelude::*;
use serde::Serialize;

use super::count::Survivors;
use super::tags::Histogram;
use super::{Dataset, Error};
use crate::fgram::{FgramSet, MAX_N, Policy, SetError, rank_order};

/// What [`mine`] keeps.
#[derive(Clone, Copy, Debug)]
pub struct MineOptions {
    /// K, the longest n-gram: 2 to [`MAX_N`].
    pub max_n: usize,
    /// S, the most f-grams.
    pub size: usize,
    /// The least count of an n-gram that survives its scan.
    pub min_count: u64,
}

/// What one scan came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scan {
    /// The length of its n-grams.
    pub n: usize,
    /// Different n-grams counted: those whose prefix and suffix survived the scan before.
    pub candidates: u64,
    /// Those that occur often enough.
    pub survivors: u64,
    /// Those among the top S.
    pub kept: u64,
    /// The least count among the kept; `None` where none was.
    pub cutoff: Option<u64>,
}

/// A mined set, and how it came about.
#[derive(Debug)]
pub struct Mined {
    /// The f-grams.
    pub set: FgramSet,
    /// The scans, from n = 2.
    pub scans: Vec<Scan>,
    /// The longest matches in the training split.
    pub matches: Histogram,
}

/// Chooses the f-grams of a dataset's training split as SCONE does (section 3 of the paper): `max_n - 1` scans, each
/// counting the n-grams whose prefix and suffix survived the one before; then the `size` most frequent of all
/// survivors by [`rank_order`].
///
/// Counts are exact. Special tokens are in no n-gram, and none reaches over the start of a shard. Memory: 8 bytes
/// a training token, and at most 17 a different n-gram of the largest scan. `step` is told the scan and how many
/// more positions are done, of the training split's tokens (times a whole number, where a scan takes several passes).
///
/// # Errors
/// Where the options are out of range, the shards are damaged, or no bigram is frequent enough.
pub fn mine(
    dataset: &Dataset,
    options: MineOptions,
    step: &(dyn Fn(usize, u64) + Sync),
) -> Result<Mined, Error> {
    let MineOptions { max_n, size, min_count } = options;
    if !(2..=MAX_N).contains(&max_n) {
        return Err(SetError::MaxN(max_n).into());
    }
    if size == 0 || min_count == 0 {
        return Err(Error::Option("the set's size and the minimum count must be at least 1".to_owned()));
    }
    let policy = policy_of(dataset, max_n);
    let shards = &dataset.train().shards;
    let mut last = Survivors::tokens(shards, &policy.special_tokens)?;
    let mut scans: Vec<Survivors> = Vec::new();
    for n in 2..=max_n {
        let next = last.scan(shards, n, min_count, &|done| step(n, done))?;
        // The first `last` stands for the single tokens, which are no f-grams.
        let done = std::mem::replace(&mut last, next).without_ends();
        if n > 2 {
            scans.push(done);
        }
        if last.counts.is_empty() {
            break;
        }
    }
    scans.push(last.without_ends());
    let ranked = top(&scans, size);
    if ranked.is_empty() {
        return Err(Error::NothingFrequent { min_count, tokens: dataset.train().tokens });
    }
    let set = FgramSet::from_ranked(policy, ranked.iter().copied())?;
    let report = (2..=max_n).map(|n| report(n, scans.get(n - 2), &ranked)).collect();
    drop(ranked);
    let matches = Histogram::of_split(dataset.train(), &set)?;
    Ok(Mined { set, scans: report, matches })
}

/// What may be an f-gram of this dataset.
pub(super) fn policy_of(dataset: &Dataset, max_n: usize) -> Policy {
    Policy {
        max_n,
        special_tokens: dataset.special_tokens(),
        tokenizer_sha256: dataset.tokenizer().sha256().to_owned(),
    }
}

/// The `size` first of all survivors by rank; `scans` begin with n = 2.
fn top(scans: &[Survivors], size: usize) -> Vec<(&[u32], u64)> {
    let mut counts: Vec<u64> = scans.iter().flat_map(|scan| scan.counts.iter().copied()).collect();
    // Ties at the cut-off count are settled by the sort; below it nothing can be kept.
    let least =
        if size < counts.len() { *counts.select_nth_unstable_by(size - 1, |a, b| b.cmp(a)).1 } else { 0 };
    let mut ranked: Vec<(&[u32], u64)> = Vec::new();
    for (scan, n) in scans.iter().zip(2..) {
        let ngrams = scan.tokens.chunks_exact(n).zip(scan.counts.iter().copied());
        ranked.extend(ngrams.filter(|&(_, count)| count >= least));
    }
    ranked.par_sort_unstable_by(|&a, &b| rank_order(a, b));
    ranked.truncate(size);
    ranked
}

fn report(n: usize, scan: Option<&Survivors>, ranked: &[(&[u32], u64)]) -> Scan {
    let of_length = ranked.iter().filter(|(tokens, _)| tokens.len() == n);
    Scan {
        n,
        candidates: scan.map_or(0, |scan| scan.candidates),
        survivors: scan.map_or(0, |scan| scan.counts.len() as u64),
        kept: of_length.clone().count() as u64,
        cutoff: of_length.map(|&(_, count)| count).min(),
    }
}
