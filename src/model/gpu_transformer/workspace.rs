use super::{Plan, Shape};
use crate::gpu::{Buffer, Gpu, GpuError, Slice, Staging, Type, ops};

/// Where a step's numbers are; it grows to the largest step.
pub(super) struct Workspace {
    /// Numbers of the plan, and where they are put together.
    numbers: Buffer,
    staged_numbers: Staging,
    /// Rows of f-grams.
    fgrams: Buffer,
    staged_fgrams: Staging,
    /// How many of them the next step has.
    fgram_rows: usize,
    residual: Buffer,
    /// The wanted rows of the residual stream and of what is to be added to it.
    kept: Buffer,
    kept_change: Buffer,
    /// What a product has to add to the residual stream, in f32.
    pub(super) change: Buffer,
    /// The input of the next product.
    pub(super) x: Buffer,
    /// Queries, keys and values, or gate and up, of each row.
    pub(super) wide: Buffer,
    /// What attention gives.
    pub(super) mixed: Buffer,
    /// Parts of attention.
    pub(super) parts: Buffer,
    /// A weight that was packed.
    pub(super) unpacked: Buffer,
    pub(super) logits: Buffer,
    /// The token that was chosen of each row.
    pub(super) places: Buffer,
    /// Counts how often a buffer was exchanged for a larger one.
    generation: u64,
}

/// The parts of a workspace that a step uses.
pub(super) struct Parts<'a> {
    pub(super) sources: Slice<'a>,
    pub(super) positions: Slice<'a>,
    pub(super) slots: Slice<'a>,
    pub(super) queries: Slice<'a>,
    pub(super) tiles: Slice<'a>,
    pub(super) wanted: Slice<'a>,
    pub(super) draws: Slice<'a>,
    pub(super) pages: Slice<'a>,
    pub(super) residual: Slice<'a>,
    pub(super) kept: Slice<'a>,
    pub(super) kept_change: Slice<'a>,
    pub(super) rows: usize,
    pub(super) wanted_rows: usize,
    pub(super) chunks: usize,
}

impl Workspace {
    /// With room for unpacking the largest weight.
    pub(super) fn new(gpu: &dyn Gpu, unpacked: usize) -> Result<Self, GpuError> {
        let none = || gpu.alloc(0);
        Ok(Self {
            numbers: none()?,
            staged_numbers: gpu.staging(0)?,
            fgrams: none()?,
            staged_fgrams: gpu.staging(0)?,
            fgram_rows: 0,
            residual: none()?,
            kept: none()?,
            kept_change: none()?,
            change: none()?,
            x: none()?,
            wide: none()?,
            mixed: none()?,
            parts: none()?,
            unpacked: gpu.alloc(unpacked * Type::Bf16.bytes())?,
            logits: none()?,
            places: none()?,
            generation: 0,
        })
    }

    /// Which set of buffers this is.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Room on the host for rows of f-grams of the next step.
    pub(super) fn fgram_rows(
        &mut self,
        gpu: &dyn Gpu,
        rows: usize,
        d: usize,
    ) -> Result<&mut [f32], GpuError> {
        self.fgram_room(gpu, rows, d)?;
        let bytes = rows * d * Type::F32.bytes();
        if self.staged_fgrams.bytes().len() < bytes {
            self.staged_fgrams = gpu.staging(bytes)?;
        }
        self.fgram_rows = rows;
        if rows == 0 {
            return Ok(&mut []);
        }
        Ok(bytemuck::cast_slice_mut(&mut self.staged_fgrams.bytes()[..bytes]))
    }

