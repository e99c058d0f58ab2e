//! Numbers that are only widened.

use half::f16;

use super::form::{Form, PANEL};
use crate::kernels::memory::Line;
use crate::kernels::simd::{LANES, Simd};

/// An input is 32 numbers.
pub(in crate::kernels) struct F32;

/// An input is 32 halves.
pub(in crate::kernels) struct F16;

/// Two inputs are 32 pairs, the first lower: so either is a single, but for one instruction.
pub(in crate::kernels) struct Bf16;

/// Sixteen numbers of a line.
fn line_f32(line: &Line) -> &[f32; LANES] {
    bytemuck::cast_ref(line)
}

fn line_f16(line: &Line) -> &[[f16; LANES]; 2] {
    bytemuck::cast_ref(line)
}

/// [`Form::add`] where a group is one input, whose vector `$v` of numbers is `$load`.
macro_rules! add_by_input {
    ($simd:ident, $lines:ident, $v:ident => $load:expr) => {
        #[inline(always)]
        fn add<S: Simd, const R: usize, const V: usize>(
            $simd: S,
            lines: &[Line],
            x: [&[f32]; R],
            first: usize,
            sums: &mut [[S::F32; V]; R],
        ) {
            let mut totals = *sums;
            let steps = lines.len() / Self::LINES;
            let mut rows = x;
            for row in &mut rows {
                *row = &row[..steps];
            }
            for (step, $lines) in lines.chunks_exact(Self::LINES).take(steps).enumerate() {
                let mut w = [$simd.splat(0.0); V];
                for (v, w) in w.iter_mut().enumerate() {
                    let $v = first + v;
                    *w = $load;
                }
                for r in 0..R {
                    let x = $simd.splat(rows[r][step]);
                    for v in 0..V {
                        totals[r][v] = $simd.mul_add(x, w[v], totals[r][v]);
                    }
                }
            }
            *sums = totals;
        }
    };
}

impl Form for F32 {
    const INPUTS: usize = 1;
    const LINES: usize = 2;
    type X = f32;
    const XS: usize = 1;
    const SUMS: usize = 1;

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        let at = output % LANES * 4;
        lines[output / LANES].0[at..at + 4].copy_from_slice(stored);
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        numbers[0] = line_f32(&lines[output / LANES])[output % LANES];
    }

    add_by_input!(simd, lines, v => simd.load(line_f32(&lines[v])));
}

impl Form for F16 {
    const INPUTS: usize = 1;
    const LINES: usize = 1;
    type X = f32;
    const XS: usize = 1;
    const SUMS: usize = 1;

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        lines[0].0[2 * output..2 * output + 2].copy_from_slice(stored);
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        numbers[0] = line_f16(&lines[0])[output / LANES][output % LANES].to_f32();
    }

    add_by_input!(simd, lines, v => simd.load_f16(&line_f16(&lines[0])[v]));
}

impl Form for Bf16 {
    const INPUTS: usize = 2;
    const LINES: usize = 2;
    type X = f32;
    const XS: usize = 2;
    const SUMS: usize = 1;

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        let at = output % LANES * 4;
        lines[output / LANES].0[at..at + stored.len()].copy_from_slice(stored);
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        debug_assert!(output < PANEL);
        let at = output % LANES * 4;
        let pair = &lines[output / LANES].0[at..at + 4];
        for (number, half) in numbers.iter_mut().zip(pair.chunks_exact(2)) {
            *number = half::bf16::from_le_bytes([half[0], half[1]]).to_f32();
        }
    }

    #[inline(always)]
    fn add<S: Simd, const R: usize, const V: usize>(
        simd: S,
        lines: &[Line],
        x: [&[f32]; R],
        first: usize,
        sums: &mut [[S::F32; V]; R],
    ) {
        let upper = simd.splat_i32(!0xffff);
        let mut totals = *sums;
        let steps = x[0].len() / 2;
        let mut pairs: [&[[f32; 2]]; R] = [&[]; R];
        for r in 0..R {
            pairs[r] = &x[r].as_chunks::<2>().0[..steps];
        }
        let groups = lines.chunks_exact(Self::LINES);
        for (step, lines) in groups.clone().take(steps).enumerate() {
            let mut w = [[simd.splat(0.0); V]; 2];
            for v in 0..V {
                let both = simd.load_bytes(&lines[first + v].0);
                w[0][v] = simd.from_bits(simd.shift_left::<16>(both));
                w[1][v] = simd.from_bits(simd.and(both, upper));
            }
            for i in 0..2 {
                for r in 0..R {
                    let x = simd.splat(pairs[r][step][i]);
                    for v in 0..V {
                        totals[r][v] = simd.mul_add(x, w[i][v], totals[r][v]);
                    }
                }
            }
        }
        // An odd number of inputs: the last pair is half empty.
        for (lines, at) in groups.skip(steps).zip(2 * steps..) {
            for v in 0..V {
                let w = simd.from_bits(simd.shift_left::<16>(simd.load_bytes(&lines[first + v].0)));
                for r in 0..R {
                    totals[r][v] = simd.mul_add(simd.splat(x[r][at]), w, totals[r][v]);
                }
            }
        }
        *sums = totals;
    }
}
