//! Encoding of `f32` values, for quantization at load.
//!
//! Rounds as ggml's reference quantizers do (`quantize_row_q4_0_ref` and its siblings): the integers are found with the
//! unrounded `f32` scale, and ties between elements of largest magnitude go to the first. Files of K formats are read
//! but not written: their encoders search for scales, which belongs into an offline tool.

use std::array::from_fn;

use half::{bf16, f16};

use super::decode::PART_LEN;
use super::{Format, names};

/// What can be asked for at load.
const ENCODABLE: [Format; 8] =
    [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q5_1, Format::Q5_0, Format::Q4_1, Format::Q4_0];

/// Why values were not encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// The format has a decoder only.
    #[error("cannot quantize to {format}; possible are {}", names(&ENCODABLE))]
    NoEncoder {
        /// The format asked for.
        format: Format,
    },
    /// The row does not fill its last block.
    #[error("a row of {len} elements is not a whole number of {format} blocks of {}", format.block_len())]
    PartialBlock {
        /// The format asked for.
        format: Format,
        /// Elements of the row.
        len: usize,
    },
    /// An element is not finite, or so large that the format's 16-bit fields overflow.
    #[error("element {index} is {value}, which {format} cannot hold; keep this tensor as F32 or BF16")]
    OutOfRange {
        /// The format asked for.
        format: Format,
        /// The element's index in the row.
        index: usize,
        /// The element.
        value: f32,
    },
}

impl Format {
    /// Whether [`Format::quantize_row`] can write this format.
    pub fn is_encodable(self) -> bool {
        ENCODABLE.contains(&self)
    }

    /// Appends the encoded values to `out`; leaves it as it was on an error.
    ///
    /// # Errors
    /// When the format has no encoder, the row ends inside a block, or a value does not fit.
    pub fn quantize_row(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), QuantizeError> {
        if !self.is_encodable() {
            return Err(QuantizeError::NoEncoder { format: self });
        }
        let Some(num_bytes) = self.row_bytes(values.len()) else {
            return Err(QuantizeError::PartialBlock { format: self, len: values.len() });
        };
        let start = out.len();
        out.reserve(num_bytes);
        let unfit = match self {
            Self::F32 => append(values, out, |&value| Some(value.to_le_bytes())),
            Self::F16 => append(values, out, |&value| overflow_checked(value).map(f16::to_le_bytes)),
            Self::BF16 => append(values, out, |&value| Some(bf16::from_f32(value).to_le_bytes())),
            Self::Q4_0 => append(values.as_chunks().0, out, q4_0),
            Self::Q4_1 => append(values.as_chunks().0, out, q4_1),
            Self::Q5_0 => append(values.as_chunks().0, out, q5_0),
            Self::Q5_1 => append(values.as_chunks().0, out, q5_1),
            _ => append(values.as_chunks().0, out, q8_0),
        };
        if let Some(block_index) = unfit {
            out.truncate(start);
            let (index, value) = culprit(values, block_index * self.block_len(), self.block_len());
            return Err(QuantizeError::OutOfRange { format: self, index, value });
        }
        debug_assert_eq!(out.len() - start, num_bytes);
        Ok(())
    }
}

/// Appends block by block; stops at the first that cannot be encoded and returns its index.
fn append<T, const N: usize>(blocks: &[T], out: &mut Vec<u8>, encode: impl Fn(&T) -> Option<[u8; N]>) -> Option<usize> {
    for (index, block) in blocks.iter().enumerate() {
        match encode(block) {
            Some(bytes) => out.extend_from_slice(&bytes),
            None => return Some(index),
        }
    }
    None
}

/// The element of a block to blame: the first that is not finite, else the one of largest magnitude.
fn culprit(values: &[f32], start: usize, len: usize) -> (usize, f32) {
    let magnitude = |value: f32| if value.is_finite() { value.abs() } else { f32::INFINITY };
    let block = values[start..start + len].iter().copied();
    let first = (start, values[start]);
    (start..).zip(block).fold(first, |best, next| if magnitude(next.1) > magnitude(best.1) { next } else { best })
}

/// The nearest 16-bit number; `None` when a finite value would become infinite.
fn overflow_checked(value: f32) -> Option<f16> {
    let rounded = f16::from_f32(value);
    (rounded.is_finite() || !value.is_finite()).then_some(rounded)
}

