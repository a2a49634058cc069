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
mod joined;
mod portable;
mod tile;

use crate::ThreadPool;
use crate::activations::Activations;
use crate::packed::PackedMatrix;
use crate::packed::layout::{TILE_ROWS, with_scheme};
use crate::shared_slice::SharedSlice;
use crate::simd::Isa;

pub use joined::{Join, Joined, matmul_join};

use dense::dense_tiles;
use tile::{TileRange, quantized_tiles};

/// Weight bytes of a chunk, about: enough to be worth claiming, and few enough to stay in a near cache while all groups
/// of rows pass over them.
const CHUNK_BYTES: usize = 32 * 1024;

/// Most rows of a group of another length than [`Simd::MAX_ROWS`](crate::simd::Simd::MAX_ROWS).
const MAX_EQUAL_ROWS: usize = 8;

/// Multiplies `input`, `[rows, cols]`, by the matrices of `parts`, whose output rows follow each other in `output`,
/// `[rows, total output rows]`.
///
/// # Panics
/// When widths disagree or `output` has the wrong length.
pub fn matmul(pool: &ThreadPool, isa: Isa, input: &Activations, parts: &[PackedMatrix], output: &mut [f32]) {
    multiply(pool, isa, input, parts, (output, false));
}

/// Adds what [`matmul`] gives to `output`.
///
/// # Panics
/// As for [`matmul`].
pub fn matmul_add(pool: &ThreadPool, isa: Isa, input: &Activations, parts: &[PackedMatrix], output: &mut [f32]) {
    multiply(pool, isa, input, parts, (output, true));
}

fn multiply(
    pool: &ThreadPool,
    isa: Isa,
    input: &Activations,
    parts: &[PackedMatrix],
    (output, is_added): (&mut [f32], bool),
) {
    let stride: usize = parts.iter().map(PackedMatrix::rows).sum();
    assert_eq!(output.len(), input.rows() * stride, "output of {} rows by {stride}", input.rows());
    check_widths(input, parts);
    let num_tiles: usize = parts.iter().map(PackedMatrix::num_tiles).sum();
    let num_chunks = num_chunks(parts, pool.num_threads());
    let shared = SharedSlice::new(output);
    pool.run(num_chunks, &|chunk, _| {
        let chunk = chunk * num_tiles / num_chunks..(chunk + 1) * num_tiles / num_chunks;
        let (mut first_tile, mut first_column) = (0, 0);
        for part in parts {
            let end = first_tile + part.num_tiles();
            let tiles = chunk.start.max(first_tile)..chunk.end.min(end);
            if !tiles.is_empty() {
                let tiles = tiles.start - first_tile..tiles.end - first_tile;
                let output = shared.start().wrapping_add(first_column + tiles.start * TILE_ROWS);
                // SAFETY: `output` holds `stride` sums for each row, and a tile's belong to the chunk that computes it.
                let tiles = unsafe { TileRange::new(part, tiles, output, stride) };
                multiply_tiles(isa, input, part, tiles.added(is_added));
            }
            first_tile = end;
            first_column += part.rows();
        }
    });
}

fn check_widths(input: &Activations, parts: &[PackedMatrix]) {
    for part in parts {
        assert_eq!(part.cols(), input.width(), "inputs of the matrix, width of the rows");
    }
}

/// Chunks of equal numbers of tiles, as many for each thread.
fn num_chunks(parts: &[PackedMatrix], num_threads: usize) -> usize {
    let num_bytes: usize = parts.iter().map(PackedMatrix::num_bytes).sum();
    num_bytes.div_ceil(CHUNK_BYTES).max(1).next_multiple_of(num_threads)
}

/// Adds some outputs, `first..`, of the product of a dense `matrix` and `input`, `[cols]`, to `output`, on the calling
/// thread: for matrices too small to share out.
///
/// # Panics
/// When lengths disagree, the outputs do not begin with a tile of 16 and end with one or the last, or the matrix is
/// quantized.
pub fn add_product(isa: Isa, input: &[f32], matrix: &PackedMatrix, first: usize, output: &mut [f32]) {
    let end = first + output.len();
    assert_eq!(input.len(), matrix.cols(), "inputs of the matrix");
    assert!(end == matrix.rows() || (end < matrix.rows() && end.is_multiple_of(TILE_ROWS)), "whole tiles");
    assert!(first.is_multiple_of(TILE_ROWS), "whole tiles");
    assert!(!matrix.format().is_quantized(), "a dense matrix");
    if !output.is_empty() {
        // SAFETY: one row, whose outputs are these.
        let tiles = unsafe {
            TileRange::new(matrix, first / TILE_ROWS..end.div_ceil(TILE_ROWS), output.as_mut_ptr(), output.len())
        };
        dense_tiles(isa, matrix.format(), [input], tiles.added(true));
    }
}

/// Multiplies all rows by some tiles; groups of rows are the outer loop, so that tiles are reused from the cache.
fn multiply_tiles(isa: Isa, input: &Activations, part: &PackedMatrix, tiles: TileRange<'_>) {
    let mut row = 0;
    while row < input.rows() {
        let group = group_len(isa, input.rows() - row);
        let tiles = tiles.for_row(row);
        match group {
            1 => multiply_group::<1>(isa, input, row, (part, tiles)),
            2 => multiply_group::<2>(isa, input, row, (part, tiles)),
            3 => multiply_group::<3>(isa, input, row, (part, tiles)),
            4 => multiply_group::<4>(isa, input, row, (part, tiles)),
            5 => multiply_group::<5>(isa, input, row, (part, tiles)),
            6 => multiply_group::<6>(isa, input, row, (part, tiles)),
            7 => multiply_group::<7>(isa, input, row, (part, tiles)),
            8 => multiply_group::<8>(isa, input, row, (part, tiles)),
            _ => multiply_group::<12>(isa, input, row, (part, tiles)),
        }
        row += group;
    }
}

/// How many rows to take at once, of `remaining`: as many as the registers hold while that leaves another such group or
/// nothing, then equal groups, since rows share the unpacking of weights and a small group has little to share it with.
fn group_len(isa: Isa, remaining: usize) -> usize {
    let most = isa.max_rows();
    if remaining == most || remaining >= 2 * most {
        return most;
    }
    remaining.div_ceil(remaining.div_ceil(most.min(MAX_EQUAL_ROWS)))
}

/// Multiplies `N` rows of activations from `row` on.
fn multiply_group<const N: usize>(
    isa: Isa,
    input: &Activations,
    row: usize,
    (part, tiles): (&PackedMatrix, TileRange<'_>),
) {
    let format = part.format();
    if format.is_quantized() {
        let rows = input.quantized(row..row + N);
        with_scheme!(format, S => quantized_tiles::<S, N>(isa, rows, tiles));
    } else {
        dense_tiles::<N>(isa, format, std::array::from_fn(|i| input.row(row + i)), tiles);
    }
}

#[cfg(test)]
mod tests;
