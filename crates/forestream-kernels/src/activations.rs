//! The inputs of a matrix product: `f32` rows, and the same rows as 8-bit integers in blocks of 32.

use std::cell::RefCell;
use std::ops::Range;

use crate::ThreadPool;
use crate::packed::layout::BLOCK_INPUTS;
use crate::shared_slice::SharedSlice;
use crate::simd::{Isa, LANES, Simd, dispatch};

/// The integers of a block; aligned, so that kernels may read them in any unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(32))]
pub(crate) struct QuantBlock(pub(crate) [i8; BLOCK_INPUTS]);

/// The size of the inputs of products, and the form in which they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputShape {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Whether a dense matrix reads them, for which they are kept as numbers too. What is not kept is not written, and need
    /// not go from one core to another.
    pub keeps_numbers: bool,
}

impl From<[usize; 2]> for InputShape {
    /// Rows and width of inputs for any matrix.
    fn from([rows, width]: [usize; 2]) -> Self {
        Self { rows, width, keeps_numbers: true }
    }
}

/// Rows of inputs, `[rows, width]`, reused between passes.
///
/// The integer form of a block of 32 is `round(x * 127 / max|x|)`, its scale `max|x| / 127`. No integer stands for an
/// infinity or NaN: a block with one has zero integers and the scale NaN, which makes all outputs of its row NaN.
#[derive(Debug, Default, PartialEq)]
pub struct Activations {
    rows: usize,
    width: usize,
    /// `[rows, width]`, or nothing where the shape says so.
    values: Vec<f32>,
    /// `[rows, width / 32]` blocks, or nothing for a width that is no whole number of them.
    quants: Vec<QuantBlock>,
    /// `[rows, width / 32]`.
    scales: Vec<f32>,
    /// Sums of 32 quants, `[rows, width / 32]`, and of 16, `[rows, width / 16]`: integers, but kernels reckon with them as
    /// floats.
    sums: Vec<f32>,
    half_sums: Vec<f32>,
    /// Scale times the sum of 32 quants, `[rows, width / 32]`.
    scaled_sums: Vec<f32>,
}

impl Activations {
    /// An empty holder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Fills the rows through `fill(row_index, row)`.
    pub fn fill(
        &mut self,
        pool: &ThreadPool,
        isa: Isa,
        shape: impl Into<InputShape>,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let InputShape { rows, width, .. } = self.reshape(shape.into());
        let writer = self.writer(isa);
        pool.run_rows(rows, width, &|row| {
            with_buffer(width, |values| {
                fill(row, values);
                // SAFETY: each row is visited once.
                unsafe { writer.put(row, 0, values) };
            });
        });
    }

    /// Fills tiles through `fill(tile_index, thread_index, tile)`, a task for each. Columns are cut into equal parts of
    /// `tile_width`, rows behind each of `row_ends`; tile 0 has the first rows and columns, tile 1 the next rows.
    ///
    /// # Panics
    /// When tiles are not what the shape consists of.
    pub fn fill_tiles(
        &mut self,
        pool: &ThreadPool,
        isa: Isa,
        shape: InputShape,
        (row_ends, tile_width): (&[usize], usize),
        fill: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let is_aligned = tile_width.is_multiple_of(BLOCK_INPUTS);
        let keeps_numbers = shape.keeps_numbers || !is_aligned;
        let InputShape { rows, width, .. } = self.reshape(InputShape { keeps_numbers, ..shape });
        assert!(row_ends.is_sorted() && row_ends.last().is_none_or(|&end| end == rows), "tiles of {rows} rows");
        assert!(width.is_multiple_of(tile_width), "tiles of {tile_width} columns of {width}");
        let writer = self.writer(isa);
        pool.run(row_ends.len() * (width / tile_width), &|tile, thread| {
            let (first_column, tile_rows) = (tile / row_ends.len() * tile_width, tile % row_ends.len());
            let first_row = if tile_rows == 0 { 0 } else { row_ends[tile_rows - 1] };
            let tile_rows = first_row..row_ends[tile_rows];
            with_buffer(tile_rows.len() * tile_width, |values| {
                fill(tile, thread, values);
                for (row, values) in tile_rows.zip(values.chunks_exact(tile_width)) {
                    // SAFETY: tiles do not overlap.
                    unsafe {
                        writer.put_numbers(row, first_column, values);
                        if is_aligned {
                            writer.put_integers(row, first_column, values);
                        }
                    }
                }
            });
        });
        if !is_aligned {
            // SAFETY: each row is visited once, and nobody writes its numbers.
            pool.run_rows(rows, width, &|row| unsafe { writer.put_integers(row, 0, writer.numbers(row)) });
        }
    }

