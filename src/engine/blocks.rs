use std::collections::BTreeMap;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// The parent of a sequence's first block.
const ROOT: u32 = u32::MAX;

/// The blocks of the KV cache: whose they are, and what those that are full hold.
///
/// A full block can be entered under the block before it and its own tokens; whoever begins with the same tokens then
/// shares it. Blocks that nobody holds any more stay entered until they are needed, the one that was let go first goes
/// first. A sequence lets its blocks go from the last to the first and never holds a block without those before it, so a
/// block never outlives the one it was entered under, and that one's number says what came before.
pub(super) struct Blocks {
    /// Tokens of a block.
    size: usize,
    states: Vec<State>,
    /// What the entered blocks hold, `size` tokens each.
    tokens: Vec<u32>,
    /// Held by nobody and entered nowhere.
    free: Vec<u32>,
    /// Entered and held by nobody, by when they were let go.
    idle: BTreeMap<u64, u32>,
    entries: HashTable<u32>,
    hasher: DefaultHashBuilder,
    clock: u64,
    /// Whether blocks that nobody holds stay entered.
    keeps: bool,
}

#[derive(Clone, Copy, Default)]
struct State {
    holders: u32,
    /// What it was entered under.
    parent: Option<u32>,
    /// Where in `idle` it is, if nobody holds it.
    since: u64,
}

impl Blocks {
    /// `count` blocks of `size` tokens each. Without `keeps` a block is shared only while somebody holds it.
    pub(super) fn new(count: usize, size: usize, keeps: bool) -> Self {
        Self {
            size,
            states: vec![State::default(); count],
            tokens: vec![0; count * size],
            free: (0..count as u32).rev().collect(),
            idle: BTreeMap::new(),
            entries: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
            clock: 0,
            keeps,
        }
    }

