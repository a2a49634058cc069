//! Decoding and encoding against the values of the `gguf` Python package, bit by bit.
//!
//! `testdata/formats/make.py` made the files and describes them.

use super::{Format, PART_LEN};

/// The unread rest of a golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Self {
        let path = format!("{}/../../testdata/formats/{name}", env!("CARGO_MANIFEST_DIR"));
        Self(std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.0.drain(..len).collect()
    }

    fn number(&mut self) -> usize {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap()) as usize
    }

    fn format(&mut self) -> Format {
        Format::from_ggml_type(self.number() as u32).unwrap()
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        let bytes = self.bytes(4 * len);
        bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
    }

    fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

/// A format with golden bytes and their values.
struct Decoded {
    format: Format,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn decoded_rows() -> Vec<Decoded> {
    let mut golden = Golden::open("decode.bin");
    let mut rows = Vec::new();
    while !golden.is_at_end() {
        let (format, num_bytes, len) = (golden.format(), golden.number(), golden.number());
        rows.push(Decoded { format, bytes: golden.bytes(num_bytes), values: golden.values(len) });
    }
    assert_eq!(rows.len(), Format::ALL.len());
    rows
}

fn assert_same_bits(format: Format, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.to_bits(), expected.to_bits(), "{format} element {index}: {got}, expected {expected}");
    }
}

#[test]
fn decoded_values_have_the_golden_bits() {
    for Decoded { format, bytes, values } in decoded_rows() {
        let mut out = vec![f32::NAN; values.len()];
        format.dequantize_row(&bytes, &mut out);
        assert_same_bits(format, &out, &values);
    }
}

/// The packed matrix products use the documented formula in another order, with fused multiply-add.
#[test]
fn fused_formula_over_quants_and_scales_gives_the_golden_values() {
    for Decoded { format, bytes, values } in decoded_rows().into_iter().filter(|row| row.format.is_quantized()) {
        let mut quants = [0; PART_LEN];
        for (index, part) in values.chunks_exact(PART_LEN).enumerate() {
            format.unpack_block32(&bytes, index, &mut quants);
            let scales = format.scales32(&bytes, index);
            for (i, &expected) in part.iter().enumerate() {
                let quant = i32::from(quants[i]) - format.zero_point();
                let sub_min = format.min_sign() * i32::from(scales.sub_mins[i / 16]);
                let integer = (i32::from(scales.sub_scales[i / 16]) * quant) as f32;
                let value = integer.mul_add(scales.block_scale.to_f32(), scales.block_min.to_f32() * sub_min as f32);
                // A minimum of zero turns -0.0 into 0.0; nothing else may differ.
                let same = value.to_bits() == expected.to_bits() || (value.to_bits() | expected.to_bits()) == 1 << 31;
                assert!(same, "{format} part {index} element {i}: {value}, expected {expected}");
            }
        }
    }
}

#[test]
fn quants_and_scales_reach_the_ends_of_their_ranges() {
    let cases = [
        (Format::Q4_0, 15, [1; 2], [0; 2]),
        (Format::Q4_1, 15, [1; 2], [1; 2]),
        (Format::Q5_0, 31, [1; 2], [0; 2]),
        (Format::Q5_1, 31, [1; 2], [1; 2]),
        (Format::Q8_0, 127, [1; 2], [0; 2]),
        (Format::Q2_K, 3, [15; 2], [15; 2]),
        (Format::Q3_K, 7, [31; 2], [0; 2]),
        (Format::Q4_K, 15, [63; 2], [63; 2]),
        (Format::Q5_K, 31, [63; 2], [63; 2]),
        (Format::Q6_K, 63, [-1; 2], [0; 2]),
    ];
    for (format, largest, sub_scales, sub_mins) in cases {
        let bytes = vec![0xff; 2 * format.block_bytes()];
        for index in 0..2 * format.block_len() / PART_LEN {
            let mut quants = [0; PART_LEN];
            format.unpack_block32(&bytes, index, &mut quants);
            let scales = format.scales32(&bytes, index);
            assert_eq!(
                (quants, scales.sub_scales, scales.sub_mins),
                ([largest; PART_LEN], sub_scales, sub_mins),
                "{format}"
            );
        }
    }
}

#[test]
fn encoded_values_have_the_golden_bytes() {
    let mut golden = Golden::open("quantize.bin");
    let len = golden.number();
    let values = golden.values(len);
    let mut num_formats = 0;
    while !golden.is_at_end() {
        let (format, num_bytes) = (golden.format(), golden.number());
        let expected = golden.bytes(num_bytes);
        let mut out = Vec::new();
        format.quantize_row(&values, &mut out).unwrap();
        assert_eq!(out.len(), expected.len(), "{format}");
        for (index, blocks) in out.chunks(format.block_bytes()).zip(expected.chunks(format.block_bytes())).enumerate() {
            assert_eq!(blocks.0, blocks.1, "{format} block {index}");
        }
        num_formats += 1;
    }
    assert_eq!(num_formats, Format::ALL.into_iter().filter(|format| format.is_encodable()).count());
}

#[test]
#[should_panic(expected = "64 elements of Q4_0: 35 bytes, not Some(36)")]
fn a_row_of_the_wrong_size_is_the_callers_bug() {
    Format::Q4_0.dequantize_row(&[0; 35], &mut [0.0; 64]);
}
