use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::cache::{Cache, Found};
use super::reads::{Extent, Reader, Source};
#[cfg(target_os = "linux")]
use super::ring::Ring;
use super::threads::Threads;
use super::{Geometry, SharedFile};
use crate::table::metrics::Tally;
use crate::table::{DirectReads, Placement, TableError};

/// Neighbouring rows are read in one piece up to so many bytes.
const MERGED: usize = 64 << 10;

/// Memory to read into, a reader: the depth gives way where rows are so large that it would not do.
const STAGING: usize = 64 << 20;

/// The largest block that memory from the system is sure to be aligned to.
const PAGE: usize = 4096;

/// Rows that are claimed at a time by reading ahead, so that whoever needs one of them now waits for few others.
pub(super) const AHEAD: usize = 256;

/// A row that is wanted, and where in the batch: sorted, one that is wanted twice is beside itself.
type Want = (u32, usize);

/// Rows on the disk, read past the page cache, with a cache of their own.
#[derive(Debug)]
pub(in crate::table) struct Direct {
    geometry: Geometry,
    source: Source,
    kind: DirectReads,
    /// A reader serves one batch at a time. As many are made as there are batches at a time, and kept.
    readers: Mutex<Vec<Reader>>,
    /// The threads that readers share, once there are any.
    threads: Mutex<Option<Threads>>,
    cache: Mutex<Cache>,
    /// Told when rows that were pending have come, or will not.
    settled: Condvar,
}

impl Direct {
    /// Opens the rows of the table at `path`, which `same` is open on. What the system lacks is replaced, with a warning.
    pub(in crate::table) fn open(
        path: &Path,
        same: &File,
        geometry: Geometry,
        budget: u64,
        depth: usize,
        reads: DirectReads,
    ) -> Result<Self, TableError> {
        let (file, align) = open_direct(path, same, &geometry)?;
        let cache = Cache::new(budget, geometry.bytes, geometry.count)
            .map_err(TableError::io("make a row cache for", path))?;
        let mut direct = Self::new(file, align, geometry, cache, depth, reads);
        if let Err(error) = direct.probe() {
            tracing::warn!(
                "io_uring cannot be used here ({error}): threads read the rows of {}",
                path.display()
            );
            direct.kind = DirectReads::Threads;
            direct.probe().map_err(TableError::io("read", path))?;
        }
        Ok(direct)
    }

    /// The same reads through the page cache, and nothing else kept: so that a batch's rows come into it together. None
    /// where there is no io_uring.
    pub(in crate::table) fn through_page_cache(
        path: &Path,
        same: &File,
        geometry: Geometry,
    ) -> Option<Box<Self>> {
        let file = open_buffered(path, same).ok()?;
        let cache = Cache::new(0, geometry.bytes, geometry.count).ok()?;
        let direct = Self::new(file, 1, geometry, cache, Placement::QUEUE_DEPTH, DirectReads::Ring);
        (cfg!(target_os = "linux") && direct.probe().is_ok()).then(|| Box::new(direct))
    }

    fn new(
        file: SharedFile,
        align: usize,
        geometry: Geometry,
        cache: Cache,
        depth: usize,
        kind: DirectReads,
    ) -> Self {
        // A row may begin and end within a block.
        let longest = (geometry.bytes + 2 * align).next_multiple_of(align).max(MERGED);
        let depth = depth.min(STAGING / longest).max(1);
        Self {
            geometry,
            source: Source { file, depth, longest, align },
            kind,
            readers: Mutex::default(),
            threads: Mutex::default(),
            cache: Mutex::new(cache),
            settled: Condvar::new(),
        }
    }

    /// How rows are read, in words.
    pub(in crate::table) fn describe(&self) -> String {
        let with = match self.kind {
            DirectReads::Ring => "io_uring",
            DirectReads::Threads => "threads",
        };
        let past = if self.source.align > 1 { "past the page cache" } else { "through the page cache" };
        let cached = self.lock().places();
        format!("rows read {past} with {with}, {} at a time; a cache of {cached} rows", self.source.depth)
    }

    /// Reads the first row as all others will be.
    fn probe(&self) -> io::Result<()> {
        self.fetch(&[(0, 0)], &mut |_, _| ()).map(drop)
    }

    /// Hands the bytes of each wanted row to `deliver` with its position in `ranks`, in any order.
    pub(super) fn read(&self, ranks: &[u32], deliver: &mut dyn FnMut(usize, &[u8])) -> io::Result<Tally> {
        let mut todo: Vec<Want> = ranks.iter().copied().zip(0..).collect();
        todo.sort_unstable();
        let mut tally = Tally::default();
        while !todo.is_empty() {
            todo = self.pass(&todo, deliver, &mut tally)?;
        }
        Ok(tally)
    }