    /// Blocks that so many tokens take.
    pub(super) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.size)
    }

    /// Tokens of a block.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Blocks that [`Self::take`] can give.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that hold nothing; those that are kept in case they are asked for again; and those that somebody holds.
    pub(super) fn counts(&self) -> [usize; 3] {
        let held = self.states.len() - self.available();
        [self.free.len(), self.idle.len(), held]
    }

    /// A block for the caller alone, if there is one.
    pub(super) fn take(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                self.strike(block);
                block
            }
        };
        self.states[block as usize].holders = 1;
        Some(block)
    }

    /// Lets go of a sequence's blocks.
    pub(super) fn release(&mut self, blocks: &mut Vec<u32>) {
        while let Some(block) = blocks.pop() {
            self.let_go(block);
        }
    }

    /// The entered blocks of the longest beginning of `tokens` that there is, now held by the caller too.
    pub(super) fn find(&mut self, tokens: &[u32]) -> Vec<u32> {
        let mut found = Vec::new();
        let mut parent = ROOT;
        for tokens in tokens.chunks_exact(self.size) {
            let Some(block) = self.look_up(parent, tokens) else { break };
            self.hold(block);
            found.push(block);
            parent = block;
        }
        found
    }

    /// Enters the last of a sequence's blocks, which holds the keys and values of `tokens`; those before it have been
    /// entered. If another block with the same contents was entered before, that one takes its place.
    pub(super) fn enter(&mut self, blocks: &mut [u32], tokens: &[u32]) {
        let Some((block, before)) = blocks.split_last_mut() else { return };
        let parent = before.last().copied().unwrap_or(ROOT);
        if let Some(same) = self.look_up(parent, tokens) {
            if same != *block {
                self.hold(same);
                self.let_go(*block);
                *block = same;
            }
            return;
        }
        self.states[*block as usize].parent = Some(parent);
        self.tokens[*block as usize * self.size..][..self.size].copy_from_slice(tokens);
        let (hash, hasher, all, states, size) =
            (self.hash(parent, tokens), &self.hasher, &self.tokens, &self.states, self.size);
        self.entries.insert_unique(hash, *block, |&block| {
            let parent = states[block as usize].parent.unwrap_or(ROOT);
            hasher.hash_one((parent, &all[block as usize * size..][..size]))
        });
    }

    /// Forgets what all blocks hold. Whoever holds one keeps it, and may enter no more blocks after it.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.states.iter_mut().for_each(|state| state.parent = None);
        self.free.extend(std::mem::take(&mut self.idle).into_values());
    }

    fn hash(&self, parent: u32, tokens: &[u32]) -> u64 {
        self.hasher.hash_one((parent, tokens))
    }

    fn look_up(&self, parent: u32, tokens: &[u32]) -> Option<u32> {
        let is_same = |&block: &u32| {
            self.states[block as usize].parent == Some(parent)
                && &self.tokens[block as usize * self.size..][..self.size] == tokens
        };
        self.entries.find(self.hash(parent, tokens), is_same).copied()
    }

    fn hold(&mut self, block: u32) {
        let state = &mut self.states[block as usize];
        if state.holders == 0 {
            self.idle.remove(&state.since);
        }
        state.holders += 1;
    }

    fn let_go(&mut self, block: u32) {
        let state = &mut self.states[block as usize];
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        if state.parent.is_some() && self.keeps {
            self.clock += 1;
            state.since = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.strike(block);
            self.free.push(block);
        }
    }

    /// Takes a block off the entries, if it is among them.
    fn strike(&mut self, block: u32) {
        let Some(parent) = self.states[block as usize].parent.take() else { return };
        let hash = self.hash(parent, &self.tokens[block as usize * self.size..][..self.size]);
        if let Ok(entry) = self.entries.find_entry(hash, |&other| other == block) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 2;
    const COUNT: usize = 12;

    /// A sequence as the engine keeps it: all its blocks are entered.
    #[derive(Default)]
    struct Held {
        tokens: Vec<u32>,
        blocks: Vec<u32>,
    }

    /// Begins a sequence: shares what is there, takes and enters the rest; as many blocks as there are.
    fn begin(blocks: &mut Blocks, tokens: &[u32]) -> Held {
        let mut held = blocks.find(tokens);
        while held.len() < tokens.len() / SIZE {
            let Some(block) = blocks.take() else { break };
            held.push(block);
            let at = held.len() * SIZE;
            blocks.enter(&mut held, &tokens[at - SIZE..at]);
        }
        Held { tokens: tokens[..held.len() * SIZE].to_vec(), blocks: held }
    }

    fn check(blocks: &Blocks, held: &[Held]) {
        for one in held {
            assert_eq!(one.blocks.len() * SIZE, one.tokens.len());
        }
        // Equal beginnings are the same blocks, different ones are not.
        for (a, b) in held.iter().flat_map(|a| held.iter().map(move |b| (a, b))) {
            for i in 0..a.blocks.len().min(b.blocks.len()) {
                let same = a.tokens[..(i + 1) * SIZE] == b.tokens[..(i + 1) * SIZE];
                assert_eq!(a.blocks[i] == b.blocks[i], same);
            }
        }
        for block in 0..COUNT as u32 {
            let holders = held.iter().filter(|one| one.blocks.contains(&block)).count();
            assert_eq!(blocks.states[block as usize].holders as usize, holders);
            // What a block was entered under is entered itself.
            if let Some(parent) = blocks.states[block as usize].parent.filter(|&parent| parent != ROOT) {
                assert!(blocks.states[parent as usize].parent.is_some());
            }
        }
        assert_eq!(blocks.counts().iter().sum::<usize>(), COUNT);
        assert_eq!(blocks.entries.len(), blocks.states.iter().filter(|state| state.parent.is_some()).count());
    }

    proptest! {
        #[test]
        fn blocks_are_shared_by_equal_beginnings_only(
            keeps: bool,
            steps in prop::collection::vec((prop::bool::weighted(0.6), prop::collection::vec(0u32..2, 0..16), any::<prop::sample::Index>()), 0..60),
        ) {
            let mut blocks = Blocks::new(COUNT, SIZE, keeps);
            let mut held: Vec<Held> = Vec::new();
            for (begins, tokens, which) in steps {
                if begins || held.is_empty() {
                    held.push(begin(&mut blocks, &tokens));
                } else {
                    let mut one = held.swap_remove(which.index(held.len()));
                    blocks.release(&mut one.blocks);
                }
                check(&blocks, &held);
            }
            for mut one in held {
                blocks.release(&mut one.blocks);
            }
            prop_assert_eq!(blocks.available(), COUNT);
            prop_assert_eq!(blocks.counts()[0] == COUNT, !keeps || blocks.entries.is_empty());
        }
    }

    #[test]
    fn the_block_let_go_first_goes_first_and_children_before_parents() {
        let mut blocks = Blocks::new(4, SIZE, true);
        let mut old = begin(&mut blocks, &[1, 1, 2, 2]);
        let mut young = begin(&mut blocks, &[3, 3, 4, 4]);
        blocks.release(&mut old.blocks);
        blocks.release(&mut young.blocks);
        let mut taken = vec![blocks.take().unwrap()];
        assert_eq!(blocks.find(&[1, 1, 2, 2]).len(), 1);
        taken.push(blocks.take().unwrap());
        // The old one's first block was asked for again, so the young one's last went.
        assert_eq!(blocks.find(&[3, 3, 4, 4]).len(), 1);
        assert_eq!((blocks.take(), blocks.counts()), (None, [0, 0, 4]));
    }

    #[test]
    fn what_is_forgotten_is_found_no_more() {
        let mut blocks = Blocks::new(4, SIZE, true);
        let mut done = begin(&mut blocks, &[1, 1]);
        let mut held = begin(&mut blocks, &[2, 2]);
        blocks.release(&mut done.blocks);
        blocks.forget();
        assert!(blocks.find(&[1, 1]).is_empty() && blocks.find(&[2, 2]).is_empty());
        blocks.release(&mut held.blocks);
        assert_eq!(blocks.counts(), [4, 0, 0]);
    }
}
