//! Mining: the most frequent n-grams of a corpus, exactly, in the memory that is given.
//!
//! Scan n counts the n-grams whose prefix and suffix of n - 1 tokens survived scan n - 1. A survivor's *number* is its
//! place among the survivors of its scan in the order of their tokens, so an n-gram is a key of eight bytes: its prefix's
//! number and its last token. A scan takes three steps, each of them on all threads of the current rayon pool:
//!
//! 1. [`count`]: threads take chunks of the text and gather keys; a full buffer is sorted, equal keys are counted, and the
//!    result, compressed, is a *run*. Runs that do not fit in memory go to files.
//! 2. [`merge`]: runs are merged, cut at the same keys so that threads can share the work. What is frequent enough goes,
//!    in order, into files of survivors.
//! 3. [`follow`]: for the next scan, the number of the survivor that ends at each position is written to a file.
//!
//! After the last scan, [`choose`] ranks the survivors of all scans and makes the set. Survivors and ends are files in a
//! [`WorkDirectory`], so after a kill the same command goes on where the last step ended. [`mod@part`] counts a part
//! of a corpus into a file, and [`mod@join`] joins such files.

mod budget;
mod choose;
mod code;
mod count;
mod follow;
mod huge;
mod join;
mod merge;
mod part;
mod radix;
mod runs;
mod survivors;
mod text;
mod work;

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use self::budget::Budget;
use self::choose::{Chosen, choose};
use self::count::Counting;
use self::follow::{Ends, EndsFile, Following};
use self::merge::merge;
use self::runs::Runs;
use self::survivors::Survivors;
use self::text::Text;
use self::work::ScanState;
use super::tags::Histogram;
use super::{Dataset, Error};
use crate::fgram::{FgramSet, MAX_N, Policy, SetError};

pub use self::budget::half_of_memory;
pub use self::join::{JoinOptions, Joined, join};
pub use self::part::{Counted, PartOptions, count_part, part_work};
pub use self::work::{Effort, WorkDirectory};

/// What [`mine`] keeps.
#[derive(Clone, Copy, Debug, Serialize)]
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
    /// What the scans took, as far as there was something to count.
    pub efforts: Vec<Effort>,
    /// The longest matches in the training split.
    pub matches: Histogram,
}

/// How far mining is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The scan.
    pub n: usize,
    /// Whether it counts; otherwise it numbers the survivors for the next.
    pub counts: bool,
    /// How many more positions are done, of the text's. Each scan goes through the text twice, but the last.
    pub tokens: u64,
    /// Bytes that the scan has written to files because they did not fit in memory.
    pub spilled: u64,
}

/// Chooses the f-grams of a dataset's training split as SCONE does (section 3 of the paper): `max_n - 1` scans, each
/// counting the n-grams whose prefix and suffix survived the one before; then the `size` most frequent of all
/// survivors by [`rank_order`](crate::fgram::rank_order).
///
/// Counts are exact. Special tokens are in no n-gram, and none reaches over the start of a shard. Works in a directory for
/// temporary files and in half of the machine's memory; [`mine_in`] lets both be chosen. `step` is told the scan and how
/// many more positions are done, of the training split's tokens, twice for each scan but the last.
///
/// # Errors
/// Where the options are out of range, the shards are damaged, no bigram is frequent enough, or the disk is full.
pub fn mine(
    dataset: &Dataset,
    options: MineOptions,
    step: &(dyn Fn(usize, u64) + Sync),
) -> Result<Mined, Error> {
    let parent = tempfile::tempdir().map_err(Error::io("make a directory in", &std::env::temp_dir()))?;
    let mut work = mine_work(parent.path(), dataset, options)?;
    mine_in(&mut work, dataset, options, half_of_memory(), &|progress| step(progress.n, progress.tokens))
}

