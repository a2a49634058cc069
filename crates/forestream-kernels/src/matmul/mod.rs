//! Matrix products of packed weights: few rows of activations, every weight read once.
//!
//! Canonical order of an output element. Quantized weights: for each block of 32 inputs the integer dot product is exact;
//! then `sum = fma(weight_scale * activation_scale, dot, sum)` and, in formats with a minimum,
//! `sum = fma(weight_min, activation_scale * activation_sum, sum)`, blocks in order. Dense weights:
//! `sum = fma(weight, x, sum)`, inputs in order. One lane is one output row, so nothing is ever reduced across lanes.

mod avx2;
mod avx512;
mod dense;
mod dot;
mod portable;
mod tile;

use std::ops::Range;

use crate::ThreadPool;
use crate::activations::{Activations, Quantized};
use crate::packed::PackedMatrix;
use crate::packed::layout::{TILE_ROWS, with_scheme};
use crate::shared_slice::SharedSlice;
use crate::simd::Isa;

use dense::dense_tile;
use tile::quantized_tile;

/// Weight bytes of a chunk: they stay in the first-level cache while all groups of rows pass over them.
const CHUNK_BYTES: usize = 16 * 1024;

/// Multiplies `input`, `[rows, cols]`, by the matrices of `parts`, whose output rows follow each other in `output`,
/// `[rows, total output rows]`.
///
/// # Panics
/// When widths disagree or `output` has the wrong length.
pub fn matmul(pool: &ThreadPool, isa: Isa, input: &Activations, parts: &[PackedMatrix], output: &mut [f32]) {
    let stride: usize = parts.iter().map(PackedMatrix::rows).sum();
    assert_eq!(output.len(), input.rows() * stride, "output of {} rows by {stride}", input.rows());
    for part in parts {
        assert_eq!(part.cols(), input.width(), "inputs of the matrix, width of the rows");
    }
    let num_chunks = |part: &PackedMatrix| part.num_tiles().div_ceil(tiles_per_chunk(part));
    let shared = SharedSlice::new(output);
    pool.run(parts.iter().map(num_chunks).sum(), &|mut chunk, _| {
        let mut first_column = 0;
        for part in parts {
            if chunk < num_chunks(part) {
                let first_tile = chunk * tiles_per_chunk(part);
                let tiles = first_tile..part.num_tiles().min(first_tile + tiles_per_chunk(part));
                let output = Output { slice: &shared, stride, first_column };
                return multiply_tiles(isa, input, &TileRange { matrix: part, tiles, output });
            }
            chunk -= num_chunks(part);
            first_column += part.rows();
        }
    });
}

/// Adds the product of a dense `matrix` and `input`, `[cols]`, to `output`, `[rows]`, on the calling thread: for matrices
/// too small to share out.
///
/// # Panics
/// When lengths disagree or the matrix is quantized.
pub fn add_product(isa: Isa, input: &[f32], matrix: &PackedMatrix, output: &mut [f32]) {
    assert_eq!((input.len(), output.len()), (matrix.cols(), matrix.rows()), "input and output of the matrix");
    assert!(!matrix.format().is_quantized(), "a dense matrix");
    for (tile_index, output) in output.chunks_mut(TILE_ROWS).enumerate() {
        let [sums] = dense_tile(isa, matrix.format(), [input], matrix.tile(tile_index));
        for (output, sum) in output.iter_mut().zip(&sums) {
            *output += sum;
        }
    }
}

fn tiles_per_chunk(part: &PackedMatrix) -> usize {
    (CHUNK_BYTES / part.tile_bytes().max(1)).max(1)
}

/// Where the results of one matrix go.
struct Output<'a> {
    slice: &'a SharedSlice<'a, f32>,
    stride: usize,
    first_column: usize,
}

impl Output<'_> {
    /// Writes the 16 sums of a tile for one row of activations.
    fn write(&self, row: usize, tile_index: usize, matrix_rows: usize, sums: &[f32; TILE_ROWS]) {
        let len = matrix_rows - tile_index * TILE_ROWS;
        let start = row * self.stride + self.first_column + tile_index * TILE_ROWS;
        // SAFETY: a tile's columns belong to the one chunk that computes the tile.
        let part = |len| unsafe { self.slice.part(start..start + len) };
        if len >= TILE_ROWS {
            part(TILE_ROWS).copy_from_slice(sums); // of constant length: moves, not a call
        } else {
            part(len).copy_from_slice(&sums[..len]);
        }
    }
}

/// Some tiles of a matrix, and where their results go.
struct TileRange<'a> {
    matrix: &'a PackedMatrix,
    tiles: Range<usize>,
    output: Output<'a>,
}

/// Multiplies all rows by some tiles; groups of rows are the outer loop, so that tiles are reused from the cache.
fn multiply_tiles(isa: Isa, input: &Activations, range: &TileRange<'_>) {
    let mut row = 0;
    while row < input.rows() {
        let group = group_len(isa, input.rows() - row);
        match group {
            1 => multiply_group::<1>(isa, input, row, range),
            2 => multiply_group::<2>(isa, input, row, range),
            3 => multiply_group::<3>(isa, input, row, range),
            4 => multiply_group::<4>(isa, input, row, range),
            6 => multiply_group::<6>(isa, input, row, range),
            8 => multiply_group::<8>(isa, input, row, range),
            _ => multiply_group::<12>(isa, input, row, range),
        }
        row += group;
    }
}

/// How many rows to take at once, of `remaining`.
fn group_len(isa: Isa, remaining: usize) -> usize {
    [12, 8, 6, 4, 3, 2, 1].into_iter().find(|&len| len <= isa.max_rows().min(remaining)).unwrap_or(1)
}

/// Multiplies `N` rows of activations from `row` on.
fn multiply_group<const N: usize>(isa: Isa, input: &Activations, row: usize, range: &TileRange<'_>) {
    let format = range.matrix.format();
    if format.is_quantized() {
        let rows: [Quantized<'_>; N] = std::array::from_fn(|i| input.quantized(row + i));
        with_scheme!(format, S => range.for_each(row, |tile| quantized_tile::<S, N>(isa, &rows, tile)));
    } else {
        let rows: [&[f32]; N] = std::array::from_fn(|i| input.row(row + i));
        range.for_each(row, |tile| dense_tile::<N>(isa, format, rows, tile));
    }
}

impl TileRange<'_> {
    /// Computes each tile's sums for `N` rows from `first_row` on and writes them.
    fn for_each<const N: usize>(&self, first_row: usize, sums_of: impl Fn(&[u8]) -> [[f32; TILE_ROWS]; N]) {
        for tile_index in self.tiles.clone() {
            let sums = sums_of(self.matrix.tile(tile_index));
            for (offset, sums) in sums.iter().enumerate() {
                self.output.write(first_row + offset, tile_index, self.matrix.rows(), sums);
            }
        }
    }
}

#[cfg(test)]
mod tests;
