//! Codes of a few bits with a scale for each block, multiplied as bytes.
//!
//! A line of codes has four inputs of 16 outputs, an output a lane: what an instruction multiplies with four bytes of a
//! row. Codes are without sign; where the format's have one, an offset is added here and taken back by the row's sum.

#![expect(clippy::needless_range_loop, reason = "rows and vectors of a tile, which are unrolled")]

use half::f16;

use super::form::Form;
use crate::kernels::activations::{BLOCK, Block};
use crate::kernels::memory::Line;
use crate::kernels::simd::{LANES, Simd, prefetch};

/// 17 lines: 32 scales; then for each four inputs two lines of codes plus 128.
pub(in crate::kernels) struct Q8_0;

/// 9 lines: 32 scales; then eight lines of nibbles, [`nibbles`].
pub(in crate::kernels) struct Q4_0;

/// 10 lines: 32 scales, 32 least values, eight lines of nibbles.
pub(in crate::kernels) struct Q4_1;

/// 2 lines of scales of scales and of least values; then eight blocks of 32 scales and 32 least values of a byte each
/// (six bits as stored) and eight lines of nibbles.
pub(in crate::kernels) struct Q4K;

/// A line of scales of scales; then eight blocks of 2 times 32 scales (a byte each), eight lines of nibbles and four of
/// the upper two bits, [`pairs`].
pub(in crate::kernels) struct Q6K;

/// What differs between the forms: where a block's codes and scales are.
trait Codes {
    /// Lines before the blocks of a group.
    const HEAD: usize;
    /// Lines of a block.
    const BLOCK: usize;
    /// Blocks of a group.
    const BLOCKS: usize;
    /// Parts of a block with a scale each.
    const PARTS: usize;
    /// Whether there is a least value.
    const LEAST: bool;

    /// Codes of the inputs `4 * four..`, vector `v`.
    fn codes<S: Simd>(simd: S, block: &[Line], four: usize, v: usize) -> S::I32;
    /// The codes' offset times a sum.
    fn offset<S: Simd>(simd: S, sum: S::I32) -> S::I32;
    /// Sum and products of codes with four bytes of a row.
    fn dot<S: Simd>(simd: S, sum: S::I32, codes: S::I32, x: S::I32) -> S::I32;
    /// What codes of a part are multiplied with.
    fn scale<S: Simd>(simd: S, head: &[Line], block: &[Line], part: usize, v: usize) -> S::F32;
    /// What is added to them.
    fn least<S: Simd>(simd: S, head: &[Line], block: &[Line], v: usize) -> S::F32;
}

/// A part's products with the rows: [`multiply`] for each number of four inputs.
macro_rules! multiply {
    ($c:ident, $s:ident, $r:ident, $v:ident: $simd:ident, $place:ident, $x:ident, $part:literal, $($four:literal)*) => {{
        let mut upper = [[$simd.splat_i32(0); $v]; $r];
        let mut lower = offsets::<$c, $s, $r, $v>($simd, $x, $part);
        $(multiply::<$c, $s, $r, $v>($simd, $place, $x, $four, &mut upper, &mut lower);)*
        for r in 0..$r {
            for v in 0..$v {
                lower[r][v] = $simd.add_i32(lower[r][v], $simd.shift_left::<8>(upper[r][v]));
            }
        }
        lower
    }};
}

/// Sixteen halves of a line.
#[inline(always)]
fn f16s<S: Simd>(simd: S, line: &Line, v: usize) -> S::F32 {
    let halves: &[[f16; LANES]; 2] = bytemuck::cast_ref(line);
    simd.load_f16(&halves[v])
}

/// Sixteen bytes of a line.
#[inline(always)]
fn quarter(line: &Line, at: usize) -> &[u8; LANES] {
    let quarters: &[[u8; LANES]; 4] = bytemuck::cast_ref(line);
    &quarters[at]
}

/// Nibbles: the upper half of a line has the inputs `4 * APART` further on than its lower half.
#[inline(always)]
fn nibbles<S: Simd, const APART: usize>(simd: S, lines: &[Line], four: usize, v: usize) -> S::I32 {
    let (line, is_upper) = nibble::<APART>(four);
    let both = simd.load_bytes(&lines[2 * line + v].0);
    let both = if is_upper { simd.shift_right::<4>(both) } else { both };
    simd.and(both, simd.splat_i32(0x0f0f_0f0f))
}

/// Which pair of lines has the nibbles of four inputs, and whether in the upper half.
#[inline(always)]
fn nibble<const APART: usize>(four: usize) -> (usize, bool) {
    (four / (2 * APART) * APART + four % APART, four / APART % 2 == 1)
}

