use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use memmap2::MmapMut;

use super::reads::{Arrived, Extent, Source, cut_short};

/// More threads than this wait for each other rather than for the disk.
const MOST_THREADS: usize = 64;

/// Reads by threads that each read and wait. Cheap to clone: the threads are shared.
#[derive(Clone, Debug)]
pub(super) struct Threads {
    pool: Arc<Pool>,
    source: Source,
    /// Memory to read into, given to the threads and given back. Mapped, because that is aligned to a page.
    buffers: Arc<Mutex<Vec<MmapMut>>>,
}

#[derive(Debug)]
struct Pool {
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

#[derive(Debug)]
struct Job {
    extent: usize,
    offset: u64,
    len: usize,
    buffer: MmapMut,
    done: Sender<Done>,
}

struct Done {
    extent: usize,
    buffer: MmapMut,
    result: io::Result<()>,
}

impl Threads {
    pub(super) fn start(source: &Source) -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let pool = Arc::new(Pool { queue: Arc::clone(&queue) });
        for _ in 0..source.depth.min(MOST_THREADS) {
            let (queue, source) = (Arc::clone(&queue), source.clone());
            thread::Builder::new().name("rows".into()).spawn(move || work(&queue, &source))?;
        }
        Ok(Self { pool, source: source.clone(), buffers: Arc::default() })
    }

    pub(super) fn read(&mut self, extents: &[Extent], arrived: Arrived<'_>) -> io::Result<()> {
        let (done, results) = channel();
        let mut result = Ok(());
        let (mut next, mut under_way) = (0, 0);
        loop {
            while result.is_ok() && next < extents.len() && under_way < self.source.depth {
                match self.buffer() {
                    Ok(buffer) => {
                        let Extent { offset, len, .. } = extents[next];
                        self.pool.queue.push(Job { extent: next, offset, len, buffer, done: done.clone() });
                        (next, under_way) = (next + 1, under_way + 1);
                    }
                    Err(error) => result = Err(error),
                }
            }
            if under_way == 0 {
                return result;
            }
            let Done { extent, buffer, result: one } = receive(&results)?;
            under_way -= 1;
            match one {
                Ok(()) if result.is_ok() => arrived(extent, &buffer[..extents[extent].len]),
                Ok(()) => {}
                Err(error) => result = Err(error),
            }
            self.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }

    fn buffer(&self) -> io::Result<MmapMut> {
        let kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.map_or_else(|| MmapMut::map_anon(self.source.longest), Ok)
    }
}

fn receive(results: &Receiver<Done>) -> io::Result<Done> {
    results.recv().map_err(|_| io::Error::other("the threads that read rows have ended"))
}

impl Queue {
    fn push(&self, job: Job) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).jobs.push_back(job);
        self.changed.notify_one();
    }

    /// The next job; None once there will be no more.
    fn pop(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.queue.changed.notify_all();
    }
}

fn work(queue: &Queue, source: &Source) {
    while let Some(Job { extent, offset, len, mut buffer, done }) = queue.pop() {
        let result = read_all(source, &mut buffer[..len], offset);
        // Nobody waits any more after another read of the batch has failed.
        let _ = done.send(Done { extent, buffer, result });
    }
}

fn read_all(source: &Source, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match source.file.read_at(&mut buffer[at..], offset + at as u64) {
            // Less than a block: the file ends within it.
            Ok(got) if got < source.align.min(buffer.len() - at) => return Err(cut_short()),
            Ok(got) => at += if at + got < buffer.len() { got - got % source.align } else { got },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
