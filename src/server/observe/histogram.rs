use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a histogram's buckets, in seconds: 1, 2.5 and 5 of each power of ten. A small model decodes a token in
/// less than a millisecond, a full queue takes minutes.
pub(super) const BOUNDS: [f64; 22] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
];

/// Durations, counted by size. Adding one is two atomic additions and no lock.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Those in each bucket alone; the last holds what is beyond all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// A histogram at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Distribution {
    /// How many were no longer than each of [`BOUNDS`].
    pub(super) cumulative: [u64; BOUNDS.len()],
    /// How many there were.
    pub(super) count: u64,
    /// All of them together, in seconds.
    pub(super) sum: f64,
}

impl Histogram {
    pub(super) fn add(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.partition_point(|&bound| bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The count is the sum of the buckets as they were read, so the two always agree.
    pub(super) fn get(&self) -> Distribution {
        let mut count = 0;
        let mut so_far = |bucket: &AtomicU64| {
            count += bucket.load(Ordering::Relaxed);
            count
        };
        let cumulative = std::array::from_fn(|i| so_far(&self.counts[i]));
        so_far(&self.counts[BOUNDS.len()]);
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        Distribution { cumulative, count, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_as_comparing_with_each_bound(micros in prop::collection::vec(0u64..400_000_000, 0..50)) {
            let histogram = Histogram::default();
            let durations: Vec<Duration> = micros.into_iter().map(Duration::from_micros).collect();
            durations.iter().for_each(|&duration| histogram.add(duration));
            let found = histogram.get();
            for (bound, &count) in BOUNDS.iter().zip(&found.cumulative) {
                let expected = durations.iter().filter(|duration| duration.as_secs_f64() <= *bound).count();
                prop_assert_eq!(count, expected as u64);
            }
            prop_assert_eq!(found.count, durations.len() as u64);
            let sum: f64 = durations.iter().map(Duration::as_secs_f64).sum();
            prop_assert!((found.sum - sum).abs() < 1e-6);
        }
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        histogram.add(Duration::from_micros(25));
        assert_eq!((histogram.get().cumulative[0], histogram.get().count), (1, 1));
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}
