use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytemuck::Pod;
use indicatif::HumanBytes;
use memmap2::{Advice, Mmap};

use super::format::{self, Dimensions, Layout};
use super::guard::GuardedMap;
use super::header;
use super::rows::{Copied, Direct, Geometry, Mapped, Progress, Rows, populate};
use super::stamp::Stamp;
use super::{Identity, Metrics, Placement, RowFormat, RowType, TableError};
use crate::fgram::{Index, Key, Policy};

#[cfg(any(feature = "cuda", test))]
mod elsewhere;

/// A table, mapped.
///
/// Its pages are shared by all processes that map the file, and read from the disk when first touched; rows may be kept
/// elsewhere ([`Placement`]). The file is not trusted: whatever its bytes, nothing here panics or reads outside it. It
/// should not be written or cut while it is mapped; [`TableWriter`](super::TableWriter) replaces a table by renaming,
/// which leaves the old one to its readers. Should it happen all the same, the process lives on, and [`Table::gather`]
/// and [`Table::check`] fail from then on.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    file: File,
    /// What the file looked like when it was opened.
    stamp: Stamp,
    map: GuardedMap,
    rows: Rows,
    /// What was done at the start, in words.
    residence: String,
    metrics: Arc<Metrics>,
    /// Where `rows` starts in the file.
    start: usize,
    dimensions: Dimensions,
    layout: Layout,
    policy: Policy,
    identity: Identity,
}

