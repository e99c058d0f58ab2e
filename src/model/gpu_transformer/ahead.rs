use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::gpu::{Buffer, Gpu, GpuError, Slice, Staging, Type, grown, ops};
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
    /// The table that they are of, which may be gone; none if there are no rows.
    table: Weak<Table>,
    /// Whether they may still be on their way.
    on_their_way: bool,
    /// How many of them were taken.
    #[cfg(test)]
    taken: usize,
}

/// What is staged goes first: then a copy that may be under way is waited for.
struct Place {
    staged: Staging,
    memory: Buffer,
}

impl Ahead {
    /// With no rows.
    pub(super) fn new(gpu: &dyn Gpu) -> Result<Self, GpuError> {
        let place = || Ok::<_, GpuError>(Place { staged: gpu.staging(0)?, memory: gpu.alloc(0)? });
        Ok(Self {
            places: [place()?, place()?],
            filled: 0,
            at: HashMap::new(),
            table: Weak::new(),
            on_their_way: false,
            #[cfg(test)]
            taken: 0,
        })
    }

    /// Makes room for so many bytes of rows that are to be brought while the step that is about to begin runs. To be called
    /// before something is waited for: a copy beside the queue may only go where memory was before.
    pub(super) fn reserve(&mut self, gpu: &dyn Gpu, bytes: usize) -> Result<(), GpuError> {
        let next = &mut self.places[1 - self.filled];
        let there = next.memory.of(Type::U8).len();
        if there < bytes {
            let bytes = grown(there, bytes);
            let (memory, staged) = (gpu.alloc(bytes)?, gpu.staging(bytes)?);
            *next = Place { staged, memory };
        }
        Ok(())
    }

    /// Lets the step that is about to be asked for wait until the rows are there.
    pub(super) fn join(&mut self, gpu: &dyn Gpu) -> Result<(), GpuError> {
        if self.on_their_way {
            gpu.join()?;
            self.on_their_way = false;
        }
        Ok(())
    }

    /// The rows that were brought.
    pub(super) fn rows(&self) -> Slice<'_> {
        self.places[self.filled].memory.of(Type::F32)
    }

    /// Leaves out what need not be gathered, as it is here.
    pub(super) fn take(&mut self, found: &mut Found, vocabulary: usize) {
        // As long as it is known here no other table can be where it is.
        if found.table().is_some_and(|table| Arc::as_ptr(table) == self.table.as_ptr()) {
            #[cfg(test)]
            let before = found.ranks.len();
            found.leave_out(vocabulary, |rank| self.at.get(&rank).map(|place| ops::AHEAD + place));
            #[cfg(test)]
            {
                self.taken += before - found.ranks.len();
            }
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
        self.table = Weak::new();
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
        self.table = found.table().map(Arc::downgrade).unwrap_or_default();
        Ok(())
    }

    /// How often a row was here that a step needed.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.taken
    }
}
