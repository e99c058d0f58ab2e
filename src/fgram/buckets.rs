//! The hash table of an index: which rank has a key.
//!
//! Sixteen slots are a bucket, which is a cache line. A key belongs into the bucket that its hash chooses, or into the
//! next one with room; a search that meets a bucket with room has failed. A slot is a u32: the rank in the low bits, as
//! many as ranks need, and in the bits left over a part of the key's hash, the *tag*. All tags of a bucket are compared
//! at once, so one line settles almost every search, and a search in vain hardly ever looks at a key.

use bytemuck::{Pod, Zeroable};

use super::Key;
use super::prefetch::prefetch;

/// Slots of a bucket.
const SLOTS: usize = 16;

/// A slot that holds no rank: no rank has all of its bits set.
const EMPTY: u32 = u32::MAX;

/// Ranks to a bucket, on average.
const FILL: usize = 10;

/// Buckets that a search looks at, at most. One in twenty is full in a sound table, so many in a row never are; in a
/// damaged one every search ends soon.
const MOST: usize = 64;

/// Keys whose buckets are fetched together while buckets are filled.
const TOGETHER: usize = 32;

/// A cache line of the hash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Bucket([u32; SLOTS]);

impl Bucket {
    /// How many ranks it holds.
    pub fn len(&self) -> usize {
        self.0.iter().filter(|&&slot| slot != EMPTY).count()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn has_room(&self) -> bool {
        self.0[SLOTS - 1] == EMPTY
    }

    /// Which slots have this tag above so many bits of rank: a bit each.
    #[cfg(target_arch = "x86_64")]
    fn hits(&self, tag: u32, rank_bits: u32) -> u32 {
        use std::arch::x86_64::{
            __m128i, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_cvtsi32_si128, _mm_load_si128, _mm_movemask_ps,
            _mm_set1_epi32, _mm_srl_epi32,
        };
        // SAFETY: SSE2 is part of every x86-64 processor, and the four aligned loads of 16 bytes lie in the bucket,
        // which has 64 and is aligned to that.
        unsafe {
            let (shift, tag) = (_mm_cvtsi32_si128(rank_bits as i32), _mm_set1_epi32(tag as i32));
            let four = self.0.as_ptr().cast::<__m128i>();
            let hits = |i: usize| {
                let same = _mm_cmpeq_epi32(_mm_srl_epi32(_mm_load_si128(four.add(i)), shift), tag);
                (_mm_movemask_ps(_mm_castsi128_ps(same)) as u32) << (4 * i)
            };
            hits(0) | hits(1) | hits(2) | hits(3)
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn hits(&self, tag: u32, rank_bits: u32) -> u32 {
        self.hits_one_by_one(tag, rank_bits)
    }

    /// The same, slot by slot.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn hits_one_by_one(&self, tag: u32, rank_bits: u32) -> u32 {
        let is_hit = |slot: u32| u64::from(slot) >> rank_bits == u64::from(tag);
        (0..SLOTS).map(|i| u32::from(is_hit(self.0[i])) << i).sum()
    }
}

/// How many buckets an index of `len` f-grams has: 6.4 bytes an f-gram.
pub fn bucket_count(len: usize) -> usize {
    len / FILL + 1
}

/// The buckets of an index over `keys`, which must all differ.
pub fn build_buckets(keys: &[Key]) -> Vec<Bucket> {
    let mut filling = Filling::new(keys.len());
    for (block, keys) in keys.chunks(TOGETHER).enumerate() {
        keys.iter().for_each(|&key| _ = filling.buckets().fetch(key));
        for (i, &key) in keys.iter().enumerate() {
            filling.insert(key, (block * TOGETHER + i) as u32);
        }
    }
    filling.buckets
}

/// Buckets on their way to `capacity` ranks.
#[derive(Debug)]
pub(super) struct Filling {
    buckets: Vec<Bucket>,
    rank_bits: u32,
}

impl Filling {
    pub(super) fn new(capacity: usize) -> Self {
        let buckets = vec![Bucket([EMPTY; SLOTS]); bucket_count(capacity)];
        Self { buckets, rank_bits: rank_bits(capacity) }
    }

    pub(super) fn buckets(&self) -> Buckets<'_> {
        Buckets { buckets: &self.buckets, rank_bits: self.rank_bits }
    }

    /// Adds a key that is not there yet; `rank` must be below the capacity.
    pub(super) fn insert(&mut self, key: Key, rank: u32) {
        let Start { mut at, tag } = self.buckets().start(key);
        while !self.buckets[at].has_room() {
            at = if at + 1 == self.buckets.len() { 0 } else { at + 1 };
        }
        if let Some(slot) = self.buckets[at].0.iter_mut().find(|slot| **slot == EMPTY) {
            // In 64 bits, for a shift by all 32 is allowed there.
            *slot = (u64::from(tag) << self.rank_bits) as u32 | rank;
        }
    }

    pub(super) fn into_buckets(self) -> Vec<Bucket> {
        self.buckets
    }
}

/// A view of the buckets of so many ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buckets<'a> {
    buckets: &'a [Bucket],
    rank_bits: u32,
}

/// The bucket where a key's search begins, and the tag that its slot has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Start {
    at: usize,
    tag: u32,
}

