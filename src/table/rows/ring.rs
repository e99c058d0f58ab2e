use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};
use memmap2::MmapMut;

use super::reads::{Arrived, Extent, Source, cut_short};

/// Reads through io_uring: one thread asks for many and takes them as they come.
pub(super) struct Ring {
    ring: IoUring,
    source: Source,
    /// A place of `source.longest` bytes for each read under way.
    memory: ManuallyDrop<MmapMut>,
    reads: Vec<Read>,
    free: Vec<usize>,
}

/// A read under way.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    extent: usize,
    offset: u64,
    len: usize,
    got: usize,
}

impl Ring {
    /// # Errors
    /// Where the system has no io_uring, or forbids it, as many containers do.
    pub(super) fn start(source: &Source) -> io::Result<Self> {
        let depth = source.depth.min(4096);
        // What completes is looked at when we ask, and need not interrupt us before; older kernels do not know that.
        let ring = IoUring::builder().setup_coop_taskrun().build(depth as u32);
        let ring = ring.or_else(|_| IoUring::new(depth as u32))?;
        let memory = ManuallyDrop::new(MmapMut::map_anon(depth * source.longest)?);
        let reads = vec![Read::default(); depth];
        Ok(Self { ring, source: source.clone(), memory, reads, free: (0..depth).collect() })
    }

    pub(super) fn read(&mut self, extents: &[Extent], arrived: Arrived<'_>) -> io::Result<()> {
        let mut result = Ok(());
        let mut next = 0;
        loop {
            while result.is_ok() && next < extents.len() {
                let Some(place) = self.free.pop() else { break };
                let Extent { offset, len, .. } = extents[next];
                self.reads[place] = Read { extent: next, offset, len, got: 0 };
                self.push(place);
                next += 1;
            }
            if self.free.len() == self.reads.len() {
                return result;
            }
            self.wait()?;
            while let Some((place, code)) = self.completed() {
                match self.take(place, code) {
                    Ok(true) => {
                        let read = self.reads[place];
                        if result.is_ok() {
                            arrived(read.extent, &self.memory[place * self.source.longest..][..read.len]);
                        }
                        self.free.push(place);
                    }
                    Ok(false) => self.push(place),
                    Err(error) => {
                        result = Err(error);
                        self.free.push(place);
                    }
                }
            }
        }
    }

    /// Asks for what is missing of a read.
    fn push(&mut self, place: usize) {
        let Read { offset, len, got, .. } = self.reads[place];
        let at = &mut self.memory[place * self.source.longest..][got..len];
        let file = types::Fd(self.source.file.as_raw_fd());
        let entry = opcode::Read::new(file, at.as_mut_ptr(), at.len() as u32)
            .offset(offset + got as u64)
            .build()
            .user_data(place as u64);
        // SAFETY: the file is open for as long as `source` holds it. The bytes are this place's alone until its completion
        // was taken; should that never come, `drop` gives the memory up without unmapping it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "there are as many entries as places");
    }

    /// Hands in what was pushed and waits until some of what is under way is done: as much as keeps the disk busy while
    /// it is taken, since to be woken for every read would cost more.
    fn wait(&mut self) -> io::Result<()> {
        let under_way = self.reads.len() - self.free.len();
        loop {
            let Err(error) = self.ring.submit_and_wait(under_way.div_ceil(4)) else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Too much is under way: something must be taken first.
                Some(libc::EAGAIN | libc::EBUSY) => {
                    if !self.ring.completion().is_empty() {
                        return Ok(());
                    }
                    std::thread::yield_now();
                }
                _ => return Err(error),
            }
        }
    }

    /// A read that is done: its place, and what the system says of it.
    fn completed(&mut self) -> Option<(usize, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data() as usize, entry.result()))
    }

    /// Whether a read is complete; an error if it cannot be.
    fn take(&mut self, place: usize, code: i32) -> io::Result<bool> {
        let read = &mut self.reads[place];
        match usize::try_from(code) {
            Ok(got) if got < self.source.align.min(read.len - read.got) => Err(cut_short()),
            Ok(got) if read.got + got >= read.len => Ok(true),
            Ok(got) => {
                read.got += got - got % self.source.align;
                Ok(false)
            }
            Err(_) if [libc::EINTR, libc::EAGAIN].contains(&-code) => Ok(false),
            Err(_) => Err(io::Error::from_raw_os_error(-code)),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // After a panic or an error of the ring itself the system may still write there, so nobody else may ever have
        // that memory.
        if self.free.len() == self.reads.len() {
            // SAFETY: it is not used afterwards, and no read is under way.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("source", &self.source).finish_non_exhaustive()
    }
}
