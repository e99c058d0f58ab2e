use super::buckets::{Bucket, Buckets, Glance, Start};
use super::prefetch::prefetch;
use super::{Key, MAX_N};

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
/// `buckets` are a hash table whose entries are ranks; `keys` are the f-grams by rank. The key is compared on every hit,
/// so a wrong answer is impossible in an undamaged file; in a damaged one every access is still checked and every
/// search ends.
#[derive(Clone, Copy, Debug)]
pub struct Index<'a> {
    keys: &'a [Key],
    buckets: Buckets<'a>,
    max_n: usize,
}

impl<'a> Index<'a> {
    /// A view of `keys` in order of rank and of the buckets that [`build_buckets`](super::build_buckets) made for them.
    pub fn new(keys: &'a [Key], buckets: &'a [Bucket], max_n: usize) -> Self {
        Self::of_buckets(keys, Buckets::new(buckets, keys.len()), max_n)
    }

    /// A view of keys whose buckets may have room for more.
    pub(super) fn of_buckets(keys: &'a [Key], buckets: Buckets<'a>, max_n: usize) -> Self {
        Self { keys, buckets, max_n: max_n.min(MAX_N) }
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
        self.buckets.candidates(key).find(|&rank| self.keys.get(rank as usize) == Some(&key))
    }

    /// The rank of the f-gram of exactly these tokens.
    pub fn rank(&self, tokens: &[u32]) -> Option<u32> {
        let found = self.longest_match(tokens)?;
        (usize::from(found.n) == tokens.len()).then_some(found.rank)
    }

    /// The longest f-gram that ends with the last of `tokens` and lies inside `tokens`, or `None`: the token falls
    /// back. At most the last K tokens are read. For many positions [`Index::matches`] is several times as fast.
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
        self.matches_of([(tokens, from)])
    }

    /// The longest matches of a ragged batch: [`Index::matches`] of each piece, one after the other.
    ///
    /// Many positions are searched side by side, so that their reads of memory overlap. Matches grow length by length,
    /// and a longer one is looked for only where the set's closure leaves it possible: the match at a position is
    /// at most one token longer than that of the position before.
    pub fn matches_of<'t>(&self, pieces: impl IntoIterator<Item = (&'t [u32], usize)>) -> Vec<Option<Match>> {
        let mut found = Vec::new();
        let mut block = Block::default();
        for (tokens, from) in pieces {
            found.reserve(tokens.len().saturating_sub(from));
            for i in from..tokens.len() {
                if block.len == BLOCK {
                    block.run(*self, &mut found);
                }
                block.push(&tokens[(i + 1).saturating_sub(self.max_n)..=i], i > from);
            }
        }
        block.run(*self, &mut found);
        found
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

    /// The hash table.
    pub fn buckets(&self) -> &'a [Bucket] {
        self.buckets.as_slice()
    }
}

/// Positions searched side by side: enough to keep every outstanding read of a core busy, few enough for its first
/// cache.
const BLOCK: usize = 64;

/// Some positions on their way to their longest matches.
struct Block<'t> {
    len: usize,
    /// The last tokens up to and with each position, K at most.
    tokens: [&'t [u32]; BLOCK],
    /// Whether the position before it, in the block or the one before, is its left neighbour.
    adjacent: [bool; BLOCK],
    /// The lengths matched so far, after that of the last position of the block before.
    lengths: [u8; BLOCK + 1],
    ranks: [u32; BLOCK],
    /// Searches of the current length.
    probes: [Probe; BLOCK],
}

/// The candidate of a key that is not there. No rank is as large.
const NONE: u32 = u32::MAX;

/// The candidate of a key that its first bucket does not settle.
const ELSEWHERE: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Default)]
struct Probe {
    position: usize,
    key: Key,
    start: Start,
    /// A rank whose key has yet to be compared, or [`NONE`] or [`ELSEWHERE`].
    candidate: u32,
}

impl Default for Block<'_> {
    fn default() -> Self {
        Self {
            len: 0,
            tokens: [&[]; BLOCK],
            adjacent: [false; BLOCK],
            lengths: [1; BLOCK + 1],
            ranks: [0; BLOCK],
            probes: [Probe::default(); BLOCK],
        }
    }
}

impl<'t> Block<'t> {
    fn push(&mut self, tokens: &'t [u32], adjacent: bool) {
        self.tokens[self.len] = tokens;
        self.adjacent[self.len] = adjacent;
        self.len += 1;
    }

    /// Matches the block's positions, appends what they match, and empties it.
    fn run(&mut self, index: Index<'_>, found: &mut Vec<Option<Match>>) {
        if self.len == 0 {
            return;
        }
        self.lengths[1..=self.len].fill(1);
        for n in 2..=index.max_n {
            // Three rounds, so that what one of them fetches is there in the next.
            let probes = self.begin(index, n);
            if probes == 0 {
                break;
            }
            for probe in &mut self.probes[..probes] {
                probe.candidate = match index.buckets.glance(probe.start) {
                    Glance::Perhaps(rank) => rank,
                    Glance::No => NONE,
                    Glance::GoOn => ELSEWHERE,
                };
                prefetch(index.keys, probe.candidate as usize);
            }
            for probe in self.probes[..probes].iter().filter(|probe| probe.candidate != NONE) {
                let hit = index.keys.get(probe.candidate as usize) == Some(&probe.key);
                // A full bucket, or another key with the same tag before it: rare enough to begin again.
                let rank = if hit { Some(probe.candidate) } else { index.find(probe.key) };
                if let Some(rank) = rank {
                    self.ranks[probe.position] = rank;
                    self.lengths[probe.position + 1] = n as u8;
                }
            }
        }
        let matches = self.lengths[1..=self.len].iter().zip(&self.ranks);
        found.extend(matches.map(|(&n, &rank)| (n > 1).then_some(Match { rank, n })));
        self.lengths[0] = self.lengths[self.len];
        self.len = 0;
    }

    /// Begins the searches for n-grams of this length; gives how many there are.
    fn begin(&mut self, index: Index<'_>, n: usize) -> usize {
        let mut probes = 0;
        for position in 0..self.len {
            let tokens = self.tokens[position];
            // `lengths` is shifted by one: the entry at `position` is the left neighbour's.
            let possible = tokens.len() >= n
                && usize::from(self.lengths[position + 1]) == n - 1
                && (!self.adjacent[position] || usize::from(self.lengths[position]) >= n - 1);
            if possible {
                let first = tokens[tokens.len() - n];
                let key = match n {
                    2 => Key::of_bigram(first, tokens[tokens.len() - 1]),
                    _ => Key::of_longer(first, self.ranks[position]),
                };
                self.probes[probes] =
                    Probe { position, key, start: index.buckets.fetch(key), candidate: NONE };
                probes += 1;
            }
        }
        probes
    }
}
