use super::{Key, MAX_N};

/// A slot that holds no rank.
const EMPTY: u32 = u32::MAX;

/// The longest f-gram that ends at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its rank, which is its row in the table.
    pub rank: u32,
    /// Its length in tokens, 2 to K.
    pub n: u8,
}

/// Finds f-grams by their keys: a view of two arrays, in memory or in a mapped table.
///
/// `slots` is a hash table with linear probing whose entries are ranks; `keys` are the f-grams by rank. The key is
/// compared on every hit, so a wrong answer is impossible in an undamaged file; in a damaged one every access is
/// still checked and every search ends.
#[derive(Clone, Copy, Debug)]
pub struct Index<'a> {
    keys: &'a [Key],
    slots: &'a [u32],
    max_n: usize,
}

impl<'a> Index<'a> {
    /// A view of `keys` in order of rank and of the slots that [`build_slots`] made for them. `slots` must have a
    /// power of two entries, at least one of them empty; otherwise every lookup misses.
    pub fn new(keys: &'a [Key], slots: &'a [u32], max_n: usize) -> Self {
        Self { keys, slots, max_n: max_n.min(MAX_N) }
    }

    /// The number of f-grams.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// K: no f-gram is longer.
    pub fn max_n(&self) -> usize {
        self.max_n
    }

    /// The rank of the f-gram with this key.
    pub fn find(&self, key: Key) -> Option<u32> {
        if !self.slots.len().is_power_of_two() {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut at = key.hash() as usize & mask;
        for _ in 0..=mask {
            let rank = self.slots[at];
            if rank == EMPTY {
                return None;
            }
            if self.keys.get(rank as usize) == Some(&key) {
                return Some(rank);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// The longest f-gram that ends with the last of `tokens` and lies inside `tokens`, or `None`: the token falls
    /// back. At most the last K tokens are read.
    pub fn longest_match(&self, tokens: &[u32]) -> Option<Match> {
        let (&last, before) = tokens.split_last()?;
        let mut before = before.iter().rev();
        let mut rank = self.find(Key::of_bigram(*before.next()?, last))?;
        let mut n = 2;
        for &token in before.take(self.max_n.saturating_sub(2)) {
            let Some(longer) = self.find(Key::of_longer(token, rank)) else { break };
            rank = longer;
            n += 1;
        }
        Some(Match { rank, n })
    }

    /// The longest match at every position of `tokens` from `from` on; the tokens before `from` are context.
    pub fn matches(&self, tokens: &[u32], from: usize) -> Vec<Option<Match>> {
        (from..tokens.len()).map(|i| self.longest_match(&tokens[..=i])).collect()
    }

    /// The tokens of the f-gram of this rank, in order; `None` if there is no such rank or the keys are damaged.
    pub fn tokens(&self, rank: u32) -> Option<Vec<u32>> {
        let mut tokens = Vec::with_capacity(self.max_n);
        let mut key = self.keys.get(rank as usize)?;
        loop {
            tokens.push(key.token);
            if tokens.len() >= self.max_n {
                return None;
            }
            match key.parent_rank() {
                Some(parent) => key = self.keys.get(parent as usize)?,
                None => {
                    tokens.push(key.parent);
                    return (tokens.len() <= self.max_n).then_some(tokens);
                }
            }
        }
    }

    /// The keys, in order of rank.
    pub fn keys(&self) -> &'a [Key] {
        self.keys
    }

    /// The hash table's slots.
    pub fn slots(&self) -> &'a [u32] {
        self.slots
    }
}

/// How many slots an index of `len` f-grams has: a power of two, so at most 3/4 and at least 3/8 of them are full.
pub fn slot_count(len: usize) -> usize {
    (len * 4 / 3 + 1).next_power_of_two()
}

/// The slots of an index over `keys`, which must all differ.
pub fn build_slots(keys: &[Key]) -> Vec<u32> {
    let mut slots = vec![EMPTY; slot_count(keys.len())];
    let mask = slots.len() - 1;
    for (rank, key) in keys.iter().enumerate() {
        let mut at = key.hash() as usize & mask;
        while slots[at] != EMPTY {
            at = (at + 1) & mask;
        }
        slots[at] = rank as u32;
    }
    slots
}