/// What a key's first bucket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Glance {
    /// The rank is this one, if its key is the same.
    Perhaps(u32),
    /// The key is not there.
    No,
    /// It may be in the next bucket.
    GoOn,
}

impl<'a> Buckets<'a> {
    pub(super) fn new(buckets: &'a [Bucket], ranks: usize) -> Self {
        Self { buckets, rank_bits: rank_bits(ranks) }
    }

    pub(super) fn as_slice(&self) -> &'a [Bucket] {
        self.buckets
    }

    /// Where the search for a key begins. The bucket is fetched.
    pub(super) fn fetch(&self, key: Key) -> Start {
        let start = self.start(key);
        prefetch(self.buckets, start.at);
        start
    }

    /// Looks at the first bucket only.
    pub(super) fn glance(&self, Start { at, tag }: Start) -> Glance {
        let Some(bucket) = self.buckets.get(at) else { return Glance::No };
        match bucket.hits(tag, self.rank_bits) {
            0 if bucket.has_room() => Glance::No,
            0 => Glance::GoOn,
            hits => Glance::Perhaps(self.rank(bucket, hits)),
        }
    }

    /// All ranks that may be that of the key.
    pub(super) fn candidates(self, key: Key) -> impl Iterator<Item = u32> + use<'a> {
        let Start { at, tag } = self.start(key);
        let (before, after) = self.buckets.split_at_checked(at).unwrap_or_default();
        let mut is_over = false;
        let searched = after
            .iter()
            .chain(before)
            .take(MOST)
            .take_while(move |bucket| !std::mem::replace(&mut is_over, bucket.has_room()));
        searched.flat_map(move |bucket| {
            let mut hits = bucket.hits(tag, self.rank_bits);
            std::iter::from_fn(move || {
                let rank = (hits != 0).then(|| self.rank(bucket, hits));
                hits &= hits.wrapping_sub(1);
                rank
            })
        })
    }

    /// The rank in the first slot that was hit.
    fn rank(&self, bucket: &Bucket, hits: u32) -> u32 {
        let slot = bucket.0[hits.trailing_zeros() as usize % SLOTS];
        (u64::from(slot) & ((1 << self.rank_bits) - 1)) as u32
    }

    /// The bucket is the hash's high part scaled to the number of buckets, the tag is its low bits. Both belong to the
    /// table's format.
    fn start(&self, key: Key) -> Start {
        let hash = key.hash();
        let at = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        let tag_bits = u32::BITS - self.rank_bits;
        Start { at: at as usize, tag: (hash & ((1 << tag_bits) - 1)) as u32 }
    }
}

/// The bits that tell so many ranks apart, and from a rank of all ones.
fn rank_bits(ranks: usize) -> u32 {
    (usize::BITS - ranks.leading_zeros()).min(u32::BITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(buckets: Buckets<'_>, keys: &[Key], key: Key) -> Option<u32> {
        buckets.candidates(key).find(|&rank| keys.get(rank as usize) == Some(&key))
    }

    proptest! {
        #[test]
        fn every_key_is_found_and_no_other(parents in prop::collection::btree_set(any::<u32>(), 0..500)) {
            let keys: Vec<Key> = parents.iter().map(|&parent| Key { parent, token: parent % 7 }).collect();
            let built = build_buckets(&keys);
            prop_assert_eq!(built.len(), bucket_count(keys.len()));
            let buckets = Buckets::new(&built, keys.len());
            for (rank, &key) in keys.iter().enumerate() {
                prop_assert_eq!(find(buckets, &keys, key), Some(rank as u32));
                prop_assert!(buckets.glance(buckets.fetch(key)) != Glance::No);
                prop_assert_eq!(find(buckets, &keys, Key { token: 7, ..key }), None);
            }
            prop_assert_eq!(built.iter().map(Bucket::len).sum::<usize>(), keys.len());
        }

        #[test]
        fn hits_are_those_found_one_by_one(slots in any::<[u32; SLOTS]>(), tag in any::<u32>(), rank_bits in 1u32..=32) {
            let mut bucket = Bucket(slots);
            let tag = (u64::from(tag) >> rank_bits) as u32;
            bucket.0[5] = (u64::from(tag) << rank_bits) as u32 | 1;
            prop_assert_eq!(bucket.hits(tag, rank_bits), bucket.hits_one_by_one(tag, rank_bits));
            prop_assert!(bucket.hits(tag, rank_bits) & 1 << 5 != 0);
        }
    }

    #[test]
    fn ranks_keep_clear_of_the_empty_slot() {
        for (ranks, bits) in
            [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (10_000_000, 24), (u32::MAX as usize, 32)]
        {
            assert_eq!(rank_bits(ranks), bits, "{ranks}");
            let last = (ranks as u64).saturating_sub(1);
            assert!(ranks == 0 || last < (1 << bits) - 1 || bits == 32 && last < u64::from(u32::MAX));
        }
    }

    #[test]
    fn a_search_ends_where_no_bucket_has_room() {
        let buckets = [Bucket([0; SLOTS]); 3];
        let buckets = Buckets::new(&buckets, 1);
        let key = Key { parent: 1, token: 1 };
        assert!(buckets.candidates(key).count() <= 3 * SLOTS);
        let none = Buckets::new(&[], 0);
        assert_eq!((none.glance(none.fetch(key)), none.candidates(key).next()), (Glance::No, None));
    }
}