    /// Makes room for inputs of this shape; numbers are kept, too, where there is no other form.
    pub(crate) fn reshape(&mut self, shape: InputShape) -> InputShape {
        let InputShape { rows, width, keeps_numbers } = shape;
        (self.rows, self.width) = (rows, width);
        let is_quantized = width.is_multiple_of(BLOCK_INPUTS);
        let num_blocks = if is_quantized { rows * width / BLOCK_INPUTS } else { 0 };
        self.values.resize(if keeps_numbers || !is_quantized { rows * width } else { 0 }, 0.0);
        self.quants.resize(num_blocks, QuantBlock([0; BLOCK_INPUTS]));
        self.scales.resize(num_blocks, 0.0);
        self.sums.resize(num_blocks, 0.0);
        self.half_sums.resize(2 * num_blocks, 0.0);
        self.scaled_sums.resize(num_blocks, 0.0);
        shape
    }

    pub(crate) fn writer(&mut self, isa: Isa) -> Writer<'_> {
        Writer {
            isa,
            width: self.width,
            num_blocks: self.quants.len() / self.rows.max(1),
            values: SharedSlice::new(&mut self.values),
            quants: SharedSlice::new(&mut self.quants),
            scales: SharedSlice::new(&mut self.scales),
            sums: SharedSlice::new(&mut self.sums),
            half_sums: SharedSlice::new(&mut self.half_sums),
            scaled_sums: SharedSlice::new(&mut self.scaled_sums),
        }
    }

    /// The integer form of some rows.
    ///
    /// # Panics
    /// When the width is not a whole number of blocks.
    pub(crate) fn quantized(&self, rows: Range<usize>) -> Quantized<'_> {
        assert!(self.width.is_multiple_of(BLOCK_INPUTS), "rows of {} elements have no integer form", self.width);
        let num_blocks = self.width / BLOCK_INPUTS;
        let blocks = rows.start * num_blocks..rows.end * num_blocks;
        Quantized {
            num_blocks,
            quants: &self.quants[blocks.clone()],
            scales: &self.scales[blocks.clone()],
            sums: &self.sums[blocks.clone()],
            half_sums: &self.half_sums[2 * blocks.start..2 * blocks.end],
            scaled_sums: &self.scaled_sums[blocks],
        }
    }

    /// One row as numbers.
    ///
    /// # Panics
    /// When they were not kept.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

/// Rows in integer form, to read, one after another.
#[derive(Clone, Copy)]
pub(crate) struct Quantized<'a> {
    /// Blocks of one row.
    pub(crate) num_blocks: usize,
    pub(crate) quants: &'a [QuantBlock],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [f32],
    pub(crate) half_sums: &'a [f32],
    pub(crate) scaled_sums: &'a [f32],
}

/// Stores parts of rows, from several threads.
pub(crate) struct Writer<'a> {
    isa: Isa,
    width: usize,
    /// Blocks of a row; 0 without an integer form.
    num_blocks: usize,
    /// Empty where numbers are not kept.
    values: SharedSlice<'a, f32>,
    quants: SharedSlice<'a, QuantBlock>,
    scales: SharedSlice<'a, f32>,
    sums: SharedSlice<'a, f32>,
    half_sums: SharedSlice<'a, f32>,
    scaled_sums: SharedSlice<'a, f32>,
}

