//! A table on its way: the file that [`TableWriter`](super::TableWriter) fills, and takes up again after a kill.
//!
//! It has the table's name with `.partial` after it, and the table's layout from the start: every byte is written at
//! its final place. The rows' blocks are the unit of progress. Once a block's rows and their scales are written, so
//! is its checksum, at its place in `checksums`; whoever comes later reads the blocks again and goes on after the
//! last one that has the checksum it should have. So there is no second file to agree with, and a block that a crash
//! of the machine has lost is simply computed again.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::checksum::BlockChecksums;
use super::format::{BLOCK, Dimensions, Layout};

/// The file, and how far it is.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    partial: PathBuf,
    layout: Layout,
    stride: usize,
    /// Bytes before `rows`.
    start: usize,
    header_checksum: u32,
    /// Where the next byte belongs, from the start of `rows`; what is buffered is not yet written.
    at: usize,
    buffer: Vec<u8>,
    checksums: BlockChecksums,
    /// Checksums that are in the file.
    recorded: usize,
    /// A write went wrong: how much of it is in the file is unknown.
    failed: bool,
    /// The file has its name.
    finished: bool,
}

/// The name of the file on its way to `path`.
fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

impl Partial {
    /// Opens the file on its way to `path`. If an earlier one with the same header is there, it is taken up.
    pub(super) fn open(
        path: &Path,
        header: &[u8],
        layout: Layout,
        dimensions: Dimensions,
    ) -> io::Result<Self> {
        // A rename onto a directory would fail only at the end of a long computation.
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let partial = partial_path(path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial)?;
        lock(&file, &partial)?;
        let mut this = Self {
            file,
            path: path.to_owned(),
            partial,
            stride: dimensions.stride,
            start: header.len(),
            header_checksum: crc32fast::hash(header),
            layout,
            at: 0,
            buffer: Vec::new(),
            checksums: BlockChecksums::new(),
            recorded: 0,
            failed: false,
            finished: false,
        };
        if this.has(header)? {
            this.take_up()?;
        } else if let Err(error) = this.begin(header) {
            // Nothing is lost with it.
            let _ = fs::remove_file(&this.partial);
            return Err(error);
        }
        Ok(this)
    }

