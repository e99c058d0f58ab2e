//! Rows of four bits a number.
//!
//! A number is one of 16 levels, times its block's sub-scale, times the row's scale. Blocks have 16 numbers and
//! sub-scales are 1 to 15: 4.25 bits a number in all. Of some thirty schemes tried on a trained table (docs/table.md)
//! this one loses least for its bytes. In the row lie the levels' numbers, two a byte, the lower half first, and then
//! the sub-scales in the same way. Of an odd number of either the last upper half is zero.

/// The numbers that four bits stand for: the levels of least squared error for normally distributed numbers (Lloyd,
/// "Least squares quantization in PCM", 1982) as whole numbers. Part of the format.
pub const LEVELS: [i8; 16] = [-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127];

/// Numbers that share a sub-scale.
const BLOCK: usize = 16;

/// The largest sub-scale.
const MOST: f32 = 15.0;

/// Bytes of a row of `dim` numbers, not counting its scale.
pub(super) fn bytes(dim: usize) -> usize {
    dim.div_ceil(2) + dim.div_ceil(BLOCK).div_ceil(2)
}

/// The two numbers of a byte: the level of its lower half, then that of its upper half.
const PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [LEVELS[byte & 15] as f32, LEVELS[byte >> 4] as f32];
        byte += 1;
    }
    pairs
};

/// The numbers of a row.
pub(super) fn decode(bytes: &[u8], scale: f32, out: &mut [f32]) {
    let (levels, scales) = bytes.split_at(out.len().div_ceil(2));
    let halves = scales.iter().flat_map(|&byte| [byte & 15, byte >> 4]);
    for ((out, levels), sub) in out.chunks_mut(BLOCK).zip(levels.chunks(BLOCK / 2)).zip(halves) {
        let scale = scale * f32::from(sub);
        for (pair, &byte) in out.chunks_mut(2).zip(levels) {
            for (x, level) in pair.iter_mut().zip(PAIRS[usize::from(byte)]) {
                *x = scale * level;
            }
        }
    }
}

/// Writes a row to `out`, which has [`bytes`] bytes, and gives its scale. The numbers are finite, and `absmax` is what the
/// largest magnitude is 127 times of.
pub(super) fn encode(row: &[f32], absmax: f32, out: &mut [u8]) -> f32 {
    let largest = row.chunks(BLOCK).map(|block| best_scale(block, absmax)).fold(0.0, f32::max);
    let scale = (largest / MOST).max(f32::MIN_POSITIVE);
    let (levels, scales) = out.split_at_mut(row.len().div_ceil(2));
    scales.fill(0);
    for (i, (block, levels)) in row.chunks(BLOCK).zip(levels.chunks_mut(BLOCK / 2)).enumerate() {
        let sub = best_sub_scale(block, best_scale(block, absmax) / scale, scale);
        scales[i / 2] |= sub << (i % 2 * 4);
        let scale = scale * f32::from(sub);
        for (byte, pair) in levels.iter_mut().zip(block.chunks(2)) {
            *byte = nearest(pair[0] / scale) | pair.get(1).map_or(0, |&x| nearest(x / scale) << 4);
        }
    }
    scale
}

/// The number of the level nearest to `x`.
fn nearest(x: f32) -> u8 {
    LEVELS.windows(2).map(|pair| u8::from(x > (f32::from(pair[0]) + f32::from(pair[1])) / 2.0)).sum()
}

/// The products of a block and its levels at a scale: `<x, l>` and `<l, l>`.
fn products(block: &[f32], scale: f32) -> (f32, f32) {
    block.iter().fold((0.0, 0.0), |(xl, ll), &x| {
        let level = f32::from(LEVELS[usize::from(nearest(x / scale))]);
        // In units of the scale, in which nothing overflows.
        (xl + x / scale * level, ll + level * level)
    })
}

/// The squared error of a block at a scale, in units of `unit`.
fn error(block: &[f32], scale: f32, unit: f32) -> f32 {
    let off = |x: f32| (x - scale * f32::from(LEVELS[usize::from(nearest(x / scale))])) / unit;
    block.iter().map(|&x| off(x) * off(x)).sum()
}

