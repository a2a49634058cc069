//! Every scheme on every instruction set against dequantized arithmetic, and batch invariance.

use super::*;
use crate::activations::InputShape;
use crate::formats::Format;
use crate::packed::{RowOrder, WeightMemory};

/// Bytes that look like weights: pseudo-random quants, scales of moderate size.
fn weights(format: Format, rows: usize, cols: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut bytes = Vec::new();
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    if !format.is_quantized() {
        let values: Vec<f32> = (0..rows * cols).map(|_| (next() % 2001) as f32 / 1000.0 - 1.0).collect();
        format.quantize_row(&values, &mut bytes).unwrap();
        return bytes;
    }
    bytes.extend((0..rows * format.row_bytes(cols).unwrap()).map(|_| next() as u8));
    let scale = half::f16::from_f32(0.01).to_le_bytes();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let len = block.len();
        let offsets: &[usize] = match format {
            Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
            Format::Q2_K => &[len - 4, len - 2],
            Format::Q3_K | Format::Q6_K => &[len - 2],
            _ => &[0],
        };
        for &offset in offsets {
            block[offset..offset + 2].copy_from_slice(&scale);
        }
    }
    bytes
}

fn inputs(pool: &ThreadPool, isa: Isa, rows: usize, cols: usize) -> Activations {
    let mut input = Activations::new();
    input.fill(pool, isa, [rows, cols], &|row, to| {
        for (i, x) in to.iter_mut().enumerate() {
            // Row 0 has only the largest quants, so that sums reach their limits.
            *x = if row == 0 { [1.0, -1.0][i / 4 % 2] } else { ((i * 31 + row * 17) % 41) as f32 / 20.0 - 1.0 };
        }
    });
    input
}

fn product(pool: &ThreadPool, isa: Isa, input: &Activations, parts: &[PackedMatrix]) -> Vec<f32> {
    let columns: usize = parts.iter().map(PackedMatrix::rows).sum();
    let mut output = vec![f32::NAN; input.rows() * columns];
    matmul(pool, isa, input, parts, &mut output);
    output
}

/// The product in `f64` of dequantized weights and, for quantized ones, dequantized activations.
fn reference(format: Format, bytes: &[u8], shape: [usize; 2], input: &Activations) -> Vec<f64> {
    let [rows, cols] = shape;
    let mut values = vec![0.0; rows * cols];
    for (row, to) in bytes.chunks_exact(format.row_bytes(cols).unwrap()).zip(values.chunks_exact_mut(cols)) {
        format.dequantize_row(row, to);
    }
    let mut output = Vec::new();
    for row in 0..input.rows() {
        let x: Vec<f64> = if format.is_quantized() {
            let quantized = input.quantized(row..row + 1);
            let value = |(i, q): (usize, i8)| f64::from(q) * f64::from(quantized.scales[i / 32]);
            quantized.quants.iter().flat_map(|block| block.0).enumerate().map(value).collect()
        } else {
            input.row(row).iter().map(|&x| f64::from(x)).collect()
        };
        for weights in values.chunks_exact(cols) {
            output.push(weights.iter().zip(&x).map(|(&w, x)| f64::from(w) * x).sum());
        }
    }
    output
}

#[test]
fn every_format_matches_dequantized_arithmetic_on_every_instruction_set() {
    let pool = ThreadPool::new(2).unwrap();
    for format in Format::ALL {
        for [rows, cols] in [[1, 256], [16, 512], [37, 768]] {
            let bytes = weights(format, rows, cols, 7);
            let matrix =
                PackedMatrix::pack(&pool, &WeightMemory::new(), format, [rows, cols], &bytes, RowOrder::Same).unwrap();
            let matrix = [matrix];
            for num_inputs in [1, 2, 3, 4, 5, 6, 7, 8, 13, 30] {
                let input = inputs(&pool, Isa::PORTABLE, num_inputs, cols);
                let portable = product(&pool, Isa::PORTABLE, &input, &matrix);
                let exact = reference(format, &bytes, [rows, cols], &input);
                let largest = exact.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
                for (got, exact) in portable.iter().zip(&exact) {
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error <= 1e-5 * largest, "{format} {rows}x{cols}, {num_inputs} inputs: {got}, not {exact}");
                }
                for isa in Isa::available() {
                    let got = product(&pool, isa, &input, &matrix);
                    assert_eq!(got, portable, "{format} {rows}x{cols}, {num_inputs} inputs on {}", isa.name());
                }
            }
        }
    }
}

