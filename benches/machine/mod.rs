//! What the machine could do at most, measured: the bounds that a figure is compared with.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::hint::black_box;
use std::time::Instant;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

const ROUNDS: usize = 9;

/// The median of some values; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Multiply-adds of numbers that stay in registers: what no product can exceed.
struct Peak(usize);

impl WithSimd for Peak {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (a, b) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.1)));
        let mut sums = [simd.splat_f32s(1.0); 12];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(a, *sum, b);
            }
        }
        sums.iter().map(|&sum| simd.reduce_sum_f32s(sum)).sum()
    }
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// The most f32 operations a second, a multiply-add being two, of all threads of the pool together. Instructions on
/// bf16 and on bytes, where a processor has them, do more.
pub(crate) fn peak() -> f64 {
    const STEPS: usize = 1 << 22;
    let flops = (Arch::new().dispatch(Lanes) * 12 * 2 * STEPS * rayon::current_num_threads()) as f64;
    let seconds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        rayon::broadcast(|_| black_box(Arch::new().dispatch(Peak(black_box(STEPS)))));
        start.elapsed().as_secs_f64()
    });
    flops / median(seconds.collect())
}

/// The sum of some numbers in lanes, which takes no longer than reading them.
struct Sum<'a>(&'a [f32]);

impl WithSimd for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat_f32s(0.0); 8];
        for x in S::as_simd_f32s(self.0).0.chunks_exact(8) {
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum = simd.add_f32s(*sum, x);
            }
        }
        sums.iter().map(|&sum| simd.reduce_sum_f32s(sum)).sum()
    }
}

/// Bytes a second that all threads of the pool together read from memory, out of 1 GiB, which no cache holds.
pub(crate) fn read_bandwidth() -> f64 {
    let memory = vec![1f32; 1 << 28];
    let part = memory.len() / rayon::current_num_threads();
    let seconds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        black_box(memory.par_chunks(part).map(|part| Arch::new().dispatch(Sum(part))).sum::<f32>());
        start.elapsed().as_secs_f64()
    });
    (memory.len() * 4) as f64 / median(seconds.collect())
}
