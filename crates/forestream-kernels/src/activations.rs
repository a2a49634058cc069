//! The inputs of a matrix product: `f32` rows, and the same rows as 8-bit integers in blocks of 32.

use std::ops::Range;

use crate::ThreadPool;
use crate::packed::layout::BLOCK_INPUTS;
use crate::shared_slice::SharedSlice;
use crate::simd::{Isa, LANES, Simd, dispatch};

/// The integers of a block; aligned, so that kernels may read them in any unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(32))]
pub(crate) struct QuantBlock(pub(crate) [i8; BLOCK_INPUTS]);

/// Rows of inputs, `[rows, width]`, reused between passes.
///
/// The integer form of a block of 32 is `round(x * 127 / max|x|)`, its scale `max|x| / 127`. No integer stands for an
/// infinity or NaN: a block with one has zero integers and the scale NaN, which makes all outputs of its row NaN.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    width: usize,
    values: Vec<f32>,
    /// `[rows, width / 32]` blocks.
    quants: Vec<QuantBlock>,
    /// `[rows, width / 32]`.
    scales: Vec<f32>,
    /// Sums of 32 quants, `[rows, width / 32]`, and of 16, `[rows, width / 16]`: integers, but kernels reckon with them as floats.
    sums: Vec<f32>,
    half_sums: Vec<f32>,
    /// Scale times the sum of 32 quants, `[rows, width / 32]`.
    scaled_sums: Vec<f32>,
    is_quantized: bool,
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

    /// The rows, `[rows, width]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Fills the rows through `fill(row_index, row)`, and quantizes them when `width` is a whole number of blocks.
    pub fn fill(
        &mut self,
        pool: &ThreadPool,
        isa: Isa,
        [rows, width]: [usize; 2],
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.resize(rows, width);
        let is_quantized = self.is_quantized;
        let blocks = if is_quantized { width / BLOCK_INPUTS } else { 0 };
        let values = SharedSlice::new(&mut self.values);
        let quants = SharedSlice::new(&mut self.quants);
        let scales = SharedSlice::new(&mut self.scales);
        let sums = SharedSlice::new(&mut self.sums);
        let half_sums = SharedSlice::new(&mut self.half_sums);
        let scaled_sums = SharedSlice::new(&mut self.scaled_sums);
        pool.run_rows(rows, width, &|row| {
            // SAFETY: each row is visited once.
            let values = unsafe { values.part(row * width..(row + 1) * width) };
            fill(row, values);
            if is_quantized {
                let block_range = row * blocks..(row + 1) * blocks;
                // SAFETY: as above, for the other slices.
                let to = unsafe {
                    QuantizedRow {
                        quants: quants.part(block_range.clone()),
                        scales: scales.part(block_range.clone()),
                        sums: sums.part(block_range.clone()),
                        half_sums: half_sums.part(2 * block_range.start..2 * block_range.end),
                        scaled_sums: scaled_sums.part(block_range),
                    }
                };
                dispatch!(isa, quantize_row(values: &[f32] = values, to: QuantizedRow<'_> = to));
            }
        });
    }

    fn resize(&mut self, rows: usize, width: usize) {
        self.rows = rows;
        self.width = width;
        self.is_quantized = width.is_multiple_of(BLOCK_INPUTS);
        let len = rows * width;
        self.values.resize(len, 0.0);
        if self.is_quantized {
            self.quants.resize(len / BLOCK_INPUTS, QuantBlock([0; BLOCK_INPUTS]));
            self.scales.resize(len / BLOCK_INPUTS, 0.0);
            self.sums.resize(len / BLOCK_INPUTS, 0.0);
            self.half_sums.resize(2 * len / BLOCK_INPUTS, 0.0);
            self.scaled_sums.resize(len / BLOCK_INPUTS, 0.0);
        }
    }

    /// The integer form of some rows.
    ///
    /// # Panics
    /// When the width is not a whole number of blocks.
    pub(crate) fn quantized(&self, rows: Range<usize>) -> Quantized<'_> {
        assert!(self.is_quantized, "rows of {} elements have no integer form", self.width);
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