#[test]
fn extreme_quants_do_not_saturate() {
    // All bits set or clear: the largest and smallest quant of every format, against the largest activations.
    let pool = ThreadPool::new(1).unwrap();
    for format in Format::ALL.into_iter().filter(|format| format.is_quantized()) {
        for fill in [0x00, 0xFF, 0x7F, 0x80] {
            let mut bytes = weights(format, 16, 256, 3);
            let template = bytes.clone();
            bytes.fill(fill);
            for (block, template) in
                bytes.chunks_exact_mut(format.block_bytes()).zip(template.chunks_exact(format.block_bytes()))
            {
                let len = block.len();
                block[..4].copy_from_slice(&template[..4]);
                block[len - 4..].copy_from_slice(&template[len - 4..]);
            }
            let matrix =
                [PackedMatrix::pack(&pool, &WeightMemory::new(), format, [16, 256], &bytes, RowOrder::Same).unwrap()];
            let input = inputs(&pool, Isa::PORTABLE, 2, 256);
            let portable = product(&pool, Isa::PORTABLE, &input, &matrix);
            for isa in Isa::available() {
                assert_eq!(product(&pool, isa, &input, &matrix), portable, "{format} on {}", isa.name());
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_makes_all_outputs_of_its_row_nan_and_no_others() {
    let pool = ThreadPool::new(1).unwrap();
    for format in Format::ALL.into_iter().filter(|format| format.is_quantized()) {
        let bytes = weights(format, 37, 256, 11);
        let matrix =
            [PackedMatrix::pack(&pool, &WeightMemory::new(), format, [37, 256], &bytes, RowOrder::Same).unwrap()];
        let clean = inputs(&pool, Isa::PORTABLE, 5, 256);
        let expected = product(&pool, Isa::PORTABLE, &clean, &matrix);
        for isa in Isa::available() {
            for (value, place) in [(f32::NAN, 70), (f32::NAN, 90), (f32::INFINITY, 70), (f32::NEG_INFINITY, 90)] {
                let mut input = Activations::new();
                input.fill(&pool, isa, [5, 256], &|row, to| {
                    to.copy_from_slice(clean.row(row));
                    if row == 3 {
                        to[place] = value;
                    }
                });
                let got = product(&pool, isa, &input, &matrix);
                for (row, (got, expected)) in got.chunks(37).zip(expected.chunks(37)).enumerate() {
                    let is_as_due = if row == 3 { got.iter().all(|x| x.is_nan()) } else { got == expected };
                    assert!(is_as_due, "{format}, {value} at {place} on {}, row {row}: {got:?}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_the_threads_or_the_other_parts() {
    let cols = 256;
    let pools = [ThreadPool::new(1).unwrap(), ThreadPool::new(3).unwrap()];
    let matrix = |format, rows, seed| {
        PackedMatrix::pack(
            &pools[0],
            &WeightMemory::new(),
            format,
            [rows, cols],
            &weights(format, rows, cols, seed),
            RowOrder::Same,
        )
        .unwrap()
    };
    let parts = [matrix(Format::Q4_K, 50, 1), matrix(Format::F16, 20, 2), matrix(Format::Q6_K, 33, 3)];
    for isa in Isa::available() {
        let input = inputs(&pools[0], isa, 9, cols);
        let together = product(&pools[1], isa, &input, &parts);
        for row in 0..9 {
            let mut alone = Activations::new();
            alone.fill(&pools[0], isa, [1, cols], &|_, to| to.copy_from_slice(input.row(row)));
            let got = product(&pools[0], isa, &alone, &parts);
            assert_eq!(got, together[row * 103..(row + 1) * 103], "row {row} on {}", isa.name());
        }
        let second = product(&pools[0], isa, &input, &parts[1..2]);
        for row in 0..9 {
            assert_eq!(second[row * 20..(row + 1) * 20], together[row * 103 + 50..row * 103 + 70]);
        }
    }
}

#[test]
fn packed_sizes_are_known_before_packing() {
    let pool = ThreadPool::new(1).unwrap();
    for format in [Format::F32, Format::Q4_1, Format::Q8_0, Format::Q2_K, Format::Q3_K, Format::Q6_K] {
        let (rows, cols) = (37, 512);
        let bytes = weights(format, rows, cols, 5);
        let matrix = PackedMatrix::pack(&pool, &WeightMemory::new(), format, [rows, cols], &bytes, RowOrder::Same);
        assert_eq!(matrix.unwrap().num_bytes(), PackedMatrix::packed_bytes(format, [rows, cols]), "{format}");
    }
    let bits = PackedMatrix::packed_bytes(Format::Q2_K, [16, 256]) as f64 * 8.0 / (16.0 * 256.0);
    assert!(bits > 5.0, "2-bit weights take {bits} bits");
}

#[test]
fn a_product_on_one_thread_is_added_to_what_is_there() {
    let pool = ThreadPool::new(2).unwrap();
    for (format, rows) in [(Format::F32, 37), (Format::F16, 16)] {
        let bytes = weights(format, rows, 8, 5);
        let matrix =
            [PackedMatrix::pack(&pool, &WeightMemory::new(), format, [rows, 8], &bytes, RowOrder::Same).unwrap()];
        let input = inputs(&pool, Isa::PORTABLE, 1, 8);
        let expected: Vec<f32> = product(&pool, Isa::PORTABLE, &input, &matrix).iter().map(|x| 3.0 + x).collect();
        for isa in Isa::available() {
            let mut output = vec![3.0; rows];
            let (first, others) = output.split_at_mut(16);
            add_product(isa, input.row(0), &matrix[0], 16, others);
            add_product(isa, input.row(0), &matrix[0], 0, first);
            assert_eq!(output, expected, "{format} on {}", isa.name());
        }
    }
}

/// A packed matrix of pseudo-random weights.
fn matrix(pool: &ThreadPool, format: Format, [rows, cols]: [usize; 2], seed: u32) -> PackedMatrix {
    let bytes = weights(format, rows, cols, seed);
    PackedMatrix::pack(pool, &WeightMemory::new(), format, [rows, cols], &bytes, RowOrder::Same).unwrap()
}

#[test]
fn an_added_product_is_the_product_added() {
    let pool = ThreadPool::new(3).unwrap();
    for (format, rows) in [(Format::Q4_1, 64), (Format::Q8_0, 37), (Format::F16, 21)] {
        let parts = [matrix(&pool, format, [rows, 64], 5), matrix(&pool, format, [16, 64], 6)];
        for isa in Isa::available() {
            let input = inputs(&pool, isa, 7, 64);
            let before: Vec<f32> = (0..7 * (rows + 16)).map(|i| i as f32 / 100.0).collect();
            let mut output = before.clone();
            matmul_add(&pool, isa, &input, &parts, &mut output);
            let product = product(&pool, isa, &input, &parts);
            let expected: Vec<f32> = before.iter().zip(&product).map(|(before, sum)| before + sum).collect();
            assert_eq!(output, expected, "{format}, {rows} outputs on {}", isa.name());
        }
    }
}

#[test]
fn joined_products_are_the_products_joined() {
    let pool = ThreadPool::new(3).unwrap();
    // 40 columns are no whole number of blocks; 300 rows have more sums than a thread holds at once.
    for (format, width, num_inputs) in
        [(Format::Q4_1, 96, 1), (Format::Q4_1, 96, 300), (Format::F16, 96, 5), (Format::Q8_0, 40, 5)]
    {
        let parts = [matrix(&pool, format, [width, 32], 1), matrix(&pool, format, [width, 32], 2)];
        for (isa, keeps_numbers) in Isa::available().into_iter().flat_map(|isa| [(isa, true), (isa, false)]) {
            let input = inputs(&pool, isa, num_inputs, 32);
            let difference = |gate: f32, up: f32| gate - 2.0 * up;
            let mut output = Activations::new();
            let join = |Joined { columns, sums, to, .. }: Joined<'_>| {
                let (gate, up) = sums.split_at(columns.len());
                for (to, (gate, up)) in to.iter_mut().zip(gate.iter().zip(up)) {
                    *to = difference(*gate, *up);
                }
            };
            matmul_join(&pool, isa, &input, &parts, Join { output: &mut output, keeps_numbers, join: &join });
            let products = product(&pool, isa, &input, &parts);
            let mut expected = Activations::new();
            let shape = InputShape { rows: num_inputs, width, keeps_numbers };
            expected.fill(&pool, isa, shape, &|row, to| {
                let (gate, up) = products[row * 2 * width..][..2 * width].split_at(width);
                for (to, (gate, up)) in to.iter_mut().zip(gate.iter().zip(up)) {
                    *to = difference(*gate, *up);
                }
            });
            assert_eq!(output, expected, "{format}, {width} columns, {num_inputs} rows on {}", isa.name());
        }
    }
}
