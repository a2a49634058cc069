//! One tile of 16 output rows times `N` rows of activations, for every quantized scheme.

use half::f16;

use super::dot::Dot;
use crate::activations::Quantized;
use crate::packed::layout::{BLOCK_INPUTS, Granularity, HALVES_BYTES, Scheme, TILE_ROWS};
use crate::prefetch::{LINE_BYTES, prefetch_line};
use crate::simd::{Isa, dispatch};

/// How far ahead of its use a block is asked for.
const PREFETCH_BYTES: usize = 4096;

/// [`multiply`] for the scheme `S` on `isa`.
pub(crate) fn quantized_tile<S: Scheme, const N: usize>(
    isa: Isa,
    rows: &[Quantized<'_>; N],
    tile: &[u8],
) -> [[f32; TILE_ROWS]; N] {
    let num_blocks = rows[0].scales.len();
    assert!(tile.len() >= num_blocks / S::GROUP_BLOCKS * S::GROUP_BYTES, "a tile over {num_blocks} blocks");
    assert!(rows.iter().all(|row| row.scales.len() == num_blocks), "rows of one length");
    dispatch!(
        isa,
        multiply [S: Scheme, const N: usize] [S, N] (rows: &[Quantized<'_>; N] = rows, tile: *const u8 = tile.as_ptr())
            -> [[f32; TILE_ROWS]; N]
    )
}

/// The scales of a block: one or two vectors of weight scales, and of minima.
struct BlockScales<V> {
    scales: [V; 2],
    mins: [V; 2],
}

/// The caller has checked that `tile` covers all blocks of `rows`.
#[inline(always)]
unsafe fn multiply<V: Dot, S: Scheme, const N: usize>(
    rows: &[Quantized<'_>; N],
    tile: *const u8,
) -> [[f32; TILE_ROWS]; N] {
    if const { N > V::MAX_ROWS } {
        unreachable!("groups of rows are at most `MAX_ROWS` long"); // and so no code is made for them
    }
    // SAFETY: called through `dispatch!`; pointers stay within the tile and the rows.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        let num_groups = rows[0].scales.len() / S::GROUP_BLOCKS;
        for group_index in 0..num_groups {
            let header = tile.add(group_index * S::GROUP_BYTES);
            for offset in 0..S::GROUP_BLOCKS {
                let index = group_index * S::GROUP_BLOCKS + offset;
                let block = header.add(S::HEADER_BYTES + offset * S::BLOCK_BYTES);
                let mut line = 0;
                while line < S::BLOCK_BYTES {
                    prefetch_line(block.wrapping_add(PREFETCH_BYTES + line));
                    line += LINE_BYTES;
                }
                let mut inputs = [std::ptr::null(); N];
                for i in 0..N {
                    inputs[i] = rows[i].quants.as_ptr().add(index);
                }
                let dots = V::dot_block::<S, N>(block, inputs);
                let scales = read_scales::<V, S>(header, block.add(S::QUANT_BYTES));
                for i in 0..N {
                    sums[i] = add_block::<V, S>(sums[i], dots[i], &scales, &rows[i], index);
                }
            }
        }
        let mut output = [[0.0; TILE_ROWS]; N];
        for i in 0..N {
            V::store(sums[i], output[i].as_mut_ptr());
        }
        output
    }
}

#[inline(always)]
#[expect(clippy::cast_ptr_alignment, reason = "packed data starts at cache lines and all its parts are even")]
unsafe fn read_scales<V: Dot, S: Scheme>(header: *const u8, packed: *const u8) -> BlockScales<V::F32> {
    // SAFETY: called through `dispatch!`; the layout says what lies where.
    unsafe {
        let mut scales = [V::splat(0.0); 2];
        let mut mins = [V::splat(0.0); 2];
        if S::GRANULARITY == Granularity::Block {
            scales[0] = V::load_f16(packed.cast::<f16>());
            if S::HAS_MIN {
                mins[0] = V::load_f16(packed.add(HALVES_BYTES).cast::<f16>());
            }
            return BlockScales { scales, mins };
        }
        let block_scale = V::load_f16(header.cast::<f16>());
        for half in 0..S::NUM_HALVES {
            scales[half] = V::mul(block_scale, V::load_i8(packed.add(half * TILE_ROWS)));
        }
        if S::HAS_MIN {
            let block_min = V::sub(V::splat(0.0), V::load_f16(header.add(HALVES_BYTES).cast::<f16>()));
            for half in 0..S::NUM_HALVES {
                mins[half] = V::mul(block_min, V::load_u8(packed.add(S::SCALE_BYTES + half * TILE_ROWS)));
            }
        }
        BlockScales { scales, mins }
    }
}

/// Adds one block's share for one row of activations.
#[inline(always)]
unsafe fn add_block<V: Dot, S: Scheme>(
    mut sum: V::F32,
    dots: [V::I32; 2],
    scales: &BlockScales<V::F32>,
    row: &Quantized<'_>,
    index: usize,
) -> V::F32 {
    // SAFETY: called through `dispatch!`; `index` is a block of the row.
    unsafe {
        let activation_scale = *row.scales.get_unchecked(index);
        for half in 0..S::NUM_HALVES {
            let quant_sum = || {
                let first = *row.sums.get_unchecked(2 * index + half);
                if S::NUM_HALVES == 2 { first } else { first + *row.sums.get_unchecked(2 * index + 1) }
            };
            let mut dot = dots[half];
            if S::ZERO_POINT != 0 {
                dot = V::sub_i32(dot, V::splat_i32(S::ZERO_POINT * quant_sum()));
            }
            let scale = V::mul(scales.scales[half], V::splat(activation_scale));
            sum = V::fma(scale, V::to_f32(dot), sum);
            if S::HAS_MIN {
                let scaled_sum = if S::NUM_HALVES == 2 {
                    activation_scale * quant_sum() as f32
                } else {
                    *row.scaled_sums.get_unchecked(index)
                };
                sum = V::fma(scales.mins[half], V::splat(scaled_sum), sum);
            }
        }
    }
    sum
}

const _: () = assert!(BLOCK_INPUTS == size_of::<crate::activations::QuantBlock>());
