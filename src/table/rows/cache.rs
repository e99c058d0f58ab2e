//! Rows from the disk, kept within a budget of bytes.

use std::io;

use hashbrown::{HashMap, HashSet};
use memmap2::MmapMut;

/// Bytes a row costs beside its own: its rank, its mark, and its entry in the map at the map's emptiest.
const OVERHEAD: usize = 32;

/// Rows start at multiples of this, which is enough for numbers of any type.
const ALIGN: usize = 16;

/// A row cache: a slab of rows and a map from rank to place. What goes when it is full is decided by CLOCK: a hand goes
/// round the places and takes the first row that was not used since it last came by.
#[derive(Debug)]
pub(super) struct Cache {
    slab: MmapMut,
    row: usize,
    stride: usize,
    places: usize,
    of_rank: HashMap<u32, u32>,
    ranks: Vec<u32>,
    used: Vec<bool>,
    hand: usize,
    /// Rows that somebody is reading right now, so that nobody else does.
    pending: HashSet<u32>,
}

/// What a cache knows of a row.
pub(super) enum Found<'a> {
    /// Its bytes.
    Here(&'a [u8]),
    /// Somebody is reading it.
    Pending,
    /// Nothing.
    Missing,
}

impl Cache {
    /// A cache for rows of `row` bytes, of which there are `rows`, that takes at most `budget` bytes. Memory is taken as
    /// it fills.
    pub(super) fn new(budget: u64, row: usize, rows: usize) -> io::Result<Self> {
        let stride = row.next_multiple_of(ALIGN);
        let places = usize::try_from(budget).unwrap_or(usize::MAX) / (stride + OVERHEAD);
        let places = places.min(rows);
        Ok(Self {
            slab: MmapMut::map_anon((places * stride).max(1))?,
            row,
            stride,
            places,
            of_rank: HashMap::with_capacity(places),
            ranks: Vec::with_capacity(places),
            used: Vec::with_capacity(places),
            hand: 0,
            pending: HashSet::new(),
        })
    }

    /// How many rows there is room for.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    pub(super) fn find(&mut self, rank: u32) -> Found<'_> {
        if let Some(&place) = self.of_rank.get(&rank) {
            let place = place as usize;
            self.used[place] = true;
            Found::Here(&self.slab[place * self.stride..][..self.row])
        } else if self.pending.contains(&rank) {
            Found::Pending
        } else {
            Found::Missing
        }
    }

    /// Says that the caller is about to read a row. Without room for rows nobody can wait for one.
    pub(super) fn claim(&mut self, rank: u32) {
        if self.places > 0 {
            self.pending.insert(rank);
        }
    }

    /// Takes back a claim.
    pub(super) fn release(&mut self, rank: u32) {
        self.pending.remove(&rank);
    }

    /// Keeps a row that is not kept yet.
    pub(super) fn insert(&mut self, rank: u32, bytes: &[u8]) {
        if self.places == 0 || self.of_rank.contains_key(&rank) {
            return;
        }
        let place = if self.ranks.len() < self.places {
            self.ranks.push(rank);
            self.used.push(false);
            self.ranks.len() - 1
        } else {
            let place = self.evict();
            self.ranks[place] = rank;
            place
        };
        self.of_rank.insert(rank, place as u32);
        self.slab[place * self.stride..][..self.row].copy_from_slice(bytes);
    }

    /// Frees a place.
    fn evict(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = (place + 1) % self.places;
            if !std::mem::take(&mut self.used[place]) {
                self.of_rank.remove(&self.ranks[place]);
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(rank: u32) -> [u8; 5] {
        [rank.to_le_bytes().as_slice(), &[rank as u8 ^ 0xff]].concat().try_into().unwrap()
    }

    proptest! {
        /// Whatever is kept is right, no more is kept than fits, and what was just put in is there.
        #[test]
        fn keeps_what_fits(places in 0_usize..6, asked in prop::collection::vec(0_u32..12, 0..200)) {
            let mut cache = Cache::new((places * (16 + OVERHEAD)) as u64 + 7, 5, 12).unwrap();
            prop_assert_eq!(cache.places(), places);
            for rank in asked {
                match cache.find(rank) {
                    Found::Here(bytes) => prop_assert_eq!(bytes, row(rank)),
                    Found::Pending => prop_assert!(false),
                    Found::Missing => {
                        cache.insert(rank, &row(rank));
                        prop_assert_eq!(matches!(cache.find(rank), Found::Here(_)), places > 0);
                    }
                }
                prop_assert!(cache.of_rank.len() <= places);
            }
        }
    }

    #[test]
    fn what_is_used_stays() {
        let mut cache = Cache::new(3 * (16 + OVERHEAD) as u64, 5, 100).unwrap();
        for rank in 0..50 {
            cache.insert(rank, &row(rank));
            assert!(matches!(cache.find(0), Found::Here(_)), "row 0 is gone after {rank}");
        }
        assert!(matches!(cache.find(1), Found::Missing));
    }

    #[test]
    fn the_map_stays_within_its_share() {
        for places in [1, 14, 15, 28, 29, 1000, 1 << 16] {
            let budget = places * (4096 + OVERHEAD);
            let cache = Cache::new(budget as u64, 4096, usize::MAX).unwrap();
            let all = cache.slab.len() + cache.of_rank.allocation_size() + places * 5;
            // The smallest maps are a few entries larger than they must be.
            assert!(all <= budget + 128, "{places} places: {all} of {budget}");
        }
    }
}
