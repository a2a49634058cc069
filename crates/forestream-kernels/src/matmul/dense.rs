//! Tiles of 16 output rows of `F32`, `F16` or `BF16` weights times `N` rows of activations.

use half::f16;

use crate::formats::Format;
use crate::packed::layout::TILE_ROWS;
use crate::simd::{Element, Isa, Simd, dispatch};

use super::tile::TileRange;

/// [`multiply`] for a dense format on `isa`.
pub(super) fn dense_tiles<const N: usize>(isa: Isa, format: Format, rows: [&[f32]; N], tiles: TileRange<'_>) {
    dispatch!(
        isa,
        multiply_format [const N: usize] [N]
            (format: Format = format, rows: [&[f32]; N] = rows, tiles: TileRange<'_> = tiles)
    );
}

#[inline(always)]
unsafe fn multiply_format<V: Simd, const N: usize>(format: Format, rows: [&[f32]; N], tiles: TileRange<'_>) {
    if const { N > V::MAX_ROWS } {
        unreachable!("groups of rows are at most `MAX_ROWS` long"); // and so no code is made for them
    }
    // SAFETY: called through `dispatch!`; a tile's column holds 16 elements of the format, aligned to their size.
    unsafe {
        match format {
            Format::F32 => multiply::<V, N, f32>(rows, tiles),
            Format::F16 => multiply::<V, N, f16>(rows, tiles),
            _ => multiply::<V, N, Bf16Bits>(rows, tiles),
        }
    }
}

/// A bfloat16 number by its bits.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16Bits(u16);

impl Element for Bf16Bits {
    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V::F32 {
        // SAFETY: as the caller's.
        unsafe { V::load_bf16(from.cast()) }
    }
}

#[inline(always)]
unsafe fn multiply<V: Simd, const N: usize, T: Element>(rows: [&[f32]; N], tiles: TileRange<'_>) {
    let len = rows[0].len();
    for i in 0..N {
        assert_eq!(rows[i].len(), len, "rows of one length");
    }
    assert!(
        tiles.tile_bytes == len * TILE_ROWS * size_of::<T>()
            && tiles.bytes.len() >= tiles.num_tiles() * tiles.tile_bytes
    );
    // SAFETY: called through `dispatch!`; lengths are asserted.
    unsafe {
        for tile_index in 0..tiles.num_tiles() {
            let weights = tiles.bytes.as_ptr().add(tile_index * tiles.tile_bytes).cast::<T>();
            let mut sums = [V::splat(0.0); N];
            for index in 0..len {
                let column = T::load::<V>(weights.add(index * TILE_ROWS));
                for i in 0..N {
                    sums[i] = V::fma(column, V::splat(*rows[i].get_unchecked(index)), sums[i]);
                }
            }
            for i in 0..N {
                tiles.store::<V>(tile_index, i, sums[i]);
            }
        }
    }
}
