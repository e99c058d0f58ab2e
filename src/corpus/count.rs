use std::hash::{BuildHasherDefault, Hasher};

use hashbrown::HashMap;
use rayon::prelude::*;

use super::{Error, Shard};

/// No surviving n-gram ends here.
pub(super) const NONE: u32 = u32::MAX;

/// Counts are kept in this many maps, by the key's hash: each is counted by one thread at a time, without locks.
const PARTITIONS: usize = 64;
/// Positions whose keys are gathered before they are counted; so many keys lie in memory at once.
const ROUND: usize = 8 << 20;
/// Positions that one task gathers.
const CHUNK: usize = 1 << 18;
/// A scan of more positions than this is done in several passes, each over a part of the keys: about 17 bytes a
/// different key are needed, and no pass can meet more different keys than this.
const PASS_POSITIONS: usize = 400_000_000;

/// One n-gram of scan n, packed: the number of its surviving prefix (for n = 2, a token) and its last token.
fn pack(prefix: u32, token: u32) -> u64 {
    u64::from(prefix) << 32 | u64::from(token)
}

fn mix(key: u64) -> u64 {
    // Fibonacci hashing with the high half folded down: partitions take the top bits, maps all of them.
    let x = (key ^ (key >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

fn partition(hash: u64) -> usize {
    (hash >> 58) as usize
}

#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = mix(self.0 ^ u64::from(byte));
        }
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = mix(key);
    }
    fn finish(&self) -> u64 {
        // The map takes its buckets from the low bits and its tags from the top ones, which a partition shares.
        self.0.rotate_left(17)
    }
}

type Map<V> = HashMap<u64, V, BuildHasherDefault<Mixed>>;

/// The n-grams that survived a scan, and where they end.
pub(super) struct Survivors {
    /// Their tokens, `n` each, one n-gram after another; an n-gram's number is its place.
    pub(super) tokens: Vec<u32>,
    /// How often each occurs.
    pub(super) counts: Vec<u64>,
    /// How many different n-grams were counted.
    pub(super) candidates: u64,
    /// For each token of the shards, one shard after another: the number of the survivor that ends there.
    ends: Vec<u32>,
}

impl Survivors {
    /// Where the scans begin: every token that is not special counts as survived.
    pub(super) fn tokens(shards: &[Shard], special_tokens: &[u32]) -> Result<Self, Error> {
        let mut ends = vec![NONE; shards.iter().map(Shard::len).sum()];
        let mut rest = ends.as_mut_slice();
        for shard in shards {
            let (mine, after) = rest.split_at_mut(shard.len());
            rest = after;
            mine.par_chunks_mut(CHUNK).enumerate().try_for_each_init(Vec::new, |tokens, (chunk, ends)| {
                let from = chunk * CHUNK;
                shard.read(from..from + ends.len(), tokens)?;
                for (end, &token) in ends.iter_mut().zip(tokens.iter()) {
                    if special_tokens.binary_search(&token).is_err() {
                        *end = token;
                    }
                }
                Ok::<_, Error>(())
            })?;
        }
        // Token ids number themselves, so `tokens` is the identity and is never read: scan 2 packs tokens.
        Ok(Self { tokens: Vec::new(), counts: Vec::new(), candidates: 0, ends })
    }

    /// The survivors without their places, which only the next scan needs.
    pub(super) fn without_ends(mut self) -> Self {
        self.ends = Vec::new();
        self
    }

