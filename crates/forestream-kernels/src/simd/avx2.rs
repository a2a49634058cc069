//! Sixteen lanes in two 256-bit registers: AVX2 with FMA and F16C.

/// Whether this machine has the set.
pub(crate) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Pairs of `__m256`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

#[cfg(target_arch = "x86_64")]
mod lanes {
    #![expect(
        clippy::undocumented_unsafe_blocks,
        reason = "every block relies on the one condition that `Simd` states"
    )]

    #[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
    use std::arch::x86_64::*;

    use half::f16;

    use super::Avx2;
    use crate::simd::{LANES, Simd};

    type Pair = (__m256, __m256);

    impl Simd for Avx2 {
        type F32 = Pair;

        const MAX_ROWS: usize = 4;
        const READS_F16: bool = true;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Pair {
            unsafe { (_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Pair {
            unsafe { (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Pair {
            let widen = |from: *const f16| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) };
            unsafe { (widen(from), widen(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Pair {
            let widen = |from: *const u16| unsafe {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
            };
            unsafe { (widen(from), widen(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(value: Pair, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, value.0);
                _mm256_storeu_ps(to.add(8), value.1);
            }
        }
        #[inline(always)]
        unsafe fn add(a: Pair, b: Pair) -> Pair {
            unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn sub(a: Pair, b: Pair) -> Pair {
            unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn mul(a: Pair, b: Pair) -> Pair {
            unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn div(a: Pair, b: Pair) -> Pair {
            unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn max(a: Pair, b: Pair) -> Pair {
            unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn min(a: Pair, b: Pair) -> Pair {
            unsafe { (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
            unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
        }
        #[inline(always)]
        unsafe fn round(a: Pair) -> Pair {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            unsafe { (_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1)) }
        }
        #[inline(always)]
        unsafe fn exp2_of_integer(a: Pair) -> Pair {
            let power = |x| unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            (power(a.0), power(a.1))
        }
        #[inline(always)]
        unsafe fn store_i8(value: Pair, to: &mut [i8]) -> i32 {
            debug_assert!(to.len() >= LANES);
            unsafe {
                let (low, high) = (_mm256_cvtps_epi32(value.0), _mm256_cvtps_epi32(value.1));
                // `packs` works within 128-bit halves; the permutation restores the order of quarters.
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
                let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
                let pairs = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
                let quad = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
                let two = _mm_add_epi32(quad, _mm_shuffle_epi32::<0b00_00_11_10>(quad));
                _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b01>(two)))
            }
        }
    }
}
