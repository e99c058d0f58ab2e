use super::{FgramSet, SetBuilder, SetError, rank_order};

impl FgramSet {
    /// The f-grams of this set and of another of the same tokenizer, ranked by the sum of their counts; K is the larger of
    /// the two.
    ///
    /// The union of closed sets is closed, and the sums rank it as a set must be ranked: in each of the two, prefix and
    /// suffix of an f-gram are there with a count no smaller, so their sums are no smaller either.
    ///
    /// # Errors
    /// Where the two are of different tokenizers or special tokens, or are too many together.
    pub fn union(&self, other: &Self) -> Result<Self, SetError> {
        let mut policy = self.policy().clone();
        policy.max_n = policy.max_n.max(other.policy().max_n);
        if policy.tokenizer_sha256 != other.policy().tokenizer_sha256 {
            return Err(SetError::Policies("tokenizers"));
        }
        if policy.special_tokens != other.policy().special_tokens {
            return Err(SetError::Policies("special tokens"));
        }
        // Laid end to end: an allocation an f-gram would be most of the memory.
        let mut tokens: Vec<u32> = Vec::new();
        let mut grams: Vec<(usize, usize, u64)> = Vec::with_capacity(self.len() + other.len());
        for (set, from, is_first) in [(self, other, true), (other, self, false)] {
            for (rank, &count) in (0..).zip(set.counts()) {
                let gram = set.tokens(rank).unwrap_or_default();
                let there = from.index().rank(&gram);
                if there.is_some() && !is_first {
                    continue;
                }
                let more = there.map_or(0, |rank| from.counts()[rank as usize]);
                grams.push((tokens.len(), gram.len(), count.saturating_add(more)));
                tokens.extend_from_slice(&gram);
            }
        }
        let gram = |&(start, len, count): &(usize, usize, u64)| (&tokens[start..start + len], count);
        grams.sort_unstable_by(|a, b| rank_order(gram(a), gram(b)));
        let mut builder = SetBuilder::new(policy, grams.len())?;
        grams.iter().map(gram).try_for_each(|(tokens, count)| builder.push(tokens, count))?;
        Ok(builder.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::fgram::Policy;

    fn policy(max_n: usize) -> Policy {
        Policy { max_n, special_tokens: vec![0], tokenizer_sha256: "a tokenizer".to_owned() }
    }

    type Counts = HashMap<Vec<u32>, u64>;

    /// The `size` most frequent n-grams of a text, counted naively.
    fn mined(text: &[u32], max_n: usize, size: usize) -> Counts {
        let mut counts = Counts::new();
        for n in 2..=max_n {
            for gram in text.windows(n) {
                *counts.entry(gram.to_vec()).or_default() += 1;
            }
        }
        ranked(&counts).into_iter().take(size).collect()
    }

    fn ranked(counts: &Counts) -> Vec<(Vec<u32>, u64)> {
        let mut ranked: Vec<_> = counts.clone().into_iter().collect();
        ranked.sort_by(|a, b| rank_order((&a.0, a.1), (&b.0, b.1)));
        ranked
    }

    fn set(counts: &Counts, max_n: usize) -> FgramSet {
        let ranked = ranked(counts);
        FgramSet::from_ranked(policy(max_n), ranked.iter().map(|(gram, count)| (&gram[..], *count))).unwrap()
    }

    proptest! {
        #[test]
        fn a_union_is_the_naive_one(
            texts in prop::array::uniform2(prop::collection::vec(1u32..6, 0..80)),
            max_n in prop::array::uniform2(2usize..6),
            sizes in prop::array::uniform2(0usize..60),
        ) {
            let [a, b] = [0, 1].map(|i| mined(&texts[i], max_n[i], sizes[i]));
            let mut sums = a.clone();
            for (gram, count) in &b {
                *sums.entry(gram.clone()).or_default() += count;
            }
            let union = set(&a, max_n[0]).union(&set(&b, max_n[1])).unwrap();
            let expected = set(&sums, max_n[0].max(max_n[1]));
            prop_assert_eq!(union.sha256(), expected.sha256());
            prop_assert_eq!(union.counts(), expected.counts());
        }
    }

    #[test]
    fn sets_of_different_tokens_are_refused() {
        let counts = mined(&[1, 2, 1, 2], 2, 10);
        let ours = set(&counts, 2);
        let with = |policy: Policy| {
            let ranked = ranked(&counts);
            let grams = ranked.iter().map(|(gram, count)| (&gram[..], *count));
            ours.union(&FgramSet::from_ranked(policy, grams).unwrap())
        };
        assert!(with(policy(3)).is_ok());
        let other = Policy { tokenizer_sha256: "another".to_owned(), ..policy(2) };
        assert_eq!(with(other).unwrap_err(), SetError::Policies("tokenizers"));
        let other = Policy { special_tokens: vec![0, 9], ..policy(2) };
        assert_eq!(with(other).unwrap_err(), SetError::Policies("special tokens"));
    }
}