    /// One scan: counts the n-grams whose prefix and suffix of n - 1 tokens are in `self`, and keeps those that
    /// occur `min_count` times. `step` is told how many positions are done.
    pub(super) fn scan(
        &self,
        shards: &[Shard],
        n: usize,
        min_count: u64,
        step: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, Error> {
        let passes = self.ends.len().div_ceil(PASS_POSITIONS).clamp(1, PARTITIONS);
        self.scan_in(passes, shards, n, min_count, step)
    }

    fn scan_in(
        &self,
        passes: usize,
        shards: &[Shard],
        n: usize,
        min_count: u64,
        step: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, Error> {
        let mut numbers: Vec<Map<u32>> = Vec::with_capacity(PARTITIONS);
        let mut next = Self { tokens: Vec::new(), counts: Vec::new(), candidates: 0, ends: Vec::new() };
        for pass in 0..passes {
            let wanted = pass * PARTITIONS / passes..(pass + 1) * PARTITIONS / passes;
            for map in self.count(shards, wanted, step)? {
                next.candidates += map.len() as u64;
                numbers.push(next.number(map, &self.tokens, n, min_count));
            }
        }
        next.ends = self.follow(shards, &numbers)?;
        Ok(next)
    }

    /// Takes the survivors out of one partition's counts; gives their numbers by key.
    fn number(&mut self, map: Map<u64>, prefixes: &[u32], n: usize, min_count: u64) -> Map<u32> {
        let mut kept: Vec<(u64, u64)> = map.into_iter().filter(|&(_, count)| count >= min_count).collect();
        kept.sort_unstable();
        let mut numbers = Map::with_capacity_and_hasher(kept.len(), BuildHasherDefault::default());
        for (key, count) in kept {
            let (prefix, token) = ((key >> 32) as u32, key as u32);
            numbers.insert(key, self.counts.len() as u32);
            if n == 2 {
                self.tokens.push(prefix);
            } else {
                let start = prefix as usize * (n - 1);
                self.tokens.extend_from_slice(&prefixes[start..start + n - 1]);
            }
            self.tokens.push(token);
            self.counts.push(count);
        }
        numbers
    }

    /// The counts of the keys in the wanted partitions.
    fn count(
        &self,
        shards: &[Shard],
        wanted: std::ops::Range<usize>,
        step: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<Map<u64>>, Error> {
        let mut maps: Vec<Map<u64>> = wanted.clone().map(|_| Map::default()).collect();
        for round in chunks(shards).chunks(ROUND / CHUNK) {
            let gathered = round
                .par_iter()
                .map(|chunk| {
                    let mut keys: Vec<Vec<u64>> = wanted.clone().map(|_| Vec::new()).collect();
                    self.for_each_key(shards, *chunk, |_, key| {
                        let at = partition(mix(key)).wrapping_sub(wanted.start);
                        if let Some(keys) = keys.get_mut(at) {
                            keys.push(key);
                        }
                    })?;
                    Ok(keys)
                })
                .collect::<Result<Vec<_>, Error>>()?;
            maps.par_iter_mut().enumerate().for_each(|(at, map)| {
                for &key in gathered.iter().flat_map(|keys| &keys[at]) {
                    *map.entry(key).or_insert(0) += 1;
                }
            });
            step(round.iter().map(|chunk| chunk.len as u64).sum());
        }
        Ok(maps)
    }

    /// At every position, the number of the survivor of this scan that ends there.
    fn follow(&self, shards: &[Shard], numbers: &[Map<u32>]) -> Result<Vec<u32>, Error> {
        let mut ends = vec![NONE; self.ends.len()];
        let mut tasks = Vec::new();
        let mut rest = ends.as_mut_slice();
        for chunk in chunks(shards) {
            let (mine, after) = rest.split_at_mut(chunk.len);
            tasks.push((chunk, mine));
            rest = after;
        }
        tasks.into_par_iter().try_for_each(|(chunk, ends)| {
            self.for_each_key(shards, chunk, |i, key| {
                if let Some(&number) = numbers[partition(mix(key))].get(&key) {
                    ends[i] = number;
                }
            })
        })?;
        Ok(ends)
    }

    /// Calls `take` with every position of the chunk (counted from the chunk's start) where both the prefix and the
    /// suffix survived, and with the packed n-gram that ends there.
    fn for_each_key(
        &self,
        shards: &[Shard],
        chunk: Chunk,
        mut take: impl FnMut(usize, u64),
    ) -> Result<(), Error> {
        let mut tokens = Vec::new();
        shards[chunk.shard].read(chunk.start..chunk.start + chunk.len, &mut tokens)?;
        let ends = &self.ends[chunk.offset..chunk.offset + chunk.len];
        // No n-gram reaches back over a shard's start.
        let mut prefix = if chunk.start == 0 { NONE } else { self.ends[chunk.offset - 1] };
        for (i, (&token, &suffix)) in tokens.iter().zip(ends).enumerate() {
            if prefix != NONE && suffix != NONE {
                take(i, pack(prefix, token));
            }
            prefix = suffix;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Chunk {
    shard: usize,
    /// The first position within the shard.
    start: usize,
    /// The first position among those of all shards.
    offset: usize,
    len: usize,
}

fn chunks(shards: &[Shard]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut before = 0;
    for (shard, tokens) in shards.iter().map(Shard::len).enumerate() {
        for start in (0..tokens).step_by(CHUNK) {
            chunks.push(Chunk { shard, start, offset: before + start, len: CHUNK.min(tokens - start) });
        }
        before += tokens;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{Dataset, DatasetWriter, SplitName};
    use crate::tokenizer::{Tokenizer, train_bpe};

    #[test]
    fn several_passes_count_what_one_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let json = scratch.path().join("tokenizer.json");
        train_bpe(std::iter::once(String::new()), 257, &json).unwrap();
        let tokenizer = Tokenizer::from_file(&json).unwrap();
        let output = scratch.path().join("dataset");
        let mut writer = DatasetWriter::create(&output, &tokenizer, &json, 0, 1000).unwrap();
        let mut state = 1u64;
        for _ in 0..40 {
            let document: Vec<u32> = std::iter::repeat_with(|| {
                state = mix(state.wrapping_add(1));
                1 + (state % 20) as u32
            })
            .take(100)
            .collect();
            writer.append(SplitName::Train, &document, 0).unwrap();
            writer.end_document(SplitName::Train).unwrap();
        }
        writer.finish().unwrap();
        let dataset = Dataset::open(&output).unwrap();
        let shards = &dataset.train().shards;
        let ngrams = |survivors: &Survivors, n| {
            let tokens = survivors.tokens.chunks_exact(n).map(<[u32]>::to_vec);
            tokens.zip(survivors.counts.iter().copied()).collect::<std::collections::BTreeMap<_, _>>()
        };
        let first = Survivors::tokens(shards, &[0]).unwrap();
        let second = first.scan(shards, 2, 2, &|_| ()).unwrap();
        let third = second.scan(shards, 3, 2, &|_| ()).unwrap();
        assert!(ngrams(&third, 3).len() > 50);
        for passes in [2, 3, 7, PARTITIONS] {
            let second_too = first.scan_in(passes, shards, 2, 2, &|_| ()).unwrap();
            assert_eq!(ngrams(&second_too, 2), ngrams(&second, 2));
            let third_too = second_too.scan_in(passes, shards, 3, 2, &|_| ()).unwrap();
            assert_eq!(ngrams(&third_too, 3), ngrams(&third, 3));
            assert_eq!(third_too.candidates, third.candidates);
        }
    }
}
