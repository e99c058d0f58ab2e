//! Numbers that are only widened.

use half::{bf16, f16};

use super::form::Form;
use crate::kernels::memory::Line;
use crate::kernels::simd::{LANES, Simd, prefetch};

/// An input is 32 numbers.
pub(in crate::kernels) struct F32;

/// An input is 32 halves.
pub(in crate::kernels) struct F16;

/// An input is 16 pairs, of outputs 16 apart, the first lower: so either is a single, but for one instruction.
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
    ($simd:ident, $lines:ident: $size:literal, $v:ident => $load:expr) => {
        #[inline(always)]
        fn add<S: Simd, const R: usize, const V: usize>(
            $simd: S,
            lines: &[Line],
            x: [&[f32]; R],
            first: usize,
            ahead: usize,
            sums: &mut [[S::F32; V]; R],
        ) {
            let mut totals = *sums;
            let (groups, _) = lines.as_chunks::<$size>();
            let mut x = x;
            for row in &mut x {
                *row = &row[..groups.len()];
            }
            for (step, $lines) in groups.iter().enumerate() {
                for line in $lines {
                    prefetch(std::ptr::from_ref(line).wrapping_add(ahead));
                }
                let mut w = [$simd.splat(0.0); V];
                for (v, w) in w.iter_mut().enumerate() {
                    let $v = first + v;
                    *w = $load;
                }
                for r in 0..R {
                    let x = $simd.splat(x[r][step]);
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

    add_by_input!(simd, lines: 2, v => simd.load(line_f32(&lines[v])));
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

    add_by_input!(simd, lines: 1, v => simd.load_f16(&line_f16(&lines[0])[v]));
}

impl Form for Bf16 {
    const INPUTS: usize = 1;
    const LINES: usize = 1;
    type X = f32;
    const XS: usize = 1;
    const SUMS: usize = 1;

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        let at = 4 * (output % LANES) + 2 * (output / LANES);
        lines[0].0[at..at + 2].copy_from_slice(stored);
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        let at = 4 * (output % LANES) + 2 * (output / LANES);
        numbers[0] = bf16::from_le_bytes([lines[0].0[at], lines[0].0[at + 1]]).to_f32();
    }

    add_by_input!(simd, lines: 1, v => {
        let both = simd.load_bytes(&lines[0].0);
        simd.from_bits(if v == 0 { simd.shift_left::<16>(both) } else { simd.and(both, simd.splat_i32(!0xffff)) })
    });
}
