use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread without work looks for some before it sleeps. A step of a model is hundreds of short runs, and
/// waking a thread takes longer than most of them.
const AWAKE: Duration = Duration::from_micros(100);

/// More could not be counted at the [`Door`].
const MOST_THREADS: usize = 1024;

/// Looks for work between two looks at the clock.
const SPINS: usize = 64;

/// Threads that wait to share work: fork and join in about a microsecond, where they are awake.
///
/// A run never waits for a thread that has not come: tasks are taken one by one, by the caller too, and only threads
/// that took one are waited for. So on a busy machine a run is slower, but never stuck behind a thread that sleeps.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by who runs: one at a time.
    running: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    /// What there is to do, and who does it: see [`Door`].
    door: AtomicUsize,
    job: Mutex<Option<Job>>,
    sleep: Mutex<Sleep>,
    wake: Condvar,
    /// As many as sleep or are about to.
    sleeping: AtomicUsize,
}

#[derive(Debug, Default)]
struct Sleep {
    is_closing: bool,
}

/// The state of the pool in a word: whether work may be joined, how many have joined it, and which it is. A thread can
/// then never join work that was closed, nor the next in place of the one it saw.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Door(usize);

impl Door {
    const OPEN: usize = 1;
    const ONE: usize = 2;
    const NUMBER: usize = 1 << 16;

    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn joined(self) -> usize {
        self.0 % Self::NUMBER / Self::ONE
    }

    fn number(self) -> usize {
        self.0 / Self::NUMBER
    }

    /// The next work, open to all.
    fn next(self) -> Self {
        Self(self.number().wrapping_add(1).wrapping_mul(Self::NUMBER) | Self::OPEN)
    }
}