/// Two bits of each code as its bits 4 and 5: a line has those of a part, from the lowest bits on.
#[inline(always)]
fn pairs<S: Simd>(simd: S, lines: &[Line], four: usize, v: usize) -> S::I32 {
    let all = simd.load_bytes(&lines[four / 4 * 2 + v].0);
    let wanted = match four % 4 {
        0 => simd.shift_left::<4>(all),
        1 => simd.shift_left::<2>(all),
        2 => all,
        _ => simd.shift_right::<2>(all),
    };
    simd.and(wanted, simd.splat_i32(0x3030_3030))
}

fn put_nibble<const APART: usize>(lines: &mut [Line], output: usize, input: usize, code: u8) {
    let (line, is_upper) = nibble::<APART>(input / 4);
    let at = output % LANES * 4 + input % 4;
    lines[2 * line + output / LANES].0[at] |= if is_upper { code << 4 } else { code };
}

fn nibble_of<const APART: usize>(lines: &[Line], output: usize, input: usize) -> u8 {
    let (line, is_upper) = nibble::<APART>(input / 4);
    let both = lines[2 * line + output / LANES].0[output % LANES * 4 + input % 4];
    if is_upper { both >> 4 } else { both & 15 }
}

/// Stored nibbles, sixteen bytes, lie as here: the lower halves first.
fn put_nibbles(stored: &[u8], output: usize, lines: &mut [Line]) {
    for (input, byte) in stored.iter().enumerate() {
        put_nibble::<4>(lines, output, input, byte & 15);
        put_nibble::<4>(lines, output, input + 16, byte >> 4);
    }
}

fn put_f16(stored: &[u8], output: usize, line: &mut Line) {
    line.0[2 * output..2 * output + 2].copy_from_slice(&stored[..2]);
}

fn f16_of(line: &Line, output: usize) -> f32 {
    f16::from_le_bytes([line.0[2 * output], line.0[2 * output + 1]]).to_f32()
}

/// Products of `R` rows with blocks, each summed in whole numbers before it is scaled.
#[inline(always)]
fn add<C: Codes, S: Simd, const R: usize, const V: usize>(
    simd: S,
    lines: &[Line],
    x: [&[Block]; R],
    first: usize,
    ahead: usize,
    sums: &mut [[S::F32; V]; R],
) {
    let group = C::HEAD + C::BLOCKS * C::BLOCK;
    let mut totals = *sums;
    let blocks = lines.len() / group * C::BLOCKS;
    let mut x = x;
    for row in &mut x {
        *row = &row[..blocks];
    }
    let mut at = 0;
    for lines in lines.chunks_exact(group) {
        let (head, lines) = lines.split_at(C::HEAD);
        for line in head {
            prefetch(std::ptr::from_ref(line).wrapping_add(ahead));
        }
        for block in lines.chunks_exact(C::BLOCK) {
            if at >= blocks {
                break;
            }
            if V == 2 || first == 0 {
                for line in block {
                    prefetch(std::ptr::from_ref(line).wrapping_add(ahead));
                }
            }
            let place = (head, block, first);
            let mut xs = [&x[0][at]; R];
            for r in 1..R {
                xs[r] = &x[r][at];
            }
            // With literal numbers of parts and fours everything is unrolled, whatever a compiler's limits; fours that
            // share a line follow each other, or the line would be held in a register for long.
            if C::PARTS == 1 {
                let dots = multiply!(C, S, R, V: simd, place, xs, 0, 0 4 1 5 2 6 3 7);
                scale::<C, S, R, V>(simd, place, xs, 0, &dots, &mut totals);
            } else {
                let dots = multiply!(C, S, R, V: simd, place, xs, 0, 0 2 1 3);
                scale::<C, S, R, V>(simd, place, xs, 0, &dots, &mut totals);
                let dots = multiply!(C, S, R, V: simd, place, xs, 1, 4 6 5 7);
                scale::<C, S, R, V>(simd, place, xs, 1, &dots, &mut totals);
            }
            if C::LEAST {
                for v in 0..V {
                    let least = C::least(simd, head, block, first + v);
                    for r in 0..R {
                        totals[r][v] = simd.mul_add(least, simd.splat(xs[r].total), totals[r][v]);
                    }
                }
            }
            at += 1;
        }
    }
    *sums = totals;
}

/// Where a tile reads a block: the lines of the group's head and of the block, and the first vector of outputs.
type Place<'a> = (&'a [Line], &'a [Line], usize);

