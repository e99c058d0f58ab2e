use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::gpu::Recorded;
use crate::kernels::Span;

/// The sizes that decoding steps are filled up to.
const SIZES: [usize; 13] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256];

/// Steps that were recorded, by size and by how many chunks of positions they see.
#[derive(Default)]
pub(super) struct Graphs {
    steps: HashMap<(usize, usize), Step>,
    /// The workspace that they read and write.
    generation: u64,
}

/// A step that was asked for.
enum Step {
    /// Once.
    Once,
    /// It could not be recorded.
    Refused,
    /// It was recorded.
    Recorded(Box<dyn Recorded>),
}

/// What there is of a step.
pub(super) enum Found<'a> {
    /// It can be asked for again.
    Recorded(&'a dyn Recorded),
    /// It was asked for once.
    Again,
    /// It was never asked for.
    New,
    /// It cannot be recorded.
    Never,
}

impl Graphs {
    /// What a step is filled up to, if it only decodes: a row a sequence, each of whose logits are wanted.
    pub(super) fn size(spans: &[Span<'_>], wanted: &[usize]) -> Option<usize> {
        let decodes = wanted.len() == spans.len() && spans.iter().all(|span| span.new == 1);
        SIZES.into_iter().find(|&size| decodes && !spans.is_empty() && spans.len() <= size)
    }

    /// Looks a step up. Those of another generation of the workspace are gone.
    pub(super) fn find(&mut self, key: (usize, usize), generation: u64) -> Found<'_> {
        if self.generation != generation {
            self.steps.clear();
            self.generation = generation;
        }
        match self.steps.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Step::Once);
                Found::New
            }
            Entry::Occupied(entry) => match entry.into_mut() {
                Step::Recorded(step) => Found::Recorded(&**step),
                Step::Refused => Found::Never,
                Step::Once => Found::Again,
            },
        }
    }

    /// Keeps a step that was recorded, or that it could not be.
    pub(super) fn keep(&mut self, key: (usize, usize), step: Option<Box<dyn Recorded>>) {
        self.steps.insert(key, step.map_or(Step::Refused, Step::Recorded));
    }

    /// How many are recorded.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.steps.values().filter(|step| matches!(step, Step::Recorded(_))).count()
    }
}
