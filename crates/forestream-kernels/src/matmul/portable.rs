//! Block dot products in plain Rust: the reference for the others.

use super::dot::Dot;
use crate::activations::QuantBlock;
use crate::packed::layout::{BLOCK_INPUTS, STEP_BYTES, STEP_INPUTS, STEPS, Scheme, TILE_ROWS, Width};
use crate::simd::Portable;

/// The quants of one step, one byte each, in packed order.
#[inline(always)]
fn unpack_step(width: Width, quants: &[u8], step: usize) -> [u8; STEP_BYTES] {
    let (step_of_half, half) = (step % (STEPS / 2), step / (STEPS / 2));
    let plane = |offset: usize| &quants[offset..offset + STEP_BYTES];
    let low = plane(if width == Width::Eight { step } else { step_of_half } * STEP_BYTES);
    match width {
        Width::Eight => std::array::from_fn(|i| low[i]),
        Width::Four => std::array::from_fn(|i| (low[i] >> (4 * half)) & 15),
        Width::Six => {
            let high = plane((STEPS / 2 + half) * STEP_BYTES);
            std::array::from_fn(|i| (low[i] >> (4 * half)) & 15 | ((high[i] >> (2 * step_of_half)) & 3) << 4)
        }
    }
}

impl Dot for Portable {
    type I32 = [i32; TILE_ROWS];

    #[inline(always)]
    unsafe fn to_f32(a: Self::I32) -> Self::F32 {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::F32 {
        // SAFETY: the caller points to 16 bytes.
        unsafe { from.cast::<[u8; TILE_ROWS]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::F32 {
        // SAFETY: the caller points to 16 bytes.
        unsafe { from.cast::<[i8; TILE_ROWS]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn dot_block<S: Scheme, const N: usize>(
        quants: *const u8,
        rows: [*const QuantBlock; N],
    ) -> [[Self::I32; 2]; N] {
        // SAFETY: the caller points to a packed block and to blocks of activations.
        let (quants, rows) = unsafe { (std::slice::from_raw_parts(quants, S::QUANT_BYTES), rows.map(|row| (*row).0)) };
        let mut dots = [[[0; TILE_ROWS]; 2]; N];
        for step in 0..BLOCK_INPUTS / STEP_INPUTS {
            let bytes = unpack_step(S::WIDTH, quants, step);
            let half = if S::NUM_HALVES == 2 { step / (STEPS / 2) } else { 0 };
            for (dots, row) in dots.iter_mut().zip(rows) {
                let inputs: [i32; STEP_INPUTS] = std::array::from_fn(|j| i32::from(row[step * STEP_INPUTS + j]));
                for (lane, dot) in dots[half].iter_mut().enumerate() {
                    for (j, input) in inputs.iter().enumerate() {
                        *dot += i32::from(bytes[lane * STEP_INPUTS + j]) * input;
                    }
                }
            }
        }
        dots
    }
}
