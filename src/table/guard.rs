//! Keeps the process alive when a mapped file turns out to be shorter than its mapping.
//!
//! Reading a mapped page that the file no longer has, or that the disk does not give, raises SIGBUS, which ends the
//! process. Here one handler for the whole process looks whether the address lies in a mapping of ours. If so it puts a
//! page of other bytes there and marks the mapping as broken: the read goes on, and whoever reads asks
//! [`GuardedMap::is_broken`] afterwards and throws away what was read. Any other fault goes where it went before.
//!
//! The bytes are ones, all of them: for an index an empty slot, which ends a search, where zeros would send it through
//! the whole table.

use std::ops::Deref;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};

use libc::{c_int, c_void, siginfo_t};
use memmap2::Mmap;

/// How many mappings can be guarded at a time; a server has one, and two while it reloads.
const REGIONS: usize = 1024;

/// Pages of one mapping that are replaced one by one; then all of it is given up at once. Each is a piece of its own to the
/// system, which allows a process some 65,000 and fails at anything when they are used up.
const PAGES: usize = 1000;

/// A mapping that the handler knows. A signal handler must not lock or allocate: so atomics, in a fixed place.
struct Region {
    is_taken: AtomicBool,
    /// The first address; 0 while the entry is not in use.
    base: AtomicUsize,
    len: AtomicUsize,
    is_broken: AtomicBool,
    /// Pages that were replaced.
    replaced: AtomicUsize,
}

static TABLE: [Region; REGIONS] = [const {
    Region {
        is_taken: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        is_broken: AtomicBool::new(false),
        replaced: AtomicUsize::new(0),
    }
}; REGIONS];

/// The system's page size, known before the handler is installed.
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// What was done on SIGBUS before us.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapped file whose loss is survived.
#[derive(Debug)]
pub(super) struct GuardedMap {
    // Declared, and so dropped, before the mapping: an address that is no longer ours must not be in the list.
    entry: Option<Entry>,
    map: Mmap,
}

#[derive(Debug)]
struct Entry(usize);

impl GuardedMap {
    /// Guards `map`. Where that is impossible (the list is full, or the system refuses a handler) it says so in the log
    /// and the mapping works as one without a guard.
    pub(super) fn new(map: Mmap) -> Self {
        let entry = install().then(|| Entry::take(map.as_ptr() as usize, map.len())).flatten();
        if entry.is_none() {
            tracing::warn!(
                "a mapped table is not guarded: should its file be cut short, the process would end"
            );
        }
        Self { entry, map }
    }

    /// Whether something that was read from the mapping so far was not there: then something else was read in its
    /// place. It stays so.
    pub(super) fn is_broken(&self) -> bool {
        // The handler runs in the middle of this thread: what comes before must really have been read before.
        compiler_fence(Ordering::SeqCst);
        self.entry.as_ref().is_some_and(|entry| TABLE[entry.0].is_broken.load(Ordering::Acquire))
    }

    /// The mapping itself, to advise the system about it.
    pub(super) fn map(&self) -> &Mmap {
        &self.map
    }
}

impl Deref for GuardedMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Entry {
    fn take(base: usize, len: usize) -> Option<Self> {
        let is_free = |region: &Region| {
            region.is_taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let entry = TABLE.iter().position(is_free)?;
        TABLE[entry].is_broken.store(false, Ordering::Relaxed);
        TABLE[entry].replaced.store(0, Ordering::Relaxed);
        TABLE[entry].len.store(len, Ordering::Relaxed);
        TABLE[entry].base.store(base, Ordering::Release);
        Some(Self(entry))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        TABLE[self.0].base.store(0, Ordering::Relaxed);
        TABLE[self.0].is_taken.store(false, Ordering::Release);
    }
}

/// Installs the handler, once. Gives whether there is one.
fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: sysconf only looks up a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page @ 1..) = usize::try_from(page) else { return false };
        PAGE.store(page, Ordering::Relaxed);
        // SAFETY: a sigaction is plain data, for which zeros are valid; both calls are given one to read or to fill.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) != 0 {
                return false;
            }
            // Before ours is installed, since it may be needed at once.
            BEFORE.get_or_init(|| before);
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_fault as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) == 0
        }
    })
}

/// The handler. All it does is async-signal-safe: atomics, mmap, sigaction.
extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes a valid siginfo_t, and for a SIGBUS of the kernel's own (a positive code) it has an address.
    let address = unsafe { if (*info).si_code > 0 { (*info).si_addr() as usize } else { 0 } };
    if address == 0 || !replace(address) {
        pass_on(signal, info, context);
    }
}

