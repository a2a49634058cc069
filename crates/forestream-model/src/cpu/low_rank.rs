//! Low-rank changes of main rows, beside the products that they change: `W x + alpha / rank * B (A x)`.
//!
//! The base keeps its bits. The A of all projections that read the same inputs are one product; the B are small and are
//! added row by row, where a row is at hand anyway.

use forestream_kernels::{Activations, Isa, PackedMatrix, ThreadPool, add_product, matmul};

/// The changes of a layer, by the inputs that they read; `None` where nothing is changed.
#[derive(Debug, Default)]
pub(super) struct LayerChanges {
    pub(super) qkv: Option<LowRank>,
    pub(super) o: Option<LowRank>,
    pub(super) gate_up: Option<LowRank>,
    pub(super) down: Option<LowRank>,
}

/// The changes of the projections of one product.
#[derive(Debug)]
pub(super) struct LowRank {
    /// The A of all of them, one after another, `[ranks, inputs]`.
    a: [PackedMatrix; 1],
    /// The B in the same order.
    b: Vec<Scaled>,
}

/// `alpha / rank * B`, `[outputs, rank]`, and the first of the product's outputs that it changes.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) b: PackedMatrix,
    pub(super) first_output: usize,
}

impl LowRank {
    /// Changes of a product; the columns of `b` add up to the rows of `a`.
    pub(super) fn new(a: PackedMatrix, b: Vec<Scaled>) -> Self {
        debug_assert_eq!(a.rows(), b.iter().map(|scaled| scaled.b.cols()).sum::<usize>(), "a rank for each row");
        Self { a: [a], b }
    }

    /// `A x` of all rows of `inputs`, into `inner`, `[rows, ranks]`.
    pub(super) fn reduce(&self, pool: &ThreadPool, isa: Isa, inputs: &Activations, inner: &mut Vec<f32>) {
        inner.resize(inputs.rows() * self.a[0].rows(), 0.0);
        matmul(pool, isa, inputs, &self.a, inner);
    }

    /// Whether inputs of [`Self::reduce`] are read as numbers.
    pub(super) fn reads_numbers(&self) -> bool {
        !self.a[0].format().is_quantized()
    }

    /// Adds `B (A x)` of row `row` to some of the outputs of its product, from output `first` on; it begins a tile of 16 of
    /// each projection.
    pub(super) fn add(&self, isa: Isa, inner: &[f32], row: usize, (first, outputs): (usize, &mut [f32])) {
        let ranks = self.a[0].rows();
        let mut inner = &inner[row * ranks..(row + 1) * ranks];
        let end = first + outputs.len();
        for Scaled { b, first_output } in &self.b {
            let (own, others) = inner.split_at(b.cols());
            let changed = first.max(*first_output)..end.min(first_output + b.rows());
            if !changed.is_empty() {
                let outputs = &mut outputs[changed.start - first..changed.end - first];
                add_product(isa, own, b, changed.start - first_output, outputs);
            }
            inner = others;
        }
    }
}
