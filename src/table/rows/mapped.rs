use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Advice;

use super::direct::{AHEAD, Direct};
use super::{Geometry, copy};
use crate::table::guard::GuardedMap;
use crate::table::metrics::Tally;

/// Pages of hints and of the bitmap. Where the system's are larger it rounds.
const PAGE: usize = 4096;

/// Batches between two looks at how often the process had to wait for the disk.
const WATCH: u64 = 64;

/// Rows in the file's shared mapping.
#[derive(Debug)]
pub(in crate::table) struct Mapped {
    /// None: the system pages as it pleases.
    readahead: Option<Readahead>,
}

/// Which pages were asked for. A batch's rows that were not are asked for together, so that the disk works on all of
/// them at once instead of on one fault after the other; the rest cost no system call.
#[derive(Debug)]
struct Readahead {
    /// None: by hints to the system.
    reads: Option<Box<Direct>>,
    /// A bit a page of the rows.
    seen: Vec<AtomicU64>,
    batches: AtomicU64,
    /// Pages asked for since the last look.
    asked: AtomicU64,
    /// The process's major faults at the last look.
    faults: AtomicU64,
}

impl Mapped {
    pub(in crate::table) fn plain() -> Self {
        Self { readahead: None }
    }

    /// With readahead; `in_memory` bytes of the first rows are there already. `reads` are how: several hints to the
    /// system take it longer than as many reads that are handed over together.
    pub(in crate::table) fn with_readahead(
        geometry: &Geometry,
        in_memory: usize,
        reads: Option<Box<Direct>>,
    ) -> Self {
        let words = geometry.range().len().div_ceil(PAGE).div_ceil(64);
        let (all, pages) = (u64::MAX, in_memory / PAGE);
        let word = |i| AtomicU64::new(if (i + 1) * 64 <= pages { all } else { 0 });
        let readahead = Readahead {
            reads,
            seen: (0..words).map(word).collect(),
            batches: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            faults: AtomicU64::new(major_faults()),
        };
        for page in pages / 64 * 64..pages {
            readahead.is_new(page);
        }
        Self { readahead: Some(readahead) }
    }

    /// How a batch's rows are brought in, in words.
    pub(in crate::table) fn describe(&self) -> &'static str {
        match &self.readahead {
            None => "on demand",
            Some(Readahead { reads: None, .. }) => "on demand, a batch's rows announced to the system",
            Some(Readahead { reads: Some(_), .. }) => "on demand, a batch's rows together through io_uring",
        }
    }

    /// Decodes rows into `out`.
    pub(super) fn gather(
        &self,
        map: &GuardedMap,
        geometry: &Geometry,
        ranks: &[u32],
        out: &mut [f32],
        decode: impl Fn(u32, &[u8], &mut [f32]) + Sync,
    ) -> io::Result<Tally> {
        let unseen =
            self.readahead.as_ref().map(|readahead| readahead.unseen(geometry, ranks)).unwrap_or_default();
        let disk = unseen.positions.len() as u64;
        let mut tally = Tally { disk, memory: ranks.len() as u64 - disk, ..Tally::default() };
        let reads = self.readahead.as_ref().and_then(|readahead| readahead.reads.as_ref());
        let (Some(reads), false) = (reads, unseen.positions.is_empty()) else {
            unseen.hint(map, geometry);
            copy::gather(&map[geometry.start..], geometry, ranks, out, decode, || map.is_broken());
            return Ok(tally);
        };
        let dim = geometry.dim;
        let new: Vec<u32> = unseen.positions.iter().map(|&position| ranks[position]).collect();
        tally.disk_bytes = reads
            .read(&new, &mut |i, bytes| {
                let position = unseen.positions[i];
                decode(new[i], bytes, &mut out[position * dim..][..dim]);
            })?
            .disk_bytes;
        // Now those that share a page with them are there too.
        let mut rest = unseen.positions.iter().copied().peekable();
        for (position, (&rank, out)) in ranks.iter().zip(out.chunks_exact_mut(dim)).enumerate() {
            if rest.next_if_eq(&position).is_none() && !map.is_broken() {
                decode(rank, &map[geometry.row(rank)], out);
            }
        }
        Ok(tally)
    }

    /// Brings rows into the page cache, few at a time: what is asked for counts as seen, and somebody may need it now.
    pub(super) fn prefetch(&self, map: &GuardedMap, geometry: &Geometry, ranks: &[u32]) -> io::Result<Tally> {
        let mut tally = Tally::default();
        let Some(readahead) = &self.readahead else { return Ok(tally) };
        for ranks in ranks.chunks(AHEAD) {
            let unseen = readahead.unseen(geometry, ranks);
            tally.disk += unseen.positions.len() as u64;
            match &readahead.reads {
                Some(reads) => {
                    let new: Vec<u32> = unseen.positions.iter().map(|&position| ranks[position]).collect();
                    tally.disk_bytes += reads.read(&new, &mut |_, _| ())?.disk_bytes;
                }
                None => unseen.hint(map, geometry),
            }
        }
        Ok(tally)
    }
}

/// What a batch needs that was not asked for before.
#[derive(Debug, Default, PartialEq)]
struct Unseen {
    /// In the batch, ascending.
    positions: Vec<usize>,
    /// Of the rows, counted from the first.
    pages: Vec<usize>,
}

