//! One tile of 16 output rows times `N` rows of activations, for every quantized scheme.

use half::f16;

use super::dot::Dot;
use crate::activations::Quantized;
use crate::packed::layout::{BLOCK_INPUTS, Granularity, HALVES_BYTES, Scheme, TILE_ROWS};
use crate::simd::{Isa, dispatch};

/// How far ahead of its use a block is asked for.
const PREFETCH_BYTES: usize = 2048;

/// [`multiply`] for the scheme `S` on `isa`.
pub(crate) fn quantized_tile<S: Scheme, const N: usize>(
    isa: Isa,
    rows: [Quantized<'_>; N],
    tile: &[u8],
) -> [[f32; TILE_ROWS]; N] {
    dispatch!(
        isa,
        multiply [S: Scheme, const N: usize] [S, N] (rows: [Quantized<'_>; N] = rows, tile: &[u8] = tile)
            -> [[f32; TILE_ROWS]; N]
    )
}

/// The scales of a block: one or two vectors of weight scales, and of minima.
struct BlockScales<V> {
    scales: [V; 2],
    mins: [V; 2],
}

#[inline(always)]
unsafe fn multiply<V: Dot, S: Scheme, const N: usize>(rows: [Quantized<'_>; N], tile: &[u8]) -> [[f32; TILE_ROWS]; N] {
    // SAFETY: called through `dispatch!`.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        let num_blocks = rows[0].scales.len();
        for first_block in (0..num_blocks).step_by(S::GROUP_BLOCKS) {
            let group = &tile[first_block / S::GROUP_BLOCKS * S::GROUP_BYTES..][..S::GROUP_BYTES];
            let (header, blocks) = group.split_at(S::HEADER_BYTES);
            for (offset, block) in blocks.chunks_exact(S::BLOCK_BYTES).enumerate() {
                let mut line = 0;
                while line < S::BLOCK_BYTES {
                    V::prefetch(block.as_ptr().wrapping_add(PREFETCH_BYTES + line));
                    line += 64;
                }
                let index = first_block + offset;
                let (quants, packed_scales) = block.split_at(S::QUANT_BYTES);
                let dots = V::dot_block::<S, N>(quants, quants_at(&rows, index));
                let scales = read_scales::<V, S>(header, packed_scales);
                for ((sum, dots), row) in sums.iter_mut().zip(dots).zip(&rows) {
                    *sum = add_block::<V, S>(*sum, dots, &scales, row, index);
                }
            }
        }
        sums.map(|sum| V::to_array(sum))
    }
}

#[inline(always)]
fn quants_at<'a, const N: usize>(rows: &[Quantized<'a>; N], block_index: usize) -> [&'a [i8]; N] {
    std::array::from_fn(|i| &rows[i].quants[block_index * BLOCK_INPUTS..][..BLOCK_INPUTS])
}

/// Reads 16 half-precision numbers that lie in bytes.
#[inline(always)]
unsafe fn halves<V: Dot>(bytes: &[u8]) -> V::F32 {
    debug_assert!(bytes.len() >= HALVES_BYTES);
    #[expect(clippy::cast_ptr_alignment, reason = "packed data starts at cache lines and all its parts are even")]
    let halves = bytes.as_ptr().cast::<f16>();
    // SAFETY: 32 bytes are 16 halves.
    unsafe { V::load_f16(std::slice::from_raw_parts(halves, TILE_ROWS)) }
}

#[inline(always)]
unsafe fn read_scales<V: Dot, S: Scheme>(header: &[u8], packed: &[u8]) -> BlockScales<V::F32> {
    // SAFETY: called through `dispatch!`; the layout gives the lengths.
    unsafe {
        let mut scales = [V::splat(0.0); 2];
        let mut mins = [V::splat(0.0); 2];
        if S::GRANULARITY == Granularity::Block {
            scales[0] = halves::<V>(packed);
            if S::HAS_MIN {
                mins[0] = halves::<V>(&packed[HALVES_BYTES..]);
            }
            return BlockScales { scales, mins };
        }
        let block_scale = halves::<V>(header);
        for half in 0..S::NUM_HALVES {
            scales[half] = V::mul(block_scale, V::load_i8(&packed[half * TILE_ROWS..]));
        }
        if S::HAS_MIN {
            let block_min = V::sub(V::splat(0.0), halves::<V>(&header[HALVES_BYTES..]));
            for half in 0..S::NUM_HALVES {
                mins[half] = V::mul(block_min, V::load_u8(&packed[S::SCALE_BYTES + half * TILE_ROWS..]));
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
    let activation_scale = row.scales[index];
    for (half, mut dot) in dots.into_iter().enumerate().take(S::NUM_HALVES) {
        // SAFETY: called through `dispatch!`.
        unsafe {
            let quant_sum = if S::NUM_HALVES == 2 {
                row.sums[2 * index + half]
            } else {
                row.sums[2 * index] + row.sums[2 * index + 1]
            };
            if S::ZERO_POINT != 0 {
                dot = V::sub_i32(dot, V::splat_i32(S::ZERO_POINT * quant_sum));
            }
            let scale = V::mul(scales.scales[half], V::splat(activation_scale));
            sum = V::fma(scale, V::to_f32(dot), sum);
            if S::HAS_MIN {
                let scaled_sum =
                    if S::NUM_HALVES == 2 { activation_scale * quant_sum as f32 } else { row.scaled_sums[index] };
                sum = V::fma(scales.mins[half], V::splat(scaled_sum), sum);
            }
        }
    }
    sum
}
