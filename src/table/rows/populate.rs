//! Reading a mapping into memory ahead of its use.

use std::ops::Range;

use memmap2::{Advice, Mmap};

/// Bytes read between two calls of a [`Progress`].
const CHUNK: usize = 16 << 20;

/// Is told how many bytes of how many have been read into memory.
pub(in crate::table) type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads a range of a mapping into memory and maps it there. `done` of `total` bytes were read before.
pub(in crate::table) fn populate(
    map: &Mmap,
    range: Range<usize>,
    (done, total): (&mut u64, u64),
    progress: Progress<'_>,
) {
    let mut at = range.start;
    while at < range.end {
        let len = CHUNK.min(range.end - at);
        // In large reads, though the mapping is advised against reading ahead. That it fails does no harm.
        let _ = map.advise_range(Advice::WillNeed, at, len);
        if !is_populated(map, at, len) {
            touch(&map[at..at + len]);
        }
        at += len;
        *done += len as u64;
        progress(*done, total);
    }
}

/// Maps what is there, in one call; false where the system does not know how, or cannot read all of it.
fn is_populated(map: &Mmap, at: usize, len: usize) -> bool {
    #[cfg(target_os = "linux")]
    return map.advise_range(Advice::PopulateRead, at, len).is_ok();
    #[cfg(not(target_os = "linux"))]
    return {
        let _ = (map, at, len);
        false
    };
}

fn touch(bytes: &[u8]) {
    for page in bytes.chunks(4096) {
        std::hint::black_box(page[0]);
    }
}
