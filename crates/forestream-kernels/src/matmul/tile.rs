//! Tiles of 16 output rows times `N` rows of activations, for every quantized scheme.

use std::ops::Range;

use half::f16;

use super::dot::Dot;
use crate::activations::Quantized;
use crate::packed::PackedMatrix;
use crate::packed::layout::{BLOCK_INPUTS, Granularity, HALVES_BYTES, Scheme, TILE_ROWS};
use crate::prefetch::{LINE_BYTES, prefetch_line};
use crate::simd::{Isa, Simd, dispatch};

/// How far ahead of its use a block is asked for.
const PREFETCH_BYTES: usize = 8192;

/// Consecutive tiles of a matrix, and where their sums go.
#[derive(Clone, Copy)]
pub(super) struct TileRange<'a> {
    /// Starts with the bytes of the tiles.
    pub(super) bytes: &'a [u8],
    pub(super) tile_bytes: usize,
    /// Output rows; the last tile may have less than 16.
    num_outputs: usize,
    /// The first output of the first row of activations.
    output: *mut f32,
    /// Outputs of the next row are so many elements further.
    stride: usize,
    /// Whether sums are added to the outputs, instead of replacing them.
    is_added: bool,
}

impl<'a> TileRange<'a> {
    /// The given tiles of `matrix`; `output` points to where the first sum goes.
    ///
    /// # Safety
    /// While the range is in use, the outputs of its tiles, for every row that it is used with, belong to the caller.
    pub(super) unsafe fn new(matrix: &'a PackedMatrix, tiles: Range<usize>, output: *mut f32, stride: usize) -> Self {
        let num_outputs = matrix.rows().min(tiles.end * TILE_ROWS) - tiles.start * TILE_ROWS;
        Self {
            bytes: matrix.tile(tiles.start),
            tile_bytes: matrix.tile_bytes(),
            num_outputs,
            output,
            stride,
            is_added: false,
        }
    }

    /// The same tiles, whose sums are added to what the outputs hold.
    pub(super) fn added(self, is_added: bool) -> Self {
        Self { is_added, ..self }
    }

    /// The same tiles, with the outputs of row `row`.
    pub(super) fn for_row(self, row: usize) -> Self {
        Self { output: self.output.wrapping_add(row * self.stride), ..self }
    }

    /// Number of tiles.
    pub(super) fn num_tiles(&self) -> usize {
        self.num_outputs.div_ceil(TILE_ROWS)
    }

    /// Writes the 16 sums of a tile for one row of activations.
    ///
    /// # Safety
    /// As for [`Simd`]; the tile and the row are among those that the range was made for.
    #[inline(always)]
    pub(super) unsafe fn store<V: Simd>(&self, tile_index: usize, row: usize, sums: V::F32) {
        let len = self.num_outputs - tile_index * TILE_ROWS;
        // SAFETY: as [`Self::new`] demands; a last tile writes only the outputs that there are.
        unsafe {
            let to = self.output.add(row * self.stride + tile_index * TILE_ROWS);
            if len >= TILE_ROWS {
                V::store(if self.is_added { V::add(V::load(to), sums) } else { sums }, to);
                return;
            }
            let sums = V::to_array(sums);
            for lane in 0..len {
                *to.add(lane) = if self.is_added { *to.add(lane) + sums[lane] } else { sums[lane] };
            }
        }
    }
}

/// [`multiply`] for the scheme `S` on `isa`.
pub(super) fn quantized_tiles<S: Scheme, const N: usize>(isa: Isa, rows: Quantized<'_>, tiles: TileRange<'_>) {
    let tile_bytes = rows.num_blocks / S::GROUP_BLOCKS * S::GROUP_BYTES;
    assert!(tiles.tile_bytes == tile_bytes && tiles.bytes.len() >= tiles.num_tiles() * tile_bytes, "whole tiles");
    assert_eq!(rows.scales.len(), N * rows.num_blocks, "{N} rows");
    dispatch!(
        isa,
        multiply [S: Scheme, const N: usize] [S, N] (rows: Quantized<'_> = rows, tiles: TileRange<'_> = tiles)
    );
}

/// The scales of a block: one or two vectors of weight scales, and of minima.
struct BlockScales<V> {
    scales: [V; 2],
    mins: [V; 2],
}

/// The caller has checked that the tiles are there and cover all blocks of the rows.
#[inline(always)]
unsafe fn multiply<V: Dot, S: Scheme, const N: usize>(rows: Quantized<'_>, tiles: TileRange<'_>) {
    if const { N > V::MAX_ROWS } {
        unreachable!("groups of rows are at most `MAX_ROWS` long"); // and so no code is made for them
    }
    // SAFETY: called through `dispatch!`; pointers stay within the tiles and the rows.
    unsafe {
        for tile_index in 0..tiles.num_tiles() {
            let sums = multiply_tile::<V, S, N>(rows, tiles.bytes.as_ptr().add(tile_index * tiles.tile_bytes));
            for i in 0..N {
                tiles.store::<V>(tile_index, i, sums[i]);
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_tile<V: Dot, S: Scheme, const N: usize>(rows: Quantized<'_>, tile: *const u8) -> [V::F32; N] {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        for group_index in 0..rows.num_blocks / S::GROUP_BLOCKS {
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
                    inputs[i] = rows.quants.as_ptr().add(i * rows.num_blocks + index);
                }
                let dots = V::dot_block::<S, N>(block, inputs);
                let scales = read_scales::<V, S>(header, block.add(S::QUANT_BYTES));
                for i in 0..N {
                    sums[i] = add_block::<V, S>(sums[i], dots[i], &scales, rows, i * rows.num_blocks + index);
                }
            }
        }
        sums
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

/// Adds one block's share for one row of activations, whose block is `index` of `rows`.
#[inline(always)]
unsafe fn add_block<V: Dot, S: Scheme>(
    mut sum: V::F32,
    dots: [V::I32; 2],
    scales: &BlockScales<V::F32>,
    rows: Quantized<'_>,
    index: usize,
) -> V::F32 {
    // SAFETY: called through `dispatch!`; `index` is a block of the rows.
    unsafe {
        let activation_scale = *rows.scales.get_unchecked(index);
        for half in 0..S::NUM_HALVES {
            let quant_sum = if S::NUM_HALVES == 2 {
                *rows.half_sums.get_unchecked(2 * index + half)
            } else {
                *rows.sums.get_unchecked(index)
            };
            let mut dot = V::to_f32(dots[half]);
            if S::ZERO_POINT != 0 {
                dot = V::fma(V::splat(-S::ZERO_POINT as f32), V::splat(quant_sum), dot); // exact: integers below 2^24
            }
            let scale = V::mul(scales.scales[half], V::splat(activation_scale));
            sum = V::fma(scale, dot, sum);
            if S::HAS_MIN {
                let scaled_sum = if S::NUM_HALVES == 2 {
                    activation_scale * quant_sum
                } else {
                    *rows.scaled_sums.get_unchecked(index)
                };
                sum = V::fma(scales.mins[half], V::splat(scaled_sum), sum);
            }
        }
    }
    sum
}

const _: () = assert!(BLOCK_INPUTS == size_of::<crate::activations::QuantBlock>());
