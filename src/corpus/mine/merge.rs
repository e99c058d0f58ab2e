//! The second half of a scan: runs are merged, segment by segment, into the survivors.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::budget::Budget;
use super::code::{Decoder, Source};
use super::runs::{Run, RunWriter, Runs, Spill};
use super::survivors::{Part, PartWriter};
use crate::corpus::Error;

/// What merging came to.
pub(super) struct Merged {
    /// Different n-grams.
    pub(super) candidates: u64,
    /// Those frequent enough, in order.
    pub(super) parts: Vec<Part>,
    /// How often the runs were merged.
    pub(super) levels: u64,
}

/// Merges all runs of scan `n` into files of survivors.
pub(super) fn merge(
    runs: &Runs<'_>,
    segments: usize,
    (n, min_count): (usize, u64),
    directory: &Path,
    budget: &Budget,
) -> Result<Merged, Error> {
    let mut levels = 1;
    while runs.len() > budget.fan_in {
        merge_groups(runs, segments, budget)?;
        levels += 1;
    }
    let sources = runs.take();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = |_: rayon::BroadcastContext<'_>| -> Result<(), Error> {
        loop {
            let segment = next.fetch_add(1, Ordering::Relaxed);
            if segment >= segments {
                return Ok(());
            }
            let mut part = PartWriter::create(directory, n, segment)?;
            let mut candidates = 0;
            merge_segment(&sources, segment, budget, |key, count| {
                candidates += 1;
                if count >= min_count { part.push(key, count) } else { Ok(()) }
            })?;
            let part = part.finish()?;
            done.lock().unwrap_or_else(PoisonError::into_inner).push((segment, candidates, part));
        }
    };
    rayon::broadcast(worker).into_iter().collect::<Result<(), _>>()?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|&(segment, ..)| segment);
    let candidates = done.iter().map(|&(_, candidates, _)| candidates).sum();
    Ok(Merged { candidates, parts: done.into_iter().map(|(.., part)| part).collect(), levels })
}

/// Replaces groups of as many runs as can be read at once by one run each.
fn merge_groups(runs: &Runs<'_>, segments: usize, budget: &Budget) -> Result<(), Error> {
    let mut sources = runs.take();
    let mut groups = Vec::new();
    while !sources.is_empty() {
        groups.push(Some(sources.split_off(sources.len().saturating_sub(budget.fan_in))));
    }
    let groups = Mutex::new(groups);
    let worker = |_: rayon::BroadcastContext<'_>| -> Result<(), Error> {
        loop {
            let group = groups.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(group) = group.flatten() else { return Ok(()) };
            // A file for each, so that it goes when its run has been merged.
            let (mut writer, mut spill) = (RunWriter::default(), Spill::default());
            for segment in 0..segments {
                merge_segment(&group, segment, budget, |key, count| {
                    writer.push(key, count);
                    runs.flush(&mut writer, &mut spill)
                })?;
                writer.end_segment();
            }
            runs.keep_file(writer, spill)?;
        }
    };
    rayon::broadcast(worker).into_iter().collect()
}

/// Gives the different keys of one segment of all runs, in order, with their counts' sums.
fn merge_segment(
    runs: &[Run],
    segment: usize,
    budget: &Budget,
    mut take: impl FnMut(u64, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let capacity = budget.read_of(runs.len());
    let sources = runs.iter().map(|run| run.segment(segment, capacity)).collect();
    let mut tree = Tree::new(sources).map_err(|(run, error)| Error::io("read", runs[run].path())(error))?;
    let mut current: Option<(u64, u64)> = None;
    while let Some((key, count)) =
        tree.next().map_err(|(run, error)| Error::io("read", runs[run].path())(error))?
    {
        match &mut current {
            Some((last, sum)) if *last == key => *sum += count,
            _ => {
                if let Some((key, count)) = current.replace((key, count)) {
                    take(key, count)?;
                }
            }
        }
    }
    current.map_or(Ok(()), |(key, count)| take(key, count))
}

/// No key is as large: an empty source.
const EMPTY: u64 = u64::MAX;

/// A tree of losers (Knuth, volume 3, 5.4.1): the least of many sorted sources in log2(sources) comparisons.
struct Tree<'a> {
    sources: Vec<Decoder<Source<'a>>>,
    heads: Vec<(u64, u64)>,
    /// The losers of the matches played at inner nodes; the winner of all at 0.
    losers: Vec<u32>,
}

type ReadError = (usize, std::io::Error);

impl<'a> Tree<'a> {
    fn new(sources: Vec<Decoder<Source<'a>>>) -> Result<Self, ReadError> {
        let leaves = sources.len().next_power_of_two();
        let mut tree = Self { sources, heads: vec![(EMPTY, 0); leaves], losers: vec![0; leaves] };
        for source in 0..tree.sources.len() {
            tree.advance(source)?;
        }
        // Every match from the bottom: node i has the children 2i and 2i + 1, and the leaves follow the nodes.
        let mut winners: Vec<u32> = (0..2 * leaves as u32).map(|i| i.saturating_sub(leaves as u32)).collect();
        for node in (1..leaves).rev() {
            let (a, b) = (winners[2 * node], winners[2 * node + 1]);
            let a_wins = tree.heads[a as usize].0 <= tree.heads[b as usize].0;
            (winners[node], tree.losers[node]) = if a_wins { (a, b) } else { (b, a) };
        }
        tree.losers[0] = winners[1];
        Ok(tree)
    }

    fn advance(&mut self, source: usize) -> Result<(), ReadError> {
        let head = self.sources[source].next().map_err(|error| (source, error))?;
        self.heads[source] = head.unwrap_or((EMPTY, 0));
        Ok(())
    }

    fn next(&mut self) -> Result<Option<(u64, u64)>, ReadError> {
        let mut winner = self.losers[0];
        let head = self.heads[winner as usize];
        if head.0 == EMPTY {
            return Ok(None);
        }
        self.advance(winner as usize)?;
        let mut node = (self.heads.len() + winner as usize) / 2;
        let mut key = self.heads[winner as usize].0;
        while node > 0 {
            let loser = self.losers[node];
            let other = self.heads[loser as usize].0;
            if other < key {
                self.losers[node] = winner;
                (winner, key) = (loser, other);
            }
            node /= 2;
        }
        self.losers[0] = winner;
        Ok(Some(head))
    }
}
