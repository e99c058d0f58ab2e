use std::arch::aarch64::*;

use half::f16;

use super::{Kernel, LANES, Portable, Simd};

/// NEON, four registers a vector: every 64-bit ARM processor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon;

/// An intrinsic of NEON.
macro_rules! have {
    ($call:expr) => {
        // SAFETY: NEON is part of the architecture; slices that are read and written are as long as the instruction's reach.
        unsafe {
            $call
        }
    };
}

/// Computes each quarter of a vector.
macro_rules! quarters {
    ($i:ident => $quarter:expr) => {{
        macro_rules! at {
            ($at:literal) => {{
                let $i: usize = $at;
                have!($quarter)
            }};
        }
        [at!(0), at!(1), at!(2), at!(3)]
    }};
}

type F32 = [float32x4_t; 4];
type I32 = [int32x4_t; 4];

impl Simd for Neon {
    type F32 = F32;
    type I32 = I32;

    const REGISTERS: usize = 8;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        [have!(vdupq_n_f32(x)); 4]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F32 {
        quarters!(i => vld1q_f32(from[4 * i..4 * i + 4].as_ptr()))
    }

    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> F32 {
        let mut whole = [0.0; LANES];
        let n = from.len().min(LANES);
        whole[..n].copy_from_slice(&from[..n]);
        self.load(&whole)
    }

    #[inline(always)]
    fn store(self, x: F32, to: &mut [f32; LANES]) {
        quarters!(i => vst1q_f32(to[4 * i..4 * i + 4].as_mut_ptr(), x[i]));
    }

    #[inline(always)]
    fn store_partial(self, x: F32, to: &mut [f32]) {
        let mut whole = [0.0; LANES];
        self.store(x, &mut whole);
        let n = to.len().min(LANES);
        to[..n].copy_from_slice(&whole[..n]);
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> F32 {
        self.load(&Portable.load_f16(from))
    }

    #[inline(always)]
    fn store_f16(self, x: F32, to: &mut [f16; LANES]) {
        let mut whole = [0.0; LANES];
        self.store(x, &mut whole);
        Portable.store_f16(whole, to);
    }

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        quarters!(i => vaddq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        quarters!(i => vsubq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        quarters!(i => vmulq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        quarters!(i => vdivq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul_add(self, a: F32, b: F32, c: F32) -> F32 {
        quarters!(i => vfmaq_f32(c[i], a[i], b[i]))
    }

    // Not `vmaxq_f32`, which gives what is no number where either is none.
    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        quarters!(i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        quarters!(i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn reduce_add(self, x: F32) -> f32 {
        have!({
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        })
    }

    #[inline(always)]
    fn reduce_max(self, x: F32) -> f32 {
        let mut whole = [0.0; LANES];
        self.store(x, &mut whole);
        Portable.reduce_max(whole)
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I32 {
        [have!(vdupq_n_s32(x)); 4]
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> I32 {
        quarters!(i => vreinterpretq_s32_u8(vld1q_u8(from[16 * i..16 * i + 16].as_ptr())))
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I32 {
        have!({
            let x = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_u8(vget_high_u8(x)));
            [
                vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
                vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
                vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
                vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high))),
            ]
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> I32 {
        have!({
            let x = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x)));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_s16(vget_high_s16(low)),
                vmovl_s16(vget_low_s16(high)),
                vmovl_s16(vget_high_s16(high)),
            ]
        })
    }

    #[inline(always)]
    fn store_i8(self, x: I32, to: &mut [i8; LANES]) {
        have!({
            let low = vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]));
            let high = vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        });
    }

    #[inline(always)]
    fn add_i32(self, a: I32, b: I32) -> I32 {
        quarters!(i => vaddq_s32(a[i], b[i]))
    }

    #[inline(always)]
    fn sub_i32(self, a: I32, b: I32) -> I32 {
        quarters!(i => vsubq_s32(a[i], b[i]))
    }

    #[inline(always)]
    fn and(self, a: I32, b: I32) -> I32 {
        quarters!(i => vandq_s32(a[i], b[i]))
    }

    #[inline(always)]
    fn or(self, a: I32, b: I32) -> I32 {
        quarters!(i => vorrq_s32(a[i], b[i]))
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, x: I32) -> I32 {
        quarters!(i => vshlq_s32(x[i], vdupq_n_s32(N as i32)))
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, x: I32) -> I32 {
        quarters!(i => vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x[i]), vdupq_n_s32(-(N as i32)))))
    }

    #[inline(always)]
    fn dot(self, sum: I32, u: I32, s: I32) -> I32 {
        quarters!(i => {
            let (u, s) = (vreinterpretq_u8_s32(u[i]), vreinterpretq_s8_s32(s[i]));
            let wide = |x: uint8x8_t| vreinterpretq_s16_u16(vmovl_u8(x));
            let (u_low, u_high) = (wide(vget_low_u8(u)), wide(vget_high_u8(u)));
            let (s_low, s_high) = (vmovl_s8(vget_low_s8(s)), vmovl_s8(vget_high_s8(s)));
            let a = vmull_s16(vget_low_s16(u_low), vget_low_s16(s_low));
            let b = vmull_s16(vget_high_s16(u_low), vget_high_s16(s_low));
            let c = vmull_s16(vget_low_s16(u_high), vget_low_s16(s_high));
            let d = vmull_s16(vget_high_s16(u_high), vget_high_s16(s_high));
            vaddq_s32(sum[i], vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)))
        })
    }

    // Below 128 bytes without a sign are bytes with one, and two products fit into 16 bits.
    #[inline(always)]
    fn dot_small(self, sum: I32, u: I32, s: I32) -> I32 {
        quarters!(i => {
            let (u, s) = (vreinterpretq_s8_s32(u[i]), vreinterpretq_s8_s32(s[i]));
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(u), vget_low_s8(s)));
            let high = vpaddlq_s16(vmull_s8(vget_high_s8(u), vget_high_s8(s)));
            vaddq_s32(sum[i], vpaddq_s32(low, high))
        })
    }

    #[inline(always)]
    fn to_f32(self, x: I32) -> F32 {
        quarters!(i => vcvtq_f32_s32(x[i]))
    }

    #[inline(always)]
    fn round(self, x: F32) -> I32 {
        quarters!(i => vcvtnq_s32_f32(x[i]))
    }

    #[inline(always)]
    fn from_bits(self, x: I32) -> F32 {
        quarters!(i => vreinterpretq_f32_s32(x[i]))
    }

    #[inline(always)]
    fn to_bits(self, x: F32) -> I32 {
        quarters!(i => vreinterpretq_s32_f32(x[i]))
    }
}
