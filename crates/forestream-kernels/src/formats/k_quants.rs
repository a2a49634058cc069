//! The formats with blocks of 256 elements: `Q2_K`, `Q3_K`, `Q4_K`, `Q5_K`, `Q6_K`.
//!
//! A block scale multiplies small integer scales of 16 or 32 elements each. Fields narrower than a byte are shared by
//! elements that lie 32 apart, so that one shift serves a whole part: byte l of a field belongs to element l of each
//! of its parts.

use std::array::from_fn;

use half::f16;

use super::Format;
use super::decode::{Block, Fields, PART_LEN, Scales32};

/// `Q2_K`: `scale * sub_scale * quant - min * sub_min`, 16 elements per sub-scale and sub-minimum.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q2_K<'a> {
    /// The sub-scale in the low half, the sub-minimum in the high half.
    sub_blocks: &'a [u8; 16],
    quants: &'a [u8; 64],
    scale: f16,
    min: f16,
}

impl<'a> Block<'a> for Q2_K<'a> {
    const BYTES: usize = Format::Q2_K.block_bytes();
    const NUM_PARTS: usize = 8;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { sub_blocks: fields.bytes(), quants: fields.bytes(), scale: fields.f16(), min: fields.f16() }
    }

    fn quants(&self, part: usize) -> [u8; PART_LEN] {
        two_bits(self.quants, part)
    }

    fn scales(&self, part: usize) -> Scales32 {
        let subs: [u8; 2] = from_fn(|half| self.sub_blocks[2 * part + half]);
        Scales32 {
            block_scale: self.scale,
            block_min: self.min,
            sub_scales: subs.map(|sub| (sub & 0x0f) as i8),
            sub_mins: subs.map(|sub| sub >> 4),
        }
    }
}

/// `Q3_K`: `scale * sub_scale * (quant - 4)`, 16 elements per sub-scale.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q3_K<'a> {
    /// The third bit: bit `part` of byte l for element l of that part.
    high_bits: &'a [u8; 32],
    low_bits: &'a [u8; 64],
    /// Sixteen numbers of 6 bits, 32 too large: low halves in bytes 0 to 7, upper two bits in bytes 8 to 11.
    sub_scales: &'a [u8; 12],
    scale: f16,
}

impl Q3_K<'_> {
    fn sub_scale(&self, index: usize) -> i8 {
        let low = self.sub_scales[index % 8] >> (4 * (index / 8)) & 0x0f;
        let high = self.sub_scales[8 + index % 4] >> (2 * (index / 4)) & 0x03;
        (low | high << 4) as i8 - 32
    }
}

impl<'a> Block<'a> for Q3_K<'a> {
    const BYTES: usize = Format::Q3_K.block_bytes();
    const NUM_PARTS: usize = 8;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { high_bits: fields.bytes(), low_bits: fields.bytes(), sub_scales: fields.bytes(), scale: fields.f16() }
    }

    fn quants(&self, part: usize) -> [u8; PART_LEN] {
        let low = two_bits(self.low_bits, part);
        from_fn(|l| low[l] | (self.high_bits[l] >> part & 1) << 2)
    }

    fn scales(&self, part: usize) -> Scales32 {
        scales_without_min(self.scale, from_fn(|half| self.sub_scale(2 * part + half)))
    }
}

/// `Q4_K`: `scale * sub_scale * quant - min * sub_min`, 32 elements per sub-scale and sub-minimum.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q4_K<'a> {
    scale: f16,
    min: f16,
    sub_blocks: &'a [u8; 12],
    nibbles: &'a [u8; 128],
}

impl<'a> Block<'a> for Q4_K<'a> {
    const BYTES: usize = Format::Q4_K.block_bytes();
    const NUM_PARTS: usize = 8;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { scale: fields.f16(), min: fields.f16(), sub_blocks: fields.bytes(), nibbles: fields.bytes() }
    }

    fn quants(&self, part: usize) -> [u8; PART_LEN] {
        alternating_nibbles(self.nibbles, part)
    }

    fn scales(&self, part: usize) -> Scales32 {
        scales_with_min(self.scale, self.min, six_bit_pair(self.sub_blocks, part))
    }
}

/// `Q5_K`: as `Q4_K` with a fifth bit.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q5_K<'a> {
    scale: f16,
    min: f16,
    sub_blocks: &'a [u8; 12],
    /// The fifth bit: bit `part` of byte l for element l of that part.
    high_bits: &'a [u8; 32],
    nibbles: &'a [u8; 128],
}

