#![allow(
    clippy::needless_range_loop,
    reason = "loops over registers, with literal ends; closures are not always inlined"
)]

use std::ops::Range;

use half::f16;

use super::plan::{divide, merge};
use super::{BLOCK, CHUNK, KvCache, ROWS};
use crate::kernels::simd::{Kernel, LANES, Simd};

/// Vectors of keys, or of values, that are worked on at a time where there are registers for them; one otherwise.
const WIDE: usize = 4;

/// A number of a cache.
pub(super) trait Element: Copy + Sync {
    /// A register of them.
    fn load<S: Simd>(simd: S, numbers: &[Self; LANES]) -> S::F32;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self; LANES]) -> S::F32 {
        simd.load(numbers)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self; LANES]) -> S::F32 {
        simd.load_f16(numbers)
    }
}

/// Up to [`ROWS`] queries of one key and value head over some chunks of their sequence.
pub(super) struct Tile<'a, 'b, E> {
    pub(super) numbers: &'a [E],
    pub(super) cache: &'a KvCache,
    pub(super) layer: usize,
    pub(super) head: usize,
    pub(super) blocks: &'a [u32],
    pub(super) queries: &'b [&'a [f32]],
    /// How many positions a query sees; the last sees most.
    pub(super) limits: &'b [usize],
    pub(super) results: &'b mut [&'a mut [f32]],
    pub(super) chunks: Range<usize>,
    /// Whether these are all chunks, so that the result can be completed.
    pub(super) divide: bool,
}

impl<E: Element> Kernel for Tile<'_, '_, E> {
    /// Each query's maximum and sum.
    type Output = [(f32, f32); ROWS];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        match self.queries.len() {
            1 => self.rows::<S, 1>(simd),
            2 => self.rows::<S, 2>(simd),
            3 => self.rows::<S, 3>(simd),
            4 => self.rows::<S, 4>(simd),
            5 => self.rows::<S, 5>(simd),
            _ => self.rows::<S, 6>(simd),
        }
    }
}

impl<E: Element> Tile<'_, '_, E> {
    #[inline(always)]
    fn rows<S: Simd, const M: usize>(mut self, simd: S) -> [(f32, f32); ROWS] {
        let mut states = [(f32::NEG_INFINITY, 0.0); ROWS];
        for chunk in self.chunks.clone() {
            let from = chunk * CHUNK;
            let keys = self.limits[M - 1].saturating_sub(from).min(CHUNK);
            let mut scores = [[0f32; CHUNK]; M];
            self.scores(simd, from, keys, &mut scores);
            let mut own = [(f32::NEG_INFINITY, 0.0); M];
            for i in 0..M {
                let seen = self.limits[i].saturating_sub(from).min(keys);
                scores[i][seen..keys].fill(0.0);
                if seen > 0 {
                    own[i] = exponentials(simd, &mut scores[i][..seen]);
                }
            }
            self.values(simd, from, keys, &scores, &own, &mut states);
        }
        if self.divide {
            for (result, (_, sum)) in self.results.iter_mut().zip(states) {
                divide(result, sum);
            }
        }
        states
    }

    /// Where this head's keys of a block begin.
    #[inline(always)]
    fn block(&self, position: usize) -> usize {
        self.cache.at(self.layer, self.blocks[position / BLOCK], self.head)
    }

    /// The scores of `keys` positions from `from` on, scaled; those that fill up the last block mean nothing.
    #[inline(always)]
    fn scores<S: Simd, const M: usize>(
        &self,
        simd: S,
        from: usize,
        keys: usize,
        scores: &mut [[f32; CHUNK]; M],
    ) {
        let mut block = 0;
        while block < keys.div_ceil(BLOCK) {
            if S::REGISTERS >= 32 && block + WIDE <= keys.div_ceil(BLOCK) {
                self.score_blocks::<S, M, WIDE>(simd, from, block, scores);
                block += WIDE;
            } else {
                self.score_blocks::<S, M, 1>(simd, from, block, scores);
                block += 1;
            }
        }
    }

