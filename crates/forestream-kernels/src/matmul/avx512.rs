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
/// Rows that have two chains of additions each, to hide the latency of `vpdpbusd`. More rows hide it from each other, and
/// one chain leaves them registers.
const MAX_PAIRED_ROWS: usize = 8;
/// So few rows need no order: what the processor looks ahead suffices.
const MAX_FREE_ROWS: usize = 4;

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

/// Keeps sums as they are: the compiler may not reorder additions across this. Otherwise it adds up one row after the
/// other, each sum waiting for itself.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pin(sums: __m512i) -> __m512i {
    let mut pinned = sums;
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) pinned, options(nomem, nostack, preserves_flags)) };
    pinned
}

/// Sums over the halves of a block, steps `step` and `step + 4` by turns.
#[inline(always)]
unsafe fn dot_paired<S: Scheme, const N: usize>(quants: *const u8, rows: [*const QuantBlock; N]) -> [[__m512i; 2]; N] {
    unsafe {
        let mut dots = [[_mm512_setzero_si512(); 2]; N];
        for step in 0..HALF_STEPS {
            let [low, high] = two_steps::<S>(quants, step);
            for i in 0..N {
                dots[i][0] = _mm512_dpbusd_epi32(dots[i][0], low, broadcast(rows[i], step));
                dots[i][1] = _mm512_dpbusd_epi32(dots[i][1], high, broadcast(rows[i], step + HALF_STEPS));
            }
            if N > MAX_FREE_ROWS {
                for i in 0..N {
                    dots[i] = [pin(dots[i][0]), pin(dots[i][1])];
                }
            }
        }
        dots
    }
}

/// Sums over a whole block.
#[inline(always)]
unsafe fn dot_whole<S: Scheme, const N: usize>(quants: *const u8, rows: [*const QuantBlock; N]) -> [__m512i; N] {
    unsafe {
        let mut dots = [_mm512_setzero_si512(); N];
        for step in 0..HALF_STEPS {
            let halves = two_steps::<S>(quants, step);
            for half in 0..2 {
                for i in 0..N {
                    let activations = broadcast(rows[i], step + half * HALF_STEPS);
                    dots[i] = _mm512_dpbusd_epi32(dots[i], halves[half], activations);
                }
                for i in 0..N {
                    dots[i] = pin(dots[i]);
                }
            }
        }
        dots
    }
}

impl Dot for Avx512 {
    type I32 = __m512i;

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
            if const { S::NUM_HALVES == 1 && N > MAX_PAIRED_ROWS } {
                let zero = _mm512_setzero_si512();
                let whole = dot_whole::<S, N>(quants, rows);
                let mut dots = [[zero; 2]; N];
                for i in 0..N {
                    dots[i][0] = whole[i];
                }
                return dots;
            }
            let mut dots = dot_paired::<S, N>(quants, rows);
            if S::NUM_HALVES == 1 {
                for i in 0..N {
                    dots[i][0] = _mm512_add_epi32(dots[i][0], dots[i][1]);
                }
            }
            dots
        }
    }
}
