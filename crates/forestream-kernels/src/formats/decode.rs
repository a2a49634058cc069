//! Integers, scales and values of stored weights: the one way from bytes to numbers.
//!
//! Owns the formula and the choice of the format's own reader; the bit layouts are in `simple` and `k_quants`.

use half::{bf16, f16};

use super::{Format, k_quants, simple};

/// Elements that are unpacked at once; every block is a whole number of such parts.
pub const PART_LEN: usize = 32;

/// Elements that share one entry of `sub_scales` and `sub_mins`.
const SUB_LEN: usize = 16;

/// The scales of 32 consecutive elements.
///
/// With `half` = index of the element / 16, the value of an element is
///
/// ```text
/// block_scale * sub_scales[half] * (quant - zero_point) + min_sign * block_min * sub_mins[half]
/// ```
///
/// | format | `sub_scales` | `sub_mins` | `zero_point` | `min_sign` |
/// |---|---|---|---|---|
/// | `Q4_0`, `Q5_0`, `Q8_0` | 1 | 0 | 8, 16, 128 | 0 |
/// | `Q4_1`, `Q5_1` | 1 | 1 | 0 | +1 |
/// | `Q2_K` | 0 to 15 per 16 | 0 to 15 per 16 | 0 | -1 |
/// | `Q3_K` | -32 to 31 per 16 | 0 | 4 | 0 |
/// | `Q4_K`, `Q5_K` | 0 to 63 per 32 | 0 to 63 per 32 | 0 | -1 |
/// | `Q6_K` | -128 to 127 per 16 | 0 | 32 | 0 |
///
/// Formats with scales per 32 elements give both halves the same entry. All products above have at most 24
/// significant bits and are exact in `f32`, in any order; only the addition rounds. So a fused multiply-add, a
/// different association and ggml's own order give the same bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales32 {
    /// The block's scale (ggml: `d`).
    pub block_scale: f16,
    /// The block's minimum (ggml: `m` or `dmin`); zero in formats without one.
    pub block_min: f16,
    /// Integer factors of the scale, one per 16 elements.
    pub sub_scales: [i8; 2],
    /// Integer factors of the minimum, one per 16 elements.
    pub sub_mins: [u8; 2],
}

/// A quantized block as it lies in a file, its fields told apart.
pub(super) trait Block<'a> {
    /// Bytes per block.
    const BYTES: usize;

    /// Parts of 32 elements per block.
    const NUM_PARTS: usize;

    /// Finds the fields in `BYTES` bytes.
    fn read(fields: Fields<'a>) -> Self;

    /// The stored integers of one part, unsigned.
    fn quants(&self, part: usize) -> [u8; PART_LEN];

    /// The scales of one part.
    fn scales(&self, part: usize) -> Scales32;
}

/// The bytes of a block, taken field by field from the front.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> &'a [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("a block's fields add up to its size");
        self.0 = rest;
        field
    }

    /// The next two bytes as a number.
    pub(super) fn f16(&mut self) -> f16 {
        f16::from_le_bytes(*self.bytes())
    }
}

/// The block that holds a part, and the part's index in it.
#[inline]
fn block_of<'a, B: Block<'a>>(row_bytes: &'a [u8], block32_index: usize) -> (B, usize) {
    let start = block32_index / B::NUM_PARTS * B::BYTES;
    (B::read(Fields(&row_bytes[start..start + B::BYTES])), block32_index % B::NUM_PARTS)
}

/// [`Block::quants`] of a part of a row.
#[inline]
fn quants_of<'a, B: Block<'a>>(row_bytes: &'a [u8], block32_index: usize) -> [u8; PART_LEN] {
    let (block, part) = block_of::<B>(row_bytes, block32_index);
    block.quants(part)
}

/// [`Block::scales`] of a part of a row.
#[inline]
fn scales_of<'a, B: Block<'a>>(row_bytes: &'a [u8], block32_index: usize) -> Scales32 {
    let (block, part) = block_of::<B>(row_bytes, block32_index);
    block.scales(part)
}

impl Format {
    /// The stored integer that stands for zero; 0 in formats whose minimum shifts the range instead.
    pub const fn zero_point(self) -> i32 {
        match self {
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q8_0 => 128,
            Self::Q3_K => 4,
            Self::Q6_K => 32,
            _ => 0,
        }
    }

    /// How the minimum enters the value: added (+1), subtracted (-1), or absent (0).
    pub const fn min_sign(self) -> i32 {
        match self {
            Self::Q4_1 | Self::Q5_1 => 1,
            Self::Q2_K | Self::Q4_K | Self::Q5_K => -1,
            _ => 0,
        }
    }

