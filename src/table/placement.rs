//! Where a table's rows are kept while it is served.

use std::fmt;

/// Where rows are kept. The index is in the shared mapping whatever is chosen here, read in at the start: every token
/// looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In memory, all of them, read at the start.
    Ram {
        /// Asks the system never to give the memory to others. Not for huge pages, which are never swapped here.
        lock: bool,
        /// A private copy in huge pages, which are quicker to reach, instead of the page cache that all processes share.
        huge_pages: bool,
    },
    /// On the disk until used, then in the page cache for as long as the system has room.
    Mmap {
        /// Bytes of the first rows, which are the most frequent, read at the start.
        prefault: u64,
    },
    /// On the disk, read past the page cache into a cache of our own.
    Direct {
        /// Bytes of the row cache, all it needs included; with 0 every row is read every time.
        cache: u64,
        /// Reads under way at a time.
        queue_depth: usize,
        /// How they are made.
        reads: DirectReads,
    },
    /// Where a GPU reads them by itself. The file stays mapped: what does not fit is read from there.
    Gpu(GpuPlace),
}

/// Whose memory has the rows that a GPU reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuPlace {
    /// The GPU's own: for tables that fit beside model, keys and values.
    Device,
    /// The host's, locked: a private copy of exactly its size, which the GPU reads over the bus.
    Host,
}

/// How rows are read from the disk in [`Placement::Direct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectReads {
    /// Through io_uring, or where the system does not have it, as with `Threads`.
    Ring,
    /// By a pool of threads that each read and wait.
    Threads,
}

impl Placement {
    /// Reads under way at a time unless said: about what a disk on PCIe needs to be busy.
    pub const QUEUE_DEPTH: usize = 128;
}

impl Default for Placement {
    /// Mapped, nothing read at the start.
    fn default() -> Self {
        Self::Mmap { prefault: 0 }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram { .. } => "ram",
            Self::Mmap { .. } => "mmap",
            Self::Direct { .. } => "direct",
            Self::Gpu(GpuPlace::Device) => "device",
            Self::Gpu(GpuPlace::Host) => "pinned",
        })
    }
}
