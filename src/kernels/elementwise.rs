//! The row by row parts of a layer: norm, rotation, activation.

use super::exp;
use super::simd::{Kernel, Simd, dispatch};

/// Partial sums of a reduction: its order is fixed by this, not by the CPU.
const LANES: usize = 16;

/// Loops that the compiler vectorises: what they call must be `#[inline(always)]`.
struct Loops<F>(F);

impl<F: FnOnce()> Kernel for Loops<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        (self.0)();
    }
}

fn vectorized(loops: impl FnOnce()) {
    dispatch(Loops(loops));
}

/// `y = x / sqrt(mean(x^2) + eps) * weight` (RMSNorm; Zhang and Sennrich, arXiv 1910.07467), a row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            let scale = inverse_rms(x, eps);
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * scale * w;
            }
        },
    );
}

/// The same in place, for each head of a row (the query and key norm of Qwen3).
pub fn rms_norm_heads(row: &mut [f32], weight: &[f32], eps: f32) {
    vectorized(
        #[inline(always)]
        || {
            for head in row.chunks_exact_mut(weight.len()) {
                let scale = inverse_rms(head, eps);
                head.iter_mut().zip(weight).for_each(|(x, &w)| *x = *x * scale * w);
            }
        },
    );
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&x| x * x).sum();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane] * chunk[lane];
        }
    }
    1.0 / ((lanes.iter().sum::<f32>() + rest) / x.len() as f32 + eps).sqrt()
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    vectorized(
        #[inline(always)]
        || x.iter_mut().zip(y).for_each(|(x, &y)| *x += y),
    );
}

/// `y = silu(gate) * up` (Shazeer, arXiv 2002.05202), a row.
pub fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate / (1.0 + exp(-gate)) * up;
            }
        },
    );
}

/// Turns each head of a row by the angles of its position, whose cosines and sines are given: feature `i` of the first
/// half with feature `i` of the second (RoPE as Hugging Face's Llama has it; Su et al., arXiv 2104.09864).
pub fn rotate(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            for head in row.chunks_exact_mut(2 * cos.len()) {
                let (first, second) = head.split_at_mut(cos.len());
                for i in 0..cos.len() {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cos[i] - b * sin[i];
                    second[i] = b * cos[i] + a * sin[i];
                }
            }
        },
    );
}
