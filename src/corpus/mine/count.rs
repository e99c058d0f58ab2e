//! The first half of a scan: every n-gram that may survive becomes a key, and keys become runs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::budget::Budget;
use super::follow::Ends;
use super::huge::Huge;
use super::radix;
use super::runs::{RunWriter, Runs, Spill};
use super::text::{CHUNK, NONE, Text};
use crate::corpus::Error;

/// Keys that the cuts between segments are chosen from.
const SAMPLE: usize = 1 << 15;
/// Segments a thread: enough that threads finish a merge together.
const SEGMENTS: usize = 4;

/// The keys at which runs are cut: segment `i` holds those below `cuts[i]`, the last one the rest.
pub(super) struct Cuts(Vec<u64>);

impl Cuts {
    /// Cuts of `keys`, a sample, into equal parts.
    fn of_sample(mut keys: Vec<u64>, segments: usize) -> Self {
        keys.sort_unstable();
        let mut cuts: Vec<u64> =
            (1..segments).filter_map(|i| keys.get(i * keys.len() / segments).copied()).collect();
        cuts.dedup();
        Self(cuts)
    }

    pub(super) fn segments(&self) -> usize {
        self.0.len() + 1
    }
}

/// Runs that a thread makes at least.
const RUNS: u64 = 4;

/// What counting is told, and tells.
pub(super) struct Counting<'a> {
    pub(super) text: &'a Text<'a>,
    /// The survivors of the scan before, by position.
    pub(super) ends: &'a Ends,
    /// Keys are below `1 << bits`.
    pub(super) bits: u32,
    pub(super) budget: &'a Budget,
    /// Told how many more positions are done.
    pub(super) step: &'a (dyn Fn(u64) + Sync),
}

impl Counting<'_> {
    /// Fills `runs`; gives their cuts and how many positions have an end.
    pub(super) fn run(&self, runs: &Runs<'_>) -> Result<(Cuts, u64), Error> {
        let cuts = self.cuts()?;
        let (next, ended) = (AtomicUsize::new(0), AtomicU64::new(0));
        let worker = |_: rayon::BroadcastContext<'_>| -> Result<(), Error> {
            let mut worker = Worker::new(self, &cuts, runs)?;
            let ends = worker.work(&next)?;
            ended.fetch_add(ends, Ordering::Relaxed);
            Ok(())
        };
        rayon::broadcast(worker).into_iter().collect::<Result<(), _>>()?;
        Ok((cuts, ended.into_inner()))
    }

    /// Chooses the cuts from keys of chunks all over the text.
    fn cuts(&self) -> Result<Cuts, Error> {
        let chunks = self.text.chunks();
        let sampled = chunks.min(32);
        let (mut keys, mut tokens, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..sampled {
            let Some(chunk) = self.text.chunk(i * chunks / sampled) else { continue };
            let before = self.ends.read(self.text, &chunk, &mut tokens, &mut ends)?;
            let take = ends.len().min(SAMPLE / sampled);
            let mut found = vec![0; take];
            let count = self.gather(before, &tokens[..take], &ends[..take], &mut found);
            keys.extend_from_slice(&found[..count]);
        }
        Ok(Cuts::of_sample(keys, SEGMENTS * self.budget.threads))
    }

    /// Writes the keys of neighbouring positions to the front of `keys`, which is as long; gives how many there are.
    fn gather(&self, before: u32, tokens: &[u32], ends: &[u32], keys: &mut [u64]) -> usize {
        let (mut prefix, mut count) = (before, 0);
        let shift = self.text.token_bits;
        for (&token, &suffix) in tokens.iter().zip(ends) {
            // Written always and kept sometimes: no branch for the processor to guess.
            keys[count] = u64::from(prefix) << shift | u64::from(token);
            count += usize::from(prefix != NONE) & usize::from(suffix != NONE);
            prefix = suffix;
        }
        count
    }
}

struct Worker<'a> {
    counting: &'a Counting<'a>,
    cuts: &'a Cuts,
    runs: &'a Runs<'a>,
    keys: Huge<u64>,
    scratch: Huge<u64>,
    held: usize,
    writer: RunWriter,
    spill: Spill,
}

impl<'a> Worker<'a> {
    fn new(counting: &'a Counting<'a>, cuts: &'a Cuts, runs: &'a Runs<'a>) -> Result<Self, Error> {
        // A buffer is touched in full before it is sorted, so a small text is better served by smaller ones.
        let share = counting.text.len / (RUNS * counting.budget.threads as u64) + 1;
        let most = share.min(counting.budget.keys as u64) as usize;
        let (keys, scratch) = (Huge::new(most)?, Huge::new(most)?);
        let (writer, spill) = (RunWriter::default(), Spill::default());
        Ok(Self { counting, cuts, runs, keys, scratch, held: 0, writer, spill })
    }

    /// Takes chunks until there are none; gives how many positions have an end.
    fn work(&mut self, next: &AtomicUsize) -> Result<u64, Error> {
        let (mut tokens, mut ends, mut ended) = (Vec::new(), Vec::with_capacity(CHUNK), 0);
        let text = self.counting.text;
        while let Some(chunk) = text.chunk(next.fetch_add(1, Ordering::Relaxed)) {
            let mut before = self.counting.ends.read(text, &chunk, &mut tokens, &mut ends)?;
            let (mut tokens, mut rest) = (tokens.as_slice(), ends.as_slice());
            while !rest.is_empty() {
                let take = rest.len().min(self.keys.len() - self.held);
                let (now, later) = rest.split_at(take);
                let keys = &mut self.keys[self.held..];
                self.held += self.counting.gather(before, &tokens[..take], now, keys);
                before = now.last().copied().unwrap_or(before);
                (tokens, rest) = (&tokens[take..], later);
                if self.held == self.keys.len() {
                    self.flush()?;
                }
            }
            ended += ends.iter().filter(|&&end| end != NONE).count() as u64;
            (self.counting.step)(chunk.len() as u64);
        }
        self.flush()?;
        Ok(ended)
    }

    /// Makes a run of the keys held.
    fn flush(&mut self) -> Result<(), Error> {
        if self.held == 0 {
            return Ok(());
        }
        let keys = &mut self.keys[..self.held];
        radix::sort(keys, &mut self.scratch[..self.held], self.counting.bits);
        let mut rest = &*keys;
        for &cut in &self.cuts.0 {
            let (below, from) = rest.split_at(rest.partition_point(|&key| key < cut));
            write_segment(below, &mut self.writer);
            rest = from;
        }
        write_segment(rest, &mut self.writer);
        self.held = 0;
        self.runs.keep(&mut self.writer, &mut self.spill)
    }
}

fn write_segment(keys: &[u64], writer: &mut RunWriter) {
    for same in keys.chunk_by(|a, b| a == b) {
        writer.push(same[0], same.len() as u64);
    }
    writer.end_segment();
}
