/// Which corpus each window of a stream comes from. The first corpus takes its share of the stream at even distances, the
/// second its share of what is left, and so on: at no point is a corpus more than a window or so away from its weight, and
/// where it stands follows from the position in the stream alone.
#[derive(Clone, Debug)]
pub(super) struct Mixture {
    /// By corpus: its share of what those before it leave, in 2^-32.
    splits: Vec<u64>,
}

const WHOLE: u64 = 1 << 32;

impl Mixture {
    /// Of at least one weight, all of them positive.
    pub(super) fn new(weights: &[f64]) -> Self {
        let split = |(i, weight): (usize, &f64)| {
            // Summed from the same end, so that the last one's share is exactly 1.
            let left: f64 = weights[i..].iter().rev().sum();
            ((weight / left * WHOLE as f64).round() as u64).clamp(1, WHOLE)
        };
        Self { splits: weights.iter().enumerate().map(split).collect() }
    }

    /// The corpus of the window at a position of the stream, and how many of this corpus's are before it.
    pub(super) fn place(&self, position: u64) -> (usize, u64) {
        let (mut at, last) = (position, self.splits.len() - 1);
        for (corpus, &split) in self.splits[..last].iter().enumerate() {
            let before = part(at, split);
            if part(at + 1, split) > before {
                return (corpus, before);
            }
            at -= before;
        }
        (last, at)
    }

    /// How many of a stream's first `windows` come from each corpus.
    pub(super) fn taken(&self, windows: u64) -> Vec<u64> {
        let mut left = windows;
        let taken = self.splits.iter().map(|&split| {
            let taken = part(left, split);
            left -= taken;
            taken
        });
        taken.collect()
    }
}

/// A share of the first `at` windows, to the nearest.
fn part(at: u64, split: u64) -> u64 {
    ((u128::from(at) * u128::from(split) + u128::from(WHOLE / 2)) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_what_counting_gives_and_shares_are_kept_at_every_point() {
        for weights in [&[1.0][..], &[3.0, 1.0], &[0.2, 0.5, 0.3], &[1.0, 0.02, 20.0, 7.0]] {
            let mixture = Mixture::new(weights);
            let total: f64 = weights.iter().sum();
            let mut counts = vec![0; weights.len()];
            for position in 0..5000 {
                assert_eq!(mixture.taken(position), counts);
                let (corpus, before) = mixture.place(position);
                assert_eq!(before, counts[corpus], "{weights:?} at {position}");
                counts[corpus] += 1;
                for (&count, weight) in counts.iter().zip(weights) {
                    let ideal = (position + 1) as f64 * weight / total;
                    assert!((count as f64 - ideal).abs() < 1.6, "{weights:?} at {position}: {counts:?}");
                }
            }
            assert!(counts.iter().all(|&count| count > 0));
        }
    }

    #[test]
    fn positions_beyond_any_run_are_still_exact() {
        let mixture = Mixture::new(&[1.0, 2.0]);
        let far = 1 << 60;
        let (corpus, before) = mixture.place(far);
        let (mut next, taken) = (mixture.taken(far), mixture.taken(far));
        assert_eq!(taken.iter().sum::<u64>(), far);
        assert_eq!(before, taken[corpus]);
        next[corpus] += 1;
        assert_eq!(mixture.taken(far + 1), next);
    }
}
