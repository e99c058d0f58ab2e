use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// A cache line of a packed weight.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// Size of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes that are asked of the system at a time.
const CHUNK: usize = 64 << 20;

/// Zeroed lines for a weight.
///
/// All weights are read from beginning to end in every step, which is a fifth faster from huge pages. Most weights are
/// smaller than one, so they lie side by side in large chunks of memory; a chunk is given back when none of its weights
/// is left.
pub(super) struct Lines {
    start: NonNull<Line>,
    len: usize,
    /// Keeps the memory.
    _chunk: Arc<MmapMut>,
}

/// A chunk of which some is left.
struct Room {
    chunk: Arc<MmapMut>,
    free: NonNull<Line>,
    lines: usize,
}

// SAFETY: the pointer is to memory of the chunk that nothing else refers to, which may move between threads.
unsafe impl Send for Room {}

static ROOM: Mutex<Option<Room>> = Mutex::new(None);

impl Lines {
    /// Room for `len` lines.
    pub(super) fn new(len: usize) -> Result<Self, String> {
        let mut room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
        if room.as_ref().is_none_or(|room| room.lines < len) {
            *room = Some(Room::new(len)?);
        }
        let Some(room) = room.as_mut() else { return Err("no room for a weight".into()) };
        let start = room.free;
        // SAFETY: so many lines are left in the chunk.
        room.free = unsafe { start.add(len) };
        room.lines -= len;
        Ok(Self { start, len, _chunk: Arc::clone(&room.chunk) })
    }
}

impl Room {
    fn new(lines: usize) -> Result<Self, String> {
        let bytes = lines.checked_mul(64).and_then(|bytes| bytes.max(CHUNK).checked_add(HUGE));
        let bytes = bytes.ok_or("a weight larger than memory")?;
        let mut chunk = MmapMut::map_anon(bytes)
            .map_err(|error| format!("no memory for weights of {} MiB: {error}", bytes >> 20))?;
        #[cfg(target_os = "linux")]
        if let Err(error) = chunk.advise(memmap2::Advice::HugePage) {
            tracing::debug!("no huge pages for weights: {error}");
        }
        let skipped = chunk.as_ptr().align_offset(HUGE).min(HUGE);
        let lines: &mut [Line] = bytemuck::cast_slice_mut(&mut chunk[skipped..]);
        let lines = NonNull::from(lines);
        Ok(Self { chunk: Arc::new(chunk), free: lines.cast(), lines: lines.len() })
    }
}

// SAFETY: these lines belong to this value alone, as those of a `Vec` do.
unsafe impl Send for Lines {}
// SAFETY: shared, they are only read.
unsafe impl Sync for Lines {}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `new` took these lines off the chunk's room, so no other value has them; the chunk is kept.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as for `deref`, and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Zeroed numbers in memory of their own, of huge pages where the system has them: page by page taken when it is first
/// written.
pub(super) struct Pages<T> {
    map: MmapMut,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// Room for `len` numbers.
    pub(super) fn new(len: usize) -> Result<Self, String> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or("more than memory can hold")?;
        let map = MmapMut::map_anon(bytes.max(1))
            .map_err(|error| format!("no memory for {} MiB: {error}", bytes >> 20))?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!("no huge pages: {error}");
        }
        Ok(Self { map, len, numbers: PhantomData })
    }

    /// Takes all of the memory now.
    pub(super) fn populate(&self) -> Result<(), String> {
        #[cfg(target_os = "linux")]
        if let Err(error) = self.map.advise(memmap2::Advice::PopulateWrite) {
            let bytes = self.map.len() >> 20;
            return match error.raw_os_error() {
                // A kernel before 5.14: the memory is then taken as it is used.
                Some(libc::EINVAL) => Ok(()),
                _ => Err(format!("no memory for {bytes} MiB: {error}")),
            };
        }
        Ok(())
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.len * size_of::<T>()])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_zero_and_apart_whatever_their_number() {
        let lens = [0, 1, 1000, HUGE / 64 - 1, HUGE / 64, CHUNK / 64, 3, CHUNK / 64 + HUGE / 64 + 1, 5, 0];
        let mut all = lens.map(|len| Lines::new(len).unwrap());
        for (i, (lines, len)) in all.iter_mut().zip(lens).enumerate() {
            assert_eq!(lines.len(), len);
            assert!((lines.as_ptr() as usize).is_multiple_of(64));
            assert!(lines.iter().all(|line| line.0 == [0; 64]));
            lines.iter_mut().for_each(|line| line.0 = [i as u8; 64]);
        }
        let (kept, dropped): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
        drop(dropped);
        for (i, lines) in kept {
            assert!(lines.iter().all(|line| line.0 == [i as u8; 64]));
        }
        assert!(Lines::new(usize::MAX / 8).is_err());
    }
}
