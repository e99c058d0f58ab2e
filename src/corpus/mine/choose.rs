//! The top S of all survivors, as a set.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::Scan;
use super::survivors::{Ngram, Survivors};
use crate::corpus::Error;
use crate::fgram::{FgramSet, Key, MAX_RANKS, Policy};

/// Survivors whose suffixes are looked up together.
const BLOCK: usize = 1 << 18;

/// What the choice came to.
pub(super) struct Chosen {
    pub(super) set: FgramSet,
    /// A row a scan, without its candidates.
    pub(super) scans: Vec<Scan>,
    /// By length, from n = 2: at how many positions of the text a chosen n-gram ends.
    pub(super) positions: Vec<u64>,
}

/// Takes the `size` first by rank: count descending, then length, then tokens. Survivors stand in the order of length and
/// tokens, so among equal counts the first to come is the first in rank: a rank is found by counting, not by sorting.
pub(super) fn choose(policy: Policy, survivors: &[Survivors], size: u64) -> Result<Chosen, Error> {
    let mut ranks = Ranks::new(survivors, size)?;
    let mut keys = vec![Key { parent: 0, token: 0 }; ranks.len];
    let (mut scans, mut positions) = (Vec::new(), Vec::new());
    let mut level = Level::default();
    for (scan, n) in survivors.iter().zip(2..) {
        let kept = level.next(scan, n, &mut ranks, &mut keys)?;
        let cutoff = (kept.len > 0).then_some(kept.least);
        let survivors = u64::from(scan.len);
        scans.push(Scan { n, candidates: 0, survivors, kept: kept.len, cutoff });
        positions.push(kept.positions);
    }
    drop(level);
    let counts = ranks.counts();
    Ok(Chosen { set: FgramSet::from_keys(policy, keys, counts), scans, positions })
}

/// Which counts are kept, and the ranks they have.
struct Ranks {
    /// By count: the next rank, and the first rank that is not of this count or not kept.
    of_count: BTreeMap<u64, (u32, u32)>,
    /// How many there are in all.
    len: usize,
}

impl Ranks {
    fn new(survivors: &[Survivors], size: u64) -> Result<Self, Error> {
        let mut with_count: BTreeMap<u64, u64> = BTreeMap::new();
        // Most counts are small.
        let mut small = vec![0; 1 << 10];
        for scan in survivors {
            let mut reader = scan.reader();
            while let Some(Ngram { count, .. }) = reader.next()? {
                match small.get_mut(count as usize) {
                    Some(number) => *number += 1,
                    None => *with_count.entry(count).or_insert(0) += 1,
                }
            }
        }
        with_count.extend((0..).zip(small).filter(|&(_, number)| number > 0));
        let (mut of_count, mut rank) = (BTreeMap::new(), 0);
        let size = size.min(u64::from(MAX_RANKS));
        for (count, number) in with_count.into_iter().rev() {
            let end = size.min(rank + number);
            if end == rank {
                break;
            }
            of_count.insert(count, (rank as u32, end as u32));
            rank = end;
        }
        Ok(Self { of_count, len: rank as usize })
    }

    /// The rank of the next n-gram with this count, if it is kept.
    fn take(&mut self, count: u64) -> Option<u32> {
        let (next, end) = self.of_count.get_mut(&count)?;
        (next < end).then(|| {
            *next += 1;
            *next - 1
        })
    }

    /// The counts by rank, when every rank has been taken.
    fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.len];
        let mut start = 0;
        for (&count, &(_, end)) in self.of_count.iter().rev() {
            counts[start..end as usize].fill(count);
            start = end as usize;
        }
        counts
    }
}

/// The kept n-grams of one scan, in order of their tokens; a *place* is an index into these arrays. Single tokens are
/// their own places.
#[derive(Default)]
struct Level {
    /// Their numbers among the survivors.
    numbers: Vec<u32>,
    ranks: Vec<u32>,
    /// The first token.
    firsts: Vec<u32>,
    /// The place, one level below, of the suffix.
    suffixes: Vec<u32>,
    /// The last token.
    lasts: Vec<u32>,
    /// By the prefix's place one level below: where its children begin.
    starts: Vec<u32>,
}

