//! Where the parts of a packed matrix lie: tiles of 16 output rows, cut into blocks of 32 inputs.
//!
//! A *step* is four consecutive inputs of all 16 rows: 64 bytes in the order of a four-way byte dot product, row after
//! row. A block has 8 steps. Quants of up to 4 bits put steps `s` and `s + 4` into one byte; the two high bits of up to
//! 6-bit quants follow in planes of 4 steps; 8-bit quants take a byte each. Scales follow the quants they belong to, and
//! a header with the super-block's scales precedes every 8 blocks of the K formats. The file's bits are kept.

use crate::formats::Format;

/// Output rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Inputs of a block.
pub(crate) const BLOCK_INPUTS: usize = 32;
/// Inputs of a step.
pub(crate) const STEP_INPUTS: usize = 4;
/// Steps of a block.
pub(crate) const STEPS: usize = BLOCK_INPUTS / STEP_INPUTS;
/// Bytes of a step's quants at one byte each.
pub(crate) const STEP_BYTES: usize = TILE_ROWS * STEP_INPUTS;
/// Bytes of one half-precision number for each row of a tile.
pub(crate) const HALVES_BYTES: usize = TILE_ROWS * 2;

/// Bits that a packed quant takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Four,
    Six,
    Eight,
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granularity {
    /// A half-precision scale for each block.
    Block,
    /// A header for 8 blocks, and an 8-bit factor for each block.
    SuperBlock32,
    /// A header for 8 blocks, and an 8-bit factor for each half of a block.
    SuperBlock16,
}

/// What distinguishes quantized formats once they are packed; a type, so that kernels are compiled for each.
pub(crate) trait Scheme {
    const WIDTH: Width;
    const GRANULARITY: Granularity;
    /// The quant that stands for zero.
    const ZERO_POINT: i32;
    /// Whether blocks have a minimum, and its sign.
    const MIN_SIGN: i32;

    const HAS_MIN: bool = Self::MIN_SIGN != 0;
    /// Parts of a block with scales of their own.
    const NUM_HALVES: usize = if matches!(Self::GRANULARITY, Granularity::SuperBlock16) { 2 } else { 1 };
    /// Blocks under one header.
    const GROUP_BLOCKS: usize = if matches!(Self::GRANULARITY, Granularity::Block) { 1 } else { 8 };
    const QUANT_BYTES: usize = match Self::WIDTH {
        Width::Four => STEP_BYTES * STEPS / 2,
        Width::Six => STEP_BYTES * STEPS / 2 + STEP_BYTES * STEPS / 4,
        Width::Eight => STEP_BYTES * STEPS,
    };
    const HEADER_BYTES: usize = match Self::GRANULARITY {
        Granularity::Block => 0,
        _ => HALVES_BYTES * (1 + Self::HAS_MIN as usize),
    };
    /// Bytes of one kind of scale (factors or minima) of a block.
    const SCALE_BYTES: usize = match Self::GRANULARITY {
        Granularity::Block => HALVES_BYTES,
        _ => TILE_ROWS * Self::NUM_HALVES,
    };
    const BLOCK_BYTES: usize = Self::QUANT_BYTES + Self::SCALE_BYTES * (1 + Self::HAS_MIN as usize);
    const GROUP_BYTES: usize = Self::HEADER_BYTES + Self::GROUP_BLOCKS * Self::BLOCK_BYTES;
}

macro_rules! schemes {
    ($($name:ident: $width:ident, $granularity:ident;)+) => {
        $(
            #[allow(non_camel_case_types, reason = "the formats' established names")]
            pub(crate) struct $name;

            impl Scheme for $name {
                const WIDTH: Width = Width::$width;
                const GRANULARITY: Granularity = Granularity::$granularity;
                const ZERO_POINT: i32 = Format::$name.zero_point();
                const MIN_SIGN: i32 = Format::$name.min_sign();
            }
        )+

        /// Runs `$body` with `$scheme` naming the scheme type of a quantized format.
        macro_rules! with_scheme {
            ($format:expr, $scheme:ident => $body:expr) => {
                match $format {
                    $($crate::formats::Format::$name => {
                        type $scheme = $crate::packed::layout::$name;
                        $body
                    })+
                    $crate::formats::Format::F32 | $crate::formats::Format::F16 | $crate::formats::Format::BF16 => {
                        unreachable!("dense formats have no scheme")
                    }
                }
            };
        }
        pub(crate) use with_scheme;
    };
}

schemes! {
    Q4_0: Four, Block;
    Q4_1: Four, Block;
    Q5_0: Six, Block;
    Q5_1: Six, Block;
    Q8_0: Eight, Block;
    Q2_K: Four, SuperBlock16;
    Q3_K: Four, SuperBlock16;
    Q4_K: Four, SuperBlock32;
    Q5_K: Six, SuperBlock32;
    Q6_K: Six, SuperBlock16;
}
