//! How much of everything fits the memory that was given.

use crate::memory;

/// Never fewer keys than this in a thread's buffer.
const LEAST_KEYS: usize = 1 << 10;
/// More would not make a merge faster.
const MOST_KEYS: usize = 1 << 25;
/// A key lies in the buffer, in its scratch space and, encoded, in the run.
const BYTES_A_KEY: usize = 24;
/// What one run of a merge is read through.
const LEAST_READ: usize = 4 << 10;
const MOST_READ: usize = 256 << 10;
/// Runs that are merged at once, whatever the memory.
const LEAST_FAN_IN: usize = 4;
const MOST_FAN_IN: usize = 1 << 12;
/// Survivors that are numbered at once, whatever the memory, and bytes each takes: 12 a slot, two slots of three full.
const LEAST_NUMBERS: usize = 1 << 10;
const BYTES_A_NUMBER: usize = 18;

/// What a scan may hold at a time. Made so that all of it together stays below the memory given, which is measured from
/// what the process holds when mining begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) threads: usize,
    /// Keys in one thread's buffer.
    pub(super) keys: usize,
    /// Bytes of runs kept in memory; what is beyond goes to files.
    pub(super) runs: u64,
    /// Runs merged at once.
    pub(super) fan_in: usize,
    /// Bytes of each run that are read at a time.
    pub(super) read: usize,
    /// Survivors that are looked up at once.
    pub(super) numbers: usize,
}

impl Budget {
    /// Divides `memory`, the most bytes that the process may hold.
    pub(super) fn new(memory: u64, threads: usize) -> Self {
        let threads = threads.max(1);
        // The allocator keeps a little of what was given back; chunks and buffers of files need some.
        let free = memory.saturating_sub(memory::resident()).saturating_sub(8 << 20) as usize;
        let free = free / 20 * 19;
        let keys = (free / 100 * 55 / threads / BYTES_A_KEY).clamp(LEAST_KEYS, MOST_KEYS);
        let runs = (free - (keys * threads * BYTES_A_KEY).min(free)) as u64 / 4 * 3;
        // Merging, the buffers of keys are gone and the runs are not.
        let reads = free / 2 / threads;
        let fan_in = (reads / LEAST_READ).clamp(LEAST_FAN_IN, MOST_FAN_IN);
        let numbers = (free / 4 * 3 / BYTES_A_NUMBER).max(LEAST_NUMBERS);
        Self { threads, keys, runs, fan_in, read: reads, numbers }
    }

    /// Bytes that each of so many runs is read through.
    pub(super) fn read_of(&self, runs: usize) -> usize {
        (self.read / runs.max(1)).clamp(LEAST_READ, MOST_READ)
    }
}

/// Half of the memory that this process may have.
pub fn half_of_memory() -> u64 {
    memory::total() / 2
}