/// The scale of least squared error for a block by itself, among some shares of the one that cuts nothing off and what
/// least squares makes of them: for fixed levels l, |x - s l|^2 is least at s = <x, l> / <l, l>.
fn best_scale(block: &[f32], unit: f32) -> f32 {
    let absmax = block.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
    if absmax < f32::MIN_POSITIVE {
        return f32::MIN_POSITIVE;
    }
    let mut best = (f32::INFINITY, absmax);
    for share in [1.0, 0.93, 0.86, 0.79, 0.72, 0.65, 0.58] {
        let mut scale = absmax * share;
        for _ in 0..2 {
            let error = error(block, scale, unit);
            if error < best.0 {
                best = (error, scale);
            }
            let (xl, ll) = products(block, scale);
            scale = (scale * (xl / ll)).max(f32::MIN_POSITIVE);
        }
    }
    best.1
}

/// The whole sub-scale of least squared error near `wanted`.
fn best_sub_scale(block: &[f32], wanted: f32, scale: f32) -> u8 {
    let middle = wanted.round();
    let tried = (-2..=2).map(|step| (middle + step as f32).clamp(1.0, MOST));
    let of = |sub: f32| error(block, scale * sub, scale);
    tried.min_by(|&a, &b| of(a).total_cmp(&of(b))).unwrap_or(1.0) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(row: &[f32]) -> Vec<f32> {
        let absmax = row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let mut out = vec![0xff; bytes(row.len())];
        let scale = encode(row, (absmax / 127.0).max(f32::MIN_POSITIVE), &mut out);
        assert!(scale.is_finite() && scale > 0.0);
        let mut back = vec![f32::NAN; row.len()];
        decode(&out, scale, &mut back);
        back
    }

    fn squared_error(row: &[f32], back: &[f32]) -> f64 {
        row.iter().zip(back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    }

    /// One scale a row, the one that cuts nothing off, and every number at the level nearest to it.
    fn obvious(row: &[f32]) -> Vec<f32> {
        let scale = row.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
        let distance = |x: f32, level: i8| (x - scale * f32::from(level)).abs();
        let nearest = |x: f32| LEVELS.into_iter().min_by(|&a, &b| distance(x, a).total_cmp(&distance(x, b)));
        row.iter().map(|&x| scale * f32::from(nearest(x).unwrap())).collect()
    }

    proptest! {
        #[test]
        fn is_hardly_ever_worse_than_the_obvious(row in prop::collection::vec(-3.0_f32..3.0, 1..100), spike in 1.0_f32..20.0) {
            let mut row = row;
            row[0] *= spike;
            let back = round_trip(&row);
            prop_assert!(squared_error(&row, &back) <= squared_error(&row, &obvious(&row)) * 1.2 + 1e-9);
        }
    }

    #[test]
    fn normal_numbers_keep_all_but_a_two_hundredth() {
        let mut state = 7_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let row: Vec<f32> = (0..4096).map(|_| (0..12).map(|_| uniform()).sum()).collect();
        let error = |back: &[f32]| squared_error(&row, back) / squared_error(&row, &vec![0.0; row.len()]);
        let (ours, obvious) = (error(&round_trip(&row)), error(&obvious(&row)));
        assert!(ours < 0.006 && ours < obvious / 2.0, "{ours} {obvious}");
    }

    #[test]
    fn what_the_levels_can_say_is_kept() {
        // Two blocks at sub-scales 15 and 3 of the row's scale.
        let row: Vec<f32> =
            LEVELS.iter().map(|&l| f32::from(l) * 15.0).chain(LEVELS.map(|l| f32::from(l) * 3.0)).collect();
        assert_eq!(round_trip(&row), row);
    }

    #[test]
    fn extremes_stay_finite() {
        assert!(round_trip(&[0.0; 33]).iter().all(|x| x.abs() < 1e-30));
        let back = round_trip(&[3e38, -1e-40, 1e30, 0.0, -3e38]);
        assert!(back.iter().all(|x| x.is_finite()) && back[0] > 2e38 && back[4] < -2e38, "{back:?}");
    }

    #[test]
    fn a_row_has_four_and_a_quarter_bits_a_number() {
        for (dim, expected) in [(128, 68), (1024, 544), (1, 2), (16, 9), (17, 10), (33, 19)] {
            assert_eq!(bytes(dim), expected, "{dim}");
        }
    }
}