    /// Reads rows into the cache, unless it is so small that they would drive out each other.
    pub(super) fn prefetch(&self, ranks: &[u32]) -> io::Result<Tally> {
        let mut ranks = ranks.to_vec();
        ranks.truncate(self.lock().places() / 2);
        ranks.sort_unstable();
        ranks.dedup();
        let mut tally = Tally::default();
        for some in ranks.chunks(AHEAD) {
            let (missing, _claims) = {
                let mut cache = self.lock();
                let mut missing: Vec<Want> = some.iter().map(|&rank| (rank, 0)).collect();
                missing.retain(|&(rank, _)| matches!(cache.find(rank), Found::Missing));
                (missing.clone(), Claims::new(self, &mut cache, &missing))
            };
            tally.disk += missing.len() as u64;
            tally.disk_bytes += self.fetch(&missing, &mut |_, _| ())?;
        }
        Ok(tally)
    }

    /// Delivers what is in the cache and what it can read itself. Gives what somebody else is reading, for another pass.
    fn pass(
        &self,
        todo: &[Want],
        deliver: &mut dyn FnMut(usize, &[u8]),
        tally: &mut Tally,
    ) -> io::Result<Vec<Want>> {
        let (mut missing, mut pending) = (Vec::new(), Vec::new());
        let mut cache = self.lock();
        for wants in todo.chunk_by(|a, b| a.0 == b.0) {
            match cache.find(wants[0].0) {
                Found::Here(bytes) => {
                    wants.iter().for_each(|&(_, position)| deliver(position, bytes));
                    tally.cache += wants.len() as u64;
                }
                Found::Pending => pending.extend_from_slice(wants),
                Found::Missing => missing.extend_from_slice(wants),
            }
        }
        if missing.is_empty() {
            if !pending.is_empty() {
                drop(self.settled.wait(cache).unwrap_or_else(PoisonError::into_inner));
            }
            return Ok(pending);
        }
        let _claims = Claims::new(self, &mut cache, &missing);
        drop(cache);
        tally.disk += missing.len() as u64;
        tally.disk_bytes += self.fetch(&missing, deliver)?;
        Ok(pending)
    }

    /// Reads rows from the disk, each once, puts them into the cache and delivers them. Gives the bytes read.
    fn fetch(&self, wants: &[Want], deliver: &mut dyn FnMut(usize, &[u8])) -> io::Result<u64> {
        let extents = extents(wants, &self.geometry, &self.source);
        let mut reader = self.reader()?;
        reader.read(&extents, &mut |extent, bytes| {
            let Extent { offset, rows, .. } = &extents[extent];
            let wants = &wants[rows.clone()];
            let row = |rank: u32| {
                let range = self.geometry.row(rank);
                &bytes[range.start - *offset as usize..][..range.len()]
            };
            {
                let mut cache = self.lock();
                for wants in wants.chunk_by(|a, b| a.0 == b.0) {
                    cache.insert(wants[0].0, row(wants[0].0));
                }
            }
            for &(rank, position) in wants {
                deliver(position, row(rank));
            }
        })?;
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        Ok(extents.iter().map(|extent| extent.len as u64).sum())
    }

    fn reader(&self) -> io::Result<Reader> {
        if let Some(reader) = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(reader);
        }
        #[cfg(target_os = "linux")]
        if self.kind == DirectReads::Ring {
            return Ring::start(&self.source).map(|ring| Reader::Ring(Box::new(ring)));
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.is_none() {
            *threads = Some(Threads::start(&self.source)?);
        }
        let shared = threads.as_ref().cloned().map(Reader::Threads);
        shared.ok_or_else(|| io::Error::other("no threads to read with"))
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        // A panic in the middle of an insertion could leave a row's place without its bytes. Nothing there panics.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows that this thread has said it reads. However that ends, those who wait for them are told.
struct Claims<'a> {
    direct: &'a Direct,
    ranks: Vec<u32>,
}

impl<'a> Claims<'a> {
    fn new(direct: &'a Direct, cache: &mut Cache, wants: &[Want]) -> Self {
        let ranks: Vec<u32> = wants.iter().map(|&(rank, _)| rank).collect();
        ranks.iter().for_each(|&rank| cache.claim(rank));
        Self { direct, ranks }
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let mut cache = self.direct.lock();
        self.ranks.iter().for_each(|&rank| cache.release(rank));
        drop(cache);
        self.direct.settled.notify_all();
    }
}

/// The stretches of the file that hold the rows of `wants`, which are sorted: whole blocks, neighbours in one piece.
fn extents(wants: &[Want], geometry: &Geometry, source: &Source) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::with_capacity(wants.len());
    for (i, &(rank, _)) in wants.iter().enumerate() {
        let row = geometry.row(rank);
        let offset = row.start - row.start % source.align;
        let end = row.end.next_multiple_of(source.align);
        if let Some(last) = extents.last_mut()
            && offset <= last.offset as usize + last.len
            && end - last.offset as usize <= source.longest
        {
            last.len = last.len.max(end - last.offset as usize);
            last.rows.end = i + 1;
        } else {
            extents.push(Extent { offset: offset as u64, len: end - offset, rows: i..i + 1 });
        }
    }
    extents
}

