use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use indicatif::HumanBytes;
use memmap2::{Mmap, MmapMut};

use super::{Geometry, Progress};
use crate::memory;
use crate::table::TableError;

/// Bytes read at a time.
const CHUNK: usize = 16 << 20;

/// Rows copied into memory of our own, in huge pages where the system has them.
#[derive(Debug)]
pub(in crate::table) struct Copied {
    memory: Mmap,
}

impl Copied {
    /// Reads the rows from `file`, or gives `None` where there is not enough memory for them.
    pub(in crate::table) fn read(
        path: &Path,
        file: &File,
        geometry: &Geometry,
        (done, total): (&mut u64, u64),
        progress: Progress<'_>,
    ) -> Result<Option<Self>, TableError> {
        let rows = geometry.range();
        let size = HumanBytes(rows.len() as u64);
        if memory::available().is_some_and(|available| available < rows.len() as u64) {
            tracing::warn!("{size} of memory for a private copy of the rows are not to be had");
            return Ok(None);
        }
        let Ok(mut memory) = MmapMut::map_anon(rows.len()) else {
            tracing::warn!("the system refuses {size} of memory for a private copy of the rows");
            return Ok(None);
        };
        #[cfg(target_os = "linux")]
        if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
            tracing::warn!("the system gives no huge pages ({error}): the copy is in ordinary ones");
        }
        for (i, chunk) in memory.chunks_mut(CHUNK).enumerate() {
            let at = (rows.start + i * CHUNK) as u64;
            file.read_exact_at(chunk, at).map_err(TableError::io("read", path))?;
            forget(file, at, chunk.len());
            *done += chunk.len() as u64;
            progress(*done, total);
        }
        tracing::info!(
            "rows are a private copy of {size} of this process, which other processes do not share"
        );
        let memory = memory.make_read_only().map_err(TableError::io("copy", path))?;
        Ok(Some(Self { memory }))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory
    }
}

/// Lets the page cache give up what was just copied, unless another process maps it.
pub(in crate::table) fn forget(file: &File, at: u64, len: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: a hint about a file that is open, without pointers.
    unsafe {
        use std::os::fd::AsRawFd;
        libc::posix_fadvise(file.as_raw_fd(), at as i64, len as i64, libc::POSIX_FADV_DONTNEED);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, at, len);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_not_asked_for() {
        let file = tempfile::tempfile().unwrap();
        let geometry =
            Geometry { start: 4096, stride: 1 << 20, bytes: 1 << 20, count: 1 << 28, dim: 1 << 18 };
        let copy = Copied::read(Path::new("table"), &file, &geometry, (&mut 0, 0), &mut |_, _| ());
        assert!(copy.unwrap().is_none());
    }
}
