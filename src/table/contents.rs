use std::borrow::Cow;

use super::Table;
use crate::fgram::{Bucket, FgramSet, Key, Policy};

/// What a table holds besides its rows: its f-grams, how often each occurs, and the index that finds them.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    pub(super) policy: &'a Policy,
    pub(super) keys: Cow<'a, [Key]>,
    pub(super) buckets: Cow<'a, [Bucket]>,
    /// Runs of equal counts: the counts, and the rank each run starts with.
    pub(super) count_values: Vec<u64>,
    pub(super) count_starts: Vec<u32>,
    pub(super) sha256: String,
}

impl<'a> Contents<'a> {
    /// Those of the table to be made for a set.
    pub fn of_set(set: &'a FgramSet) -> Self {
        let runs = || set.counts().chunk_by(|a, b| a == b);
        let starts = runs().scan(0, |next, run| Some(std::mem::replace(next, *next + run.len() as u32)));
        Self {
            policy: set.policy(),
            keys: Cow::Borrowed(set.index().keys()),
            buckets: Cow::Borrowed(set.index().buckets()),
            count_values: runs().map(|run| run[0]).collect(),
            count_starts: starts.collect(),
            sha256: set.sha256(),
        }
    }

    /// Those of another table with the same f-grams.
    pub fn of_table(table: &'a Table) -> Self {
        Self {
            policy: table.policy(),
            keys: Cow::Borrowed(table.index().keys()),
            buckets: Cow::Borrowed(table.index().buckets()),
            count_values: table.count_values().to_vec(),
            count_starts: table.count_starts().to_vec(),
            sha256: table.identity().fgrams.clone(),
        }
    }

    /// The identity of the set, see [`fgram::identity`](crate::fgram::identity).
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Those of the part of a table that has the rows of `ranks`: its keys and counts, and no index.
    pub(super) fn part(&self, ranks: std::ops::Range<usize>) -> Contents<'_> {
        let first_run = self.count_starts.partition_point(|&start| start as usize <= ranks.start) - 1;
        let end_run = self.count_starts.partition_point(|&start| (start as usize) < ranks.end);
        let starts = self.count_starts[first_run..end_run].iter();
        Contents {
            policy: self.policy,
            keys: Cow::Borrowed(&self.keys[ranks.clone()]),
            buckets: Cow::Borrowed(&[]),
            count_values: self.count_values[first_run..end_run].to_vec(),
            count_starts: starts.map(|&start| start.saturating_sub(ranks.start as u32)).collect(),
            sha256: self.sha256.clone(),
        }
    }
}
