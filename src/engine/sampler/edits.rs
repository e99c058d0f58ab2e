use std::collections::HashMap;

use super::super::{Penalties, Sampling};

/// What a request changes about logits before a token is chosen, and what that depends on: the tokens so far.
#[derive(Debug)]
pub(super) struct Edits {
    penalties: Penalties,
    bias: Vec<(u32, f32)>,
    /// Empty unless there are penalties.
    seen: HashMap<u32, Seen>,
    /// The logits that were changed, as they were.
    before: Vec<(u32, f32)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    generated: u32,
}

impl Edits {
    pub(super) fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let mut edits = Self {
            penalties: sampling.penalties,
            bias: sampling.logit_bias.clone(),
            seen: HashMap::new(),
            before: Vec::new(),
        };
        if sampling.penalties.repetition != 1.0 {
            edits.seen.extend(prompt.iter().map(|&token| (token, Seen::default())));
        }
        edits
    }

    /// Whether there are none.
    pub(super) fn is_none(&self) -> bool {
        self.penalties.is_none() && self.bias.is_empty()
    }

    /// Changes `logits`: adds the bias, rules out `banned`, applies the penalties. [`Self::undo`] takes all of it back.
    pub(super) fn apply(&mut self, logits: &mut [f32], banned: &[u32]) {
        let before = &mut self.before;
        before.clear();
        let mut edit = |id: u32, change: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                before.push((id, *logit));
                *logit = change(*logit);
            }
        };
        for &(id, bias) in &self.bias {
            edit(id, &|x| x + bias);
        }
        for &id in banned {
            edit(id, &|_| f32::NEG_INFINITY);
        }
        let Penalties { repetition, presence, frequency } = self.penalties;
        for (&id, &Seen { generated }) in &self.seen {
            edit(id, &|x| {
                let x = if x > 0.0 { x / repetition } else { x * repetition };
                if generated > 0 { x - frequency * generated as f32 - presence } else { x }
            });
        }
    }

    /// Makes `logits` what they were, to the bit.
    pub(super) fn undo(&mut self, logits: &mut [f32]) {
        while let Some((id, logit)) = self.before.pop() {
            logits[id as usize] = logit;
        }
    }

    /// Takes note of a token that was chosen.
    pub(super) fn note(&mut self, id: u32) {
        if !self.penalties.is_none() {
            self.seen.entry(id).or_default().generated += 1;
        }
    }
}
