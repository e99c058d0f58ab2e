use super::inbox::Inbox;
use super::{Plan, Shape};
use crate::gpu::{Buffer, Gpu, GpuError, Slice, Type, grown, ops};

/// Where a step's numbers are; it grows to the largest step.
pub(super) struct Workspace {
    /// What the host gives.
    pub(super) inbox: Inbox,
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
    /// Of rows that the GPU reads by itself.
    pub(super) ranks: Slice<'a>,
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
            inbox: Inbox::new(gpu)?,
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

    /// Makes room for a step with so many rows of f-grams.
    pub(super) fn prepare(
        &mut self,
        gpu: &dyn Gpu,
        plan: &Plan,
        fgrams: usize,
        shape: Shape,
    ) -> Result<(), GpuError> {
        let (rows, wanted, kind, d) = (plan.rows, plan.wanted, shape.kind.bytes(), shape.width);
        let wide = shape.qkv().max(2 * shape.feed_forward);
        let parts = plan.queries * shape.heads * plan.chunks * (2 + shape.head);
        let numbers = plan.numbers.len() * Type::U32.bytes();
        let generation = &mut self.generation;
        self.inbox.prepare(gpu, fgrams * d * 4, numbers, generation)?;
        for (buffer, bytes) in [
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
            let there = buffer.of(Type::U8).len();
            if there < bytes {
                *buffer = gpu.alloc(grown(there, bytes))?;
                *generation += 1;
            }
        }
        Ok(())
    }

    /// What a step uses of it.
    pub(super) fn parts(&self, plan: &Plan, shape: &Shape) -> Result<Parts<'_>, GpuError> {
        let (rows, wanted, d) = (plan.rows, plan.wanted, shape.width);
        let numbers = self.inbox.numbers()?;
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
            ranks: next(plan.ranks)?,
            residual: self.residual.of(Type::F32).part(0, rows * d)?,
            kept: self.kept.of(Type::F32).part(0, wanted * d)?,
            kept_change: self.kept_change.of(Type::F32).part(0, wanted * d)?,
            rows,
            wanted_rows: wanted,
            chunks: plan.chunks,
        })
    }
}

/// Positions of a chunk, as attention takes them: for the size of its parts.
const _: () = assert!(ops::CHUNK.is_multiple_of(16));