    #[inline(always)]
    fn score_blocks<S: Simd, const M: usize, const P: usize>(
        &self,
        simd: S,
        from: usize,
        block: usize,
        scores: &mut [[f32; CHUNK]; M],
    ) {
        let head = self.cache.shape.head;
        let mut keys: [&[[E; LANES]]; P] = [&[]; P];
        for p in 0..P {
            let at = self.block(from + (block + p) * BLOCK);
            keys[p] = &self.numbers[at..at + head * BLOCK].as_chunks().0[..head];
        }
        let mut queries: [&[f32]; M] = [&[]; M];
        for i in 0..M {
            queries[i] = &self.queries[i][..head];
        }
        let mut sums = [[simd.splat(0.0); P]; M];
        for feature in 0..head {
            let mut k = [simd.splat(0.0); P];
            for p in 0..P {
                k[p] = E::load(simd, &keys[p][feature]);
            }
            for i in 0..M {
                let q = simd.splat(queries[i][feature]);
                for p in 0..P {
                    sums[i][p] = simd.mul_add(q, k[p], sums[i][p]);
                }
            }
        }
        let scale = simd.splat(1.0 / (head as f32).sqrt());
        for i in 0..M {
            let scores = scores[i].as_chunks_mut().0;
            for p in 0..P {
                simd.store(simd.mul(sums[i][p], scale), &mut scores[block + p]);
            }
        }
    }

    /// Merges the values of a chunk, weighted, into the results.
    #[inline(always)]
    fn values<S: Simd, const M: usize>(
        &mut self,
        simd: S,
        from: usize,
        keys: usize,
        weights: &[[f32; CHUNK]; M],
        own: &[(f32, f32); M],
        states: &mut [(f32, f32); ROWS],
    ) {
        let registers = self.cache.shape.padded() / BLOCK;
        let before = *states;
        let mut register = 0;
        while register < registers {
            let wide = if S::REGISTERS >= 32 && register + WIDE <= registers { WIDE } else { 1 };
            let mut sums = [[0f32; WIDE * BLOCK]; M];
            if wide == WIDE {
                self.weigh::<S, M, WIDE>(simd, from, keys, register, weights, &mut sums);
            } else {
                self.weigh::<S, M, 1>(simd, from, keys, register, weights, &mut sums);
            }
            let columns = register * BLOCK..self.cache.shape.head.min((register + wide) * BLOCK);
            for i in 0..M {
                let result = &mut self.results[i][columns.clone()];
                states[i] = merge(before[i], own[i], result, |j| sums[i][j]);
            }
            register += wide;
        }
    }

    #[inline(always)]
    fn weigh<S: Simd, const M: usize, const P: usize>(
        &self,
        simd: S,
        from: usize,
        keys: usize,
        register: usize,
        weights: &[[f32; CHUNK]; M],
        result: &mut [[f32; WIDE * BLOCK]; M],
    ) {
        let (part, padded) = (self.cache.shape.part(), self.cache.shape.padded());
        let mut sums = [[simd.splat(0.0); P]; M];
        for first in (0..keys).step_by(BLOCK) {
            let values = &self.numbers[self.block(from + first) + part..][..part];
            for position in first..keys.min(first + BLOCK) {
                let row = &values[position % BLOCK * padded + register * BLOCK..][..P * BLOCK];
                let row = row.as_chunks().0;
                let mut v = [simd.splat(0.0); P];
                for p in 0..P {
                    v[p] = E::load(simd, &row[p]);
                }
                for i in 0..M {
                    let weight = simd.splat(weights[i][position]);
                    for p in 0..P {
                        sums[i][p] = simd.mul_add(weight, v[p], sums[i][p]);
                    }
                }
            }
        }
        for i in 0..M {
            let result = result[i].as_chunks_mut().0;
            for p in 0..P {
                simd.store(sums[i][p], &mut result[p]);
            }
        }
    }
}

/// Replaces scores by `exp(score - max)` and returns the maximum and the sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32]) -> (f32, f32) {
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    // What fills up the rest gets a weight of nearly zero, far below the last digit of the sum.
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let last = simd.load(&last);
    let mut most = last;
    for scores in whole.iter() {
        most = simd.max(most, simd.load(scores));
    }
    let max = simd.reduce_max(most);
    let most = simd.splat(max);
    let mut sum = simd.splat(0.0);
    for scores in whole {
        let x = simd.exp(simd.sub(simd.load(scores), most));
        sum = simd.add(sum, x);
        simd.store(x, scores);
    }
    let x = simd.exp(simd.sub(last, most));
    simd.store_partial(x, rest);
    (max, simd.reduce_add(simd.add(sum, x)))
}
