//! Block dot products with AVX2: byte products in pairs, summed in 16 bits as far as they fit, then widened.
//!
//! `vpmaddubsw` adds two products of an unsigned and a signed byte in saturating 16 bits. Quants of 4 bits give at most
//! 2 * 15 * 127 = 3,810, so the 8 steps of a block still fit (30,480); quants of 6 bits give 16,002 and allow 2 steps;
//! 8-bit quants are taken as two nibbles. So no sum ever saturates and all results are exact.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "every block relies on the one condition that `Dot` states")]

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use std::arch::x86_64::*;

use super::dot::Dot;
use crate::activations::QuantBlock;
use crate::packed::layout::{STEP_BYTES, STEPS, Scheme, Width};
use crate::simd::Avx2;

/// Bytes of a register, half of a step.
const REGISTER: usize = 32;
/// Steps that share their bytes with others in 4-bit planes.
const HALF_STEPS: usize = STEPS / 2;

/// Sixteen lanes: output rows 0 to 7 and 8 to 15.
type Pair = (__m256i, __m256i);

#[inline(always)]
unsafe fn load(bytes: *const u8, offset: usize) -> __m256i {
    unsafe { _mm256_loadu_si256(bytes.add(offset).cast()) }
}

/// Four activations of a step in every lane.
#[inline(always)]
unsafe fn broadcast(row: *const QuantBlock, step: usize) -> __m256i {
    // The form with floats reads memory and broadcasts in one operation of the load unit.
    unsafe { _mm256_castps_si256(_mm256_broadcast_ss(&*row.cast::<f32>().add(step))) }
}

/// Keeps a sum as it is: the compiler may not reorder additions across this. Otherwise it gathers the products of all
/// unrolled steps first and spills them.
#[inline]
#[target_feature(enable = "avx")]
unsafe fn pin(sum: __m256i) -> __m256i {
    let mut pinned = sum;
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) pinned, options(nomem, nostack, preserves_flags));
    }
    pinned
}

/// The low nibbles of all bytes.
#[inline(always)]
unsafe fn low_nibbles(bytes: __m256i) -> __m256i {
    unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
}

/// The high nibbles of all bytes.
#[inline(always)]
unsafe fn high_nibbles(bytes: __m256i) -> __m256i {
    unsafe { low_nibbles(_mm256_srli_epi16::<4>(bytes)) }
}

/// Adds 16-bit neighbours, weighted: 32-bit sums.
#[inline(always)]
unsafe fn widen(sums: __m256i, weight: i16) -> __m256i {
    unsafe { _mm256_madd_epi16(sums, _mm256_set1_epi16(weight)) }
}

/// `sum + pairs of products`, in 16 bits.
#[inline(always)]
unsafe fn add_products(sum: __m256i, quants: __m256i, activations: __m256i) -> __m256i {
    unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(quants, activations)) }
}

/// 4-bit quants: both register halves share a broadcast.
#[inline(always)]
unsafe fn dot_four<const TWO_HALVES: bool, const N: usize>(
    quants: *const u8,
    rows: [*const QuantBlock; N],
) -> [[Pair; 2]; N] {
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut low = [(zero, zero); N];
        let mut high = [(zero, zero); N];
        for step in 0..HALF_STEPS {
            let first = load(quants, step * STEP_BYTES);
            let second = load(quants, step * STEP_BYTES + REGISTER);
            let (first_low, second_low) = (low_nibbles(first), low_nibbles(second));
            let (first_high, second_high) = (high_nibbles(first), high_nibbles(second));
            for i in 0..N {
                let activations = broadcast(rows[i], step);
                low[i].0 = add_products(low[i].0, first_low, activations);
                low[i].1 = add_products(low[i].1, second_low, activations);
                let activations = broadcast(rows[i], step + HALF_STEPS);
                let sum = if TWO_HALVES { &mut high[i] } else { &mut low[i] };
                sum.0 = add_products(sum.0, first_high, activations);
                sum.1 = add_products(sum.1, second_high, activations);
            }
            for i in 0..N {
                low[i] = (pin(low[i].0), pin(low[i].1));
                if TWO_HALVES {
                    high[i] = (pin(high[i].0), pin(high[i].1));
                }
            }
        }
        let mut dots = [[(zero, zero); 2]; N];
        for i in 0..N {
            dots[i][0] = (widen(low[i].0, 1), widen(low[i].1, 1));
            dots[i][1] = (widen(high[i].0, 1), widen(high[i].1, 1));
        }
        dots
    }
}

