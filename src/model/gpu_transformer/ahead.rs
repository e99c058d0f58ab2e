use std::collections::HashMap;
use std::sync::Arc;

use super::workspace::room;
use crate::gpu::{Buffer, Gpu, GpuError, Slice, Staging, Type, ops};
use crate::model::embedding::Found;
use crate::model::{Embedding, ModelError, Piece};
use crate::table::Table;

/// Rows of the f-grams that the next step is likely to have, brought while this one is computed: of prompts, whose tokens are known.
/// The CPU gathers them, and they are copied beside the queue.
pub(super) struct Ahead {
    /// One is read by a step while the other is filled for the next.
    places: [Place; 2],
    /// Which of them was filled last.
    filled: usize,
    /// Where in it which rows are, by rank.
    at: HashMap<u32, u32>,
    /// The table that they are of; none if there are none.
    table: Option<Arc<Table>>,
    /// Whether they may still be on their way.
    on_their_way: bool,
}

struct Place {
    memory: Buffer,
    staged: Staging,
}

impl Ahead {
    /// With no rows.
    pub(super) fn new(gpu: &dyn Gpu) -> Result<Self, GpuError> {
        let place = || Ok::<_, GpuError>(Place { memory: gpu.alloc(0)?, staged: gpu.staging(0)? });
        let places = [place()?, place()?];
        Ok(Self { places, filled: 0, at: HashMap::new(), table: None, on_their_way: false })
    }

    /// Makes room for so many bytes of rows for the step after the next. To be called before something is waited for: a copy beside
    /// the queue may only go where memory was before.
    pub(super) fn reserve(&mut self, gpu: &dyn Gpu, bytes: usize) -> Result<(), GpuError> {
        let next = &mut self.places[1 - self.filled];
        let there = next.memory.of(Type::U8).len();
        if there < bytes {
            let bytes = room(there, bytes);
            let (memory, staged) = (gpu.alloc(bytes)?, gpu.staging(bytes)?);
            *next = Place { memory, staged };
        }
        Ok(())
    }

    /// Lets the step that is about to be asked for wait until the rows are there.
    pub(super) fn join(&mut self, gpu: &dyn Gpu) -> Result<(), GpuError> {
        if std::mem::take(&mut self.on_their_way) {
            gpu.join()?;
        }
        Ok(())
    }

    /// The rows that were brought.
    pub(super) fn rows(&self) -> Slice<'_> {
        self.places[self.filled].memory.of(Type::F32)
    }

    /// Has sources in it that are here, in place of ranks that need not be gathered.
    pub(super) fn take(&self, found: &mut Found, vocabulary: usize) {
        let is_same = |(here, there)| Arc::ptr_eq(here, there);
        if self.table.as_ref().zip(found.table()).is_some_and(is_same) {
            found.leave_out(vocabulary, |rank| self.at.get(&rank).map(|place| ops::AHEAD + place));
        }
    }

    /// Forgets the rows; asks for those of the f-grams of `pieces`, `d` numbers each. There must be [room](Self::reserve).
    ///
    /// # Errors
    /// Where they cannot be read, or the GPU fails. There are none then.
    pub(super) fn bring(
        &mut self,
        gpu: &dyn Gpu,
        embedding: &Embedding,
        pieces: &[Piece<'_>],
        d: usize,
    ) -> Result<(), ModelError> {
        self.table = None;
        self.at.clear();
        let Some(found) = embedding.expect(pieces).filter(|found| !found.ranks.is_empty()) else {
            return Ok(());
        };
        let bytes = found.ranks.len() * d * Type::F32.bytes();
        let next = &mut self.places[1 - self.filled];
        let to = next.memory.of(Type::U8).part(0, bytes)?;
        let staged = &mut next.staged.bytes()[..bytes];
        embedding.gather(&found, bytemuck::cast_slice_mut(staged))?;
        gpu.upload_beside(staged, to)?;
        self.on_their_way = true;
        self.filled = 1 - self.filled;
        self.at.extend(found.ranks.iter().copied().zip(0..));
        self.table = found.table().cloned();
        Ok(())
    }

    /// How many rows there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.at.len()
    }
}
