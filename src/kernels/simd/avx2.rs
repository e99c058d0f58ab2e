use std::arch::x86_64::*;

use half::f16;

use super::{Kernel, LANES, Simd};

/// AVX2 with FMA and F16C, two registers a vector; with AVX-VNNI the products of bytes are one instruction each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// The proof that the processor has it.
    pub fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        there.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn with_vnni<K: Kernel>(simd: Avx2<true>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn without_vnni<K: Kernel>(simd: Avx2<false>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// An intrinsic, where a value of `Avx2` shows that the processor has it.
macro_rules! have {
    ($call:expr) => {
        // SAFETY: `detect` has found the features; slices that are read and written are as long as the instruction's reach.
        unsafe { $call }
    };
}

type F32 = [__m256; 2];
type I32 = [__m256i; 2];

/// The lower and the upper eight of sixteen.
#[inline(always)]
fn split<T>(x: &[T; LANES]) -> [*const T; 2] {
    [x[..8].as_ptr(), x[8..].as_ptr()]
}

/// See [`split`].
#[inline(always)]
fn split_mut<T>(x: &mut [T; LANES]) -> [*mut T; 2] {
    let (low, high) = x.split_at_mut(8);
    [low.as_mut_ptr(), high.as_mut_ptr()]
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F32 = F32;
    type I32 = I32;

    const REGISTERS: usize = 8;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        if VNNI { have!(with_vnni(Avx2(()), kernel)) } else { have!(without_vnni(Avx2(()), kernel)) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        [have!(_mm256_set1_ps(x)); 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F32 {
        let [a, b] = split(from);
        have!([_mm256_loadu_ps(a), _mm256_loadu_ps(b)])
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
        let [a, b] = split_mut(to);
        have!({
            _mm256_storeu_ps(a, x[0]);
            _mm256_storeu_ps(b, x[1]);
        });
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
        let [a, b] = split(from);
        have!([_mm256_cvtph_ps(_mm_loadu_si128(a.cast())), _mm256_cvtph_ps(_mm_loadu_si128(b.cast()))])
    }

    #[inline(always)]
    fn store_f16(self, x: F32, to: &mut [f16; LANES]) {
        let [a, b] = split_mut(to);
        have!({
            _mm_storeu_si128(a.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(b.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        });
    }

    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        have!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        have!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        have!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        have!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul_add(self, a: F32, b: F32, c: F32) -> F32 {
        have!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        have!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        have!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn reduce_add(self, x: F32) -> f32 {
        have!({
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn reduce_max(self, x: F32) -> f32 {
        have!({
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I32 {
        [have!(_mm256_set1_epi32(x)); 2]
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 64]) -> I32 {
        let (a, b) = from.split_at(32);
        have!([_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast())])
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I32 {
        let [a, b] = split(from);
        have!([
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(a.cast())),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(b.cast()))
        ])
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> I32 {
        let [a, b] = split(from);
        have!([
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(a.cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(b.cast()))
        ])
    }

    #[inline(always)]
    fn store_i8(self, x: I32, to: &mut [i8; LANES]) {
        // The lowest bytes of each 128 bits side by side, then those of all four.
        have!({
            let lowest = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
            let four = |x: __m128i| _mm_shuffle_epi8(x, lowest);
            let low = _mm_unpacklo_epi32(
                four(_mm256_castsi256_si128(x[0])),
                four(_mm256_extracti128_si256::<1>(x[0])),
            );
            let high = _mm_unpacklo_epi32(
                four(_mm256_castsi256_si128(x[1])),
                four(_mm256_extracti128_si256::<1>(x[1])),
            );
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_unpacklo_epi64(low, high));
        });
    }

    #[inline(always)]
    fn add_i32(self, a: I32, b: I32) -> I32 {
        have!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }

    #[inline(always)]
    fn sub_i32(self, a: I32, b: I32) -> I32 {
        have!([_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])])
    }

    #[inline(always)]
    fn and(self, a: I32, b: I32) -> I32 {
        have!([_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])])
    }

    #[inline(always)]
    fn or(self, a: I32, b: I32) -> I32 {
        have!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self, x: I32) -> I32 {
        have!({
            let by = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi32(x[0], by), _mm256_sll_epi32(x[1], by)]
        })
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self, x: I32) -> I32 {
        have!({
            let by = _mm_cvtsi32_si128(N as i32);
            [_mm256_srl_epi32(x[0], by), _mm256_srl_epi32(x[1], by)]
        })
    }

    #[inline(always)]
    fn dot(self, sum: I32, u: I32, s: I32) -> I32 {
        [dot::<VNNI>(sum[0], u[0], s[0]), dot::<VNNI>(sum[1], u[1], s[1])]
    }

    #[inline(always)]
    fn dot_small(self, sum: I32, u: I32, s: I32) -> I32 {
        [dot_small::<VNNI>(sum[0], u[0], s[0]), dot_small::<VNNI>(sum[1], u[1], s[1])]
    }

    #[inline(always)]
    fn to_f32(self, x: I32) -> F32 {
        have!([_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])])
    }

    #[inline(always)]
    fn round(self, x: F32) -> I32 {
        have!([_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])])
    }

    #[inline(always)]
    fn from_bits(self, x: I32) -> F32 {
        have!([_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1])])
    }

    #[inline(always)]
    fn to_bits(self, x: F32) -> I32 {
        have!([_mm256_castps_si256(x[0]), _mm256_castps_si256(x[1])])
    }
}

/// [`Simd::dot`] of half a vector. To be called from methods of `Avx2` only.
#[inline(always)]
fn dot<const VNNI: bool>(sum: __m256i, u: __m256i, s: __m256i) -> __m256i {
    if VNNI {
        return have!(_mm256_dpbusd_avx_epi32(sum, u, s));
    }
    // Products of even and of odd bytes apart, as 16 bits: pairs of them would not fit into 16.
    have!({
        let (u_even, u_odd) = (_mm256_and_si256(u, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(u));
        let (s_even, s_odd) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(s)), _mm256_srai_epi16::<8>(s));
        let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(u_even, s_even));
        _mm256_add_epi32(sum, _mm256_madd_epi16(u_odd, s_odd))
    })
}

/// [`Simd::dot_small`] of half a vector. To be called from methods of `Avx2` only.
#[inline(always)]
fn dot_small<const VNNI: bool>(sum: __m256i, u: __m256i, s: __m256i) -> __m256i {
    if VNNI {
        return have!(_mm256_dpbusd_avx_epi32(sum, u, s));
    }
    have!({
        let pairs = _mm256_maddubs_epi16(u, s);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    })
}