/// Opens or makes the directory in which [`mine_in`] works, under `parent`.
///
/// # Errors
/// Where the directory cannot be written, another process works in it, or its files are damaged.
pub fn mine_work(parent: &Path, dataset: &Dataset, options: MineOptions) -> Result<WorkDirectory, Error> {
    // Any size can be chosen from the same survivors.
    let job = serde_json::json!(["mine 1", dataset.manifest(), options.max_n, options.min_count]);
    WorkDirectory::open(parent, job.to_string().as_bytes())
}

/// As [`mine`], in a directory of [`mine_work`] and in at most `memory` bytes, which count what the process holds
/// already. The set itself takes about 30 bytes an f-gram, and choosing it as much again.
///
/// The directory must be removed when the result is saved; until then the same work can be done again from it quickly.
///
/// # Errors
/// As [`mine`].
pub fn mine_in(
    work: &mut WorkDirectory,
    dataset: &Dataset,
    options: MineOptions,
    memory: u64,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Mined, Error> {
    let MineOptions { max_n, size, min_count } = options;
    check_max_n(max_n)?;
    if size == 0 || min_count == 0 {
        return Err(Error::Option("the set's size and the minimum count must be at least 1".to_owned()));
    }
    let policy = policy_of(dataset, max_n);
    let text = Text::new(dataset, &policy.special_tokens, 0..dataset.train().tokens);
    let survivors = Engine::new(&text, work, memory, progress).scans(max_n, min_count)?;
    if survivors.iter().all(|scan| scan.len == 0) {
        return Err(Error::NothingFrequent { min_count, tokens: dataset.train().tokens });
    }
    let start = Instant::now();
    let Chosen { set, mut scans, positions } = choose(policy, &survivors, size as u64)?;
    tracing::debug!(fgrams = set.len(), seconds = start.elapsed().as_secs_f64(), "chosen");
    let state = work.state();
    for (scan, state) in scans.iter_mut().zip(&state.scans) {
        scan.candidates = state.candidates;
    }
    for n in scans.len() + 2..=max_n {
        scans.push(Scan { n, candidates: 0, survivors: 0, kept: 0, cutoff: None });
    }
    let efforts = state.scans.iter().map(|scan| scan.effort).collect();
    let matches = histogram(&positions, (state.ordinary, text.len), max_n);
    Ok(Mined { set, scans, efforts, matches })
}

fn check_max_n(max_n: usize) -> Result<(), Error> {
    if (2..=MAX_N).contains(&max_n) { Ok(()) } else { Err(SetError::MaxN(max_n).into()) }
}

/// What may be an f-gram of this dataset.
fn policy_of(dataset: &Dataset, max_n: usize) -> Policy {
    Policy {
        max_n,
        special_tokens: dataset.special_tokens(),
        tokenizer_sha256: dataset.tokenizer().sha256().to_owned(),
    }
}

/// The longest matches of the text that was mined. The set is closed, so the longest match at a position has n tokens or
/// more exactly where one of its n-grams ends, and their counts say how often that is.
fn histogram(positions: &[u64], (ordinary, all): (u64, u64), max_n: usize) -> Histogram {
    let mut tokens = vec![all - ordinary];
    let at_least = |n: usize| if n == 1 { ordinary } else { positions.get(n - 2).copied().unwrap_or(0) };
    tokens.extend((1..=max_n).map(|n| at_least(n) - at_least(n + 1)));
    Histogram { tokens }
}

/// The scans over a text.
struct Engine<'a> {
    text: &'a Text<'a>,
    work: &'a mut WorkDirectory,
    budget: Budget,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Engine<'a> {
    fn new(
        text: &'a Text<'a>,
        work: &'a mut WorkDirectory,
        memory: u64,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        let budget = Budget::new(memory, rayon::current_num_threads());
        Self { text, work, budget, progress }
    }

    /// The survivors of the scans from 2 to `max_n`, or to the first that has none.
    fn scans(&mut self, max_n: usize, min_count: u64) -> Result<Vec<Survivors>, Error> {
        let mut survivors = Vec::new();
        for (state, n) in self.work.state().scans.iter().zip(2..) {
            survivors.push(Survivors::new(self.work.path(), n, state.parts.clone(), self.text.token_bits)?);
            // What an earlier process did is done.
            self.tell(n, true, self.text.len, 0);
        }
        let mut followed = None;
        while survivors.len() + 1 < max_n && survivors.last().is_none_or(|scan: &Survivors| scan.len > 0) {
            let n = survivors.len() + 2;
            let ends = self.ends(&survivors, followed.take())?;
            let prefixes = survivors.last().map_or(self.text.vocab_size() as u32, |scan| scan.len);
            survivors.push(self.count((n, min_count), &ends, prefixes)?);
            followed = Some(ends);
        }
        Ok(survivors)
    }

    fn tell(&self, n: usize, counts: bool, tokens: u64, spilled: u64) {
        (self.progress)(Progress { n, counts, tokens, spilled });
    }

    /// The ends of scan `n`, the last of `survivors`: found from those of the scan before, or of the last scan that an
    /// earlier process found.
    fn ends(&mut self, survivors: &[Survivors], before: Option<Ends>) -> Result<Ends, Error> {
        let n = survivors.len() + 1;
        let followed = self.work.state().followed;
        let mut ends = match before {
            Some(before) => before,
            None if followed == 0 => Ends::Tokens,
            None => {
                self.tell(followed, false, self.text.len, 0);
                Ends::File(EndsFile::open(self.work.path(), followed)?)
            }
        };
        // Survivors that come from a file have been followed by nobody, so there may be several scans of them.
        for (n, survivors) in (2..=n).zip(survivors).skip(followed.saturating_sub(1)) {
            ends = self.follow(n, survivors, &ends)?;
        }
        Ok(ends)
    }

    /// The ends of scan `n` from those of the scan before.
    fn follow(&mut self, n: usize, survivors: &Survivors, before: &Ends) -> Result<Ends, Error> {
        let start = Instant::now();
        let step = |tokens| self.tell(n, false, tokens, 0);
        let following = Following { text: self.text, ends: before, budget: &self.budget, step: &step };
        let (ends, passes) = following.run(survivors, self.work.path(), n)?;
        tracing::debug!(n, passes, seconds = start.elapsed().as_secs_f64(), "numbered");
        let tokens = self.text.len as f64;
        self.work.update(|state| {
            state.followed = n;
            if let Some(scan) = state.scans.get_mut(n - 2) {
                scan.effort.passes = passes;
                scan.effort.add_time(start.elapsed(), tokens);
            }
        })?;
        Ok(ends)
    }

    /// Scan `n`; the numbers of prefixes are below `prefixes`.
    fn count(
        &mut self,
        (n, min_count): (usize, u64),
        ends: &Ends,
        prefixes: u32,
    ) -> Result<Survivors, Error> {
        let start = Instant::now();
        let directory = self.work.path().to_owned();
        let runs = Runs::new(&directory, self.budget.runs);
        let step = |tokens| self.tell(n, true, tokens, runs.spilled());
        let bits = self.text.token_bits + (u32::BITS - prefixes.leading_zeros());
        let counting = Counting { text: self.text, ends, bits, budget: &self.budget, step: &step };
        let (cuts, ended) = counting.run(&runs)?;
        let number = runs.len() as u64;
        tracing::debug!(n, runs = number, seconds = start.elapsed().as_secs_f64(), "counted");
        let merged = merge(&runs, cuts.segments(), (n, min_count), &directory, &self.budget)?;
        tracing::debug!(n, seconds = start.elapsed().as_secs_f64(), "merged");
        let survivors = Survivors::new(&directory, n, merged.parts.clone(), self.text.token_bits)?;
        let mut effort = Effort {
            spilled_bytes: runs.spilled(),
            runs: number,
            merges: merged.levels,
            ..Effort::default()
        };
        effort.add_time(start.elapsed(), self.text.len as f64);
        self.work.update(|state| {
            if n == 2 {
                state.ordinary = ended;
            }
            state.scans.push(ScanState { candidates: merged.candidates, parts: merged.parts, effort });
        })?;
        Ok(survivors)
    }
}
