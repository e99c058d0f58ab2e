use std::array::from_fn;

use half::f16;

use super::{Kernel, LANES, Simd};

/// Arrays: for processors that have nothing else here, and what the other implementations are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portable;

type F32 = [f32; LANES];
type I32 = [i32; LANES];

fn halves<T: Copy>(mut x: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    for apart in [8, 4, 2, 1] {
        for i in 0..apart {
            x[i] = join(x[i], x[i + apart]);
        }
    }
    x[0]
}

fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Simd for Portable {
    type F32 = F32;
    type I32 = I32;

    // As for 32 registers of four lanes.
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F32 {
        *from
    }

    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> F32 {
        let mut x = [0.0; LANES];
        let n = from.len().min(LANES);
        x[..n].copy_from_slice(&from[..n]);
        x
    }

    #[inline(always)]
    fn store(self, x: F32, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn store_partial(self, x: F32, to: &mut [f32]) {
        let n = to.len().min(LANES);
        to[..n].copy_from_slice(&x[..n]);
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> F32 {
        from_fn(|i| from[i].to_f32())
    }

    #[inline(always)]
    fn store_f16(self, x: F32, to: &mut [f16; LANES]) {
        *to = from_fn(|i| f16::from_f32(x[i]));
    }

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: F32, b: F32, c: F32) -> F32 {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        from_fn(|i| greater(a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn reduce_add(self, x: F32) -> f32 {
        halves(x, |a, b| a + b)
    }

    #[inline(always)]
    fn reduce_max(self, x: F32) -> f32 {
        halves(x, greater)
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> I32 {
        let (lanes, _) = from.as_chunks::<4>();
        from_fn(|i| i32::from_le_bytes(lanes[i]))
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I32 {
        from_fn(|i| i32::from(from[i]))
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> I32 {
        from_fn(|i| i32::from(from[i]))
    }

    #[inline(always)]
    fn store_i8(self, x: I32, to: &mut [i8; LANES]) {
        *to = from_fn(|i| x[i] as i8);
    }

    #[inline(always)]
    fn add_i32(self, a: I32, b: I32) -> I32 {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub_i32(self, a: I32, b: I32) -> I32 {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn and(self, a: I32, b: I32) -> I32 {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: I32, b: I32) -> I32 {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, x: I32) -> I32 {
        from_fn(|i| x[i] << N)
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, x: I32) -> I32 {
        from_fn(|i| (x[i] as u32 >> N) as i32)
    }

    #[inline(always)]
    fn dot(self, sum: I32, u: I32, s: I32) -> I32 {
        from_fn(|i| {
            let (u, s) = (u[i].to_le_bytes(), s[i].to_le_bytes());
            let product = |j: usize| i32::from(u[j]) * i32::from(s[j] as i8);
            sum[i].wrapping_add(product(0) + product(1) + product(2) + product(3))
        })
    }

    #[inline(always)]
    fn dot_small(self, sum: I32, u: I32, s: I32) -> I32 {
        self.dot(sum, u, s)
    }

    #[inline(always)]
    fn to_f32(self, x: I32) -> F32 {
        from_fn(|i| x[i] as f32)
    }

    #[inline(always)]
    fn round(self, x: F32) -> I32 {
        from_fn(|i| x[i].round_ties_even() as i32)
    }

    #[inline(always)]
    fn from_bits(self, x: I32) -> F32 {
        from_fn(|i| f32::from_bits(x[i] as u32))
    }

    #[inline(always)]
    fn to_bits(self, x: F32) -> I32 {
        from_fn(|i| x[i].to_bits() as i32)
    }
}
