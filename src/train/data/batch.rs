use std::sync::Arc;

use super::permutation::mix;

/// Windows of equal length, laid end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `windows * context` tokens.
    pub inputs: Vec<u32>,
    /// The token after each.
    pub targets: Arc<Vec<u32>>,
    /// The length of the longest match at each input, not reaching before its window; empty for a baseline.
    pub matches: Vec<u8>,
    /// The lengths of the sequences that the inputs are, one after the other: a token sees its own up to itself. They
    /// are the windows, or the parts of documents in them.
    pub lengths: Arc<Vec<usize>>,
}

impl Batch {
    /// Adds a window and the token after it. Where documents are kept `apart`, a sequence begins at each of these tokens.
    /// One ends a document as the last target of its sequence and begins the next as the first input of another, so
    /// every target is predicted, and none from another document.
    pub(super) fn push(&mut self, window: &[u32], apart: Option<u32>) {
        let context = window.len() - 1;
        let inputs = &window[..context];
        self.inputs.extend_from_slice(inputs);
        Arc::make_mut(&mut self.targets).extend_from_slice(&window[1..]);
        let lengths = Arc::make_mut(&mut self.lengths);
        let mut start = 0;
        for (at, _) in inputs.iter().enumerate().skip(1).filter(|&(_, &token)| Some(token) == apart) {
            lengths.push(at - start);
            start = at;
        }
        lengths.push(context - start);
    }

    /// Adds the matches of a window, given its tags. One that reaches before the window is clamped; by closure that is
    /// again the longest match. None reaches before a document, for no f-gram holds the token between two.
    pub(super) fn push_matches(&mut self, tags: &[u8]) {
        let clamped = tags.iter().enumerate().map(|(p, &n)| n.min(p.saturating_add(1).min(255) as u8));
        self.matches.extend(clamped);
    }

    /// The inputs and targets of each sequence.
    pub fn sequences(&self) -> impl Iterator<Item = (&[u32], &[u32])> {
        self.lengths.iter().scan(0, |end, &length| {
            let start = *end;
            *end += length;
            Some((&self.inputs[start..*end], &self.targets[start..*end]))
        })
    }

    /// Replaces a `share` of the matches by a shorter one, or none, at random: every suffix of an f-gram is again one,
    /// for the set is closed.
    pub fn fall_back(&mut self, share: f64, seed: u64) {
        let limit = (share * (1u64 << 32) as f64) as u64;
        for (i, n) in self.matches.iter_mut().enumerate().filter(|(_, n)| **n >= 2) {
            let random = mix(mix(seed) ^ i as u64);
            if random >> 32 < limit {
                *n = 1 + ((random & 0xffff_ffff) % u64::from(*n - 1)) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each window's sequences, by looking at every token.
    fn twin(windows: &[&[u32]], eos: u32) -> Vec<Vec<u32>> {
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        for window in windows {
            for (i, &token) in window[..window.len() - 1].iter().enumerate() {
                if i == 0 || token == eos {
                    sequences.push(Vec::new());
                }
                sequences.last_mut().unwrap().push(token);
            }
        }
        sequences
    }

    #[test]
    fn sequences_begin_where_a_window_or_a_document_does() {
        let windows: [&[u32]; 4] =
            [&[5, 6, 0, 7, 8, 9], &[0, 1, 2, 3, 4, 0], &[1, 0, 0, 2, 0, 5], &[1, 2, 3, 4, 5, 6]];
        for apart in [None, Some(0)] {
            let mut batch = Batch::default();
            for window in windows {
                batch.push(window, apart);
            }
            let mut rest = &batch.inputs[..];
            let sequences = batch.lengths.iter().map(|&length| {
                let (sequence, after) = rest.split_at(length);
                rest = after;
                sequence.to_vec()
            });
            assert_eq!(sequences.collect::<Vec<_>>(), twin(&windows, apart.unwrap_or(99)));
            assert!(rest.is_empty());
            assert_eq!(
                batch.targets[..],
                windows.concat().chunks(6).flat_map(|w| &w[1..]).copied().collect::<Vec<_>>()
            );
        }
    }
}