/// A 16-bit field of a block: finite or nothing.
fn field(value: f32) -> Option<[u8; 2]> {
    let rounded = f16::from_f32(value);
    rounded.is_finite().then(|| rounded.to_le_bytes())
}

/// The factor from values to quants; zero for a block without any spread.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The integers of a block with the scale, and the minimum where there is one, that turn them back into values.
struct Rounded {
    scale: f32,
    min: f32,
    quants: [u8; PART_LEN],
}

/// Integers around `zero_point`; the element of largest magnitude, with its sign, becomes integer 0.
///
/// `None` when an element is not finite.
fn round_around(zero_point: u8, values: &[f32; PART_LEN]) -> Option<Rounded> {
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let extreme = values.iter().fold(0.0_f32, |best, &value| if value.abs() > best.abs() { value } else { best });
    let zero = f32::from(zero_point);
    let scale = extreme / -zero;
    let factor = inverse(scale);
    let quants = values.map(|value| ((value * factor + (zero + 0.5)) as u8).min(2 * zero_point - 1));
    Some(Rounded { scale, min: 0.0, quants })
}

/// Integers from 0 for the smallest element to `largest` for the largest.
///
/// `None` when an element is not finite.
fn round_above_min(largest: u8, values: &[f32; PART_LEN]) -> Option<Rounded> {
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (max - min) / f32::from(largest);
    let factor = inverse(scale);
    let quants = values.map(|value| (((value - min) * factor + 0.5) as u8).min(largest));
    Some(Rounded { scale, min, quants })
}

fn q4_0(values: &[f32; PART_LEN]) -> Option<[u8; 18]> {
    let block = round_around(8, values)?;
    Some(concatenate([&field(block.scale)?, &nibbles(&block.quants)]))
}

fn q4_1(values: &[f32; PART_LEN]) -> Option<[u8; 20]> {
    let block = round_above_min(15, values)?;
    Some(concatenate([&field(block.scale)?, &field(block.min)?, &nibbles(&block.quants)]))
}

fn q5_0(values: &[f32; PART_LEN]) -> Option<[u8; 22]> {
    let block = round_around(16, values)?;
    Some(concatenate([&field(block.scale)?, &fifth_bits(&block.quants), &nibbles(&block.quants)]))
}

fn q5_1(values: &[f32; PART_LEN]) -> Option<[u8; 24]> {
    let block = round_above_min(31, values)?;
    let (scale, min) = (field(block.scale)?, field(block.min)?);
    Some(concatenate([&scale, &min, &fifth_bits(&block.quants), &nibbles(&block.quants)]))
}

fn q8_0(values: &[f32; PART_LEN]) -> Option<[u8; 34]> {
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let scale = values.iter().fold(0.0_f32, |best, value| best.max(value.abs())) / 127.0;
    let factor = inverse(scale);
    let quants = values.map(|value| (value * factor).round() as i8 as u8);
    Some(concatenate([&field(scale)?, &quants]))
}

/// The low four bits: elements 0 to 15 in the low halves, 16 to 31 in the high halves.
fn nibbles(quants: &[u8; PART_LEN]) -> [u8; 16] {
    from_fn(|i| quants[i] & 0x0f | quants[i + 16] << 4)
}

/// The fifth bits: bit i for element i.
fn fifth_bits(quants: &[u8; PART_LEN]) -> [u8; 4] {
    (0..PART_LEN).fold(0_u32, |bits, i| bits | u32::from(quants[i] >> 4) << i).to_le_bytes()
}

