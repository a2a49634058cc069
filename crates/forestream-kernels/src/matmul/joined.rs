//! Products of one input with several matrices, joined element by element before anything is stored.
//!
//! A gate and what passes it meet in the thread that has computed both, so that neither goes to memory or to another core.

use std::ops::Range;

use super::tile::TileRange;
use super::{CHUNK_BYTES, check_widths, multiply_tiles};
use crate::ThreadPool;
use crate::activations::{Activations, InputShape, with_buffer};
use crate::packed::PackedMatrix;
use crate::packed::layout::{BLOCK_INPUTS, TILE_ROWS};
use crate::simd::Isa;

/// Columns that are joined at once: a block of the inputs that they become.
const UNIT: usize = BLOCK_INPUTS;

/// Sums that a thread holds, at most, where a unit has no more: half of a second-level cache of 256 KB.
const MAX_SUMS: usize = 32 * 1024;

/// What becomes of the products.
pub struct Join<'a> {
    /// Receives a row for each of the input.
    pub output: &'a mut Activations,
    /// As in [`InputShape`].
    pub keeps_numbers: bool,
    /// Writes `to` for some columns of a row.
    pub join: &'a (dyn Fn(Joined<'_>) + Sync),
}

/// Products of one row with some columns of each matrix.
#[derive(Debug)]
pub struct Joined<'a> {
    /// The row.
    pub row: usize,
    /// Output rows of the matrices; they begin a tile of 16.
    pub columns: Range<usize>,
    /// `[matrices, columns]`.
    pub sums: &'a mut [f32],
    /// What is stored, `[columns]`; it holds anything before.
    pub to: &'a mut [f32],
}

impl std::fmt::Debug for Join<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("keeps_numbers", &self.keeps_numbers).finish_non_exhaustive()
    }
}

/// Multiplies `input`, `[rows, cols]`, by the matrices of `parts`, all of one shape, and stores what `join` makes of them.
///
/// # Panics
/// When shapes disagree.
pub fn matmul_join(pool: &ThreadPool, isa: Isa, input: &Activations, parts: &[PackedMatrix], join: Join<'_>) {
    let Join { output, keeps_numbers, join } = join;
    check_widths(input, parts);
    let (num_rows, width) = (input.rows(), parts.first().map_or(0, PackedMatrix::rows));
    assert!(parts.iter().all(|part| part.rows() == width), "matrices of one shape");
    output.reshape(InputShape { rows: num_rows, width, keeps_numbers });
    let writer = output.writer(isa);
    let num_units = width.div_ceil(UNIT);
    let num_bytes: usize = parts.iter().map(PackedMatrix::num_bytes).sum();
    let num_chunks =
        num_bytes.div_ceil(CHUNK_BYTES * parts.len().max(1)).min(num_units).next_multiple_of(pool.num_threads());
    let step = (MAX_SUMS / (num_rows * parts.len() * UNIT).max(1)).max(1);
    pool.run(num_chunks, &|chunk, _| {
        let units = chunk * num_units / num_chunks..(chunk + 1) * num_units / num_chunks;
        for first in units.clone().step_by(step) {
            let columns = first * UNIT..(units.end.min(first + step) * UNIT).min(width);
            let sums_len = num_rows * parts.len() * columns.len();
            with_buffer(sums_len + columns.len(), |buffer| {
                let (sums, to) = buffer.split_at_mut(sums_len);
                multiply_columns(isa, input, parts, columns.clone(), sums);
                for row in 0..num_rows {
                    let sums = &mut sums[row * parts.len() * columns.len()..][..parts.len() * columns.len()];
                    join(Joined { row, columns: columns.clone(), sums, to });
                    // SAFETY: a row's columns belong to the chunk that computes them.
                    unsafe { writer.put(row, columns.start, to) };
                }
            });
        }
    });
}

/// Sums of some columns, `[rows, matrices, columns]`.
fn multiply_columns(isa: Isa, input: &Activations, parts: &[PackedMatrix], columns: Range<usize>, sums: &mut [f32]) {
    let tiles = columns.start / TILE_ROWS..columns.end.div_ceil(TILE_ROWS);
    let stride = parts.len() * columns.len();
    assert_eq!(sums.len(), input.rows() * stride, "a sum for each row, matrix and column");
    for (index, part) in parts.iter().enumerate() {
        let output = sums[index * columns.len()..].as_mut_ptr();
        // SAFETY: `sums` holds `stride` sums for each row, of which these columns of this matrix are its own.
        let tiles = unsafe { TileRange::new(part, tiles.clone(), output, stride) };
        multiply_tiles(isa, input, part, tiles);
    }
}
