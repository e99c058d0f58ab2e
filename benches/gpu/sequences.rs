//! What is decoded and read: sequences of tokens, and the steps that go on with them.

use std::time::{Duration, Instant};

use scone::kernels::BLOCK;
use scone::model::{Draw, Model, Pass, Piece};

/// Sequences of random tokens, each with blocks of its own, of up to `len` positions.
pub(crate) struct Sequences {
    tokens: Vec<Vec<u32>>,
    blocks: Vec<Vec<u32>>,
}

impl Sequences {
    /// Of tokens from 1 to `most`.
    pub(crate) fn new(count: usize, len: usize, most: usize) -> Self {
        let each = len.div_ceil(BLOCK);
        // Chance by a generator whose numbers do not repeat soon.
        let token = |i: usize, n: usize| {
            let mixed = ((i << 32 | n) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            1 + ((mixed ^ mixed >> 29) >> 8) as usize % most
        };
        Self {
            tokens: (0..count).map(|i| (0..len).map(|n| token(i, n) as u32).collect()).collect(),
            blocks: (0..count).map(|i| (0..each).map(|block| (block * count + i) as u32).collect()).collect(),
        }
    }

    /// The time of a step from `past` to `len`, whose likeliest tokens are chosen, and that of the host in it.
    pub(crate) fn step(&self, model: &mut Model, past: usize, len: usize) -> (Duration, Duration) {
        let pieces: Vec<Piece<'_>> = self
            .tokens
            .iter()
            .zip(&self.blocks)
            .map(|(tokens, blocks)| Piece { tokens: &tokens[..len], past, blocks, wanted: 1 })
            .collect();
        let (mut logits, mut chosen) = (Vec::new(), Vec::new());
        let draws = vec![Some(vec![Draw::LIKELIEST]); pieces.len()];
        let start = Instant::now();
        let pass = Pass { draws: &draws, ..Pass::of(&pieces) };
        model.forward_choosing(&pass, &mut logits, &mut chosen).expect("a step");
        (start.elapsed(), model.host_time())
    }

    /// The time of reading a sequence of `len` tokens, `piece` at a time, each told what the next one is if it `looks_ahead`.
    pub(crate) fn read_pieces(
        &self,
        model: &mut Model,
        (len, piece): (usize, usize),
        looks_ahead: bool,
    ) -> Duration {
        let (mut logits, mut chosen) = (Vec::new(), Vec::new());
        let at = |past: usize| {
            let (tokens, blocks) = (&self.tokens[0][..(past + piece).min(len)], self.blocks[0].as_slice());
            Piece { tokens, past, blocks, wanted: usize::from(tokens.len() == len) }
        };
        let start = Instant::now();
        for past in (0..len).step_by(piece) {
            let (pieces, next) = ([at(past)], past + piece);
            let ahead = (looks_ahead && next < len).then(|| [at(next)]);
            let ahead: &[Piece<'_>] = ahead.as_ref().map_or(&[], |next| next);
            model
                .forward_choosing(&Pass { ahead, ..Pass::of(&pieces) }, &mut logits, &mut chosen)
                .expect("a step");
        }
        start.elapsed()
    }

    /// Reads what comes before `past`, a few tokens at a time, so that the largest step is no larger than a server's.
    pub(crate) fn read(&self, model: &mut Model, past: usize) {
        for from in (0..past).step_by(16) {
            self.step(model, from, (from + 16).min(past));
        }
    }
}
