//! Block dot products with AVX-512 VNNI: `vpdpbusd` multiplies and sums four bytes per lane, exactly, in 32 bits.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "every block relies on the one condition that `Dot` states")]

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use std::arch::x86_64::*;

use super::dot::Dot;
use crate::activations::QuantBlock;
use crate::packed::layout::{STEP_BYTES, STEPS, Scheme, Width};
use crate::simd::Avx512;

/// Steps that share their bytes with others in 4-bit planes.
const HALF_STEPS: usize = STEPS / 2;

#[inline(always)]
unsafe fn load(bytes: *const u8, offset: usize) -> __m512i {
    unsafe { _mm512_loadu_si512(bytes.add(offset).cast()) }
}

/// Four activations of a step in every lane.
#[inline(always)]
unsafe fn broadcast(row: *const QuantBlock, step: usize) -> __m512i {
    unsafe { _mm512_set1_epi32(*row.cast::<i32>().add(step)) }
}

/// The quants of steps `step` and `step + 4`, one byte each.
#[inline(always)]
unsafe fn two_steps<S: Scheme>(quants: *const u8, step: usize) -> [__m512i; 2] {
    unsafe {
        if S::WIDTH == Width::Eight {
            return [load(quants, step * STEP_BYTES), load(quants, (step + HALF_STEPS) * STEP_BYTES)];
        }
        let nibble = _mm512_set1_epi8(15);
        let bytes = load(quants, step * STEP_BYTES);
        let low = _mm512_and_si512(bytes, nibble);
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
        if S::WIDTH == Width::Four {
            return [low, high];
        }
        [with_high_bits(low, quants, 0, step), with_high_bits(high, quants, 1, step)]
    }
}

/// Adds the two high bits of 6-bit quants to the nibbles of one step of one half.
#[inline(always)]
unsafe fn with_high_bits(nibbles: __m512i, quants: *const u8, half: usize, step: usize) -> __m512i {
    unsafe {
        let plane = load(quants, (HALF_STEPS + half) * STEP_BYTES);
        let bits = match step {
            0 => _mm512_slli_epi16::<4>(plane),
            1 => _mm512_slli_epi16::<2>(plane),
            2 => plane,
            _ => _mm512_srli_epi16::<2>(plane),
        };
        _mm512_or_si512(nibbles, _mm512_and_si512(bits, _mm512_set1_epi8(0x30)))
    }
}

impl Dot for Avx512 {
    type I32 = __m512i;

    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn sub_i32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_f32(a: __m512i) -> Self::F32 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::F32 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::F32 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn dot_block<S: Scheme, const N: usize>(
        quants: *const u8,
        rows: [*const QuantBlock; N],
    ) -> [[__m512i; 2]; N] {
        unsafe {
            // Two chains per row hide the latency of `vpdpbusd`; with one scale per block they are added at the end.
            let mut dots = [[_mm512_setzero_si512(); 2]; N];
            for step in 0..HALF_STEPS {
                let [low, high] = two_steps::<S>(quants, step);
                for i in 0..N {
                    dots[i][0] = _mm512_dpbusd_epi32(dots[i][0], low, broadcast(rows[i], step));
                    dots[i][1] = _mm512_dpbusd_epi32(dots[i][1], high, broadcast(rows[i], step + HALF_STEPS));
                }
            }
            if S::NUM_HALVES == 1 {
                for i in 0..N {
                    dots[i][0] = _mm512_add_epi32(dots[i][0], dots[i][1]);
                }
            }
            dots
        }
    }
}