/// A block's bytes from its fields.
fn concatenate<const FIELDS: usize, const N: usize>(fields: [&[u8]; FIELDS]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut rest = bytes.as_mut_slice();
    for field in fields {
        let (place, after) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = after;
    }
    debug_assert!(rest.is_empty(), "a block's fields add up to its size");
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK_FORMATS: [Format; 5] = [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0];

    fn round_trip(format: Format, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        format.quantize_row(values, &mut bytes).unwrap();
        let mut decoded = vec![f32::NAN; values.len()];
        format.dequantize_row(&bytes, &mut decoded);
        decoded
    }

    /// The largest error of an element that a format allows itself, in steps of its scale.
    fn allowed_steps(format: Format) -> f32 {
        match format {
            // The end opposite to the extreme has no integer of its own: 16 and 32 levels reach to 7/8 and 15/16.
            Format::Q4_0 | Format::Q5_0 => 1.0,
            _ => 0.5,
        }
    }

    fn check_error_bound(format: Format, values: &[f32; PART_LEN]) {
        let (min, max) =
            values.iter().fold((f32::MAX, f32::MIN), |(min, max), &value| (min.min(value), max.max(value)));
        let extreme = max.abs().max(min.abs());
        let step = match format {
            Format::Q4_0 => extreme / 8.0,
            Format::Q5_0 => extreme / 16.0,
            Format::Q8_0 => extreme / 127.0,
            Format::Q4_1 => (max - min) / 15.0,
            _ => (max - min) / 31.0,
        };
        // The scale's and the minimum's own rounding to 11 bits, or to the spacing of the smallest 16-bit numbers.
        let rounding = (extreme + max - min) / 2048.0 + 255.0 * 2.0_f32.powi(-25);
        let bound = allowed_steps(format) * step * 1.001 + rounding;
        for (value, decoded) in values.iter().zip(round_trip(format, values)) {
            assert!((value - decoded).abs() <= bound, "{format}: {value} became {decoded}, bound {bound}");
        }
    }

    proptest! {
        #[test]
        fn errors_stay_within_a_step(
            shift in -4.0_f32..4.0,
            exponent in -12_i32..6,
            units in prop::array::uniform32(-1.0_f32..1.0),
        ) {
            let values = units.map(|unit| (unit + shift) * 2.0_f32.powi(exponent));
            for format in BLOCK_FORMATS {
                check_error_bound(format, &values);
            }
        }

        #[test]
        fn encoding_decoded_values_again_changes_no_sixteen_bit_float(bits in prop::collection::vec(any::<u16>(), 0..64)) {
            for format in [Format::F16, Format::BF16] {
                let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
                let mut values = vec![0.0; bits.len()];
                format.dequantize_row(&bytes, &mut values);
                let decoded = round_trip(format, &values);
                for (value, decoded) in values.iter().zip(decoded) {
                    assert!(value.to_bits() == decoded.to_bits() || value.is_nan() && decoded.is_nan());
                }
            }
        }
    }

    #[test]
    fn blocks_without_spread_decode_to_themselves() {
        for format in BLOCK_FORMATS {
            assert_eq!(round_trip(format, &[0.0; 64]), [0.0; 64], "{format}");
            assert_eq!(round_trip(format, &[-127.0 / 64.0; 32]), [-127.0 / 64.0; 32], "{format}");
        }
    }

    #[test]
    fn rows_are_appended_block_by_block() {
        let values: Vec<f32> = (0..96).map(|i| i as f32).collect();
        for format in ENCODABLE {
            let mut bytes = vec![7];
            format.quantize_row(&values, &mut bytes).unwrap();
            format.quantize_row(&[], &mut bytes).unwrap();
            assert_eq!(bytes[0], 7);
            assert_eq!(Some(bytes.len() - 1), format.row_bytes(96), "{format}");
        }
    }

    #[test]
    fn formats_without_encoder_are_refused_by_name() {
        for format in Format::ALL.into_iter().filter(|format| !format.is_encodable()) {
            let error = format.quantize_row(&[0.0; 256], &mut Vec::new()).unwrap_err();
            assert_eq!(error, QuantizeError::NoEncoder { format });
            assert!(error.to_string().contains("possible are F32, F16, BF16, Q8_0"), "{error}");
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_refused_and_leave_no_bytes() {
        let spoiled = |index: usize, value: f32| {
            let mut values = [0.25; 64];
            values[index] = value;
            values
        };
        let cases = [
            (Format::F16, 3, 1e6),
            (Format::Q8_0, 40, f32::NAN),
            (Format::Q4_0, 40, f32::INFINITY),
            (Format::Q4_0, 63, 1e6),
            (Format::Q5_0, 0, -3e6),
            (Format::Q4_1, 33, -1e6),
            (Format::Q5_1, 9, f32::MAX),
            (Format::Q8_0, 9, f32::NEG_INFINITY),
        ];
        for (format, index, value) in cases {
            let mut bytes = vec![1, 2];
            match format.quantize_row(&spoiled(index, value), &mut bytes).unwrap_err() {
                QuantizeError::OutOfRange { format: named, index: at, value: got } => {
                    assert_eq!((named, at, got.to_bits()), (format, index, value.to_bits()));
                }
                other => panic!("{format}: {other}"),
            }
            assert_eq!(bytes, [1, 2], "{format}");
        }
        let error = Format::Q4_1.quantize_row(&[0.0; 33], &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "a row of 33 elements is not a whole number of Q4_1 blocks of 32");
    }
}
