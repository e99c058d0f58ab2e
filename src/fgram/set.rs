use std::cmp::Ordering;

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::buckets::Filling;
use super::{Bucket, Index, Key, MAX_N, MAX_RANKS, MAX_VOCABULARY, Match, build_buckets};

/// What may be an f-gram at all; stored with a set and with the table made of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Policy {
    /// K: the longest f-gram.
    pub max_n: usize,
    /// Ids of the tokenizer's special tokens, ascending. They are in no f-gram.
    pub special_tokens: Vec<u32>,
    /// SHA-256 of the `tokenizer.json` that the token ids belong to, in hexadecimal.
    pub tokenizer_sha256: String,
}

/// Why a list of n-grams is not an f-gram set.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SetError {
    /// K is outside 2 ..= [`MAX_N`].
    #[error("the longest n-gram must have 2 to {MAX_N} tokens, not {0}")]
    MaxN(usize),
    /// More f-grams than ranks.
    #[error("{0} f-grams are more than a set can hold")]
    TooMany(usize),
    /// An n-gram of a wrong length.
    #[error("f-gram {rank} has {len} tokens; 2 to {max_n} are allowed")]
    Length {
        /// Where.
        rank: usize,
        /// Its length.
        len: usize,
        /// K.
        max_n: usize,
    },
    /// A token that cannot be part of an f-gram.
    #[error("f-gram {rank} contains token {token}, which is {why}")]
    Token {
        /// Where.
        rank: usize,
        /// Which.
        token: u32,
        /// Special, or too large.
        why: &'static str,
    },
    /// Ranks are not in order, or an f-gram is there twice.
    #[error("f-grams {rank} and {} are out of order (count, then length, then tokens) or the same", .rank + 1)]
    Order {
        /// The first of the two.
        rank: usize,
    },
    /// Two sets that cannot be joined.
    #[error("the two sets are of different {0}, so they cannot be joined")]
    Policies(&'static str),
    /// The set is not closed under prefix and suffix.
    #[error("f-gram {rank}, {tokens:?}, is in the set but its {part} is not: the set must be closed")]
    NotClosed {
        /// Where.
        rank: usize,
        /// Its tokens.
        tokens: Vec<u32>,
        /// "prefix" or "suffix".
        part: &'static str,
    },
}

/// The order of ranks: by count descending, then length, then token ids.
pub fn rank_order(a: (&[u32], u64), b: (&[u32], u64)) -> Ordering {
    b.1.cmp(&a.1).then(a.0.len().cmp(&b.0.len())).then_with(|| a.0.cmp(b.0))
}

/// `V_f` in memory: the ranked f-grams, their counts and the index that finds them.
#[derive(Clone, Debug)]
pub struct FgramSet {
    policy: Policy,
    keys: Vec<Key>,
    buckets: Vec<Bucket>,
    counts: Vec<u64>,
}

impl FgramSet {
    /// Makes a set of n-grams that come in order of rank (see [`rank_order`]).
    ///
    /// # Errors
    /// Where they are not in that order, not closed, or not allowed by the policy.
    pub fn from_ranked<'a>(
        policy: Policy,
        ranked: impl IntoIterator<Item = (&'a [u32], u64)>,
    ) -> Result<Self, SetError> {
        let ranked = ranked.into_iter();
        let mut builder = SetBuilder::new(policy, ranked.size_hint().0)?;
        ranked.into_iter().try_for_each(|(tokens, count)| builder.push(tokens, count))?;
        Ok(builder.finish())
    }

    /// The set of these keys and counts, by rank, from a caller who knows that they are one: nothing is checked.
    /// For keys of a file use [`SetBuilder`] or [`verify`](crate::table::verify).
    pub fn from_keys(policy: Policy, keys: Vec<Key>, counts: Vec<u64>) -> Self {
        let buckets = build_buckets(&keys);
        Self { policy, keys, buckets, counts }
    }