/// What the codes' offsets add to the products with a part, taken off.
#[inline(always)]
fn offsets<C: Codes, S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: [&Block; R],
    part: usize,
) -> [[S::I32; V]; R] {
    let mut dots = [[simd.splat_i32(0); V]; R];
    for r in 0..R {
        let minus = match (C::PARTS, part) {
            (1, _) => x[r].minus_sum,
            (_, 0) => x[r].minus_first,
            _ => x[r].minus_sum - x[r].minus_first,
        };
        dots[r] = [C::offset(simd, simd.splat_i32(minus)); V];
    }
    dots
}

/// Adds the products of four inputs, of their upper bytes and of the lower.
#[inline(always)]
fn multiply<C: Codes, S: Simd, const R: usize, const V: usize>(
    simd: S,
    (_, block, first): Place<'_>,
    x: [&Block; R],
    four: usize,
    upper: &mut [[S::I32; V]; R],
    lower: &mut [[S::I32; V]; R],
) {
    let mut codes = [simd.splat_i32(0); V];
    for v in 0..V {
        codes[v] = C::codes(simd, block, four, first + v);
    }
    for r in 0..R {
        let (high, low) = (simd.splat_i32(x[r].upper[four]), simd.splat_i32(x[r].lower[four]));
        for v in 0..V {
            upper[r][v] = C::dot(simd, upper[r][v], codes[v], high);
            lower[r][v] = C::dot(simd, lower[r][v], codes[v], low);
        }
    }
}

/// Adds the products of a part, scaled, to the sums.
#[inline(always)]
fn scale<C: Codes, S: Simd, const R: usize, const V: usize>(
    simd: S,
    (head, block, first): Place<'_>,
    x: [&Block; R],
    part: usize,
    dots: &[[S::I32; V]; R],
    totals: &mut [[S::F32; V]; R],
) {
    for v in 0..V {
        let scale = C::scale(simd, head, block, part, first + v);
        for r in 0..R {
            let scale = simd.mul(scale, simd.splat(x[r].scale));
            totals[r][v] = simd.mul_add(simd.to_f32(dots[r][v]), scale, totals[r][v]);
        }
    }
}

/// The parts of [`Form`] that all forms of blocks have in common.
macro_rules! form_of_blocks {
    () => {
        const INPUTS: usize = Self::BLOCKS * BLOCK;
        const LINES: usize = <Self as Codes>::HEAD + Self::BLOCKS * <Self as Codes>::BLOCK;
        type X = Block;
        const XS: usize = Self::BLOCKS;
        const SUMS: usize = 3;

        #[inline(always)]
        fn add<S: Simd, const R: usize, const V: usize>(
            simd: S,
            lines: &[Line],
            x: [&[Block]; R],
            first: usize,
            ahead: usize,
            sums: &mut [[S::F32; V]; R],
        ) {
            add::<Self, S, R, V>(simd, lines, x, first, ahead, sums);
        }
    };
}

impl Codes for Q8_0 {
    const HEAD: usize = 1;
    const BLOCK: usize = 16;
    const BLOCKS: usize = 1;
    const PARTS: usize = 1;
    const LEAST: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[Line], four: usize, v: usize) -> S::I32 {
        simd.load_bytes(&block[2 * four + v].0)
    }

    #[inline(always)]
    fn offset<S: Simd>(simd: S, sum: S::I32) -> S::I32 {
        simd.shift_left::<7>(sum)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::I32, codes: S::I32, x: S::I32) -> S::I32 {
        simd.dot(sum, codes, x)
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, head: &[Line], _: &[Line], _: usize, v: usize) -> S::F32 {
        f16s(simd, &head[0], v)
    }

    #[inline(always)]
    fn least<S: Simd>(simd: S, _: &[Line], _: &[Line], _: usize) -> S::F32 {
        simd.splat(0.0)
    }
}

impl Form for Q8_0 {
    form_of_blocks!();

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        put_f16(stored, output, &mut lines[0]);
        for (input, &code) in stored[2..].iter().enumerate() {
            lines[1 + input / 4 * 2 + output / LANES].0[output % LANES * 4 + input % 4] = code ^ 128;
        }
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        let d = f16_of(&lines[0], output);
        for (input, number) in numbers.iter_mut().enumerate() {
            let code = lines[1 + input / 4 * 2 + output / LANES].0[output % LANES * 4 + input % 4] ^ 128;
            *number = d * f32::from(code as i8);
        }
    }
}

