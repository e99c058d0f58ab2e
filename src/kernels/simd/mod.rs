//! Sixteen numbers at a time: one vector type for all processors, chosen at run time.
//!
//! A [`Kernel`] is written once over [`Simd`] and run by [`dispatch`]. Every implementation computes lane by lane the
//! same IEEE operations in the same order (multiply-adds are fused everywhere), so all give the same bits. All of the
//! project's intrinsics for arithmetic are in this folder.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use half::f16;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

/// Numbers of a vector.
pub const LANES: usize = 16;

/// What the processor can do with 16 lanes of 32 bits. A value is the proof that the processor has the features, so its
/// methods are safe to call; they must be inlined into [`Simd::vectorize`], hence `#[inline(always)]` on all that a
/// kernel calls, and no closures in its inner loops.
#[allow(clippy::wrong_self_convention, reason = "`self` is the processor")]
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 numbers in single precision.
    type F32: Copy;
    /// 16 integers of 32 bits, or 64 bytes.
    type I32: Copy;

    /// Vectors that the registers hold at a time: what a tile of sums is cut to.
    const REGISTERS: usize;

    /// Runs a kernel in a function that is compiled for this processor.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// `x` in all lanes.
    fn splat(self, x: f32) -> Self::F32;
    /// The 16 numbers there.
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    /// Up to 16 numbers, the other lanes zero.
    fn load_partial(self, from: &[f32]) -> Self::F32;
    /// Writes all lanes.
    fn store(self, x: Self::F32, to: &mut [f32; LANES]);
    /// Writes the first lanes, as many as there is room for.
    fn store_partial(self, x: Self::F32, to: &mut [f32]);
    /// The 16 halves there, exactly.
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32;
    /// Writes all lanes as the nearest halves.
    fn store_f16(self, x: Self::F32, to: &mut [f16; LANES]);
    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The greater of each lane; `b` where either is not a number.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The lesser of each lane; `b` where either is not a number.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The sum of all lanes: lanes 8 apart first, then 4, 2 and 1.
    fn reduce_add(self, x: Self::F32) -> f32;
    /// The greatest lane, in the order of [`Self::reduce_add`].
    fn reduce_max(self, x: Self::F32) -> f32;

    /// `x` in all lanes.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// The 64 bytes there.
    fn load_bytes(self, from: &[u8; 64]) -> Self::I32;
    /// Sixteen bytes, each widened without a sign.
    fn load_u8(self, from: &[u8; LANES]) -> Self::I32;
    /// Sixteen bytes, each widened with its sign.
    fn load_i8(self, from: &[i8; LANES]) -> Self::I32;
    /// Writes the lowest byte of every lane.
    fn store_i8(self, x: Self::I32, to: &mut [i8; LANES]);
    /// `a + b`, wrapping.
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a - b`, wrapping.
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The bits that both have.
    fn and(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The bits that either has.
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Every lane moved up by `N` bits.
    fn shift_left<const N: u32>(self, x: Self::I32) -> Self::I32;
    /// Every lane moved down by `N` bits, zeros from above.
    fn shift_right<const N: u32>(self, x: Self::I32) -> Self::I32;
    /// `sum` and in each lane the four products of its bytes: `u`'s without sign, `s`'s with it. Exact for all bytes.
    fn dot(self, sum: Self::I32, u: Self::I32, s: Self::I32) -> Self::I32;
    /// [`Self::dot`] for bytes of `u` below 128: faster on some processors.
    fn dot_small(self, sum: Self::I32, u: Self::I32, s: Self::I32) -> Self::I32;
    /// The number nearest to each integer.
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// The integer nearest to each number, even ones where two are as near. Numbers must be within the range of i32.
    fn round(self, x: Self::F32) -> Self::I32;
    /// The numbers that the bits are.
    fn from_bits(self, x: Self::I32) -> Self::F32;
    /// The bits of the numbers.
    fn to_bits(self, x: Self::F32) -> Self::I32;

    /// `e^x` within 2 units in the last place; numbers outside of -87 to 88 count as these.
    #[inline(always)]
    fn exp(self, x: Self::F32) -> Self::F32 {
        // x = n ln 2 + r, and e^r by the polynomial of Cephes (expf).
        // In this order what is no number stays none.
        let x = self.min(self.splat(88.0), self.max(self.splat(-87.0), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let whole = self.to_f32(n);
        // ln 2 in two parts, the first of few bits: its products with n are exact.
        let r = self.mul_add(whole, self.splat(-0.693_359_4), x);
        let r = self.mul_add(whole, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let e = self.add(self.mul_add(p, self.mul(r, r), r), self.splat(1.0));
        self.from_bits(self.add_i32(self.to_bits(e), self.shift_left::<23>(n)))
    }
}

/// Something to compute by whichever vectors there are.
pub trait Kernel {
    /// What it gives.
    type Output;

    /// Computes it. An implementation must be `#[inline(always)]`, or it is compiled for the least processor.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A way to compute that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512<true>),
    /// AVX-512 (F, BW, DQ, VL).
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    /// AVX2 with FMA, F16C and AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(Avx2<true>),
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// Arrays, for the compiler to vectorise; the twin that the tests compare the others with.
    Portable(Portable),
}

impl Level {
    /// All that this processor has, the best first.
    pub fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let levels = [
            Avx512::<true>::detect().map(Self::Avx512Vnni),
            Avx512::<false>::detect().map(Self::Avx512),
            Avx2::<true>::detect().map(Self::Avx2Vnni),
            Avx2::<false>::detect().map(Self::Avx2),
            Some(Self::Portable(Portable)),
        ];
        #[cfg(target_arch = "aarch64")]
        let levels = [Some(Self::Neon(Neon)), Some(Self::Portable(Portable))];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let levels = [Some(Self::Portable(Portable))];
        levels.into_iter().flatten().collect()
    }

    /// The best that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::all()[0])
    }

    /// Its name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni(_) => "AVX2 VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "NEON",
            Self::Portable(_) => "portable",
        }
    }

    /// Runs a kernel this way.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(kernel),
            Self::Portable(simd) => simd.vectorize(kernel),
        }
    }
}

/// Runs a kernel the best way that this processor has.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    Level::best().run(kernel)
}

/// Asks for the cache line at an address, without waiting for it. Any address will do: nothing is read.
#[inline(always)]
pub fn prefetch<T>(wanted: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults; SSE is part of every x86-64 processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(wanted.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = wanted;
}
