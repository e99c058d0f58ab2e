use crate::gpu::{Buffer, Gpu, GpuError, Slice, Staging, Type, grown};

/// Where numbers begin is a multiple of this, so that rows of f-grams do.
const ALIGNED: usize = 16;

/// What the host gives a step, in one piece of memory and so in one copy: the rows of its f-grams, and the numbers of its plan. The
/// rows end where the numbers begin, which is the same place in every step, so a recorded one finds both.
pub(super) struct Inbox {
    memory: Buffer,
    /// The same on the host.
    staged: Staging,
    /// Bytes before the numbers.
    numbers_at: usize,
    /// Bytes of rows that the next step has.
    rows: usize,
    /// Whether the host gives them.
    staged_rows: bool,
}

impl Inbox {
    /// An empty one.
    pub(super) fn new(gpu: &dyn Gpu) -> Result<Self, GpuError> {
        let (memory, staged) = (gpu.alloc(0)?, gpu.staging(0)?);
        Ok(Self { memory, staged, numbers_at: 0, rows: 0, staged_rows: false })
    }

    /// Makes room for so many bytes of rows and numbers; counts in `generation` if what was recorded no longer finds them.
    pub(super) fn prepare(
        &mut self,
        gpu: &dyn Gpu,
        rows: usize,
        numbers: usize,
        generation: &mut u64,
    ) -> Result<(), GpuError> {
        let after = self.memory.of(Type::U8).len() - self.numbers_at;
        if rows > self.numbers_at || numbers > after {
            // At least what there was of either, so that the steps of a while settle on one size.
            let numbers_at = grown(self.numbers_at, rows).next_multiple_of(ALIGNED);
            let bytes = numbers_at + grown(after, numbers);
            // All three at once: none fits another size.
            let (memory, staged) = (gpu.alloc(bytes)?, gpu.staging(bytes)?);
            (self.memory, self.staged, self.numbers_at) = (memory, staged, numbers_at);
            *generation += 1;
        }
        (self.rows, self.staged_rows) = (rows, false);
        Ok(())
    }

    /// The next step's rows on the host, to be filled.
    pub(super) fn staged_rows(&mut self) -> &mut [f32] {
        self.staged_rows = true;
        if self.rows == 0 {
            return &mut [];
        }
        bytemuck::cast_slice_mut(&mut self.staged.bytes()[self.numbers_at - self.rows..self.numbers_at])
    }

    /// Copies the numbers, and the rows where the host gives them.
    pub(super) fn send(&mut self, gpu: &dyn Gpu, numbers: &[u32]) -> Result<(), GpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(numbers);
        let from = self.numbers_at - if self.staged_rows { self.rows } else { 0 };
        let end = self.numbers_at + bytes.len();
        let staged = self.staged.bytes();
        staged[self.numbers_at..end].copy_from_slice(bytes);
        gpu.upload_staged(&staged[from..end], self.memory.of(Type::U8).part(from, end - from)?)
    }

    /// The numbers on the GPU, and whatever is behind them.
    pub(super) fn numbers(&self) -> Result<Slice<'_>, GpuError> {
        let (all, at) = (self.memory.of(Type::U32), self.numbers_at / Type::U32.bytes());
        all.part(at, all.len() - at)
    }

    /// Room for rows of f-grams on the GPU: those of the next step are the last.
    pub(super) fn rows(&self) -> Result<Slice<'_>, GpuError> {
        self.memory.of(Type::F32).part(0, self.numbers_at / Type::F32.bytes())
    }
}
