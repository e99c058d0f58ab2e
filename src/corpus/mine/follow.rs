//! Between two scans: which survivor ends at each position.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::budget::Budget;
use super::huge::Huge;
use super::survivors::{Ngram, Reader, Survivors};
use super::text::{CHUNK, Chunk, NONE, Text};
use crate::corpus::Error;

/// A chunk's ends in the file, and their CRC-32.
const BLOCK: u64 = CHUNK as u64 * 4 + 4;
/// Positions that are looked up together, so that their reads from memory overlap.
const GROUP: usize = 16;

/// The number of the survivor that ends at each position.
#[derive(Debug)]
pub(super) enum Ends {
    /// Before scan 2: a token is its own number.
    Tokens,
    /// After a scan: a block a chunk.
    File(EndsFile),
}

#[derive(Debug)]
pub(super) struct EndsFile {
    file: File,
    path: PathBuf,
}

impl EndsFile {
    /// Opens the ends of scan `n`.
    pub(super) fn open(directory: &Path, n: usize) -> Result<Self, Error> {
        let path = ends_path(directory, n);
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        Ok(Self { file, path })
    }

    fn create(directory: &Path, n: usize) -> Result<Self, Error> {
        let path = ends_path(directory, n);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        Ok(Self { file: file.map_err(Error::io("write", &path))?, path })
    }

    fn read(&self, chunk: usize, len: usize, ends: &mut Vec<u32>) -> Result<(), Error> {
        ends.resize(len + 1, 0);
        let bytes = bytemuck::cast_slice_mut(ends.as_mut_slice());
        self.file.read_exact_at(bytes, chunk as u64 * BLOCK).map_err(Error::io("read", &self.path))?;
        let crc = ends.pop();
        if crc != Some(crc32fast::hash(bytemuck::cast_slice(ends))) {
            return Err(Error::damaged(&self.path, "its checksum is wrong; remove the directory it is in"));
        }
        Ok(())
    }

    /// Writes a chunk's ends; the buffer is as before.
    fn write(&self, chunk: usize, ends: &mut Vec<u32>) -> Result<(), Error> {
        ends.push(crc32fast::hash(bytemuck::cast_slice(ends)));
        let written = self.file.write_all_at(bytemuck::cast_slice(ends), chunk as u64 * BLOCK);
        ends.pop();
        written.map_err(Error::io("write", &self.path))
    }
}

fn ends_path(directory: &Path, n: usize) -> PathBuf {
    directory.join(format!("ends-{n}"))
}

impl Ends {
    /// Reads a chunk's tokens and ends; gives the end of the position before it.
    pub(super) fn read(
        &self,
        text: &Text<'_>,
        chunk: &Chunk<'_>,
        tokens: &mut Vec<u32>,
        ends: &mut Vec<u32>,
    ) -> Result<u32, Error> {
        text.read(chunk, tokens)?;
        match self {
            Self::Tokens => {
                ends.clear();
                ends.extend(tokens.iter().map(|&token| text.end(token)));
                text.end_before(chunk)
            }
            Self::File(file) => {
                let mut before = NONE;
                if !chunk.begins {
                    file.read(chunk.number - 1, CHUNK, ends)?;
                    before = ends.last().copied().unwrap_or(NONE);
                }
                file.read(chunk.number, chunk.len(), ends)?;
                Ok(before)
            }
        }
    }
}

/// The numbers of some survivors by their keys: a hash table with linear probing. (A binary search among the children of
/// a prefix needs less memory and takes five times as long.)
struct Numbers {
    /// Prefix, last token, number plus one; an empty slot has 0 for that. A third of them is empty.
    slots: Huge<[u32; 3]>,
    len: u32,
}

impl Numbers {
    /// Those of the next survivors of `reader`, as many as `room` allows; the first has the number `first`.
    fn read(reader: &mut Reader<'_>, first: u32, room: usize) -> Result<Self, Error> {
        let most = (reader.survivors().len - first).min(room.try_into().unwrap_or(u32::MAX));
        let mut numbers = Self { slots: Huge::new(most as usize * 3 / 2 + 1)?, len: 0 };
        while numbers.len < most {
            let Some(Ngram { prefix, last, .. }) = reader.next()? else { return Err(reader.missing()) };
            let mut slot = numbers.home(prefix, last);
            while numbers.slots[slot][2] != 0 {
                slot = numbers.after(slot);
            }
            numbers.slots[slot] = [prefix, last, first + numbers.len + 1];
            numbers.len += 1;
        }
        // The end is where the checksum is compared.
        if first + numbers.len == reader.survivors().len && reader.next()?.is_some() {
            return Err(reader.missing());
        }
        Ok(numbers)
    }

