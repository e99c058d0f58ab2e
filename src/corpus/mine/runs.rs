//! Runs: keys that one thread has sorted and counted, compressed, in memory while there is room and then in files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::code::{Decoder, Encoder, Source};
use crate::corpus::Error;

/// Bytes of a long run that are written at a time.
const FLUSH: usize = 1 << 20;

/// One sorted run, cut into segments at the same keys as all runs of its scan.
pub(super) struct Run {
    bytes: Bytes,
    /// Where the segments end.
    ends: Vec<u64>,
}

enum Bytes {
    Memory(Box<[u8]>),
    File(Arc<SpillFile>, u64),
}

impl Run {
    /// Reads one segment.
    pub(super) fn segment(&self, segment: usize, capacity: usize) -> Decoder<Source<'_>> {
        let start = segment.checked_sub(1).map_or(0, |before| self.ends[before]);
        let len = self.ends[segment] - start;
        let source = match &self.bytes {
            Bytes::Memory(bytes) => Source::Memory(&bytes[start as usize..]),
            Bytes::File(spill, offset) => Source::File(&spill.file, offset + start),
        };
        Decoder::new(source, len, capacity)
    }

    /// The file to name where a segment cannot be read.
    pub(super) fn path(&self) -> &Path {
        match &self.bytes {
            Bytes::Memory(_) => Path::new("memory"),
            Bytes::File(spill, _) => &spill.path,
        }
    }
}

/// A file of runs, removed with the last of them.
struct SpillFile {
    file: File,
    path: PathBuf,
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        // What cannot be removed goes with the work directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A run that is being written.
#[derive(Default)]
pub(super) struct RunWriter {
    bytes: Vec<u8>,
    /// Bytes before these, already in a file.
    flushed: u64,
    ends: Vec<u64>,
    encoder: Encoder,
}

impl RunWriter {
    pub(super) fn push(&mut self, key: u64, count: u64) {
        self.encoder.push(key, count, &mut self.bytes);
    }

    /// Ends a segment; each begins its keys anew.
    pub(super) fn end_segment(&mut self) {
        self.ends.push(self.flushed + self.bytes.len() as u64);
        self.encoder = Encoder::default();
    }
}

/// The runs of a scan.
pub(super) struct Runs<'a> {
    directory: &'a Path,
    /// Bytes that may still be kept in memory.
    room: AtomicU64,
    spilled: AtomicU64,
    files: AtomicUsize,
    runs: Mutex<Vec<Run>>,
}

impl<'a> Runs<'a> {
    /// Keeps up to `room` bytes in memory, and the rest in files of `directory`.
    pub(super) fn new(directory: &'a Path, room: u64) -> Self {
        let zero = AtomicUsize::new(0);
        Self { directory, room: room.into(), spilled: 0.into(), files: zero, runs: Mutex::default() }
    }

    /// Bytes written to files so far.
    pub(super) fn spilled(&self) -> u64 {
        self.spilled.load(Ordering::Relaxed)
    }

    pub(super) fn len(&self) -> usize {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn take(&self) -> Vec<Run> {
        std::mem::take(&mut *self.runs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what a writer holds, which is then empty. `spill` is the thread's own file.
    pub(super) fn keep(&self, writer: &mut RunWriter, spill: &mut Spill) -> Result<(), Error> {
        let len = writer.bytes.len() as u64;
        let take = |room: u64| room.checked_sub(len);
        let bytes = match self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Bytes::Memory(writer.bytes.as_slice().into()),
            Err(_) => {
                let (file, offset) = spill.append(self, &writer.bytes)?;
                self.spilled.fetch_add(len, Ordering::Relaxed);
                Bytes::File(file, offset)
            }
        };
        writer.bytes.clear();
        self.push(Run { bytes, ends: std::mem::take(&mut writer.ends) });
        Ok(())
    }

    /// Moves what a writer holds to a file, if that is much: for runs that may be longer than memory.
    pub(super) fn flush(&self, writer: &mut RunWriter, spill: &mut Spill) -> Result<(), Error> {
        if writer.bytes.len() >= FLUSH { self.append(writer, spill).map(drop) } else { Ok(()) }
    }

    /// Keeps a run that was flushed to a file of its own.
    pub(super) fn keep_file(&self, mut writer: RunWriter, mut spill: Spill) -> Result<(), Error> {
        let file = self.append(&mut writer, &mut spill)?;
        self.push(Run { bytes: Bytes::File(file, 0), ends: writer.ends });
        Ok(())
    }

    fn append(&self, writer: &mut RunWriter, spill: &mut Spill) -> Result<Arc<SpillFile>, Error> {
        let (file, _) = spill.append(self, &writer.bytes)?;
        let len = writer.bytes.len() as u64;
        self.spilled.fetch_add(len, Ordering::Relaxed);
        writer.flushed += len;
        writer.bytes.clear();
        Ok(file)
    }

    fn push(&self, run: Run) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(run);
    }
}

/// A thread's file of runs, made when it is needed.
#[derive(Default)]
pub(super) struct Spill {
    file: Option<(Arc<SpillFile>, u64)>,
}

impl Spill {
    fn append(&mut self, runs: &Runs<'_>, bytes: &[u8]) -> Result<(Arc<SpillFile>, u64), Error> {
        let (spill, end) = match &mut self.file {
            Some(file) => file,
            None => {
                let path =
                    runs.directory.join(format!("runs-{}", runs.files.fetch_add(1, Ordering::Relaxed)));
                let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
                let file = file.map_err(Error::io("write", &path))?;
                self.file.insert((Arc::new(SpillFile { file, path }), 0))
            }
        };
        let offset = *end;
        spill.file.write_all_at(bytes, offset).map_err(Error::io("write", &spill.path))?;
        *end += bytes.len() as u64;
        Ok((Arc::clone(spill), offset))
    }
}