    /// The index over the set.
    pub fn index(&self) -> Index<'_> {
        Index::new(&self.keys, &self.buckets, self.policy.max_n)
    }

    /// The number of f-grams.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What may be an f-gram here.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The counts in the mined corpus, by rank: they never increase.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The tokens of the f-gram of this rank.
    pub fn tokens(&self, rank: u32) -> Option<Vec<u32>> {
        self.index().tokens(rank)
    }

    /// See [`Index::longest_match`].
    pub fn longest_match(&self, tokens: &[u32]) -> Option<Match> {
        self.index().longest_match(tokens)
    }

    /// The identity of the set, see [`identity`].
    pub fn sha256(&self) -> String {
        identity(&self.policy, &self.keys)
    }
}

/// Makes a set of n-grams that come one at a time, in order of rank (see [`rank_order`]), and checks them.
#[derive(Debug)]
pub struct SetBuilder {
    policy: Policy,
    keys: Vec<Key>,
    counts: Vec<u64>,
    /// Filled as the ranks come, so that prefix and suffix, which always have smaller ranks, are found.
    filling: Filling,
    /// What the buckets have room for.
    capacity: usize,
    previous: (Vec<u32>, u64),
}

impl SetBuilder {
    /// A set that is empty as yet, with room for about `len` f-grams.
    ///
    /// # Errors
    /// Where K is out of range.
    pub fn new(policy: Policy, len: usize) -> Result<Self, SetError> {
        if !(2..=MAX_N).contains(&policy.max_n) {
            return Err(SetError::MaxN(policy.max_n));
        }
        let capacity = len.clamp(64, MAX_RANKS as usize);
        let (keys, counts) = (Vec::with_capacity(len), Vec::with_capacity(len));
        let (filling, previous) = (Filling::new(capacity), (Vec::new(), u64::MAX));
        Ok(Self { policy, keys, counts, filling, capacity, previous })
    }

    /// The f-gram of the next rank.
    ///
    /// # Errors
    /// Where it does not come after the one before, its prefix or suffix is missing, or the policy does not allow it.
    pub fn push(&mut self, tokens: &[u32], count: u64) -> Result<(), SetError> {
        let rank = self.keys.len();
        if rank as u64 >= u64::from(MAX_RANKS) {
            return Err(SetError::TooMany(rank + 1));
        }
        check_tokens(&self.policy, rank, tokens)?;
        let (before, before_count) = &self.previous;
        if rank > 0 && rank_order((before, *before_count), (tokens, count)) != Ordering::Less {
            return Err(SetError::Order { rank: rank - 1 });
        }
        let missing = |part| SetError::NotClosed { rank, tokens: tokens.to_vec(), part };
        let key = if tokens.len() == 2 {
            Key::of_bigram(tokens[0], tokens[1])
        } else {
            let index = Index::of_buckets(&self.keys, self.filling.buckets(), self.policy.max_n);
            index.rank(&tokens[..tokens.len() - 1]).ok_or_else(|| missing("prefix"))?;
            Key::of_longer(tokens[0], index.rank(&tokens[1..]).ok_or_else(|| missing("suffix"))?)
        };
        if rank == self.capacity {
            self.grow();
        }
        self.filling.insert(key, rank as u32);
        self.keys.push(key);
        self.counts.push(count);
        self.previous.0.clear();
        self.previous.0.extend_from_slice(tokens);
        self.previous.1 = count;
        Ok(())
    }

    fn grow(&mut self) {
        self.capacity *= 2;
        self.filling = Filling::new(self.capacity);
        for (rank, &key) in self.keys.iter().enumerate() {
            self.filling.insert(key, rank as u32);
        }
    }

    /// The set.
    pub fn finish(self) -> FgramSet {
        let Self { policy, keys, counts, filling, capacity, .. } = self;
        let buckets = if keys.len() == capacity { filling.into_buckets() } else { build_buckets(&keys) };
        FgramSet { policy, keys, buckets, counts }
    }
}

