//! Prompt-lookup speculation: what followed the last time that the sequence's last tokens stood there is what may follow now.

use std::ops::Range;

/// The most and the fewest tokens that must be the same for what followed them to be proposed.
const LONGEST: usize = 3;
const SHORTEST: usize = 2;

/// How much the last draft counts beside those before it.
const WEIGHT: f64 = 0.125;

/// What share of drafts is assumed to be right as long as none was tried.
const ASSUMED: f64 = 0.5;

/// After so many tokens for which drafts did not pay, one is tried again.
const PROBE: u32 = 32;

/// Where in `tokens` stands what may follow them: after the latest earlier place with the same last tokens, as many of them
/// as can be, up to `most` tokens. Empty where there is no such place.
pub(super) fn propose(tokens: &[u32], most: usize) -> Range<usize> {
    let end = tokens.len();
    let mut best = (SHORTEST - 1, end);
    if let Some((last, before)) = tokens.split_last() {
        for at in (1..end).rev().filter(|&at| tokens[at - 1] == *last) {
            let same = before.iter().rev().zip(tokens[..at - 1].iter().rev());
            let same = 1 + same.take(LONGEST - 1).take_while(|(a, b)| a == b).count();
            if same > best.0 {
                best = (same, at);
                if same == LONGEST {
                    break;
                }
            }
        }
    }
    best.1..end.min(best.1.saturating_add(most))
}

/// Whether drafts pay for a sequence: how many of them were right of late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speculation {
    right: f64,
    idle: u32,
}

impl Speculation {
    pub(super) fn new() -> Self {
        Self { right: ASSUMED, idle: 0 }
    }

    /// How many drafts to try, at most `most`, where one costs `price` of what a token costs that is decoded without. The
    /// n-th is of use with the probability that n are right in a row.
    pub(super) fn worth(&mut self, most: usize, price: f64) -> usize {
        let mut chance = self.right;
        let mut count = 0;
        while count < most && chance > price {
            chance *= self.right;
            count += 1;
        }
        self.idle = if count > 0 { 0 } else { self.idle + 1 };
        if self.idle < PROBE {
            return count;
        }
        self.idle = 0;
        most.min(1)
    }

    /// Takes note that so many drafts were tried, and how many of them, from the first, were right.
    pub(super) fn note(&mut self, tried: usize, right: usize) {
        for outcome in (0..tried.min(right + 1)).map(|i| if i < right { 1.0 } else { 0.0 }) {
            self.right += WEIGHT * (outcome - self.right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposes_what_followed_the_longest_latest_match() {
        let proposed = |tokens: &[u32], most| tokens[propose(tokens, most)].to_vec();
        assert_eq!(proposed(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(proposed(&[9, 2, 3, 7, 2, 3, 8, 1, 2, 3], 1), [8]);
        assert_eq!(proposed(&[1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3], 3), [7, 5, 2]);
        assert_eq!(proposed(&[4, 4, 4, 4], 9), [4]);
        assert!(proposed(&[1, 2, 3, 2], 4).is_empty());
        assert!(proposed(&[1], 4).is_empty() && proposed(&[], 4).is_empty());
    }

    #[test]
    fn drafts_that_are_wrong_are_given_up_and_tried_again() {
        let mut speculation = Speculation::new();
        assert!(speculation.worth(8, 0.06) > 2);
        assert_eq!(speculation.worth(8, 0.6), 0);
        for _ in 0..100 {
            speculation.note(4, 0);
        }
        let tried: usize = (0..320).map(|_| speculation.worth(8, 0.06)).sum();
        assert_eq!(tried, 10);
        for _ in 0..30 {
            speculation.note(1, 1);
        }
        assert_eq!(speculation.worth(8, 0.06), 8);
    }
}