/// 8-bit quants as `16 * high nibble + low nibble`; one register half at a time, or the sums would not fit.
#[inline(always)]
unsafe fn dot_eight<const N: usize>(quants: *const u8, rows: [*const QuantBlock; N], offset: usize) -> [__m256i; N] {
    unsafe {
        let mut low = [_mm256_setzero_si256(); N];
        let mut high = [_mm256_setzero_si256(); N];
        for step in 0..STEPS {
            let bytes = load(quants, step * STEP_BYTES + offset);
            let (low_quants, high_quants) = (low_nibbles(bytes), high_nibbles(bytes));
            for i in 0..N {
                let activations = broadcast(rows[i], step);
                low[i] = add_products(low[i], low_quants, activations);
                high[i] = add_products(high[i], high_quants, activations);
            }
            for i in 0..N {
                (low[i], high[i]) = (pin(low[i]), pin(high[i]));
            }
        }
        for i in 0..N {
            low[i] = _mm256_add_epi32(widen(low[i], 1), widen(high[i], 16));
        }
        low
    }
}

/// 6-bit quants of one half of a block (4 steps), one register half at a time: nibbles of the low planes, and two bits
/// for each step in one high plane.
#[inline(always)]
unsafe fn dot_six<const N: usize>(
    quants: *const u8,
    rows: [*const QuantBlock; N],
    half: usize,
    offset: usize,
) -> [__m256i; N] {
    unsafe {
        let high_mask = _mm256_set1_epi8(0x30);
        let mut high_plane = load(quants, (HALF_STEPS + half) * STEP_BYTES + offset);
        let mut sums = [_mm256_setzero_si256(); N];
        for pair in 0..HALF_STEPS / 2 {
            let plane = 2 * pair * STEP_BYTES + offset;
            let (first, second) = (load(quants, plane), load(quants, plane + STEP_BYTES));
            let (first, second) = if half == 0 {
                (low_nibbles(first), low_nibbles(second))
            } else {
                (high_nibbles(first), high_nibbles(second))
            };
            let first = _mm256_or_si256(first, _mm256_and_si256(_mm256_slli_epi16::<4>(high_plane), high_mask));
            let second = _mm256_or_si256(second, _mm256_and_si256(_mm256_slli_epi16::<2>(high_plane), high_mask));
            high_plane = _mm256_srli_epi16::<4>(high_plane);
            let step = half * HALF_STEPS + 2 * pair;
            for i in 0..N {
                let products = _mm256_maddubs_epi16(first, broadcast(rows[i], step));
                let products = add_products(products, second, broadcast(rows[i], step + 1));
                sums[i] = pin(_mm256_add_epi32(sums[i], widen(products, 1)));
            }
        }
        sums
    }
}

impl Dot for Avx2 {
    type I32 = Pair;

    #[inline(always)]
    unsafe fn to_f32(a: Pair) -> Self::F32 {
        unsafe { (_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1)) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::F32 {
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            Self::to_f32((_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::F32 {
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            Self::to_f32((_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))))
        }
    }

    #[inline(always)]
    unsafe fn dot_block<S: Scheme, const N: usize>(quants: *const u8, rows: [*const QuantBlock; N]) -> [[Pair; 2]; N] {
        // Plain loops: a closure would be compiled without the features of the function around it.
        unsafe {
            match (S::WIDTH, S::NUM_HALVES) {
                (Width::Four, 2) => return dot_four::<true, N>(quants, rows),
                (Width::Four, _) => return dot_four::<false, N>(quants, rows),
                _ => {}
            }
            let zero = _mm256_setzero_si256();
            let mut dots = [[(zero, zero); 2]; N];
            if S::WIDTH == Width::Eight {
                let (first, second) = (dot_eight(quants, rows, 0), dot_eight(quants, rows, REGISTER));
                for i in 0..N {
                    dots[i][0] = (first[i], second[i]);
                }
                return dots;
            }
            for half in 0..2 {
                let (first, second) = (dot_six(quants, rows, half, 0), dot_six(quants, rows, half, REGISTER));
                for i in 0..N {
                    dots[i][half] = (first[i], second[i]);
                }
            }
            if S::NUM_HALVES == 1 {
                for i in 0..N {
                    let [low, high] = dots[i];
                    dots[i][0] = (_mm256_add_epi32(low.0, high.0), _mm256_add_epi32(low.1, high.1));
                }
            }
            dots
        }
    }
}
