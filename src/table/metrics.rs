//! What a table is asked for and what that costs, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::fgram::MAX_N;

/// Counters of a table, kept over a reload. Adding is a few atomic additions a batch.
#[derive(Debug, Default)]
pub struct Metrics {
    positions: [AtomicU64; MAX_N + 1],
    lookup_nanoseconds: AtomicU64,
    rows_cache: AtomicU64,
    rows_memory: AtomicU64,
    rows_disk: AtomicU64,
    rows_prefetched: AtomicU64,
    row_bytes: AtomicU64,
    disk_bytes: AtomicU64,
    gathers: AtomicU64,
    gather_nanoseconds: AtomicU64,
}

/// Where the rows of a batch came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// The row cache.
    pub(super) cache: u64,
    /// Memory: a copy, or the page cache as far as is known.
    pub(super) memory: u64,
    /// The disk, or what was not known to be in the page cache.
    pub(super) disk: u64,
    /// Bytes read from the disk.
    pub(super) disk_bytes: u64,
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MetricsSnapshot {
    /// Positions by the length of their longest match: at 1 those that fell back to their token's own embedding, at 0
    /// special tokens.
    pub positions: Vec<u64>,
    /// The share of all positions that matched an f-gram, 0 to 1.
    pub hit_rate: f64,
    /// Rows gathered from the row cache.
    pub rows_cache: u64,
    /// Rows gathered from memory, the page cache included.
    pub rows_memory: u64,
    /// Rows gathered from the disk. In `mmap` mode: of pages that were not known to be in memory.
    pub rows_disk: u64,
    /// Rows read ahead of their use.
    pub rows_prefetched: u64,
    /// The share of rows that the row cache had, of those it was asked for, 0 to 1; 0 without a cache.
    pub cache_hit_rate: f64,
    /// Bytes of the rows gathered, as they are stored.
    pub row_bytes: u64,
    /// Bytes read from the disk for that, as far as we read them ourselves.
    pub disk_bytes: u64,
    /// Batches gathered.
    pub gathers: u64,
    /// Seconds spent finding matches.
    pub lookup_seconds: f64,
    /// Seconds spent gathering rows.
    pub gather_seconds: f64,
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn nanoseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Metrics {
    /// Counts a batch of positions that were looked up, by match length (0: special, 1: fallback), and the time it took.
    pub fn looked_up(&self, lengths: impl IntoIterator<Item = u8>, elapsed: Duration) {
        let mut counts = [0; MAX_N + 1];
        for length in lengths {
            counts[usize::from(length).min(MAX_N)] += 1;
        }
        for (counter, count) in self.positions.iter().zip(counts).filter(|&(_, count)| count > 0) {
            add(counter, count);
        }
        add(&self.lookup_nanoseconds, nanoseconds(elapsed));
    }

    pub(super) fn gathered(&self, tally: Tally, row_bytes: u64, elapsed: Duration) {
        add(&self.rows_cache, tally.cache);
        add(&self.rows_memory, tally.memory);
        add(&self.rows_disk, tally.disk);
        add(&self.row_bytes, row_bytes);
        add(&self.disk_bytes, tally.disk_bytes);
        add(&self.gathers, 1);
        add(&self.gather_nanoseconds, nanoseconds(elapsed));
    }

    pub(super) fn prefetched(&self, tally: Tally) {
        add(&self.rows_prefetched, tally.disk);
        add(&self.disk_bytes, tally.disk_bytes);
    }

    /// The counters now. They are read one after the other, so a batch under way may be in some and not yet in others.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = |counter| Duration::from_nanos(read(counter)).as_secs_f64();
        let positions: Vec<u64> = self.positions.iter().map(read).collect();
        let (cache, disk) = (read(&self.rows_cache), read(&self.rows_disk));
        MetricsSnapshot {
            hit_rate: share(positions.iter().skip(2).sum(), positions.iter().sum()),
            positions,
            rows_cache: cache,
            rows_memory: read(&self.rows_memory),
            rows_disk: disk,
            rows_prefetched: read(&self.rows_prefetched),
            cache_hit_rate: if cache == 0 { 0.0 } else { share(cache, cache + disk) },
            row_bytes: read(&self.row_bytes),
            disk_bytes: read(&self.disk_bytes),
            gathers: read(&self.gathers),
            lookup_seconds: seconds(&self.lookup_nanoseconds),
            gather_seconds: seconds(&self.gather_nanoseconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let metrics = Metrics::default();
        assert_eq!((metrics.snapshot().hit_rate, metrics.snapshot().gathers), (0.0, 0));
        metrics.looked_up([0, 1, 1, 2, 5], Duration::from_millis(2));
        metrics.looked_up([1, 2, 200], Duration::from_millis(3));
        let tally = Tally { cache: 3, memory: 0, disk: 1, disk_bytes: 4096 };
        metrics.gathered(tally, 400, Duration::from_millis(7));
        metrics.prefetched(tally);
        let now = metrics.snapshot();
        assert_eq!((now.positions[..6].to_vec(), now.positions[MAX_N]), (vec![1, 3, 2, 0, 0, 1], 1));
        assert_eq!((now.hit_rate, now.cache_hit_rate), (0.5, 0.75));
        assert_eq!((now.rows_disk, now.rows_prefetched, now.disk_bytes), (1, 1, 8192));
        assert!((now.lookup_seconds - 0.005).abs() < 1e-9 && (now.gather_seconds - 0.007).abs() < 1e-9);
        assert!(serde_json::to_string(&now).unwrap().contains("\"row_bytes\":400"));
    }
}