impl Table {
    /// Maps a table and checks its header and its length, in a time that does not depend on its size.
    ///
    /// # Errors
    /// If the file cannot be opened, is no table or one of another version, or if its header is wrong in any way.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TableError> {
        let table = Self::open_any(path.as_ref())?;
        match table.dimensions.part {
            None => Ok(table),
            Some(_) => Err(TableError::Part { path: table.path }),
        }
    }

    /// Maps a part of a table, as [`Table::open`] maps a table.
    pub(super) fn open_part(path: &Path) -> Result<Self, TableError> {
        let table = Self::open_any(path)?;
        match table.dimensions.part {
            Some(_) => Ok(table),
            None => {
                let why = "it is a whole table, not a part of one".to_owned();
                Err(TableError::Header { path: table.path, why })
            }
        }
    }

    fn open_any(path: &Path) -> Result<Self, TableError> {
        let (file, map) = map(path)?;
        let stamp = Stamp::of(&file).map_err(TableError::io("examine", path))?;
        let not_a_table = |why| TableError::NotATable { path: path.to_owned(), why };
        let wrong = |why| TableError::Header { path: path.to_owned(), why };
        let header = header::parse(&map).map_err(not_a_table)?;
        let format = header.metadata.get("format");
        if format.is_none_or(|name| name != format::FORMAT && name != format::PART_FORMAT) {
            return Err(not_a_table("it is a safetensors file with other contents".to_owned()));
        }
        let version = header.metadata.get("version").map_or("?", String::as_str);
        if version != format::VERSION {
            return Err(TableError::Version { path: path.to_owned(), version: version.to_owned() });
        }
        let (dimensions, policy, identity) = format::parse(&header).map_err(wrong)?;
        let layout = Layout::new(dimensions);
        if let Some(mismatch) = layout.mismatch(&header) {
            return Err(wrong(mismatch));
        }
        let expected = header.len + layout.checksums.end;
        if map.len() != expected {
            let (expected, actual) = (expected as u64, map.len() as u64);
            return Err(TableError::Length { path: path.to_owned(), expected, actual });
        }
        let table = Self {
            path: path.to_owned(),
            file,
            stamp,
            map,
            rows: Rows::Mapped(Mapped::plain()),
            residence: "on demand".to_owned(),
            metrics: Arc::default(),
            start: header.len,
            dimensions,
            layout,
            policy,
            identity,
        };
        // Rows are read in no order: reading ahead would fetch many times the bytes that are needed.
        table.advise_rows(Advice::Random);
        Ok(table)
    }

    /// Opens a table to serve from: the index is read into memory, in the shared mapping, and the rows are put where
    /// `placement` says. `progress` is told how many bytes of how many have been read so far. What the system lacks (memory,
    /// huge pages, io_uring, ...) is replaced by the next best, with a warning in the log.
    ///
    /// # Errors
    /// As [`Table::open`], or if rows cannot be read.
    pub fn open_with(
        path: impl AsRef<Path>,
        placement: Placement,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, TableError> {
        let mut table = Self::open(path)?;
        let index = table.start + table.layout.padding.end..table.map.len();
        let geometry = table.geometry();
        let rows = geometry.range();
        let from_rows = match placement {
            Placement::Ram { .. } => rows.len(),
            Placement::Mmap { prefault } => usize::try_from(prefault).unwrap_or(usize::MAX).min(rows.len()),
            Placement::Direct { .. } | Placement::Gpu(_) => 0,
        };
        let (mut done, total) = (0, (index.len() + from_rows) as u64);
        populate(table.map.map(), index, (&mut done, total), progress);
        let hottest = rows.start..rows.start + from_rows;
        (table.rows, table.residence) = match placement {
            Placement::Ram { lock, huge_pages } => {
                table.in_memory(lock, huge_pages, (done, total), progress)?
            }
            Placement::Mmap { .. } => {
                populate(table.map.map(), hottest, (&mut done, total), progress);
                let read = HumanBytes(from_rows as u64);
                let mapped = table.mapped(from_rows);
                let residence =
                    format!("{read} of the most frequent rows read, others {}", mapped.describe());
                (Rows::Mapped(mapped), residence)
            }
            Placement::Direct { cache, queue_depth, reads } => {
                let direct = Direct::open(&table.path, &table.file, geometry, cache, queue_depth, reads)?;
                let residence = direct.describe();
                (Rows::Direct(Box::new(direct)), residence)
            }
            // Only the GPU's owner can put them there.
            Placement::Gpu(_) => (Rows::Mapped(table.mapped(0)), "read by the GPU".to_owned()),
        };
        table.check()?;
        Ok(table)
    }

    /// All rows into memory: a private copy in huge pages, or the page cache, locked or not.
    fn in_memory(
        &self,
        lock: bool,
        huge_pages: bool,
        (mut done, total): (u64, u64),
        progress: Progress<'_>,
    ) -> Result<(Rows, String), TableError> {
        let (geometry, counted) = (self.geometry(), (&mut done, total));
        let size = HumanBytes(geometry.range().len() as u64);
        if huge_pages {
            if let Some(copied) = Copied::read(&self.path, &self.file, &geometry, counted, progress)? {
                return Ok((Rows::Copied(copied), format!("a private copy of {size} in huge pages")));
            }
            tracing::warn!("rows of {} are shared in the page cache instead", self.path.display());
        }
        populate(self.map.map(), geometry.range(), (&mut done, total), progress);
        let mut residence = format!("{size} of rows read into the page cache");
        if lock {
            match self.map.map().lock() {
                Ok(()) => {
                    residence.push_str(", locked");
                    return Ok((Rows::Mapped(Mapped::plain()), residence));
                }
                Err(error) => tracing::warn!(
                    "cannot lock {} in memory: {error}; raise the limit with `ulimit -l` (systemd: LimitMEMLOCK)",
                    self.path.display()
                ),
            }
        }
        // Should the system take pages back after all, they return as in `mmap` mode.
        Ok((Rows::Mapped(self.mapped(geometry.range().len())), residence))
    }

    /// Rows in the mapping, of which the first `in_memory` bytes have been read.
    fn mapped(&self, in_memory: usize) -> Mapped {
        let geometry = self.geometry();
        let reads = Direct::through_page_cache(&self.path, &self.file, geometry);
        Mapped::with_readahead(&geometry, in_memory, reads)
    }

    /// Counts into `metrics` from now on: those of the table that this one replaces, say.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// What is asked of this table, counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Where rows are and what was read at the start, in words.
    pub fn residence(&self) -> &str {
        &self.residence
    }

    /// Whether what was read so far can be trusted: no read of the mapping has failed, and the file is as it was when it
    /// was opened. One system call. What [`Table::index`] finds is only good if this holds afterwards.
    ///
    /// # Errors
    /// If not, from then on.
    pub fn check(&self) -> Result<(), TableError> {
        let now = Stamp::of(&self.file).map_err(TableError::io("examine", &self.path))?;
        match self.stamp.change(&now) {
            Some(why) => Err(TableError::changed(&self.path, why)),
            None if self.map.is_broken() => Err(TableError::changed(
                &self.path,
                "it was cut short, or its disk fails: a part cannot be read",
            )),
            None => Ok(()),
        }
    }

    /// Whether another file has the path of this one now. This one is served for as long as it is open.
    pub fn is_replaced(&self) -> bool {
        fs::metadata(&self.path).map_or(true, |found| !Stamp::new(&found).is_same_file(&self.stamp))
    }

    /// N, the number of rows; at least 1.
    #[allow(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.dimensions.rows
    }

    /// d, the numbers in a row.
    pub fn dim(&self) -> usize {
        self.dimensions.dim
    }

    /// How rows are stored.
    pub fn row_type(&self) -> RowType {
        self.dimensions.row_type
    }

    /// What the table was made of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What may be an f-gram, in this table.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Finds f-grams; the ranks it gives are this table's rows.
    pub fn index(&self) -> Index<'_> {
        Index::new(self.keys(), self.view(&self.layout.slots), self.policy.max_n)
    }

    /// How often the f-gram of this rank occurs in the corpus that was mined; 0 if there is no such rank (or if the
    /// counts are damaged).
    pub fn count(&self, rank: u32) -> u64 {
        if rank as usize >= self.len() {
            return 0;
        }
        let run = self.count_starts().partition_point(|&start| start <= rank);
        run.checked_sub(1).and_then(|run| self.count_values().get(run)).copied().unwrap_or(0)
    }

    /// The length in tokens of the f-gram of this rank; `None` if there is no such rank or the keys are damaged.
    pub fn length(&self, rank: u32) -> Option<u8> {
        let mut key = self.keys().get(rank as usize)?;
        for n in 2..=self.policy.max_n as u8 {
            let Some(parent) = key.parent_rank() else { return Some(n) };
            key = self.keys().get(parent as usize)?;
        }
        None
    }

    /// A row as it lies in the file, in the mapping, wherever rows are kept.
    pub fn row_bytes(&self, rank: u32) -> Option<&[u8]> {
        let Geometry { stride, bytes, count, .. } = self.geometry();
        let start = rank as usize * stride;
        ((rank as usize) < count).then(|| &self.view(&self.layout.rows)[start..start + bytes])
    }

    /// Bytes from the start of the first row to the end of the last, as they lie in the file.
    pub fn row_bytes_in_all(&self) -> usize {
        self.geometry().range().len()
    }

    /// A row's numbers.
    ///
    /// # Errors
    /// If there is no such row.
    pub fn row(&self, rank: u32) -> Result<Vec<f32>, TableError> {
        let mut row = vec![0.0; self.dim()];
        self.gather(&[rank], &mut row)?;
        Ok(row)
    }

    /// The numbers of the rows of `ranks`, one after the other, into `out`. The same in every [`Placement`].
    ///
    /// # Errors
    /// If there is no row of some rank, if `out` is not `ranks.len() * dim` long, or if the file has changed since it
    /// was opened.
    pub fn gather(&self, ranks: &[u32], out: &mut [f32]) -> Result<(), TableError> {
        let Dimensions { row_type, rows, dim, .. } = self.dimensions;
        if out.len() != ranks.len() * dim {
            return Err(TableError::Shape { values: out.len(), rows: ranks.len(), dim });
        }
        if let Some(&rank) = ranks.iter().find(|&&rank| rank as usize >= rows) {
            return Err(TableError::NoSuchRow { path: self.path.clone(), rank, rows });
        }
        let start = Instant::now();
        let scales: &[f32] = self.view(&self.layout.scales);
        let geometry = self.geometry();
        let gathered = self.rows.gather(&self.map, &geometry, ranks, out, |rank, bytes, out| {
            row_type.decode(bytes, scales.get(rank as usize).copied().unwrap_or(1.0), out);
        });
        // First: it knows better why rows could not be read.
        self.check()?;
        let tally = gathered.map_err(TableError::io("read rows of", &self.path))?;
        self.metrics.gathered(tally, (ranks.len() * geometry.bytes) as u64, start.elapsed());
        Ok(())
    }

    pub(super) fn dimensions(&self) -> Dimensions {
        self.dimensions
    }

    /// How the rows are stored.
    pub fn row_format(&self) -> RowFormat {
        let Dimensions { row_type, dim, stride, .. } = self.dimensions;
        let packed = RowFormat::packed(row_type, dim);
        // The least alignment that gives this stride.
        let aligns = (0..=format::PAGE.ilog2()).map(|log| RowFormat { align: 1 << log, ..packed });
        aligns.into_iter().find(|format| format.stride() == Ok(stride)).unwrap_or(packed)
    }

    /// Says that rows will be wanted soon, so that they are nearer by then. A hint: ranks that do not exist are left
    /// out, and nobody is told of failures but the log.
    pub fn prefetch(&self, ranks: &[u32]) {
        let geometry = self.geometry();
        let ranks: Vec<u32> =
            ranks.iter().copied().filter(|&rank| (rank as usize) < geometry.count).collect();
        match self.rows.prefetch(&self.map, &geometry, &ranks) {
            Ok(tally) => self.metrics.prefetched(tally),
            Err(error) => tracing::debug!("rows of {} were not read ahead: {error}", self.path.display()),
        }
    }

    /// Where rows lie in the file.
    fn geometry(&self) -> Geometry {
        let Dimensions { row_type, rows: count, dim, stride, .. } = self.dimensions;
        let bytes = row_type.bytes_per_row(dim);
        Geometry { start: self.start, stride, bytes, count, dim }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes before `rows`.
    pub(super) fn header(&self) -> &[u8] {
        &self.map[..self.start]
    }

    /// The bytes from the start of `rows` on, which the ranges of the layout count from.
    pub(super) fn data(&self) -> &[u8] {
        &self.map[self.start..]
    }

    pub(super) fn keys(&self) -> &[Key] {
        self.view(&self.layout.keys)
    }

    /// The scale of each row; of none in a type without.
    pub(crate) fn scales(&self) -> &[f32] {
        self.view(&self.layout.scales)
    }

    pub(super) fn count_values(&self) -> &[u64] {
        self.view(&self.layout.count_values)
    }

    pub(super) fn count_starts(&self) -> &[u32] {
        self.view(&self.layout.count_starts)
    }

    pub(super) fn checksums(&self) -> &[u32] {
        self.view(&self.layout.checksums)
    }

    /// Tells the system in what order rows are about to be read. It is a hint: that it fails does no harm.
    pub(super) fn advise_rows(&self, advice: Advice) {
        let _ = self.map.map().advise_range(advice, self.start, self.layout.rows.len());
    }

    /// A tensor. `open` has checked that it lies in the file, and by the layout it is aligned to its elements.
    fn view<T: Pod>(&self, range: &Range<usize>) -> &[T] {
        bytemuck::cast_slice(&self.data()[range.clone()])
    }
}

fn map(path: &Path) -> Result<(File, GuardedMap), TableError> {
    // Asked before opening, which would wait for ever on a pipe.
    if !fs::metadata(path).map_err(TableError::io("open", path))?.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(TableError::io("open", path)(error));
    }
    let file = File::open(path).map_err(TableError::io("open", path))?;
    // SAFETY: the mapping is read-only, and all that is made of it are numbers for which every bit pattern is valid.
    // No file of ours is changed after it has its name; that nobody else changes it is asked for in the docs of `Table`,
    // and where somebody does, what was read is thrown away.
    let map = unsafe { Mmap::map(&file) }.map_err(TableError::io("map", path))?;
    Ok((file, GuardedMap::new(map)))
}

#[cfg(test)]
mod tests;
