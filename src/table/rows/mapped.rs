use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Advice;

use super::Geometry;
use crate::table::guard::GuardedMap;

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

    /// With readahead; `in_memory` bytes of the first rows are there already.
    pub(in crate::table) fn with_readahead(geometry: &Geometry, in_memory: usize) -> Self {
        let words = geometry.range().len().div_ceil(PAGE).div_ceil(64);
        let readahead = Readahead {
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
            batches: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            faults: AtomicU64::new(major_faults()),
        };
        for page in 0..in_memory / PAGE {
            readahead.is_new(page);
        }
        Self { readahead: Some(readahead) }
    }

    /// Asks for the rows of `ranks` where that has not been done. Gives how many of them had a page that was not seen.
    pub(super) fn hint(&self, map: &GuardedMap, geometry: &Geometry, ranks: &[u32]) -> u64 {
        let Some(readahead) = &self.readahead else { return 0 };
        readahead.watch();
        let mut pages = Vec::new();
        let mut rows = 0;
        for &rank in ranks {
            let before = pages.len();
            let Range { start, end } = geometry.row(rank);
            let of_row = (start - geometry.start) / PAGE..=(end - 1 - geometry.start) / PAGE;
            pages.extend(of_row.filter(|&page| readahead.is_new(page)));
            rows += u64::from(pages.len() > before);
        }
        readahead.asked.fetch_add(pages.len() as u64, Ordering::Relaxed);
        pages.sort_unstable();
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            let start = geometry.start + run[0] * PAGE;
            let len = (run.len() * PAGE).min(map.len() - start);
            // A hint: that it fails does no harm.
            let _ = map.map().advise_range(Advice::WillNeed, start, len);
        }
        rows
    }
}

impl Readahead {
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
        let file = tempfile::tempfile().unwrap();
        file.set_len(200 * 4096).unwrap();
        // SAFETY: nobody else has the file.
        let map = GuardedMap::new(unsafe { memmap2::Mmap::map(&file) }.unwrap());
        // Rows of a page and a half, from the second page on.
        let geometry = Geometry { start: 4096, stride: 6144, bytes: 6000, count: 130, dim: 1500 };
        let mapped = Mapped::with_readahead(&geometry, 3 * 4096);
        // Rows 0 and 1 lie in the first three pages; 2 begins the fourth.
        assert_eq!(mapped.hint(&map, &geometry, &[0, 1, 1]), 0);
        assert_eq!(mapped.hint(&map, &geometry, &[2, 3, 2, 129]), 3);
        assert_eq!(mapped.hint(&map, &geometry, &[2, 129, 3, 0]), 0);
        let readahead = mapped.readahead.as_ref().unwrap();
        assert_eq!(readahead.asked.load(Ordering::Relaxed), 2 + 1 + 2);
        readahead.forget();
        assert_eq!(mapped.hint(&map, &geometry, &[0, 1]), 2);
        assert_eq!(Mapped::plain().hint(&map, &geometry, &[0, 1]), 0);
    }

    #[test]
    fn more_faults_than_hints_are_a_reason_to_forget() {
        let geometry = Geometry { start: 0, stride: 4096, bytes: 4096, count: 64, dim: 1024 };
        let mapped = Mapped::with_readahead(&geometry, 64 * 4096);
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
