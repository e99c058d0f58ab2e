//! Rows out of memory.

use rayon::prelude::*;

use super::Geometry;

/// Bytes of rows from which on they are worth sharing out among threads.
const PARALLEL: usize = 256 << 10;

/// How many rows ahead the processor is told of, and of how many lines of them.
const AHEAD: usize = 2;
const LINES: usize = 16;

/// Decodes rows that lie in `bytes`, from where the first begins, until `is_broken`.
pub(super) fn gather(
    bytes: &[u8],
    geometry: &Geometry,
    ranks: &[u32],
    out: &mut [f32],
    decode: impl Fn(u32, &[u8], &mut [f32]) + Sync,
    is_broken: impl Fn() -> bool + Sync,
) {
    let Geometry { stride, bytes: len, dim, .. } = *geometry;
    let start = |rank: u32| rank as usize * stride;
    let some = |ranks: &[u32], out: &mut [f32]| {
        for (i, (&rank, out)) in ranks.iter().zip(out.chunks_exact_mut(dim)).enumerate() {
            // The processor's own prefetching ends with the page: the next row is news to it.
            if let Some(&next) = ranks.get(i + AHEAD) {
                prefetch(&bytes[start(next)..start(next) + len]);
            }
            decode(rank, &bytes[start(rank)..start(rank) + len], out);
            if is_broken() {
                return;
            }
        }
    };
    let threads = rayon::current_num_threads();
    if threads == 1 || size_of_val(out) < PARALLEL {
        some(ranks, out);
    } else {
        let share = ranks.len().div_ceil(threads * 2);
        ranks
            .par_chunks(share)
            .zip(out.par_chunks_mut(share * dim))
            .for_each(|(ranks, out)| some(ranks, out));
    }
}

/// Asks for the first lines of a row; from there on the processor sees by itself where it goes.
#[cfg(target_arch = "x86_64")]
fn prefetch(row: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in row.chunks(64).take(LINES) {
        // SAFETY: a prefetch reads nothing as far as the program can tell, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_: &[u8]) {}
