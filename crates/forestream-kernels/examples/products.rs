//! Rate of the matrix products: multiply-adds a second by format and number of rows, weights in the cache.
//!
//! `cargo run --release --package forestream-kernels --example products -- [OUTPUT_ROWS] [INPUTS] [THREADS]`
#![expect(clippy::print_stdout, reason = "the report of a measurement")]

use std::time::{Duration, Instant};

use forestream_kernels::formats::Format;
use forestream_kernels::{Activations, Isa, PackedMatrix, RowOrder, ThreadPool, WeightMemory, matmul};

/// Time given to each figure.
const DURATION: Duration = Duration::from_millis(300);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let argument = |index: usize, default| arguments.get(index).copied().unwrap_or(default);
    let (outputs, inputs, threads) = (argument(0, 576), argument(1, 576), argument(2, 1));
    let pool = ThreadPool::new(threads)?;
    println!("{outputs} outputs of {inputs} inputs, {threads} threads, {}", Isa::best().name());
    for format in [Format::Q4_1, Format::Q8_0] {
        if !inputs.is_multiple_of(format.block_len()) {
            continue;
        }
        let matrix = matrix(&pool, format, [outputs, inputs])?;
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 20] {
            let rate = rate(&pool, &matrix, rows);
            println!("{format:>6} {rows:>3} rows {:>7.1} G multiply-adds/s", rate / 1e9);
        }
    }
    Ok(())
}

/// A matrix: some rows over and over, since making numbers takes longer than multiplying them.
fn matrix(
    pool: &ThreadPool,
    format: Format,
    [rows, cols]: [usize; 2],
) -> Result<[PackedMatrix; 1], Box<dyn std::error::Error>> {
    let values: Vec<f32> = (0..64 * cols).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    let mut some_rows = Vec::new();
    for row in values.chunks_exact(cols) {
        format.quantize_row(row, &mut some_rows)?;
    }
    let len = rows * some_rows.len() / 64;
    let bytes: Vec<u8> = some_rows.into_iter().cycle().take(len).collect();
    Ok([PackedMatrix::pack(pool, &WeightMemory::new(), format, [rows, cols], &bytes, RowOrder::Same)?])
}

/// Multiply-adds a second with `rows` rows of inputs: the best of the repetitions that fit the time.
fn rate(pool: &ThreadPool, matrix: &[PackedMatrix; 1], rows: usize) -> f64 {
    let [outputs, inputs] = [matrix[0].rows(), matrix[0].cols()];
    let mut input = Activations::new();
    input.fill(pool, Isa::best(), [rows, inputs], &|row, to| {
        for (i, x) in to.iter_mut().enumerate() {
            *x = ((i * 31 + row * 17) % 41) as f32 / 20.0 - 1.0;
        }
    });
    let mut output = vec![0.0; rows * outputs];
    let (begin, mut best) = (Instant::now(), Duration::MAX);
    while begin.elapsed() < DURATION {
        let begin = Instant::now();
        for _ in 0..8 {
            matmul(pool, Isa::best(), &input, matrix, &mut output);
        }
        best = best.min(begin.elapsed() / 8);
    }
    (rows * outputs * inputs) as f64 / best.as_secs_f64()
}