/// What the forms of nibbles have in common: codes need no sign, and products fit wherever they are added up.
macro_rules! codes_of_nibbles {
    ($skip:expr) => {
        #[inline(always)]
        fn codes<S: Simd>(simd: S, block: &[Line], four: usize, v: usize) -> S::I32 {
            nibbles::<S, 4>(simd, &block[$skip..], four, v)
        }

        #[inline(always)]
        fn dot<S: Simd>(simd: S, sum: S::I32, codes: S::I32, x: S::I32) -> S::I32 {
            simd.dot_small(sum, codes, x)
        }
    };
}

impl Codes for Q4_0 {
    const HEAD: usize = 1;
    const BLOCK: usize = 8;
    const BLOCKS: usize = 1;
    const PARTS: usize = 1;
    const LEAST: bool = false;

    codes_of_nibbles!(0);

    #[inline(always)]
    fn offset<S: Simd>(simd: S, sum: S::I32) -> S::I32 {
        simd.shift_left::<3>(sum)
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, head: &[Line], _: &[Line], _: usize, v: usize) -> S::F32 {
        f16s(simd, &head[0], v)
    }

    #[inline(always)]
    fn least<S: Simd>(simd: S, _: &[Line], _: &[Line], _: usize) -> S::F32 {
        simd.splat(0.0)
    }
}

impl Form for Q4_0 {
    form_of_blocks!();

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        put_f16(stored, output, &mut lines[0]);
        put_nibbles(&stored[2..], output, &mut lines[1..]);
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        let d = f16_of(&lines[0], output);
        for (input, number) in numbers.iter_mut().enumerate() {
            *number = d * (f32::from(nibble_of::<4>(&lines[1..], output, input)) - 8.0);
        }
    }
}

impl Codes for Q4_1 {
    const HEAD: usize = 2;
    const BLOCK: usize = 8;
    const BLOCKS: usize = 1;
    const PARTS: usize = 1;
    const LEAST: bool = true;

    codes_of_nibbles!(0);

    #[inline(always)]
    fn offset<S: Simd>(simd: S, _: S::I32) -> S::I32 {
        simd.splat_i32(0)
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, head: &[Line], _: &[Line], _: usize, v: usize) -> S::F32 {
        f16s(simd, &head[0], v)
    }

    #[inline(always)]
    fn least<S: Simd>(simd: S, head: &[Line], _: &[Line], v: usize) -> S::F32 {
        f16s(simd, &head[1], v)
    }
}

impl Form for Q4_1 {
    form_of_blocks!();

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        put_f16(stored, output, &mut lines[0]);
        put_f16(&stored[2..], output, &mut lines[1]);
        put_nibbles(&stored[4..], output, &mut lines[2..]);
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        let (d, least) = (f16_of(&lines[0], output), f16_of(&lines[1], output));
        for (input, number) in numbers.iter_mut().enumerate() {
            *number = d * f32::from(nibble_of::<4>(&lines[2..], output, input)) + least;
        }
    }
}

impl Codes for Q4K {
    const HEAD: usize = 2;
    const BLOCK: usize = 9;
    const BLOCKS: usize = 8;
    const PARTS: usize = 1;
    const LEAST: bool = true;

    codes_of_nibbles!(1);

    #[inline(always)]
    fn offset<S: Simd>(simd: S, _: S::I32) -> S::I32 {
        simd.splat_i32(0)
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, head: &[Line], block: &[Line], _: usize, v: usize) -> S::F32 {
        let scales = simd.load_u8(quarter(&block[0], v));
        simd.mul(f16s(simd, &head[0], v), simd.to_f32(scales))
    }

    #[inline(always)]
    fn least<S: Simd>(simd: S, head: &[Line], block: &[Line], v: usize) -> S::F32 {
        // Of zero minus the product the sign of a zero could differ; no sum shows it.
        let least = simd.load_u8(quarter(&block[0], 2 + v));
        simd.mul(f16s(simd, &head[1], v), simd.to_f32(simd.sub_i32(simd.splat_i32(0), least)))
    }
}

/// Scale and least value of block `i` of a Q4_K: the first four of each whole in a byte, the others in two parts.
fn six_bits(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        return (packed[i] & 63, packed[i + 4] & 63);
    }
    ((packed[i + 4] & 15) | ((packed[i - 4] >> 6) << 4), (packed[i + 4] >> 4) | ((packed[i] >> 6) << 4))
}

