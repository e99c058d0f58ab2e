//! Counting a part of a corpus into a file, so that many machines can share the work.

use std::path::Path;

use super::survivors::{PartWriter, Survivors, Walk};
use super::text::{Text, part_of};
use super::work::{Effort, ScanState, WorkDirectory};
use super::{Engine, Progress, Scan, check_max_n, policy_of};
use crate::corpus::tags::check_tokenizer;
use crate::corpus::{Dataset, Error};
use crate::fgram::FgramSet;
use crate::fgram::parquet::Writer;

/// Which part of a corpus is counted, and what of it.
#[derive(Clone, Copy, Debug)]
pub struct PartOptions<'a> {
    /// The part, from 1, and how many there are.
    pub part: (u64, u64),
    /// The longest n-gram: 2 to [`MAX_N`](crate::fgram::MAX_N).
    pub max_n: usize,
    /// Where given: only n-grams of `max_n` tokens are counted, those whose prefix and suffix are in this set.
    pub survivors: Option<&'a FgramSet>,
    /// Whether only n-grams of `max_n` tokens are counted. Implied by `survivors`, and needed to say so of bigrams.
    pub last_only: bool,
}

/// What counting a part came to.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Tokens of the part.
    pub tokens: u64,
    /// Rows written.
    pub rows: u64,
    /// A row a scan, from n = 2; nothing was dropped but what `survivors` lacked.
    pub scans: Vec<Scan>,
    /// What the scans took.
    pub efforts: Vec<Effort>,
}

/// Opens or makes the directory in which [`count_part`] works, under `parent`.
///
/// # Errors
/// Where the directory cannot be written, another process works in it, or its files are damaged.
pub fn part_work(parent: &Path, dataset: &Dataset, options: PartOptions<'_>) -> Result<WorkDirectory, Error> {
    let PartOptions { part, max_n, survivors, last_only } = options;
    let survivors = survivors.map(FgramSet::sha256);
    let job = serde_json::json!(["part 1", dataset.manifest(), part, max_n, survivors, last_only]);
    WorkDirectory::open(parent, job.to_string().as_bytes())
}

/// Counts the n-grams of one part of a dataset's training tokens, cut at the ends of documents, and writes all of them to
/// `output`: Parquet with the columns of a set, sorted by length and then tokens. What is frequent in the whole may be rare
/// in a part, so nothing is dropped, except by a set of global survivors.
///
/// # Errors
/// Where the options are out of range, the survivors do not fit the dataset, or a file cannot be read or written.
pub fn count_part(
    work: &mut WorkDirectory,
    dataset: &Dataset,
    options: PartOptions<'_>,
    memory: u64,
    output: &Path,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Counted, Error> {
    let PartOptions { part: (part, parts), max_n, survivors: given, last_only } = options;
    check_max_n(max_n)?;
    if part == 0 || part > parts {
        return Err(Error::Option(format!("shard {part}/{parts}: the first is 1/{parts}")));
    }
    let policy = policy_of(dataset, max_n);
    let text = Text::new(dataset, &policy.special_tokens, part_of(dataset, part, parts)?);
    if let Some(set) = given {
        check_tokenizer(dataset, set)?;
        if set.policy().max_n + 1 < max_n {
            let what = format!(
                "the survivors have up to {} tokens: n-grams of {} are next, not of {max_n}",
                set.policy().max_n,
                set.policy().max_n + 1
            );
            return Err(Error::Option(what));
        }
        if work.state().scans.is_empty() {
            let scans = import(set, max_n - 1, work.path(), text.token_bits)?;
            work.update(|state| state.scans = scans)?;
        }
    }
    // Opened before the work, so that it does not end in vain.
    let mut writer = Writer::create(output, &policy)?;
    let survivors = Engine::new(&text, work, memory, progress).scans(max_n, 1)?;
    let only = given.is_some() || last_only;
    let (mut rows, mut tokens) = (0, Vec::new());
    for n in if only { max_n..=max_n } else { 2..=max_n } {
        let Some(scans) = survivors.get(..n - 1) else { break };
        let mut walk = Walk::new(scans);
        while let Some(count) = walk.next(&mut tokens)? {
            writer.push(&tokens, count)?;
            rows += 1;
        }
    }
    writer.finish()?;
    Ok(counted(&work.state().scans, &survivors, text.len, rows))
}

fn counted(states: &[ScanState], survivors: &[Survivors], tokens: u64, rows: u64) -> Counted {
    let scan = |(n, (state, scan)): (usize, (&ScanState, &Survivors))| {
        let survivors = u64::from(scan.len);
        Scan { n, candidates: state.candidates, survivors, kept: survivors, cutoff: None }
    };
    let scans = (2..).zip(states.iter().zip(survivors)).map(scan).collect();
    Counted { tokens, rows, scans, efforts: states.iter().map(|state| state.effort).collect() }
}

/// Writes a set's f-grams of up to `max_n` tokens as the survivors of scans.
pub(super) fn import(
    set: &FgramSet,
    max_n: usize,
    directory: &Path,
    token_bits: u32,
) -> Result<Vec<ScanState>, Error> {
    let index = set.index();
    // By rank: the number among the survivors of its scan. A prefix has a smaller rank.
    let mut numbers = vec![0u32; set.len()];
    let mut keys: Vec<Vec<(u64, u32)>> = vec![Vec::new(); max_n + 1];
    for n in 2..=max_n {
        for rank in 0..set.len() as u32 {
            let Some(tokens) = index.tokens(rank).filter(|tokens| tokens.len() == n) else { continue };
            let prefix = match n {
                2 => Some(tokens[0]),
                _ => index.rank(&tokens[..n - 1]).map(|rank| numbers[rank as usize]),
            };
            let prefix =
                prefix.ok_or_else(|| Error::Option("the survivors are not a closed set".to_owned()))?;
            keys[n].push((u64::from(prefix) << token_bits | u64::from(tokens[n - 1]), rank));
        }
        keys[n].sort_unstable();
        for (number, &(_, rank)) in (0..).zip(&keys[n]) {
            numbers[rank as usize] = number;
        }
    }
    let mut scans = Vec::new();
    for (n, keys) in (2..).zip(&keys[2..]) {
        let mut part = PartWriter::create(directory, n, 0)?;
        for &(key, rank) in keys {
            part.push(key, set.counts()[rank as usize])?;
        }
        let (candidates, parts, effort) = (keys.len() as u64, vec![part.finish()?], Effort::default());
        scans.push(ScanState { candidates, parts, effort });
    }
    Ok(scans)
}
