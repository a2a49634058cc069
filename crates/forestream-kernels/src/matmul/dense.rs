//! One tile of 16 output rows of `F32`, `F16` or `BF16` weights times `N` rows of activations.

use half::f16;

use crate::formats::Format;
use crate::packed::layout::TILE_ROWS;
use crate::simd::Simd;

#[inline(always)]
pub(crate) unsafe fn dense_tile<V: Simd, const N: usize>(
    format: Format,
    rows: [&[f32]; N],
    tile: &[u8],
) -> [[f32; TILE_ROWS]; N] {
    // SAFETY: called through `dispatch!`; a tile's column holds 16 elements of the format, aligned to their size.
    unsafe {
        match format {
            Format::F32 => multiply::<V, N, f32>(rows, tile, |column| V::load(column)),
            Format::F16 => multiply::<V, N, f16>(rows, tile, |column| V::load_f16(column)),
            _ => multiply::<V, N, u16>(rows, tile, |column| V::load_bf16(column)),
        }
    }
}

#[inline(always)]
unsafe fn multiply<V: Simd, const N: usize, T>(
    rows: [&[f32]; N],
    tile: &[u8],
    load: impl Fn(&[T]) -> V::F32,
) -> [[f32; TILE_ROWS]; N] {
    // SAFETY: called through `dispatch!`.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        let len = rows[0].len();
        let columns = tile.chunks_exact(TILE_ROWS * size_of::<T>()).take(len);
        for (index, column) in columns.enumerate() {
            let weights = load(std::slice::from_raw_parts(column.as_ptr().cast::<T>(), TILE_ROWS));
            for (sum, row) in sums.iter_mut().zip(&rows) {
                *sum = V::fma(weights, V::splat(row[index]), *sum);
            }
        }
        sums.map(|sum| V::to_array(sum))
    }
}