    /// Room on the GPU for rows of f-grams of the next step.
    pub(super) fn fgram_room(&mut self, gpu: &dyn Gpu, rows: usize, d: usize) -> Result<Slice<'_>, GpuError> {
        // What was staged for a step that then failed is not for this one.
        self.fgram_rows = 0;
        room(gpu, &mut self.fgrams, rows * d * Type::F32.bytes(), &mut self.generation)?;
        self.fgrams.of(Type::F32).part(0, rows * d)
    }

    /// Makes room for a step.
    pub(super) fn prepare(&mut self, gpu: &dyn Gpu, plan: &Plan, shape: Shape) -> Result<(), GpuError> {
        let (rows, wanted, kind, d) = (plan.rows, plan.wanted, shape.kind.bytes(), shape.width);
        let wide = shape.qkv().max(2 * shape.feed_forward);
        let parts = plan.queries * shape.heads * plan.chunks * (2 + shape.head);
        let numbers = plan.numbers.len() * Type::U32.bytes();
        let generation = &mut self.generation;
        for (buffer, bytes) in [
            (&mut self.numbers, numbers),
            (&mut self.residual, rows * d * 4),
            (&mut self.kept, wanted * d * 4),
            (&mut self.kept_change, wanted * d * 4),
            (&mut self.change, rows * d * 4),
            (&mut self.x, rows * d.max(shape.feed_forward) * kind),
            (&mut self.wide, rows * wide * kind),
            (&mut self.mixed, rows * shape.queries() * kind),
            (&mut self.parts, parts * 4),
            (&mut self.logits, wanted * shape.vocabulary * 4),
            (&mut self.places, wanted * 4),
        ] {
            room(gpu, buffer, bytes, generation)?;
        }
        if self.staged_numbers.bytes().len() < numbers {
            self.staged_numbers = gpu.staging(numbers.next_power_of_two())?;
        }
        Ok(())
    }

    /// Brings what a step reads to the GPU.
    pub(super) fn upload(&mut self, gpu: &dyn Gpu, plan: &Plan, shape: Shape) -> Result<(), GpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(&plan.numbers);
        let staged = &mut self.staged_numbers.bytes()[..bytes.len()];
        staged.copy_from_slice(bytes);
        gpu.upload_staged(staged, self.numbers.of(Type::U32).part(0, plan.numbers.len())?)?;
        let count = std::mem::take(&mut self.fgram_rows) * shape.width;
        if count > 0 {
            let staged = &self.staged_fgrams.bytes()[..count * Type::F32.bytes()];
            gpu.upload_staged(staged, self.fgrams.of(Type::F32).part(0, count)?)?;
        }
        Ok(())
    }

    /// The rows of f-grams.
    pub(super) fn fgrams(&self) -> Slice<'_> {
        self.fgrams.of(Type::F32)
    }

    /// What a step uses of it.
    pub(super) fn parts(&self, plan: &Plan, shape: &Shape) -> Result<Parts<'_>, GpuError> {
        let (rows, wanted, d) = (plan.rows, plan.wanted, shape.width);
        let numbers = self.numbers.of(Type::U32);
        let mut from = 0;
        let mut next = |count: usize| {
            from += count;
            numbers.part(from - count, count)
        };
        Ok(Parts {
            sources: next(rows)?,
            positions: next(rows)?,
            slots: next(rows)?,
            queries: next(3 * plan.queries)?,
            tiles: next(4 * plan.tiles)?,
            wanted: next(wanted)?,
            draws: next(wanted * ops::Draw::NUMBERS)?,
            pages: next(plan.pages)?,
            residual: self.residual.of(Type::F32).part(0, rows * d)?,
            kept: self.kept.of(Type::F32).part(0, wanted * d)?,
            kept_change: self.kept_change.of(Type::F32).part(0, wanted * d)?,
            rows,
            wanted_rows: wanted,
            chunks: plan.chunks,
        })
    }
}

/// Exchanges a buffer that is too small for one of exactly so many bytes, or twice as many as before if that is more.
fn room(gpu: &dyn Gpu, buffer: &mut Buffer, bytes: usize, generation: &mut u64) -> Result<(), GpuError> {
    let there = buffer.of(Type::U8).len();
    if there < bytes {
        *buffer = gpu.alloc(bytes.max((2 * there).min(bytes + (64 << 20))))?;
        *generation += 1;
    }
    Ok(())
}

/// Positions of a chunk, as attention takes them: for the size of its parts.
const _: () = assert!(ops::CHUNK.is_multiple_of(16));