impl Writer<'_> {
    /// Stores `values` from column `first` of row `row` on, a whole number of blocks unless it is the whole row.
    ///
    /// # Safety
    /// Nobody else reads or writes them meanwhile.
    pub(crate) unsafe fn put(&self, row: usize, first: usize, values: &[f32]) {
        // SAFETY: as the caller's.
        unsafe {
            self.put_numbers(row, first, values);
            self.put_integers(row, first, values);
        }
    }

    /// # Safety
    /// As for [`Self::put`].
    unsafe fn put_numbers(&self, row: usize, first: usize, values: &[f32]) {
        if !self.values.is_empty() {
            let start = row * self.width + first;
            // SAFETY: as the caller's.
            unsafe { self.values.part(start..start + values.len()) }.copy_from_slice(values);
        }
    }

    /// # Safety
    /// As for [`Self::put`].
    unsafe fn put_integers(&self, row: usize, first: usize, values: &[f32]) {
        if self.num_blocks == 0 {
            return;
        }
        assert!(first.is_multiple_of(BLOCK_INPUTS) && values.len().is_multiple_of(BLOCK_INPUTS), "whole blocks");
        let start = row * self.num_blocks + first / BLOCK_INPUTS;
        let blocks = start..start + values.len() / BLOCK_INPUTS;
        // SAFETY: as the caller's.
        let to = unsafe {
            QuantizedRow {
                quants: self.quants.part(blocks.clone()),
                scales: self.scales.part(blocks.clone()),
                sums: self.sums.part(blocks.clone()),
                half_sums: self.half_sums.part(2 * blocks.start..2 * blocks.end),
                scaled_sums: self.scaled_sums.part(blocks),
            }
        };
        dispatch!(self.isa, quantize_row(values: &[f32] = values, to: QuantizedRow<'_> = to));
    }

    /// The numbers of a row.
    ///
    /// # Safety
    /// Nobody writes them meanwhile.
    unsafe fn numbers(&self, row: usize) -> &[f32] {
        // SAFETY: as the caller's.
        unsafe { self.values.part(row * self.width..(row + 1) * self.width) }
    }
}

/// Calls `work` with the thread's own buffer of `len` numbers, whatever is in it.
pub(crate) fn with_buffer(len: usize, work: impl FnOnce(&mut [f32])) {
    thread_local! {
        static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        work(&mut buffer[..len]);
    });
}

struct QuantizedRow<'a> {
    quants: &'a mut [QuantBlock],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    half_sums: &'a mut [f32],
    scaled_sums: &'a mut [f32],
}

