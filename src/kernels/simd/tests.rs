#![allow(clippy::unwrap_used, reason = "tests")]

use half::f16;
use proptest::prelude::*;

use super::{Kernel, LANES, Level, Simd};

/// Every operation once; bits of all that comes out.
struct All<'a> {
    floats: &'a [[f32; LANES]; 3],
    integers: &'a [[i32; LANES]; 3],
    part: usize,
}

impl Kernel for All<'_> {
    type Output = Vec<[u32; LANES]>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let mut out = Vec::new();
        let [a, b, c] = [0, 1, 2].map(|i| simd.load(&self.floats[i]));
        let bytes = |i: usize| -> [u8; 64] { bytemuck::cast(self.integers[i]) };
        let [i, j, k] = [0, 1, 2].map(|i| simd.load_bytes(&bytes(i)));
        let mut halves = [f16::ZERO; LANES];
        simd.store_f16(a, &mut halves);
        let mut narrow = [0i8; LANES];
        simd.store_i8(i, &mut narrow);
        let widened: [u8; LANES] = bytemuck::cast(narrow);
        let small = simd.and(j, simd.splat_i32(0x7f7f_7f7f));
        for x in [
            simd.add(a, b),
            simd.sub(a, b),
            simd.mul(a, b),
            simd.div(a, b),
            simd.mul_add(a, b, c),
            simd.max(a, b),
            simd.min(a, b),
            simd.exp(a),
            simd.splat(self.floats[0][3]),
            simd.load_f16(&halves),
            simd.load_partial(&self.floats[1][..self.part]),
            simd.splat(simd.reduce_add(a)),
            simd.splat(simd.reduce_max(a)),
            simd.to_f32(i),
        ] {
            let mut buffer = [0f32; LANES];
            simd.store(x, &mut buffer);
            out.push(buffer.map(f32::to_bits));
        }
        for x in [
            simd.splat_i32(self.integers[0][0]),
            simd.load_u8(&widened),
            simd.load_i8(&narrow),
            simd.add_i32(i, j),
            simd.sub_i32(i, j),
            simd.and(i, j),
            simd.or(i, j),
            simd.shift_left::<7>(i),
            simd.shift_right::<4>(i),
            simd.dot(i, j, k),
            simd.dot_small(i, small, k),
            simd.round(a),
            simd.to_bits(a),
        ] {
            let mut buffer = [0f32; LANES];
            simd.store(simd.from_bits(x), &mut buffer);
            out.push(buffer.map(f32::to_bits));
        }
        let mut part = [7f32; LANES];
        simd.store_partial(a, &mut part[..self.part]);
        out.push(part.map(f32::to_bits));
        out
    }
}

proptest! {
    #[test]
    fn all_implementations_give_the_bits_of_the_portable_one(
        floats: [[i32; LANES]; 3], integers: [[i32; LANES]; 3], part in 0..=LANES,
    ) {
        let floats = floats.map(|x| x.map(|x| x as f32 * 2f32.powi(-24)));
        let by = |level: Level| level.run(All { floats: &floats, integers: &integers, part });
        let levels = Level::all();
        let expected = by(*levels.last().unwrap());
        for level in levels {
            let found = by(level);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                prop_assert_eq!(found, expected, "{}: operation {}", level.name(), i);
            }
        }
    }
}

struct Exp<'a>(&'a [f32; LANES]);

impl Kernel for Exp<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
        let mut to = [0.0; LANES];
        simd.store(simd.exp(simd.load(self.0)), &mut to);
        to
    }
}

#[test]
fn exp_is_close_to_that_of_f64() {
    let best = Level::best();
    for start in (-8700..8800).step_by(3) {
        let x: [f32; LANES] = std::array::from_fn(|i| (start as f32 + i as f32 * 0.19) / 100.0);
        for (x, y) in x.iter().zip(best.run(Exp(&x))) {
            let expected = f64::from(x.clamp(-87.0, 88.0)).exp();
            assert!((f64::from(y) / expected - 1.0).abs() < 2.4e-7, "e^{x} is {y}, not {expected}");
        }
    }
    assert_eq!(best.run(Exp(&[0.0; LANES])), [1.0; LANES]);
}
