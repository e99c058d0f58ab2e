//! A GPU for tests: the kernels' own sources, compiled for the CPU and run thread by thread, and matrix products one sum at
//! a time. Memory is the host's.

mod library;

use std::cell::Cell;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};

use super::{Buffer, Gemm, Gpu, GpuError, Launch, Locked, Memory, Operand, Recorded, Slice, Staging, Type};
use library::Library;

thread_local! {
    /// The most that one piece of its memory can have.
    static MEMORY: Cell<usize> = const { Cell::new(1 << 30) };
}

/// Does something where a piece of memory has no more than so many bytes.
pub(crate) fn with_memory<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = MEMORY.replace(bytes);
    let result = work();
    MEMORY.set(before);
    result
}

/// Runs kernels on the CPU.
pub(crate) struct Emulator {
    library: &'static Library,
    /// Whether the last thread of a block runs first: no result may depend on it.
    backwards: bool,
    /// What is being recorded, if anything is.
    recording: Arc<Mutex<Option<Vec<Work>>>>,
    /// What is copied beside the queue: from where, to where, and how many bytes.
    beside: Mutex<Vec<(u64, u64, usize)>>,
    shared_memory: usize,
}

/// Shared memory of a block on an H100, and on a GPU of the same time for players.
const LARGE: usize = 227 * 1024;
const SMALL: usize = 99 * 1024;

/// Something that was asked for.
#[derive(Clone)]
enum Work {
    Launch { kernel: String, grid: [u32; 3], block: u32, shared: u32, arguments: Vec<u64> },
    Gemm(Gemm<'static>),
}

struct Recording {
    gpu: Emulator,
    work: Vec<Work>,
}

impl Recorded for Recording {
    unsafe fn replay(&self) -> Result<(), GpuError> {
        self.work.iter().try_for_each(|work| self.gpu.run(work))
    }
}

impl Emulator {
    /// With a block's threads in this order.
    pub(crate) fn new(backwards: bool) -> Self {
        // The one for players is that whose threads run backwards.
        let shared_memory = if backwards { SMALL } else { LARGE };
        let (recording, beside) = (Arc::default(), Mutex::default());
        Self { library: Library::get(), backwards, recording, beside, shared_memory }
    }

    /// Does it, or notes it.
    fn ask(&self, work: Work) -> Result<(), GpuError> {
        match &mut *self.recording.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(recording) => {
                recording.push(work);
                Ok(())
            }
            None => self.run(&work),
        }
    }

    fn run(&self, work: &Work) -> Result<(), GpuError> {
        match work {
            Work::Launch { kernel, grid, block, shared, arguments } => {
                let (grid, block, shared) = (*grid, *block, *shared);
                let launch = Launch { kernel, grid, block, shared, arguments };
                let failed = |why| GpuError::Failed { what: kernel.clone(), why };
                self.library.launch(&launch, self.backwards).map_err(failed)
            }
            Work::Gemm(gemm) => {
                multiply(gemm);
                Ok(())
            }
        }
    }
}

/// Aligned as a GPU's memory is, and full of NaNs at first.
struct Host(Vec<u128>);

impl Memory for Host {
    fn address(&self) -> u64 {
        self.0.as_ptr().addr() as u64
    }
}