/// Opens the file past the page cache, or where its system has no such thing, with it. Also gives what reads must be
/// aligned to.
fn open_direct(path: &Path, same: &File, geometry: &Geometry) -> Result<(SharedFile, usize), TableError> {
    match super::reopen(path, same, true).map(|file| (alignment(&file), file)) {
        Ok((Some(align), file)) if reads_a_block(&file, geometry, align) => {
            return Ok((Arc::new(file), align));
        }
        Err(TableError::Io { why, .. }) if why.raw_os_error() != Some(libc::EINVAL) => {
            return Err(TableError::io("open", path)(why));
        }
        Err(error @ TableError::Changed { .. }) => return Err(error),
        _ => {}
    }
    tracing::warn!(
        "{} is on a file system that cannot be read past the page cache: read through it",
        path.display()
    );
    Ok((open_buffered(path, same)?, 1))
}

/// Opens the file without reading ahead.
fn open_buffered(path: &Path, same: &File) -> Result<SharedFile, TableError> {
    let file = super::reopen(path, same, false)?;
    #[cfg(target_os = "linux")]
    // SAFETY: a hint about a file that is open, without pointers.
    unsafe {
        use std::os::fd::AsRawFd;
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM);
    }
    Ok(Arc::new(file))
}

/// What direct reads of a file must be aligned to; None if there are none, or only of blocks larger than a page.
#[cfg(target_os = "linux")]
fn alignment(file: &File) -> Option<usize> {
    use std::os::fd::AsRawFd;
    // SAFETY: a statx is plain data, for which zeros are valid; the call fills it, and reads an empty string.
    let (status, found) = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let flags = libc::AT_EMPTY_PATH;
        let status = libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, &raw mut found);
        (status, found)
    };
    // Kernels before 6.1 do not say.
    if status != 0 || found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Some(PAGE);
    }
    let align = found.stx_dio_offset_align.max(found.stx_dio_mem_align) as usize;
    (found.stx_dio_offset_align > 0 && align.is_power_of_two() && align <= PAGE).then_some(align.max(512))
}

#[cfg(not(target_os = "linux"))]
fn alignment(_: &File) -> Option<usize> {
    None
}

/// Some file systems open a file for direct reads and then refuse them.
fn reads_a_block(file: &File, geometry: &Geometry, align: usize) -> bool {
    use std::os::unix::fs::FileExt;
    let Ok(mut block) = memmap2::MmapMut::map_anon(align) else { return false };
    file.read_at(&mut block, geometry.start as u64).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every wanted row lies in its extent; extents are aligned, short enough, and do not read a block twice
        /// without need.
        #[test]
        fn extents_hold_their_rows(
            mut ranks in prop::collection::vec(0_u32..300, 0..60),
            bytes in 1_usize..9000,
            pad in 0_usize..700,
            shift in 0_u32..13,
        ) {
            ranks.sort_unstable();
            let wants: Vec<Want> = ranks.into_iter().zip(0..).collect();
            let align = 1 << shift;
            let geometry = Geometry { start: 8192, stride: bytes + pad, bytes, count: 300, dim: bytes };
            let longest = (bytes + 2 * align).next_multiple_of(align).max(20_000 / align * align);
            let source = Source { file: Arc::new(tempfile::tempfile().unwrap()), depth: 4, longest, align };
            let extents = extents(&wants, &geometry, &source);
            let rows: Vec<usize> = extents.iter().flat_map(|extent| extent.rows.clone()).collect();
            prop_assert_eq!(rows, (0..wants.len()).collect::<Vec<_>>());
            for extent in &extents {
                prop_assert!((extent.offset as usize).is_multiple_of(align) && extent.len.is_multiple_of(align) && extent.len <= longest);
                for &(rank, _) in &wants[extent.rows.clone()] {
                    let row = geometry.row(rank);
                    prop_assert!(extent.offset as usize <= row.start && row.end <= extent.offset as usize + extent.len);
                }
            }
            for pair in extents.windows(2) {
                let together = pair[1].offset as usize + pair[1].len - pair[0].offset as usize;
                prop_assert!(pair[0].offset + (pair[0].len as u64) < pair[1].offset || together > longest);
            }
        }
    }
}