    /// How many rows need not be written again.
    pub(super) fn rows(&self) -> usize {
        self.at.min(self.layout.rows.end) / self.stride
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> usize {
        self.start + self.layout.checksums.end
    }

    /// Whether the file is one of ours for the same table.
    fn has(&self, header: &[u8]) -> io::Result<bool> {
        if self.file.metadata()?.len() != self.bytes() as u64 {
            return Ok(false);
        }
        let mut found = vec![0; header.len()];
        self.file.read_exact_at(&mut found, 0)?;
        Ok(found == header)
    }

    fn begin(&self, header: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        reserve(&self.file, self.bytes())?;
        self.file.write_all_at(header, 0)
    }

    /// Finds the blocks of rows that are good and goes on after the last row that lies in them.
    fn take_up(&mut self) -> io::Result<()> {
        let blocks = self.layout.rows.end / BLOCK;
        let mut stored = vec![0_u32; blocks];
        self.read_at(self.layout.checksums.start + 4, bytemuck::cast_slice_mut(&mut stored))?;
        // In groups, so that a file that is mostly empty is not read to its end.
        let mut good: Vec<u32> = Vec::new();
        for group in stored.chunks(64) {
            let found = (0..group.len()).into_par_iter().map_init(
                || vec![0; BLOCK],
                |block, i| {
                    self.read_at((good.len() + i) * BLOCK, block)?;
                    Ok::<_, io::Error>(crc32fast::hash(block))
                },
            );
            let found = found.collect::<io::Result<Vec<u32>>>()?;
            let same = found.iter().zip(group).take_while(|(found, stored)| found == stored).count();
            good.extend_from_slice(&found[..same]);
            if same < group.len() {
                break;
            }
        }
        let rows = self.good_scales(good.len() * BLOCK / self.stride)?;
        self.at = rows * self.stride;
        good.truncate(self.at / BLOCK);
        let mut begun = vec![0; self.at % BLOCK];
        self.read_at(good.len() * BLOCK, &mut begun)?;
        self.recorded = good.len();
        self.checksums = BlockChecksums::after(good);
        self.checksums.update(&begun);
        Ok(())
    }

    /// How many of the first `rows` rows have a scale, as far as they need one. Scales are written before checksums,
    /// but a crash of the machine may lose the one and keep the other.
    fn good_scales(&self, rows: usize) -> io::Result<usize> {
        if self.layout.scales.is_empty() {
            return Ok(rows);
        }
        let mut scales = vec![0_f32; BLOCK / 4];
        for from in (0..rows).step_by(scales.len()) {
            let some = &mut scales[..(BLOCK / 4).min(rows - from)];
            self.read_at(self.layout.scales.start + from * 4, bytemuck::cast_slice_mut(some))?;
            if let Some(bad) = some.iter().position(|&scale| !(scale.is_finite() && scale > 0.0)) {
                return Ok(from + bad);
            }
        }
        Ok(rows)
    }

    /// Adds the next rows as they lie in the file, and their scales where they have any.
    pub(super) fn push(&mut self, rows: &[u8], scales: &[f32]) -> io::Result<()> {
        if !scales.is_empty() {
            let at = self.layout.scales.start + self.at / self.stride * 4;
            self.write_at(bytemuck::cast_slice(scales), at)?;
        }
        self.put(rows)
    }

    /// Adds bytes after those that are there.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksums.update(bytes);
        self.buffer.extend_from_slice(bytes);
        self.at += bytes.len();
        if self.buffer.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Adds the scales, which are in the file already.
    pub(super) fn put_scales(&mut self) -> io::Result<()> {
        let mut bytes = vec![0; BLOCK];
        for from in self.layout.scales.clone().step_by(BLOCK) {
            let some = BLOCK.min(self.layout.scales.end - from);
            self.read_at(from, &mut bytes[..some])?;
            self.put(&bytes[..some])?;
        }
        Ok(())
    }

    /// Writes what is buffered, then the checksums of the blocks of rows that are complete with it.
    fn flush(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.write_at(&buffer, self.at - buffer.len())?;
        self.buffer = buffer;
        self.buffer.clear();
        let done = self.checksums.done();
        let rows = done.len().min(self.layout.rows.end / BLOCK);
        if rows > self.recorded {
            let new = bytemuck::cast_slice(&done[self.recorded..rows]).to_vec();
            self.write_at(&new, self.layout.checksums.start + 4 * (1 + self.recorded))?;
            self.recorded = rows;
        }
        Ok(())
    }

    /// Writes all checksums, makes the file durable and gives it its name.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let checksums = std::mem::replace(&mut self.checksums, BlockChecksums::new());
        let mut all = vec![self.header_checksum];
        all.extend(checksums.finish());
        all.push(crc32fast::hash(bytemuck::cast_slice(&all)));
        self.write_at(bytemuck::cast_slice(&all), self.layout.checksums.start)?;
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        self.finished = true;
        File::open(crate::new_file::directory(&self.path))?.sync_all()
    }

    fn read_at(&self, at: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, (self.start + at) as u64)
    }

    fn write_at(&mut self, bytes: &[u8], at: usize) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed"));
        }
        let result = self.file.write_all_at(bytes, (self.start + at) as u64);
        self.failed = result.is_err();
        result
    }
}

impl Drop for Partial {
    /// A file without progress is of no use to anybody.
    fn drop(&mut self) {
        if self.recorded == 0 && !self.finished {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Takes the lock that keeps two writers apart.
fn lock(file: &File, partial: &Path) -> io::Result<()> {
    let taken = match file.try_lock() {
        Err(TryLockError::WouldBlock) => true,
        // A file system without locks leaves it to the user to start one writer only.
        Err(TryLockError::Error(_)) => false,
        // The other may have finished, and renamed the file, while we came to the lock.
        Ok(()) => fs::metadata(partial)?.ino() != file.metadata()?.ino(),
    };
    match taken {
        false => Ok(()),
        true => Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it")),
    }
}

/// Takes the space for the whole file, so that a full disk is known before anything is computed.
fn reserve(file: &File, bytes: usize) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the descriptor is open for as long as `file` is borrowed; nothing else is passed but numbers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
            return Err(error);
        }
    }
    file.set_len(bytes as u64)
}