#[inline(always)]
#[expect(clippy::needless_pass_by_value, reason = "the holder of the slices is made for this call")]
unsafe fn quantize_row<S: Simd>(values: &[f32], to: QuantizedRow<'_>) {
    for index in 0..to.quants.len() {
        let quants = &mut to.quants[index].0;
        // SAFETY: called through `dispatch!`; the row has 32 values for each block.
        unsafe {
            let from = values.as_ptr().add(index * BLOCK_INPUTS);
            // Magnitudes are in the order of their bits, infinity and then NaN above all numbers; comparing them as
            // floats would lose NaN, and would be a chain of steps where integers are compared in vectors.
            let mut largest_bits = 0;
            for i in 0..BLOCK_INPUTS {
                let bits = (*from.add(i)).abs().to_bits();
                largest_bits = if bits > largest_bits { bits } else { largest_bits };
            }
            let largest = f32::from_bits(largest_bits);
            if !largest.is_finite() {
                quants.fill(0); // each instruction set would make other integers of these values
                to.scales[index] = f32::NAN;
                to.sums[index] = 0.0;
                to.half_sums[2 * index..2 * index + 2].fill(0.0);
                to.scaled_sums[index] = f32::NAN;
                continue;
            }
            let (low, high) = (S::load(from), S::load(from.add(LANES)));
            let scale = largest / 127.0;
            let inverse = S::splat(if largest > 1e-30 { 127.0 / largest } else { 0.0 });
            let low_sum = S::store_i8(S::mul(low, inverse), quants);
            let high_sum = S::store_i8(S::mul(high, inverse), &mut quants[LANES..]);
            to.scales[index] = scale;
            to.half_sums[2 * index] = low_sum as f32;
            to.half_sums[2 * index + 1] = high_sum as f32;
            to.sums[index] = (low_sum + high_sum) as f32;
            to.scaled_sums[index] = scale * to.sums[index];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instruction_sets_quantize_alike() {
        let pool = ThreadPool::new(2).unwrap();
        let source: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.07).collect();
        let quantize = |isa| {
            let mut rows = Activations::new();
            rows.fill(&pool, isa, [3, 96], &|row, to| {
                for (to, x) in to.iter_mut().zip(&source) {
                    *to = x * (row as f32 - 1.0);
                }
            });
            rows
        };
        let reference = quantize(Isa::PORTABLE);
        for isa in Isa::available() {
            let rows = quantize(isa);
            assert_eq!((&rows.quants, &rows.sums), (&reference.quants, &reference.sums), "{}", isa.name());
            assert_eq!(rows.half_sums, reference.half_sums, "{}", isa.name());
            assert_eq!((&rows.scales, &rows.scaled_sums), (&reference.scales, &reference.scaled_sums));
        }
        assert_eq!(reference.scales[3..6], [0.0; 3]); // row 1 is all zero
        for (i, (quant, value)) in reference.quants.iter().flat_map(|block| block.0).zip(&reference.values).enumerate()
        {
            let scale = reference.scales[i / BLOCK_INPUTS];
            let error = (f32::from(quant) * scale - value).abs();
            assert!(error <= 0.500_01 * scale, "{quant} * {scale} for {value}");
        }
    }

    #[test]
    fn tiles_make_the_rows_that_they_are_cut_from() {
        let pool = ThreadPool::new(3).unwrap();
        let value = |row: usize, column: usize| ((row * 31 + column * 17) % 41) as f32 / 20.0 - 1.0;
        // Tiles of 24 columns have parts of blocks; rows of 48 have no integer form.
        for (width, tile_width, keeps_numbers) in [(96, 32, false), (96, 32, true), (96, 24, false), (48, 24, false)] {
            let shape = InputShape { rows: 5, width, keeps_numbers };
            let (mut rows, mut tiles) = (Activations::new(), Activations::new());
            let kept = InputShape { keeps_numbers: keeps_numbers || tile_width == 24, ..shape };
            rows.fill(&pool, Isa::best(), kept, &|row, to| {
                to.iter_mut().enumerate().for_each(|(column, x)| *x = value(row, column));
            });
            let row_ends = [2, 2, 5];
            tiles.fill_tiles(&pool, Isa::best(), shape, (&row_ends, tile_width), &|tile, thread, to| {
                assert!(thread < 3);
                let (columns, rows) = (tile / 3 * tile_width, tile % 3);
                let first_row = [0, 2, 2][rows];
                for (i, x) in to.iter_mut().enumerate() {
                    *x = value(first_row + i / tile_width, columns + i % tile_width);
                }
            });
            assert_eq!(tiles, rows, "{shape:?} in tiles of {tile_width}");
        }
    }

    #[test]
    fn numbers_that_no_matrix_reads_are_not_kept() {
        let pool = ThreadPool::new(1).unwrap();
        let mut rows = Activations::new();
        rows.fill(&pool, Isa::best(), InputShape { rows: 2, width: 64, keeps_numbers: false }, &|_, to| to.fill(1.0));
        assert_eq!((rows.values.len(), rows.quants.len()), (0, 4));
        rows.fill(&pool, Isa::best(), InputShape { rows: 2, width: 40, keeps_numbers: false }, &|_, to| to.fill(1.0));
        assert_eq!((&rows.values[..], rows.quants.len()), (&[1.0; 80][..], 0));
    }

    #[test]
    fn a_value_that_is_not_finite_spoils_its_block_alike_on_all_instruction_sets() {
        let pool = ThreadPool::new(1).unwrap();
        let clean: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.07).collect();
        let quantize = |isa, values: &[f32]| {
            let mut rows = Activations::new();
            rows.fill(&pool, isa, [1, 96], &|_, to| to.copy_from_slice(values));
            rows
        };
        let reference = quantize(Isa::PORTABLE, &clean);
        for isa in Isa::available() {
            for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0, 5, 15, 16, 27, 31] {
                    let mut values = clean.clone();
                    values[BLOCK_INPUTS + place] = value;
                    let rows = quantize(isa, &values);
                    let what = format!("{value} at {place} on {}", isa.name());
                    assert_eq!((rows.quants[1].0, rows.sums[1]), ([0; BLOCK_INPUTS], 0.0), "{what}");
                    assert_eq!(rows.half_sums[2..4], [0.0; 2], "{what}");
                    assert!(rows.scales[1].is_nan() && rows.scaled_sums[1].is_nan(), "{what}");
                    for block in [0, 2] {
                        let parts = |rows: &Activations| {
                            let sums = [rows.sums[block], rows.half_sums[2 * block], rows.half_sums[2 * block + 1]];
                            (rows.quants[block], sums, [rows.scales[block], rows.scaled_sums[block]].map(f32::to_bits))
                        };
                        assert_eq!(parts(&rows), parts(&reference), "{what}");
                    }
                }
            }
        }
    }
}