    /// Where a search begins.
    fn home(&self, prefix: u32, last: u32) -> usize {
        let key = u64::from(prefix) << 32 | u64::from(last);
        // Two rounds of multiplying and folding; then the high bits of a product pick a slot of any number of slots.
        let x = (key ^ (key >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((u128::from(x) * self.slots.len() as u128) >> 64) as usize
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    /// Writes, at each of neighbouring positions, the number of the n-gram that ends there. `prefixes` are the ends of
    /// the positions before; where an n-gram is not among these, the position is left as it was.
    fn find(&self, prefixes: &[u32], suffixes: &[u32], tokens: &[u32], found: &mut [u32]) {
        let (mut homes, mut met) = ([0; GROUP], [[0; 3]; GROUP]);
        for ((home, &prefix), &token) in homes.iter_mut().zip(prefixes).zip(tokens) {
            *home = self.home(prefix, token);
        }
        let slots = &*self.slots;
        // Nothing here waits for the slot before, so the reads of a group are under way at once.
        for (met, &home) in met.iter_mut().zip(&homes[..tokens.len()]) {
            *met = slots[home];
        }
        for (i, (&prefix, &suffix)) in prefixes.iter().zip(suffixes).enumerate() {
            if prefix == NONE || suffix == NONE {
                continue;
            }
            let (mut slot, mut entry) = (homes[i], met[i]);
            while entry[2] != 0 {
                if entry[0] == prefix && entry[1] == tokens[i] {
                    found[i] = entry[2] - 1;
                    break;
                }
                slot = self.after(slot);
                entry = slots[slot];
            }
        }
    }
}

/// What following is told.
pub(super) struct Following<'a> {
    pub(super) text: &'a Text<'a>,
    /// The ends of the scan before.
    pub(super) ends: &'a Ends,
    pub(super) budget: &'a Budget,
    /// Told how many more positions are done.
    pub(super) step: &'a (dyn Fn(u64) + Sync),
}

impl Following<'_> {
    /// Writes the ends of scan `n`; gives them and the number of passes it took.
    pub(super) fn run(
        &self,
        survivors: &Survivors,
        directory: &Path,
        n: usize,
    ) -> Result<(Ends, u64), Error> {
        let output = EndsFile::create(directory, n)?;
        let mut reader = survivors.reader();
        let (mut first, mut passes) = (0, 0);
        while passes == 0 || first < survivors.len {
            let numbers = Numbers::read(&mut reader, first, self.budget.numbers)?;
            let share = f64::from(numbers.len) / f64::from(survivors.len.max(1));
            let step = |positions: usize| (self.step)((positions as f64 * share) as u64);
            self.pass(&numbers, &output, passes == 0, &step)?;
            first += numbers.len;
            passes += 1;
        }
        Ok((Ends::File(output), passes))
    }

    /// Looks up every position; `begin`, for the first of several passes.
    fn pass(
        &self,
        numbers: &Numbers,
        output: &EndsFile,
        begin: bool,
        step: &(dyn Fn(usize) + Sync),
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let worker = |_: rayon::BroadcastContext<'_>| -> Result<(), Error> {
            let (mut tokens, mut ends, mut prefixes, mut found) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            while let Some(chunk) = self.text.chunk(next.fetch_add(1, Ordering::Relaxed)) {
                let before = self.ends.read(self.text, &chunk, &mut tokens, &mut ends)?;
                if begin {
                    found.clear();
                    found.resize(chunk.len(), NONE);
                } else {
                    output.read(chunk.number, chunk.len(), &mut found)?;
                }
                prefixes.clear();
                prefixes.push(before);
                prefixes.extend_from_slice(&ends[..ends.len() - 1]);
                let groups = prefixes.chunks(GROUP).zip(ends.chunks(GROUP));
                let groups = groups.zip(tokens.chunks(GROUP).zip(found.chunks_mut(GROUP)));
                for ((prefixes, suffixes), (tokens, found)) in groups {
                    numbers.find(prefixes, suffixes, tokens, found);
                }
                output.write(chunk.number, &mut found)?;
                step(chunk.len());
            }
            Ok(())
        };
        rayon::broadcast(worker).into_iter().collect()
    }
}