/// Puts a page at an address in one of our mappings; false if it is in none.
fn replace(address: usize) -> bool {
    let mut ours = None;
    // To the end: should an entry change hands right now, one too many is marked rather than the wrong one alone.
    for region in &TABLE {
        let (base, len) = (region.base.load(Ordering::Acquire), region.len.load(Ordering::Relaxed));
        if base != 0 && address.wrapping_sub(base) < len {
            region.is_broken.store(true, Ordering::Release);
            ours = Some((base, len, region.replaced.fetch_add(1, Ordering::Relaxed)));
        }
    }
    let Some((base, len, replaced)) = ours else { return false };
    let page = PAGE.load(Ordering::Relaxed);
    let start = address & !(page - 1);
    if replaced >= PAGES || !put_memory(start, page) {
        return put_memory(base, len);
    }
    // SAFETY: `put_memory` has just put a page of memory there.
    unsafe { ptr::write_bytes(start as *mut u8, 0xff, page) };
    true
}

/// Puts memory, zeros at first, in the place of a part of one of our mappings.
fn put_memory(start: usize, len: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED;
    // SAFETY: all of it lies in a mapping that a `GuardedMap` owns, and that a reader, interrupted in the middle, keeps
    // alive; nothing but its bytes changes, which nobody trusts any more.
    unsafe { libc::mmap(start as *mut c_void, len, protection, flags, -1, 0) != libc::MAP_FAILED }
}

/// Does what would have been done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let handler =
        BEFORE.get().filter(|before| ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction));
    // SAFETY: the handler that was installed before us is called as the system would have called it, by its flags.
    // Otherwise the default is restored: the instruction faults again and the process ends as it should.
    unsafe {
        match handler {
            Some(before) if before.sa_flags & libc::SA_SIGINFO != 0 => {
                type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
                std::mem::transmute::<usize, Handler>(before.sa_sigaction)(signal, info, context);
            }
            Some(before) => {
                std::mem::transmute::<usize, extern "C" fn(c_int)>(before.sa_sigaction)(signal);
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    fn map(file: &File) -> GuardedMap {
        // SAFETY: cutting the file while it is mapped is what is tested.
        GuardedMap::new(unsafe { Mmap::map(file) }.unwrap())
    }

    #[test]
    fn a_page_that_is_gone_is_replaced_and_told() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 << 16).unwrap();
        let (one, other) = (map(&file), map(&tempfile_of(1 << 16)));
        assert!(!one.is_broken() && one.iter().all(|&byte| byte == 0) && !one.is_broken());
        file.set_len(1 << 16).unwrap();
        assert_eq!(one[(1 << 16) - 1], 0);
        assert!(!one.is_broken());
        let in_threads: Vec<_> = (1..5).map(|i| i << 16).collect();
        std::thread::scope(|scope| {
            for &at in &in_threads {
                let one = &one;
                scope.spawn(move || assert_eq!((one[at], one[at + 4095]), (0xff, 0xff)));
            }
        });
        assert!(one.is_broken() && !other.is_broken());
        assert_eq!((one[0], other[0]), (0, 0));
        drop(one);
        assert!(!map(&file).is_broken());
    }

    #[test]
    fn however_many_pages_are_gone() {
        let file = tempfile_of(200_000 << 12);
        let one = map(&file);
        file.set_len(4096).unwrap();
        // Every second page: no two lie together, so each is a piece of its own, and more than the system allows.
        let lost = (1..200_000).step_by(2).filter(|page| one[page << 12] != 1).count();
        assert!(one.is_broken() && lost == 100_000);
    }

    fn tempfile_of(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    /// A fault that is not ours still ends the process. It is this same test, run again by itself, that dies.
    #[test]
    fn other_faults_are_as_before() {
        const NAME: &str = "table::guard::tests::other_faults_are_as_before";
        const CHILD: &str = "SCONE_TEST_OTHER_FAULT";
        if std::env::var_os(CHILD).is_none() {
            let mut child = Command::new(std::env::current_exe().unwrap());
            let status = child.args(["--exact", NAME]).env(CHILD, "1").output().unwrap().status;
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGBUS));
            return;
        }
        let _guarded = map(&tempfile_of(1 << 16));
        let file = tempfile_of(1 << 16);
        // SAFETY: as above.
        let bare = unsafe { Mmap::map(&file) }.unwrap();
        file.set_len(0).unwrap();
        std::hint::black_box(bare[5]);
    }
}
