//! The hash table of an index: which rank has a key.
//!
//! Open addressing with linear probing. A slot is a u32: the rank in the low bits, as many as ranks need, and in the
//! bits left over a part of the key's hash, the *tag*. So almost every slot that is passed over, and almost every
//! search in vain, is settled without a look at the keys, which lie elsewhere.

use super::Key;
use super::prefetch::prefetch;

/// A slot that holds no rank: no rank has all of its bits set.
const EMPTY: u32 = u32::MAX;

/// Keys whose slots are fetched together while slots are filled.
const TOGETHER: usize = 32;

/// How many slots an index of `len` f-grams has: about 5/8 of them are full.
pub fn slot_count(len: usize) -> usize {
    len + len / 5 * 3 + 8
}

/// The slots of an index over `keys`, which must all differ.
pub fn build_slots(keys: &[Key]) -> Vec<u32> {
    let mut filling = Filling::new(keys.len());
    for (block, keys) in keys.chunks(TOGETHER).enumerate() {
        keys.iter().for_each(|&key| _ = filling.slots().fetch(key));
        for (i, &key) in keys.iter().enumerate() {
            filling.insert(key, (block * TOGETHER + i) as u32);
        }
    }
    filling.slots
}

/// Slots on their way to `capacity` ranks.
#[derive(Debug)]
pub(super) struct Filling {
    slots: Vec<u32>,
    rank_bits: u32,
}

impl Filling {
    pub(super) fn new(capacity: usize) -> Self {
        Self { slots: vec![EMPTY; slot_count(capacity)], rank_bits: rank_bits(capacity) }
    }

    pub(super) fn slots(&self) -> Slots<'_> {
        Slots { slots: &self.slots, rank_bits: self.rank_bits }
    }

    /// Adds a key that is not there yet; `rank` must be below the capacity.
    pub(super) fn insert(&mut self, key: Key, rank: u32) {
        let Start { mut at, tag } = self.slots().start(key);
        while self.slots[at] != EMPTY {
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        // In 64 bits, for a shift by all 32 is allowed there.
        self.slots[at] = (u64::from(tag) << self.rank_bits) as u32 | rank;
    }

    pub(super) fn into_slots(self) -> Vec<u32> {
        self.slots
    }
}

/// A view of the slots of so many ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots<'a> {
    slots: &'a [u32],
    rank_bits: u32,
}

/// Where a key's search begins, and the tag that its slot has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Start {
    at: usize,
    tag: u32,
}

impl<'a> Slots<'a> {
    pub(super) fn new(slots: &'a [u32], ranks: usize) -> Self {
        Self { slots, rank_bits: rank_bits(ranks) }
    }

    pub(super) fn as_slice(&self) -> &'a [u32] {
        self.slots
    }

    /// Where the search for a key begins. The slot is fetched.
    pub(super) fn fetch(&self, key: Key) -> Start {
        let start = self.start(key);
        prefetch(self.slots, start.at);
        start
    }

    /// The first rank that may be that of the key; `None`: the key is not there.
    pub(super) fn first(&self, start: Start) -> Option<u32> {
        self.candidates(start).next()
    }

    /// All ranks that may be that of the key, which is the first of them as a rule.
    pub(super) fn candidates(&self, Start { at, tag }: Start) -> impl Iterator<Item = u32> {
        let (after, before) = self.slots.split_at_checked(at).map_or((&[][..], &[][..]), |(b, a)| (a, b));
        let rank_mask = (1_u64 << self.rank_bits) - 1;
        let searched = after.iter().chain(before).take_while(|&&slot| slot != EMPTY);
        let rank_bits = self.rank_bits;
        searched.filter_map(move |&slot| {
            let slot = u64::from(slot);
            (slot >> rank_bits == u64::from(tag)).then_some((slot & rank_mask) as u32)
        })
    }

    /// The slot is the hash's high part scaled to the number of slots, the tag is its low bits. Both belong to the
    /// table's format.
    fn start(&self, key: Key) -> Start {
        let hash = key.hash();
        let at = (u128::from(hash) * self.slots.len() as u128) >> 64;
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

    fn find(slots: Slots<'_>, keys: &[Key], key: Key) -> Option<u32> {
        slots.candidates(slots.fetch(key)).find(|&rank| keys.get(rank as usize) == Some(&key))
    }

    proptest! {
        #[test]
        fn every_key_is_found_and_no_other(parents in prop::collection::btree_set(any::<u32>(), 0..500)) {
            let keys: Vec<Key> = parents.iter().map(|&parent| Key { parent, token: parent % 7 }).collect();
            let built = build_slots(&keys);
            prop_assert_eq!(built.len(), slot_count(keys.len()));
            let slots = Slots::new(&built, keys.len());
            for (rank, &key) in keys.iter().enumerate() {
                prop_assert_eq!(find(slots, &keys, key), Some(rank as u32));
                prop_assert_eq!(find(slots, &keys, Key { token: 7, ..key }), None);
            }
            prop_assert_eq!(built.iter().filter(|&&slot| slot != EMPTY).count(), keys.len());
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
    fn a_search_ends_where_no_slot_is_empty() {
        let slots = [0u32; 5];
        let slots = Slots::new(&slots, 1);
        let key = Key { parent: 1, token: 1 };
        assert!(slots.candidates(slots.fetch(key)).count() <= 5);
        let none = Slots::new(&[], 0);
        assert_eq!(none.first(none.fetch(key)), None);
    }
}
