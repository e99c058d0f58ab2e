//! Where rows are read from: a mapping, a copy in memory, or the disk past the page cache.

mod cache;
mod copied;
mod copy;
mod direct;
mod mapped;
mod populate;
mod reads;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(test)]
mod tests;
mod threads;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub(super) use copied::Copied;
#[cfg(any(feature = "cuda", test))]
pub(super) use copied::forget;
pub(super) use direct::Direct;
pub(super) use mapped::Mapped;
pub(super) use populate::{Progress, populate};

use super::TableError;
use super::guard::GuardedMap;
use super::metrics::Tally;

/// Where rows lie in their file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// The file's byte where the first begins: a multiple of 4096.
    pub(super) start: usize,
    /// Bytes from the start of one to the start of the next.
    pub(super) stride: usize,
    /// Bytes of a row.
    pub(super) bytes: usize,
    /// How many there are.
    pub(super) count: usize,
    /// Numbers of a row.
    pub(super) dim: usize,
}

impl Geometry {
    /// The bytes of all rows in the file.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + (self.count - 1) * self.stride + self.bytes
    }

    /// The bytes of a row in the file. It must be one of the table's.
    fn row(&self, rank: u32) -> Range<usize> {
        let start = self.start + rank as usize * self.stride;
        start..start + self.bytes
    }
}

/// The rows of a table. Ranks handed in here have been checked.
#[derive(Debug)]
pub(super) enum Rows {
    Mapped(Mapped),
    Copied(Copied),
    Direct(Box<Direct>),
}

impl Rows {
    /// Decodes the rows of `ranks` into `out`, one after the other. `decode` is given a rank and its row's bytes, aligned
    /// to 4, from any thread.
    pub(super) fn gather(
        &self,
        map: &GuardedMap,
        geometry: &Geometry,
        ranks: &[u32],
        out: &mut [f32],
        decode: impl Fn(u32, &[u8], &mut [f32]) + Sync,
    ) -> io::Result<Tally> {
        match self {
            Self::Mapped(mapped) => mapped.gather(map, geometry, ranks, out, decode),
            Self::Copied(copied) => {
                copy::gather(copied.bytes(), geometry, ranks, out, decode, || false);
                Ok(Tally { memory: ranks.len() as u64, ..Tally::default() })
            }
            Self::Direct(direct) => direct.read(ranks, &mut |position, bytes| {
                let at = position * geometry.dim;
                decode(ranks[position], bytes, &mut out[at..at + geometry.dim]);
            }),
        }
    }

    /// Starts to bring rows nearer, where that helps.
    pub(super) fn prefetch(&self, map: &GuardedMap, geometry: &Geometry, ranks: &[u32]) -> io::Result<Tally> {
        match self {
            Self::Mapped(mapped) => mapped.prefetch(map, geometry, ranks),
            Self::Copied(_) => Ok(Tally::default()),
            Self::Direct(direct) => direct.prefetch(ranks),
        }
    }
}

/// Opens `path` a second time, past the page cache if `direct`; the same file or an error.
fn reopen(path: &Path, same: &File, direct: bool) -> Result<File, TableError> {
    let mut options = File::options();
    options.read(true);
    #[cfg(target_os = "linux")]
    if direct {
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT);
    }
    let _ = direct;
    let file = options.open(path).map_err(TableError::io("open", path))?;
    let stamp = |file| super::stamp::Stamp::of(file).map_err(TableError::io("open", path));
    if stamp(&file)?.is_same_file(&stamp(same)?) {
        Ok(file)
    } else {
        Err(TableError::changed(path, "another file took its place while it was opened"))
    }
}

type SharedFile = Arc<File>;
