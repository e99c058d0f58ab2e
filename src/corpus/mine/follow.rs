//! Between two scans: which survivor ends at each position.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::budget::Budget;
use super::survivors::{Ngram, Reader, Survivors};
use super::text::{CHUNK, Chunk, NONE, Text};
use crate::corpus::Error;

/// A chunk's ends in the file, and their CRC-32.
const BLOCK: u64 = CHUNK as u64 * 4 + 4;
/// Positions that are looked up together, so that their reads from memory overlap.
const GROUP: usize = 32;

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

/// The survivors of a scan by prefix, for a range of prefixes: their last tokens stand together, sorted.
struct Children {
    prefixes: Range<u32>,
    /// Where each prefix's tokens begin, and where the last one's end.
    starts: Vec<u32>,
    tokens: Vec<u32>,
    /// The number of the first.
    first: u32,
}

impl Children {
    /// The next prefixes of `reader`, from `first_prefix` on, that fit `room` numbers; one prefix always does.
    /// `ahead` holds what was read and belongs to the next ones.
    fn read(
        reader: &mut Reader<'_>,
        ahead: &mut Option<Ngram>,
        (first_prefix, first): (u32, u32),
        room: usize,
    ) -> Result<Self, Error> {
        // Room for all of it at once, for growing would hold it twice; pages that are not touched cost nothing.
        let (mut starts, mut tokens) = (Vec::with_capacity(room), Vec::with_capacity(room));
        starts.push(0);
        let mut end = first_prefix;
        loop {
            let Some(ngram) = (match ahead.take() {
                Some(ngram) => Some(ngram),
                None => reader.next()?,
            }) else {
                break;
            };
            let prefixes = ngram.prefix as usize + 1 - first_prefix as usize;
            if ngram.prefix >= end && !tokens.is_empty() && prefixes + tokens.len() >= room {
                *ahead = Some(ngram);
                break;
            }
            // Prefixes without children begin where the next one does.
            starts.resize(prefixes, tokens.len() as u32);
            end = ngram.prefix + 1;
            tokens.push(ngram.last);
        }
        starts.push(tokens.len() as u32);
        Ok(Self { prefixes: first_prefix..end, starts, tokens, first })
    }

    /// Writes, at each of neighbouring positions, the number of the n-gram that ends there. `prefixes` are the ends of
    /// the positions before; where an n-gram is not among these, the position is left as it was.
    fn find(&self, prefixes: &[u32], suffixes: &[u32], tokens: &[u32], found: &mut [u32]) {
        let (mut from, mut len) = ([0u32; GROUP], [0u32; GROUP]);
        let mut longest = 0;
        for (i, (&prefix, &suffix)) in prefixes.iter().zip(suffixes).enumerate() {
            let inside = self.prefixes.contains(&prefix) & (suffix != NONE);
            let at = if inside { (prefix - self.prefixes.start) as usize } else { 0 };
            from[i] = self.starts[at];
            len[i] = if inside { self.starts[at + 1] - from[i] } else { 0 };
            longest = longest.max(len[i]);
        }
        // One binary search each, all in step: after a step, the token is among the `len` from `from` on, if anywhere.
        while longest > 1 {
            longest = longest.div_ceil(2);
            for (i, &token) in tokens.iter().enumerate() {
                let half = len[i] / 2;
                let middle = (from[i] + half) as usize;
                // An empty stretch at the end of all has no middle; any token will do, for nothing moves.
                let right = self.tokens.get(middle).is_some_and(|&other| other <= token);
                from[i] += if right { half } else { 0 };
                len[i] -= half;
            }
        }
        for (i, &token) in tokens.iter().enumerate() {
            if len[i] == 1 && self.tokens[from[i] as usize] == token {
                found[i] = self.first + from[i];
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
    pub(super) fn run(&self, survivors: &Survivors, directory: &Path, n: usize) -> Result<(Ends, u64), Error> {
        let output = EndsFile::create(directory, n)?;
        let (mut reader, mut ahead) = (survivors.reader(), None);
        let (mut first_prefix, mut first, mut passes) = (0, 0, 0);
        while passes == 0 || first < survivors.len {
            let children =
                Children::read(&mut reader, &mut ahead, (first_prefix, first), self.budget.children)?;
            let share = children.tokens.len() as f64 / f64::from(survivors.len.max(1));
            let step = |positions: usize| (self.step)((positions as f64 * share) as u64);
            self.pass(&children, &output, passes == 0, &step)?;
            first_prefix = children.prefixes.end;
            first += children.tokens.len() as u32;
            passes += 1;
        }
        Ok((Ends::File(output), passes))
    }

    /// Looks up every position; `begin`, for the first of several passes.
    fn pass(
        &self,
        children: &Children,
        output: &EndsFile,
        begin: bool,
        step: &(dyn Fn(usize) + Sync),
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let worker = |_: rayon::BroadcastContext<'_>| -> Result<(), Error> {
            let (mut tokens, mut ends, mut prefixes, mut found) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
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
                    children.find(prefixes, suffixes, tokens, found);
                }
                output.write(chunk.number, &mut found)?;
                step(chunk.len());
            }
            Ok(())
        };
        rayon::broadcast(worker).into_iter().collect()
    }
}
