//! NVIDIA GPUs, below the model: memory, matrix products, and our own kernels.
//!
//! The kernels are CUDA C++ in `kernels/`. With the feature `cuda` nvcc compiles them when the program is built, into one
//! PTX text that any GPU from compute capability 8.0 on takes; errors in them show where the program is built, and nothing
//! is compiled when it starts. `ops/` launches them: sizes and types of all operands are checked there.
//!
//! What a machine must offer is the trait [`Gpu`]. There are two: `cuda/`, and `emulator/`, which runs the same sources on a
//! CPU. So the tests hold every kernel, and the code that launches it, against its twin where no GPU is.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
pub(crate) mod emulator;
mod memory;
pub(crate) mod ops;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(feature = "cuda")]
pub(crate) use cuda::Cuda;
pub(crate) use memory::{Buffer, Locked, Memory, Slice, Staging, Type, grown};

/// What went wrong on a GPU.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GpuError {
    /// The driver or a library of NVIDIA's refused.
    #[error("{what}: {why}")]
    Failed {
        /// What was asked of it.
        what: String,
        /// What it said.
        why: String,
    },
    /// There is not so much memory left.
    #[error("the GPU has no {bytes} bytes left for {what}")]
    Memory {
        /// What it was for.
        what: String,
        /// How much was asked for.
        bytes: usize,
    },
    /// Operands that do not fit each other: a fault of the caller's.
    #[error("{op}: {why}")]
    Operands {
        /// What they were for.
        op: &'static str,
        /// How they differ.
        why: String,
    },
}

impl GpuError {
    pub(crate) fn operands(op: &'static str, why: impl Into<String>) -> Self {
        Self::Operands { op, why: why.into() }
    }
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    /// Its name in the sources.
    pub(crate) kernel: &'a str,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Bytes of shared memory, beyond what it declares.
    pub(crate) shared: u32,
    /// Its arguments in order, each in the lowest bytes of its number.
    pub(crate) arguments: &'a [u64],
}

/// One operand of a matrix product: row-major, rows `row` elements apart; `transposed` where its transpose is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    pub(crate) data: Slice<'a>,
    pub(crate) row: usize,
    pub(crate) transposed: bool,
}

/// `c[m, n] = a[m, k] * b[k, n]`, added to what is there where `adds`. Sums are in f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm<'a> {
    pub(crate) sizes: [usize; 3],
    pub(crate) a: Operand<'a>,
    pub(crate) b: Operand<'a>,
    pub(crate) c: Operand<'a>,
    pub(crate) adds: bool,
}

/// What was [recorded](Gpu::record).
pub(crate) trait Recorded: Send {
    /// Does it, in the memory that it was recorded with.
    ///
    /// # Safety
    /// That memory must still be there.
    ///
    /// # Errors
    /// Where the driver refuses.
    unsafe fn replay(&self) -> Result<(), GpuError>;
}

/// A GPU, or what stands for one: memory, and one queue in which everything happens in the order in which it was asked for, but for
/// what is [copied beside it](Gpu::upload_beside).
pub(crate) trait Gpu: Send + Sync {
    /// Bytes of shared memory that a block can have.
    fn shared_memory(&self) -> usize;

    /// Bytes of its memory that nobody has, and of all of it.
    ///
    /// # Errors
    /// Where the driver does not say.
    fn memory(&self) -> Result<[u64; 2], GpuError>;

    /// Memory of its own, of any contents.
    ///
    /// # Errors
    /// Where it has not so much left.
    fn alloc(&self, bytes: usize) -> Result<Buffer, GpuError>;

    /// Starts a kernel.
    ///
    /// # Safety
    /// The kernel must take these arguments, and stay inside of what they point to.
    ///
    /// # Errors
    /// Where the driver refuses.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), GpuError>;

    /// Starts a matrix product.
    ///
    /// # Safety
    /// The operands must be as large as the sizes say.
    ///
    /// # Errors
    /// Where the library refuses.
    unsafe fn gemm(&self, gemm: &Gemm<'_>) -> Result<(), GpuError>;

    /// Fills with zeros.
    ///
    /// # Errors
    /// Where the driver refuses.
    fn zero(&self, to: Slice<'_>) -> Result<(), GpuError>;

    /// Copies from the host; `from` may be changed afterwards.
    ///
    /// # Errors
    /// Where the driver refuses or the sizes differ.
    fn upload(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError>;

    /// Host memory that copies are made from without another copy between.
    ///
    /// # Errors
    /// Where there is not so much.
    fn staging(&self, bytes: usize) -> Result<Staging, GpuError>;

    /// Copies from the host; what was staged must stay as it is until something later was [waited](Gpu::wait) for or
    /// downloaded.
    ///
    /// # Errors
    /// Where the driver refuses or the sizes differ.
    fn upload_staged(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError>;

    /// Copies from the host beside the queue: without waiting for what was asked for, and with nothing waiting for it until
    /// [`Gpu::join`]. Where it goes must have been there when something was last waited for, and not be used by anything asked
    /// for since; what was staged must stay as it is until something after the [`Gpu::join`] was waited for.
    ///
    /// # Errors
    /// Where the driver refuses or the sizes differ.
    fn upload_beside(&self, from: &[u8], to: Slice<'_>) -> Result<(), GpuError>;

    /// What is asked for from now on waits for all that is copied beside the queue.
    ///
    /// # Errors
    /// Where the driver refuses.
    fn join(&self) -> Result<(), GpuError>;

    /// Notes what `work` asks for without doing it, so that it can be asked for again at once.
    ///
    /// # Errors
    /// Those of `work`, and where the driver refuses.
    fn record(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Box<dyn Recorded>, GpuError>;

    /// Returns when all that was asked for is done.
    ///
    /// # Errors
    /// Where anything of it has failed.
    fn wait(&self) -> Result<(), GpuError>;

    /// Copies to the host, when all before is done.
    ///
    /// # Errors
    /// Where the driver refuses or the sizes differ, and where anything before has failed.
    fn download(&self, from: Slice<'_>, to: &mut [u8]) -> Result<(), GpuError>;
}
