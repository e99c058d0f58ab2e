use std::arch::x86_64::*;

use half::f16;

use super::{Kernel, LANES, Simd};

/// AVX-512; with VNNI the products of bytes are one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// The proof that the processor has it.
    pub fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        there.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn with_vnni<K: Kernel>(simd: Avx512<true>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn without_vnni<K: Kernel>(simd: Avx512<false>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// An intrinsic, where a value of `Avx512` shows that the processor has it.
macro_rules! have {
    ($call:expr) => {
        // SAFETY: `detect` has found the features; slices that are read and written are as long as the instruction's reach.
        unsafe { $call }
    };
}

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F32 = __m512;
    type I32 = __m512i;

    const REGISTERS: usize = 32;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        if VNNI { have!(with_vnni(Avx512(()), kernel)) } else { have!(without_vnni(Avx512(()), kernel)) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        have!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        have!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> __m512 {
        let mask = first(from.len());
        have!(_mm512_maskz_loadu_ps(mask, from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        have!(_mm512_storeu_ps(to.as_mut_ptr(), x));
    }

    #[inline(always)]
    fn store_partial(self, x: __m512, to: &mut [f32]) {
        let mask = first(to.len());
        have!(_mm512_mask_storeu_ps(to.as_mut_ptr(), mask, x));
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        have!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn store_f16(self, x: __m512, to: &mut [f16; LANES]) {
        have!(_mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)));
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        have!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        have!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn reduce_add(self, x: __m512) -> f32 {
        have!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn reduce_max(self, x: __m512) -> f32 {
        have!({
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        have!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> __m512i {
        have!(_mm512_loadu_si512(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512i {
        have!(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512i {
        have!(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn store_i8(self, x: __m512i, to: &mut [i8; LANES]) {
        have!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)));
    }

    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        have!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub_i32(self, a: __m512i, b: __m512i) -> __m512i {
        have!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        have!(_mm512_and_si512(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        have!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, x: __m512i) -> __m512i {
        have!(_mm512_slli_epi32::<N>(x))
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, x: __m512i) -> __m512i {
        have!(_mm512_srli_epi32::<N>(x))
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, u: __m512i, s: __m512i) -> __m512i {
        if VNNI {
            return have!(_mm512_dpbusd_epi32(sum, u, s));
        }
        // Products of even and of odd bytes apart, as 16 bits: pairs of them would not fit into 16.
        have!({
            let (u_even, u_odd) = (_mm512_and_si512(u, _mm512_set1_epi16(255)), _mm512_srli_epi16::<8>(u));
            let (s_even, s_odd) =
                (_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(s)), _mm512_srai_epi16::<8>(s));
            let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(u_even, s_even));
            _mm512_add_epi32(sum, _mm512_madd_epi16(u_odd, s_odd))
        })
    }

    #[inline(always)]
    fn dot_small(self, sum: __m512i, u: __m512i, s: __m512i) -> __m512i {
        if VNNI {
            return have!(_mm512_dpbusd_epi32(sum, u, s));
        }
        have!({
            let pairs = _mm512_maddubs_epi16(u, s);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        })
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        have!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        have!(_mm512_cvtps_epi32(x))
    }

    #[inline(always)]
    fn from_bits(self, x: __m512i) -> __m512 {
        have!(_mm512_castsi512_ps(x))
    }

    #[inline(always)]
    fn to_bits(self, x: __m512) -> __m512i {
        have!(_mm512_castps_si512(x))
    }
}

/// The mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> u16 {
    if n >= LANES { u16::MAX } else { (1 << n) - 1 }
}