impl Gpu for Emulator {
    fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    /// As if nobody had any.
    fn memory(&self) -> Result<[u64; 2], GpuError> {
        Ok([MEMORY.get() as u64; 2])
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer, GpuError> {
        if bytes > MEMORY.get() {
            return Err(GpuError::Memory { what: "a step".to_owned(), bytes });
        }
        Ok(Buffer::new(Box::new(Host(vec![u128::MAX; bytes.div_ceil(16).max(1)])), bytes))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), GpuError> {
        let &Launch { grid, block, shared, .. } = launch;
        let (kernel, arguments) = (launch.kernel.to_owned(), launch.arguments.to_vec());
        self.ask(Work::Launch { kernel, grid, block, shared, arguments })
    }

    unsafe fn gemm(&self, gemm: &Gemm<'_>) -> Result<(), GpuError> {
        // SAFETY: a recording may outlive the slices, and who replays it answers for their memory.
        self.ask(Work::Gemm(unsafe { std::mem::transmute::<Gemm<'_>, Gemm<'static>>(*gemm) }))
    }

    fn staging(&self, bytes: usize) -> Result<Staging, GpuError> {
        Ok(Box::new(Staged { memory: vec![u128::MAX; bytes.div_ceil(16).max(1)], bytes }))
    }

    fn upload_staged(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError> {
        self.upload(from, to)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Box<dyn Recorded>, GpuError> {
        *self.recording.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
        let result = work();
        let work = self.recording.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        result?;
        let gpu = Self::new(self.backwards);
        Ok(Box::new(Recording { gpu, work }))
    }

    fn zero(&self, to: Slice<'_>) -> Result<(), GpuError> {
        // SAFETY: the slice is host memory that lives, and no Rust reference to it does.
        unsafe { slice::from_raw_parts_mut(to.at() as *mut u8, to.bytes()) }.fill(0);
        Ok(())
    }

    fn upload(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError> {
        if from.len() != to.bytes() {
            return Err(GpuError::operands("upload", format!("{} bytes into {}", from.len(), to.bytes())));
        }
        // SAFETY: as in `zero`.
        unsafe { slice::from_raw_parts_mut(to.at() as *mut u8, to.bytes()) }.copy_from_slice(from);
        Ok(())
    }

    /// At the last moment: nothing may depend on its being earlier.
    fn upload_beside(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError> {
        if from.len() != to.bytes() {
            return self.upload(from, to);
        }
        let copy = (from.as_ptr() as u64, to.at(), from.len());
        self.beside.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        Ok(())
    }

    fn join(&self) -> Result<(), GpuError> {
        for (from, to, len) in self.beside.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: both live until they are joined, as the trait asks, and no reference to either does.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len) };
        }
        Ok(())
    }

    fn wait(&self) -> Result<(), GpuError> {
        Ok(())
    }

    fn download(&self, from: Slice<'_>, to: &mut [u8]) -> Result<(), GpuError> {
        if to.len() != from.bytes() {
            return Err(GpuError::operands("download", format!("{} bytes into {}", from.bytes(), to.len())));
        }
        // SAFETY: the slice is host memory that lives.
        to.copy_from_slice(unsafe { slice::from_raw_parts(from.at() as *const u8, from.bytes()) });
        Ok(())
    }
}

/// Staging memory, aligned as a GPU's driver has it.
struct Staged {
    memory: Vec<u128>,
    bytes: usize,
}

impl Locked for Staged {
    fn bytes(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.memory)[..self.bytes]
    }

    fn address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }
}

/// A product, one sum at a time.
fn multiply(gemm: &Gemm<'_>) {
    let [m, n, k] = gemm.sizes;
    for row in 0..m {
        for column in 0..n {
            let mut sum = if gemm.adds { get(gemm.c, row, column) } else { 0.0 };
            for i in 0..k {
                sum += get(gemm.a, row, i) * get(gemm.b, i, column);
            }
            put(gemm.c, row, column, sum);
        }
    }
}

fn place(operand: Operand<'_>, row: usize, column: usize) -> usize {
    let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
    let at = row * operand.row + column;
    assert!(at < operand.data.len(), "a product reads beyond its operand");
    at
}

fn get(operand: Operand<'_>, row: usize, column: usize) -> f32 {
    let (at, from) = (place(operand, row, column), operand.data.at());
    // SAFETY: the place was checked, and the memory lives.
    unsafe {
        match operand.data.kind() {
            Type::F32 => (from as *const f32).add(at).read(),
            Type::F16 => (from as *const f16).add(at).read().to_f32(),
            _ => (from as *const bf16).add(at).read().to_f32(),
        }
    }
}

fn put(operand: Operand<'_>, row: usize, column: usize, x: f32) {
    let (at, to) = (place(operand, row, column), operand.data.at());
    // SAFETY: the place was checked, and the memory lives.
    unsafe {
        match operand.data.kind() {
            Type::F32 => (to as *mut f32).add(at).write(x),
            Type::F16 => (to as *mut f16).add(at).write(f16::from_f32(x)),
            _ => (to as *mut bf16).add(at).write(bf16::from_f32(x)),
        }
    }
}
