//! Elementwise work that the compiler vectorises for the CPU found at run time.

use pulp::Arch;

use crate::kernels::exp;

/// Runs `work` compiled for the widest SIMD of this CPU. What it calls must be `#[inline(always)]`.
#[inline]
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// How many partial sums a reduction keeps: the order of a sum is fixed by it, not by the CPU.
const LANES: usize = 16;

/// The sum of `f(x[i], y[i])`.
#[inline(always)]
pub(super) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(&x, &y)| f(x, y)).sum();
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            lanes[lane] += f(x[lane], y[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The inner product.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum2(x, y, |x, y| x * y)
}

/// The largest element; minus infinity of none.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().copied().fold(rest, f32::max)
}

/// Replaces `x` by `exp(x - max)` and returns the maximum and the sum of the results.
#[inline(always)]
pub(super) fn exp_shifted(x: &mut [f32]) -> (f32, f32) {
    let max = max(x);
    let mut lanes = [0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - max);
            lanes[lane] += chunk[lane];
        }
    }
    let mut rest = 0.0;
    for x in chunks.into_remainder() {
        *x = exp(*x - max);
        rest += *x;
    }
    (max, lanes.iter().sum::<f32>() + rest)
}

/// The softmax, in place.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let (_, sum) = exp_shifted(x);
    let scale = 1.0 / sum;
    for x in x {
        *x *= scale;
    }
}

/// `y += a * x`.
#[inline(always)]
pub(super) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