/// What was kept of a scan.
#[derive(Default)]
struct Kept {
    len: u64,
    least: u64,
    positions: u64,
}

impl Level {
    /// Goes one length up: takes what is kept of the survivors of scan `n`, and writes their keys.
    fn next(
        &mut self,
        scan: &Survivors,
        n: usize,
        ranks: &mut Ranks,
        keys: &mut [Key],
    ) -> Result<Kept, Error> {
        let (mut next, mut kept) = (Self::default(), Kept { least: u64::MAX, ..Kept::default() });
        let (mut reader, mut number, mut place) = (scan.reader(), 0, 0);
        // By block: the prefix's place and the last token of each.
        let mut block: Vec<(u32, u32)> = Vec::with_capacity(BLOCK);
        loop {
            let ngram = reader.next()?;
            if let Some(Ngram { prefix, last, count }) = ngram {
                if let Some(rank) = ranks.take(count) {
                    let prefix = if n == 2 {
                        prefix
                    } else {
                        self.place_of(prefix, &mut place).ok_or_else(|| not_closed(n, "prefix"))?
                    };
                    block.push((prefix, last));
                    next.numbers.push(number);
                    next.ranks.push(rank);
                    kept.len += 1;
                    kept.least = kept.least.min(count);
                    kept.positions += count;
                }
                number += 1;
            }
            if block.len() == BLOCK || ngram.is_none() {
                self.add(n, &block, &mut next, keys)?;
                block.clear();
            }
            if ngram.is_none() {
                break;
            }
        }
        next.starts.push(next.lasts.len() as u32);
        *self = next;
        Ok(kept)
    }

    /// The place of the n-gram of this number; numbers never decrease from call to call.
    fn place_of(&self, number: u32, place: &mut usize) -> Option<u32> {
        while *self.numbers.get(*place)? < number {
            *place += 1;
        }
        (self.numbers[*place] == number).then_some(*place as u32)
    }

    /// Finds the suffixes of a block of n-grams and adds the rest of what is known of them.
    fn add(&self, n: usize, block: &[(u32, u32)], next: &mut Self, keys: &mut [Key]) -> Result<(), Error> {
        let suffix = |&(prefix, last): &(u32, u32)| match n {
            2 => Some(last),
            _ => self.child(self.suffixes[prefix as usize], last),
        };
        let done = next.lasts.len();
        let found: Vec<Option<u32>> = block.par_iter().with_min_len(1 << 10).map(suffix).collect();
        for (i, (&(prefix, last), found)) in block.iter().zip(found).enumerate() {
            let suffix = found.ok_or_else(|| not_closed(n, "suffix"))?;
            let first = if n == 2 { prefix } else { self.firsts[prefix as usize] };
            let key = match n {
                2 => Key::of_bigram(first, last),
                _ => Key::of_longer(first, self.ranks[suffix as usize]),
            };
            keys[next.ranks[done + i] as usize] = key;
            // Prefixes without children begin where the next one does.
            let start = next.lasts.len() as u32;
            while next.starts.len() <= prefix as usize {
                next.starts.push(start);
            }
            next.firsts.push(first);
            next.suffixes.push(suffix);
            next.lasts.push(last);
        }
        Ok(())
    }

    /// The place of the n-gram that is a prefix, by its place one level below, and one more token.
    fn child(&self, prefix: u32, last: u32) -> Option<u32> {
        let prefix = prefix as usize;
        let (start, end) = (*self.starts.get(prefix)? as usize, *self.starts.get(prefix + 1)? as usize);
        let place = self.lasts.get(start..end)?.binary_search(&last).ok()?;
        Some((start + place) as u32)
    }
}

fn not_closed(n: usize, part: &str) -> Error {
    let what = format!(
        "a frequent {n}-gram has a {part} that is not frequent: the counts of {} tokens are missing or incomplete",
        n - 1
    );
    Error::Option(what)
}