impl<'a> Block<'a> for Q5_K<'a> {
    const BYTES: usize = Format::Q5_K.block_bytes();
    const NUM_PARTS: usize = 8;

    fn read(mut fields: Fields<'a>) -> Self {
        Self {
            scale: fields.f16(),
            min: fields.f16(),
            sub_blocks: fields.bytes(),
            high_bits: fields.bytes(),
            nibbles: fields.bytes(),
        }
    }

    fn quants(&self, part: usize) -> [u8; PART_LEN] {
        let low = alternating_nibbles(self.nibbles, part);
        from_fn(|l| low[l] | (self.high_bits[l] >> part & 1) << 4)
    }

    fn scales(&self, part: usize) -> Scales32 {
        scales_with_min(self.scale, self.min, six_bit_pair(self.sub_blocks, part))
    }
}

/// `Q6_K`: `scale * sub_scale * (quant - 32)`, 16 elements per sub-scale.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q6_K<'a> {
    /// Per 128 elements 64 bytes: parts 0 and 1 in the low halves, parts 2 and 3 in the high halves.
    nibbles: &'a [u8; 128],
    high_bits: &'a [u8; 64],
    sub_scales: &'a [u8; 16],
    scale: f16,
}

impl<'a> Block<'a> for Q6_K<'a> {
    const BYTES: usize = Format::Q6_K.block_bytes();
    const NUM_PARTS: usize = 8;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { nibbles: fields.bytes(), high_bits: fields.bytes(), sub_scales: fields.bytes(), scale: fields.f16() }
    }

    fn quants(&self, part: usize) -> [u8; PART_LEN] {
        let (group, part_in_group) = (part / 4, part % 4);
        let nibbles = part_bytes(self.nibbles, 2 * group + part_in_group % 2);
        let shift = 4 * (part_in_group / 2);
        let high = two_bits(self.high_bits, part);
        from_fn(|l| nibbles[l] >> shift & 0x0f | high[l] << 4)
    }

    fn scales(&self, part: usize) -> Scales32 {
        scales_without_min(self.scale, from_fn(|half| self.sub_scales[2 * part + half] as i8))
    }
}

/// Bytes `32 * index ..` of a field.
fn part_bytes(field: &[u8], index: usize) -> &[u8; PART_LEN] {
    &field.as_chunks().0[index]
}

/// Two bits per element: 32 bytes serve four parts in turn, from the lowest bits upwards.
fn two_bits(field: &[u8; 64], part: usize) -> [u8; PART_LEN] {
    let shift = 2 * (part % 4);
    part_bytes(field, part / 4).map(|byte| byte >> shift & 0x03)
}

/// Four bits per element: 32 bytes serve two parts in turn, the low halves first.
fn alternating_nibbles(field: &[u8; 128], part: usize) -> [u8; PART_LEN] {
    let shift = 4 * (part % 2);
    part_bytes(field, part / 2).map(|byte| byte >> shift & 0x0f)
}

/// A sub-scale and a sub-minimum of 6 bits each, as `Q4_K` and `Q5_K` store eight such pairs in 12 bytes.
///
/// Pairs 0 to 3 fill the lower six bits of bytes 0 to 7. Of pairs 4 to 7, the low halves share bytes 8 to 11, and the
/// upper two bits lie above those of pairs 0 to 3.
fn six_bit_pair(field: &[u8; 12], part: usize) -> (u8, u8) {
    if part < 4 {
        return (field[part] & 0x3f, field[part + 4] & 0x3f);
    }
    let (low, scale_high, min_high) = (field[part + 4], field[part - 4] >> 6, field[part] >> 6);
    (low & 0x0f | scale_high << 4, low >> 4 | min_high << 4)
}

fn scales_without_min(scale: f16, sub_scales: [i8; 2]) -> Scales32 {
    Scales32 { block_scale: scale, block_min: f16::ZERO, sub_scales, sub_mins: [0; 2] }
}

fn scales_with_min(scale: f16, min: f16, (sub_scale, sub_min): (u8, u8)) -> Scales32 {
    Scales32 { block_scale: scale, block_min: min, sub_scales: [sub_scale as i8; 2], sub_mins: [sub_min; 2] }
}