/// Tasks that are being shared. The pointer is good while the door is open or anyone is inside.
#[derive(Clone, Copy)]
struct Job(*const Run<'static>);

// SAFETY: what it points to is `Sync`: atomics, a mutex, and work that is `Sync` itself.
unsafe impl Send for Job {}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

struct Run<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Run<'_> {
    /// Takes tasks until there are none.
    fn take_part(&self) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= self.tasks {
                    break;
                }
                (self.work)(task);
            }
        }));
        if let Err(panic) = result {
            // Nobody needs the rest any more.
            self.next.store(self.tasks, Ordering::Relaxed);
            *lock(&self.panic) = Some(panic);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of so many threads, the caller of [`Pool::run`] among them.
    ///
    /// # Errors
    /// Where the system gives no thread, or more than 1024 are asked for.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        if threads > MOST_THREADS {
            return Err(std::io::Error::other(format!(
                "{threads} threads are too many: {MOST_THREADS} at most"
            )));
        }
        let shared = Arc::new(Shared {
            door: AtomicUsize::new(0),
            job: Mutex::new(None),
            sleep: Mutex::default(),
            wake: Condvar::new(),
            sleeping: AtomicUsize::new(0),
        });
        let mut pool = Self { shared, workers: Vec::new(), running: Mutex::new(()) };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name(format!("compute-{i}"));
            pool.workers.push(thread.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Does `work(0)` to `work(tasks - 1)`, in any order and side by side, and returns when all are done. Work that
    /// runs something itself, or two callers at a time, get no more threads: the second does its work alone.
    ///
    /// # Panics
    /// With the panic of a task; the other threads are out of the work by then.
    pub fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let alone = match self.running.try_lock() {
            _ if tasks <= 1 || self.workers.is_empty() => None,
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if alone.is_none() {
            return (0..tasks).for_each(work);
        }
        let run = Run { work, tasks, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        self.shared.open(&run);
        run.take_part();
        self.shared.close();
        drop(alone);
        let panic = lock(&run.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    fn open(&self, run: &Run<'_>) {
        // The lifetime ends with `close`, which every `open` is followed by: nothing between them can unwind.
        *lock(&self.job) = Some(Job(std::ptr::from_ref(run).cast()));
        let door = Door(self.door.load(Ordering::Relaxed));
        self.door.store(door.next().0, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            // Under the lock, so that who is about to sleep has either seen the open door or is woken.
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }

    /// Lets nobody in any more and waits until all are out.
    fn close(&self) {
        let mut door = Door(self.door.fetch_and(!Door::OPEN, Ordering::AcqRel));
        let mut spins = 0usize;
        while door.joined() > 0 {
            spins += 1;
            // Its thread may have lost the processor in the middle of a task, to one that waits for this one.
            if spins.is_multiple_of(1024) {
                thread::yield_now();
            } else {
                spin_loop();
            }
            door = Door(self.door.load(Ordering::Acquire));
        }
        *lock(&self.job) = None;
    }

    /// Joins the work behind an open door. None if it was closed in between.
    fn join(&self, seen: Door) -> Option<Job> {
        let mut door = seen;
        while door.is_open() && door.number() == seen.number() {
            let inside = door.0 + Door::ONE;
            match self.door.compare_exchange_weak(door.0, inside, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return *lock(&self.job),
                Err(now) => door = Door(now),
            }
        }
        None
    }

    /// What a worker does all its life.
    fn serve(&self) {
        let mut done = 0;
        while let Some(door) = self.wait(done) {
            done = door.number();
            if let Some(Job(run)) = self.join(door) {
                // SAFETY: `run` is on the stack of a caller that waits in `close` until all who joined have left, and
                // `join` has let this thread in while the door was still open.
                unsafe { &*run }.take_part();
                self.door.fetch_sub(Door::ONE, Ordering::AcqRel);
            }
        }
    }

    /// An open door that is not that of work `done`; None when the pool is given up.
    fn wait(&self, done: usize) -> Option<Door> {
        let is_new = |door: Door| door.is_open() && door.number() != done;
        let start = Instant::now();
        loop {
            for _ in 0..SPINS {
                let door = Door(self.door.load(Ordering::Acquire));
                if is_new(door) {
                    return Some(door);
                }
                spin_loop();
            }
            if start.elapsed() > AWAKE {
                break;
            }
        }
        let mut sleep = lock(&self.sleep);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let door = loop {
            let door = Door(self.door.load(Ordering::SeqCst));
            if sleep.is_closing {
                break None;
            }
            if is_new(door) {
                break Some(door);
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        door
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.sleep).is_closing = true;
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // Tasks' panics are handed to their callers; a worker has none of its own.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn every_task_is_done_once_whatever_the_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000usize {
                let tasks = round % 37;
                let done: Vec<AtomicU64> = (0..tasks).map(|_| AtomicU64::new(0)).collect();
                pool.run(tasks, &|task| {
                    done[task].fetch_add(1 + task as u64, Ordering::Relaxed);
                });
                for (task, done) in done.into_iter().enumerate() {
                    assert_eq!(done.into_inner(), 1 + task as u64, "{threads} threads, round {round}");
                }
                if round % 500 == 0 {
                    thread::sleep(3 * AWAKE);
                }
            }
        }
    }

    #[test]
    fn runs_within_runs_and_beside_each_other_are_done() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicU64::new(0);
        let work = || {
            pool.run(10, &|i| {
                pool.run(10, &|j| {
                    sum.fetch_add((i * j) as u64, Ordering::Relaxed);
                });
            });
        };
        thread::scope(|scope| (0..4).for_each(|_| _ = scope.spawn(work)));
        assert_eq!(sum.into_inner(), 4 * 45 * 45);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in [0, 5, 99] {
            let run = || pool.run(100, &|task| assert_ne!(task, bad, "not this one"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().contains("not this one"));
        }
        let count = AtomicU64::new(0);
        pool.run(50, &|_| _ = count.fetch_add(1, Ordering::Relaxed));
        assert_eq!(count.into_inner(), 50);
    }
}