impl Form for Q4K {
    form_of_blocks!();

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        let (head, blocks) = lines.split_at_mut(<Self as Codes>::HEAD);
        put_f16(stored, output, &mut head[0]);
        put_f16(&stored[2..], output, &mut head[1]);
        for (i, block) in blocks.chunks_exact_mut(<Self as Codes>::BLOCK).enumerate() {
            (block[0].0[output], block[0].0[32 + output]) = six_bits(&stored[4..16], i);
            // Two blocks share 32 bytes: one has the lower halves, the next the upper.
            for (input, byte) in stored[16 + i / 2 * 32..][..32].iter().enumerate() {
                put_nibble::<4>(&mut block[1..], output, input, (byte >> (4 * (i % 2))) & 15);
            }
        }
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        let (head, blocks) = lines.split_at(<Self as Codes>::HEAD);
        let blocks = blocks.chunks_exact(<Self as Codes>::BLOCK);
        for (block, numbers) in blocks.zip(numbers.chunks_exact_mut(BLOCK)) {
            let d = f16_of(&head[0], output) * f32::from(block[0].0[output]);
            let least = f16_of(&head[1], output) * f32::from(block[0].0[32 + output]);
            for (input, number) in numbers.iter_mut().enumerate() {
                *number = d * f32::from(nibble_of::<4>(&block[1..], output, input)) - least;
            }
        }
    }
}

impl Codes for Q6K {
    const HEAD: usize = 1;
    const BLOCK: usize = 13;
    const BLOCKS: usize = 8;
    const PARTS: usize = 2;
    const LEAST: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(simd: S, block: &[Line], four: usize, v: usize) -> S::I32 {
        simd.or(nibbles::<S, 2>(simd, &block[1..9], four, v), pairs(simd, &block[9..13], four, v))
    }

    #[inline(always)]
    fn offset<S: Simd>(simd: S, sum: S::I32) -> S::I32 {
        simd.shift_left::<5>(sum)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::I32, codes: S::I32, x: S::I32) -> S::I32 {
        simd.dot_small(sum, codes, x)
    }

    #[inline(always)]
    fn scale<S: Simd>(simd: S, head: &[Line], block: &[Line], part: usize, v: usize) -> S::F32 {
        let scales = simd.load_i8(bytemuck::cast_ref(quarter(&block[0], 2 * part + v)));
        simd.mul(f16s(simd, &head[0], v), simd.to_f32(scales))
    }

    #[inline(always)]
    fn least<S: Simd>(simd: S, _: &[Line], _: &[Line], _: usize) -> S::F32 {
        simd.splat(0.0)
    }
}

/// Where the upper two bits of an input's code are: line, byte and shift.
fn pair(output: usize, input: usize) -> (usize, usize, usize) {
    (input / 16 * 2 + output / LANES, output % LANES * 4 + input % 4, input / 4 % 4 * 2)
}

impl Form for Q6K {
    form_of_blocks!();

    fn pack(stored: &[u8], output: usize, lines: &mut [Line]) {
        let (low, rest) = stored.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (scales, d) = rest.split_at(16);
        let (head, blocks) = lines.split_at_mut(<Self as Codes>::HEAD);
        put_f16(d, output, &mut head[0]);
        for (i, block) in blocks.chunks_exact_mut(<Self as Codes>::BLOCK).enumerate() {
            block[0].0[output] = scales[2 * i];
            block[0].0[32 + output] = scales[2 * i + 1];
            // Four blocks share 64 bytes of nibbles and 32 of pairs: see `Encoding::decode`.
            let (part, quarter) = (i / 4, i % 4);
            for input in 0..BLOCK {
                let byte = low[64 * part + 32 * (quarter % 2) + input];
                put_nibble::<2>(&mut block[1..], output, input, (byte >> (4 * (quarter / 2))) & 15);
                let two = (high[32 * part + input] >> (2 * quarter)) & 3;
                let (line, at, shift) = pair(output, input);
                block[9 + line].0[at] |= two << shift;
            }
        }
    }

    fn unpack(lines: &[Line], output: usize, numbers: &mut [f32]) {
        let (head, blocks) = lines.split_at(<Self as Codes>::HEAD);
        let d = f16_of(&head[0], output);
        let blocks = blocks.chunks_exact(<Self as Codes>::BLOCK);
        for (block, numbers) in blocks.zip(numbers.chunks_exact_mut(BLOCK)) {
            for (input, number) in numbers.iter_mut().enumerate() {
                let scale = block[0].0[input / 16 * 32 + output] as i8;
                let (line, at, shift) = pair(output, input);
                let two = (block[9 + line].0[at] >> shift) & 3;
                let code = i32::from(nibble_of::<2>(&block[1..], output, input) | two << 4) - 32;
                *number = d * f32::from(scale) * code as f32;
            }
        }
    }
}