/// SHA-256, in hexadecimal, of a policy and the f-grams by rank: what a table must share with its model. Counts do
/// not enter, for they change no match.
pub fn identity(policy: &Policy, keys: &[Key]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"scone f-gram set 1\0");
    hash.update((policy.max_n as u64).to_le_bytes());
    hash.update(policy.tokenizer_sha256.as_bytes());
    hash.update((policy.special_tokens.len() as u64).to_le_bytes());
    for token in &policy.special_tokens {
        hash.update(token.to_le_bytes());
    }
    // As they lie in a table: little-endian, suffix before token.
    hash.update(bytemuck::cast_slice::<Key, u8>(keys));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_tokens(policy: &Policy, rank: usize, tokens: &[u32]) -> Result<(), SetError> {
    if !(2..=policy.max_n).contains(&tokens.len()) {
        return Err(SetError::Length { rank, len: tokens.len(), max_n: policy.max_n });
    }
    for &token in tokens {
        if token >= MAX_VOCABULARY {
            return Err(SetError::Token { rank, token, why: "beyond the largest vocabulary" });
        }
        if policy.special_tokens.binary_search(&token).is_ok() {
            return Err(SetError::Token { rank, token, why: "a special token" });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::fgram::twin;

    fn policy(max_n: usize) -> Policy {
        Policy { max_n, special_tokens: vec![0], tokenizer_sha256: "a tokenizer".to_owned() }
    }

    /// All n-grams of a stream without special tokens, ranked: cut anywhere, they are a closed set.
    fn ranked(stream: &[u32], max_n: usize) -> Vec<(Vec<u32>, u64)> {
        let mut counts = HashMap::new();
        for n in 2..=max_n {
            for ngram in stream.windows(n).filter(|ngram| !ngram.contains(&0)) {
                *counts.entry(ngram.to_vec()).or_insert(0) += 1;
            }
        }
        let mut ranked: Vec<_> = counts.into_iter().collect();
        ranked.sort_by(|a, b| rank_order((&a.0, a.1), (&b.0, b.1)));
        ranked
    }

    fn set_of(policy: Policy, ranked: &[(Vec<u32>, u64)]) -> Result<FgramSet, SetError> {
        FgramSet::from_ranked(policy, ranked.iter().map(|(tokens, count)| (tokens.as_slice(), *count)))
    }

    proptest! {
        #[test]
        fn longest_match_equals_the_twin(
            mined in prop::collection::vec(0u32..5, 0..120),
            text in prop::collection::vec(0u32..6, 0..60),
            max_n in 2usize..7,
            size in 0usize..80,
        ) {
            let mut ranked = ranked(&mined, max_n);
            ranked.truncate(size);
            let set = set_of(policy(max_n), &ranked).unwrap();
            let ngrams: HashSet<Vec<u32>> = ranked.iter().map(|(tokens, _)| tokens.clone()).collect();
            for end in 0..=text.len() {
                let found = set.longest_match(&text[..end]);
                let n = found.map_or(1, |found| usize::from(found.n));
                prop_assert_eq!(n, twin::longest_match(&ngrams, &text[..end]));
                if let Some(found) = found {
                    prop_assert_eq!(set.tokens(found.rank).unwrap(), &text[end - n..end]);
                }
            }
            let singly = |text: &[u32], from: usize| -> Vec<_> {
                (from..text.len()).map(|i| set.longest_match(&text[..=i])).collect()
            };
            let cut = text.len() / 3;
            let pieces = [(&text[..], 0), (&text[..], cut), (&text[cut..], 0), (&mined[..], 1.min(mined.len()))];
            let expected: Vec<_> = pieces.iter().flat_map(|&(text, from)| singly(text, from)).collect();
            prop_assert_eq!(set.index().matches_of(pieces), expected);
            for (rank, (tokens, count)) in ranked.iter().enumerate() {
                prop_assert_eq!(&set.tokens(rank as u32).unwrap(), tokens);
                prop_assert_eq!(set.counts()[rank], *count);
            }
            prop_assert_eq!(set.tokens(ranked.len() as u32), None);
        }

        #[test]
        fn a_set_with_a_hole_is_refused(
            mined in prop::collection::vec(1u32..4, 20..60),
            hole in any::<prop::sample::Index>(),
        ) {
            let mut ranked = ranked(&mined, 4);
            let (gone, _) = ranked.remove(hole.index(ranked.len()));
            let needed = ranked.iter().any(|(tokens, _)| {
                tokens[1..] == gone[..] || tokens[..tokens.len() - 1] == gone[..]
            });
            let outcome = set_of(policy(4), &ranked);
            prop_assert_eq!(matches!(outcome, Err(SetError::NotClosed { .. })), needed);
        }

        #[test]
        fn damaged_arrays_never_panic_nor_hang(
            keys in prop::collection::vec((any::<u32>(), 0u32..4), 0..20),
            slots in prop::collection::vec(prop_oneof![0u32..24, Just(u32::MAX)], 0..80),
            text in prop::collection::vec(0u32..4, 0..10),
        ) {
            let keys: Vec<Key> = keys
                .into_iter()
                .map(|(parent, token)| Key { parent: parent % 8 + (parent & 1) * MAX_VOCABULARY, token })
                .collect();
            let mut buckets = vec![<Bucket as bytemuck::Zeroable>::zeroed(); slots.len() / 16];
            bytemuck::cast_slice_mut::<Bucket, u32>(&mut buckets).copy_from_slice(&slots[..slots.len() / 16 * 16]);
            let index = Index::new(&keys, &buckets, 5);
            for rank in 0..24 {
                prop_assert!(index.tokens(rank).is_none_or(|tokens| tokens.len() <= 5));
            }
            index.matches(&text, 0);
        }
    }

    #[test]
    fn ten_million_keys_that_are_not_there_find_nothing() {
        let mut state = 1_u64;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as u32) % below
        };
        let stream: Vec<u32> = (0..60_000).map(|_| 1 + random(60) * random(60)).collect();
        let set = set_of(policy(4), &ranked(&stream, 4)).unwrap();
        let there: hashbrown::HashSet<Key> = set.index().keys().iter().copied().collect();
        assert!(there.len() > 100_000);
        let mut tried = 0;
        while tried < 10_000_000 {
            // Suffixes and tokens that exist: only their combinations do not.
            let Key { parent, .. } = set.index().keys()[random(there.len() as u32) as usize];
            let Key { token, .. } = set.index().keys()[random(there.len() as u32) as usize];
            let key = Key { parent, token };
            if !there.contains(&key) {
                assert_eq!(set.index().find(key), None);
                tried += 1;
            }
        }
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        let refused = |max_n, ranked: &[(Vec<u32>, u64)]| set_of(policy(max_n), ranked).unwrap_err();
        let ngram = |tokens: &[u32], count| (tokens.to_vec(), count);
        assert_eq!(refused(1, &[]), SetError::MaxN(1));
        assert!(matches!(refused(2, &[ngram(&[1, 0], 5)]), SetError::Token { token: 0, .. }));
        assert!(matches!(refused(2, &[ngram(&[1, MAX_VOCABULARY], 5)]), SetError::Token { .. }));
        assert!(matches!(refused(2, &[ngram(&[1, 2, 3], 5)]), SetError::Length { len: 3, .. }));
        assert!(matches!(refused(2, &[ngram(&[1], 5)]), SetError::Length { len: 1, .. }));
        assert_eq!(refused(2, &[ngram(&[1, 2], 5), ngram(&[1, 2], 5)]), SetError::Order { rank: 0 });
        assert_eq!(refused(2, &[ngram(&[1, 2], 5), ngram(&[1, 1], 5)]), SetError::Order { rank: 0 });
    }

    #[test]
    fn identity_tells_sets_apart_but_not_counts() {
        let set = |max_n, ranked: &[(Vec<u32>, u64)]| set_of(policy(max_n), ranked).unwrap().sha256();
        let one = set(3, &[(vec![1, 2], 5)]);
        assert_eq!(one, set(3, &[(vec![1, 2], 6)]));
        assert_ne!(one, set(4, &[(vec![1, 2], 5)]));
        assert_ne!(one, set(3, &[(vec![2, 1], 5)]));
    }
}