    /// Writes the stored integers of elements `32 * block32_index ..` of a row, in element order and unsigned.
    ///
    /// `Q8_0` stores signed integers; they are given plus 128.
    ///
    /// # Panics
    /// When the format is not quantized or the row ends before that part.
    pub fn unpack_block32(self, row_bytes: &[u8], block32_index: usize, quants: &mut [u8; PART_LEN]) {
        *quants = match self {
            Self::Q4_0 => quants_of::<simple::Q4_0>(row_bytes, block32_index),
            Self::Q4_1 => quants_of::<simple::Q4_1>(row_bytes, block32_index),
            Self::Q5_0 => quants_of::<simple::Q5_0>(row_bytes, block32_index),
            Self::Q5_1 => quants_of::<simple::Q5_1>(row_bytes, block32_index),
            Self::Q8_0 => quants_of::<simple::Q8_0>(row_bytes, block32_index),
            Self::Q2_K => quants_of::<k_quants::Q2_K>(row_bytes, block32_index),
            Self::Q3_K => quants_of::<k_quants::Q3_K>(row_bytes, block32_index),
            Self::Q4_K => quants_of::<k_quants::Q4_K>(row_bytes, block32_index),
            Self::Q5_K => quants_of::<k_quants::Q5_K>(row_bytes, block32_index),
            Self::Q6_K => quants_of::<k_quants::Q6_K>(row_bytes, block32_index),
            Self::F32 | Self::F16 | Self::BF16 => panic!("{self} stores no integers"),
        };
    }

    /// The scales of elements `32 * block32_index ..` of a row.
    ///
    /// # Panics
    /// When the format is not quantized or the row ends before that part.
    pub fn scales32(self, row_bytes: &[u8], block32_index: usize) -> Scales32 {
        match self {
            Self::Q4_0 => scales_of::<simple::Q4_0>(row_bytes, block32_index),
            Self::Q4_1 => scales_of::<simple::Q4_1>(row_bytes, block32_index),
            Self::Q5_0 => scales_of::<simple::Q5_0>(row_bytes, block32_index),
            Self::Q5_1 => scales_of::<simple::Q5_1>(row_bytes, block32_index),
            Self::Q8_0 => scales_of::<simple::Q8_0>(row_bytes, block32_index),
            Self::Q2_K => scales_of::<k_quants::Q2_K>(row_bytes, block32_index),
            Self::Q3_K => scales_of::<k_quants::Q3_K>(row_bytes, block32_index),
            Self::Q4_K => scales_of::<k_quants::Q4_K>(row_bytes, block32_index),
            Self::Q5_K => scales_of::<k_quants::Q5_K>(row_bytes, block32_index),
            Self::Q6_K => scales_of::<k_quants::Q6_K>(row_bytes, block32_index),
            Self::F32 | Self::F16 | Self::BF16 => panic!("{self} has no scales"),
        }
    }

    /// Writes the values of a row of `out.len()` elements.
    ///
    /// # Panics
    /// When `bytes.len()` is not [`Format::row_bytes`] of `out.len()`.
    pub fn dequantize_row(self, bytes: &[u8], out: &mut [f32]) {
        let expected = self.row_bytes(out.len());
        assert!(
            expected == Some(bytes.len()),
            "{} elements of {self}: {} bytes, not {expected:?}",
            out.len(),
            bytes.len()
        );
        match self {
            Self::F32 => convert(bytes, out, f32::from_le_bytes),
            Self::F16 => convert(bytes, out, |element| f16::from_le_bytes(element).to_f32()),
            Self::BF16 => convert(bytes, out, |element| bf16::from_le_bytes(element).to_f32()),
            _ => self.dequantize_parts(bytes, out),
        }
    }

    /// Writes the values of quantized elements by the formula of [`Scales32`].
    fn dequantize_parts(self, bytes: &[u8], out: &mut [f32]) {
        let (zero_point, min_sign) = (self.zero_point(), self.min_sign() as f32);
        let mut quants = [0; PART_LEN];
        for (index, part) in out.chunks_exact_mut(PART_LEN).enumerate() {
            self.unpack_block32(bytes, index, &mut quants);
            let scales = self.scales32(bytes, index);
            for (half, (values, quants)) in part.chunks_exact_mut(SUB_LEN).zip(quants.chunks_exact(SUB_LEN)).enumerate()
            {
                let scale = scales.block_scale.to_f32() * f32::from(scales.sub_scales[half]);
                let min = min_sign * scales.block_min.to_f32() * f32::from(scales.sub_mins[half]);
                for (value, &quant) in values.iter_mut().zip(quants) {
                    let product = scale * (i32::from(quant) - zero_point) as f32;
                    // Adding an absent minimum would turn -0.0 into 0.0.
                    *value = if min_sign == 0.0 { product } else { product + min };
                }
            }
        }
    }
}

/// Converts unquantized elements of `N` bytes one by one.
fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], to_f32: impl Fn([u8; N]) -> f32) {
    for (value, element) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = to_f32(*element);
    }
}
