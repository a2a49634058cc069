//! The formats with blocks of 32 elements: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! One scale per block; the `_1` formats add a minimum. The low four bits of elements 0 to 15 lie in the low halves of
//! the `nibbles`, those of elements 16 to 31 in the high halves; a fifth bit lies in `high_bits`, bit i for element i.

use std::array::from_fn;

use half::f16;

use super::Format;
use super::decode::{Block, Fields, PART_LEN, Scales32};

/// `Q4_0`: `scale * (quant - 8)`.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q4_0<'a> {
    scale: f16,
    nibbles: &'a [u8; 16],
}

impl<'a> Block<'a> for Q4_0<'a> {
    const BYTES: usize = Format::Q4_0.block_bytes();
    const NUM_PARTS: usize = 1;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { scale: fields.f16(), nibbles: fields.bytes() }
    }

    fn quants(&self, _part: usize) -> [u8; PART_LEN] {
        four_bits(self.nibbles)
    }

    fn scales(&self, _part: usize) -> Scales32 {
        without_min(self.scale)
    }
}

/// `Q4_1`: `scale * quant + min`.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q4_1<'a> {
    scale: f16,
    min: f16,
    nibbles: &'a [u8; 16],
}

impl<'a> Block<'a> for Q4_1<'a> {
    const BYTES: usize = Format::Q4_1.block_bytes();
    const NUM_PARTS: usize = 1;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { scale: fields.f16(), min: fields.f16(), nibbles: fields.bytes() }
    }

    fn quants(&self, _part: usize) -> [u8; PART_LEN] {
        four_bits(self.nibbles)
    }

    fn scales(&self, _part: usize) -> Scales32 {
        with_min(self.scale, self.min)
    }
}

/// `Q5_0`: `scale * (quant - 16)`.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q5_0<'a> {
    scale: f16,
    high_bits: [u8; 4],
    nibbles: &'a [u8; 16],
}

impl<'a> Block<'a> for Q5_0<'a> {
    const BYTES: usize = Format::Q5_0.block_bytes();
    const NUM_PARTS: usize = 1;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { scale: fields.f16(), high_bits: *fields.bytes(), nibbles: fields.bytes() }
    }

    fn quants(&self, _part: usize) -> [u8; PART_LEN] {
        five_bits(self.nibbles, self.high_bits)
    }

    fn scales(&self, _part: usize) -> Scales32 {
        without_min(self.scale)
    }
}

/// `Q5_1`: `scale * quant + min`.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q5_1<'a> {
    scale: f16,
    min: f16,
    high_bits: [u8; 4],
    nibbles: &'a [u8; 16],
}

impl<'a> Block<'a> for Q5_1<'a> {
    const BYTES: usize = Format::Q5_1.block_bytes();
    const NUM_PARTS: usize = 1;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { scale: fields.f16(), min: fields.f16(), high_bits: *fields.bytes(), nibbles: fields.bytes() }
    }

    fn quants(&self, _part: usize) -> [u8; PART_LEN] {
        five_bits(self.nibbles, self.high_bits)
    }

    fn scales(&self, _part: usize) -> Scales32 {
        with_min(self.scale, self.min)
    }
}

/// `Q8_0`: `scale * quant` with signed quants, which are given plus 128.
#[allow(non_camel_case_types, reason = "the format's established name")]
pub(super) struct Q8_0<'a> {
    scale: f16,
    signed_quants: &'a [u8; 32],
}

impl<'a> Block<'a> for Q8_0<'a> {
    const BYTES: usize = Format::Q8_0.block_bytes();
    const NUM_PARTS: usize = 1;

    fn read(mut fields: Fields<'a>) -> Self {
        Self { scale: fields.f16(), signed_quants: fields.bytes() }
    }

    fn quants(&self, _part: usize) -> [u8; PART_LEN] {
        // In two's complement, adding 128 flips the highest bit.
        self.signed_quants.map(|quant| quant ^ 0x80)
    }

    fn scales(&self, _part: usize) -> Scales32 {
        without_min(self.scale)
    }
}

fn four_bits(nibbles: &[u8; 16]) -> [u8; PART_LEN] {
    from_fn(|i| if i < 16 { nibbles[i] & 0x0f } else { nibbles[i - 16] >> 4 })
}

fn five_bits(nibbles: &[u8; 16], high_bits: [u8; 4]) -> [u8; PART_LEN] {
    let low = four_bits(nibbles);
    let high = u32::from_le_bytes(high_bits);
    from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

fn without_min(scale: f16) -> Scales32 {
    Scales32 { block_scale: scale, block_min: f16::ZERO, sub_scales: [1; 2], sub_mins: [0; 2] }
}

fn with_min(scale: f16, min: f16) -> Scales32 {
    Scales32 { block_scale: scale, block_min: min, sub_scales: [1; 2], sub_mins: [1; 2] }
}