impl Unseen {
    /// Announces the pages to the system, neighbours together.
    fn hint(mut self, map: &GuardedMap, geometry: &Geometry) {
        self.pages.sort_unstable();
        for run in self.pages.chunk_by(|a, b| a + 1 == *b) {
            let start = geometry.start + run[0] * PAGE;
            let len = (run.len() * PAGE).min(map.len() - start);
            // That it fails does no harm.
            let _ = map.map().advise_range(Advice::WillNeed, start, len);
        }
    }
}

impl Readahead {
    /// Marks the rows of `ranks` as seen and says what of them was not.
    fn unseen(&self, geometry: &Geometry, ranks: &[u32]) -> Unseen {
        self.watch();
        let mut unseen = Unseen::default();
        for (position, &rank) in ranks.iter().enumerate() {
            let before = unseen.pages.len();
            let Range { start, end } = geometry.row(rank);
            let of_row = (start - geometry.start) / PAGE..=(end - 1 - geometry.start) / PAGE;
            unseen.pages.extend(of_row.filter(|&page| self.is_new(page)));
            if unseen.pages.len() > before {
                unseen.positions.push(position);
            }
        }
        self.asked.fetch_add(unseen.pages.len() as u64, Ordering::Relaxed);
        unseen
    }

    /// Marks a page as seen; true if it was not.
    fn is_new(&self, page: usize) -> bool {
        let (word, bit) = (&self.seen[page / 64], 1 << (page % 64));
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// The system takes pages back when memory is short, and does not say which. But then seen pages fault, and have to
    /// be waited for: when more were waited for than asked for, what was seen is forgotten.
    ///
    /// The whole process is looked at, since a large batch is read by several threads. A fault that had nothing to do
    /// with rows costs some needless hints.
    fn watch(&self) {
        if self.batches.fetch_add(1, Ordering::Relaxed) % WATCH != WATCH - 1 {
            return;
        }
        let now = major_faults();
        let faults = now.saturating_sub(self.faults.swap(now, Ordering::Relaxed));
        if faults > self.asked.swap(0, Ordering::Relaxed) + WATCH {
            self.forget();
        }
    }

    fn forget(&self) {
        for word in &self.seen {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// How often a thread of this process had to wait for the disk because of a page.
fn major_faults() -> u64 {
    // SAFETY: a rusage is plain data, for which zeros are valid; the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    u64::try_from(usage.ru_majflt).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_asked_for_once_until_forgotten() {
        // Rows of a page and a half, from the second page on.
        let geometry = Geometry { start: 4096, stride: 6144, bytes: 6000, count: 130, dim: 1500 };
        let mapped = Mapped::with_readahead(&geometry, 3 * 4096, None);
        let readahead = mapped.readahead.as_ref().unwrap();
        let unseen = |ranks: &[u32]| {
            let Unseen { positions, pages } = readahead.unseen(&geometry, ranks);
            (positions, pages)
        };
        // Rows 0 and 1 lie in the first three pages; 2 begins the fourth.
        assert_eq!(unseen(&[0, 1, 1]), (vec![], vec![]));
        assert_eq!(unseen(&[2, 0, 3, 2, 129]), (vec![0, 2, 4], vec![3, 4, 5, 193, 194]));
        assert_eq!(unseen(&[2, 129, 3, 0]), (vec![], vec![]));
        assert_eq!(readahead.asked.load(Ordering::Relaxed), 5);
        readahead.forget();
        assert_eq!(unseen(&[0, 1]), (vec![0, 1], vec![0, 1, 2]));
    }

    #[test]
    fn hints_alone_give_the_same_rows() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..4096 + 300 * 900).map(|i| (i / 7) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        // SAFETY: nobody else has the file.
        let map = GuardedMap::new(unsafe { memmap2::Mmap::map(&file) }.unwrap());
        let geometry = Geometry { start: 4096, stride: 900, bytes: 888, count: 300, dim: 2 };
        let decode = |rank: u32, bytes: &[u8], out: &mut [f32]| {
            out.copy_from_slice(&[rank as f32, bytes.iter().map(|&byte| f32::from(byte)).sum()]);
        };
        let ranks: Vec<u32> = (0..500).map(|i| i * i % 300).collect();
        let gather = |mapped: &Mapped| {
            let mut out = vec![0.0; ranks.len() * 2];
            let tally = mapped.gather(&map, &geometry, &ranks, &mut out, decode).unwrap();
            mapped.prefetch(&map, &geometry, &[299, 4]).unwrap();
            assert_eq!(tally.disk + tally.memory, 500);
            out
        };
        let mapped = Mapped::with_readahead(&geometry, 0, None);
        assert_eq!(gather(&mapped), gather(&Mapped::plain()));
        assert_eq!(gather(&mapped), gather(&Mapped::plain()));
    }

    #[test]
    fn more_faults_than_hints_are_a_reason_to_forget() {
        let geometry = Geometry { start: 0, stride: 4096, bytes: 4096, count: 64, dim: 1024 };
        let mapped = Mapped::with_readahead(&geometry, 64 * 4096, None);
        let readahead = mapped.readahead.as_ref().unwrap();
        let seen = || readahead.seen[0].load(Ordering::Relaxed);
        // As if the process had not faulted before now, but all these pages had been asked for.
        for (asked, forgotten) in [(u64::MAX / 2, false), (0, major_faults() > WATCH)] {
            readahead.faults.store(0, Ordering::Relaxed);
            readahead.asked.store(asked, Ordering::Relaxed);
            (0..WATCH).for_each(|_| readahead.watch());
            assert_eq!(seen() == 0, forgotten);
        }
    }
}
