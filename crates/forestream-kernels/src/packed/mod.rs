//! Weight matrices rearranged at load for the matrix product.

pub(crate) mod layout;
mod pack;
mod unpack;

use layout::{BLOCK_INPUTS, Scheme, TILE_ROWS, with_scheme};

use crate::formats::Format;

pub use pack::RowOrder;

/// A weight matrix `[rows, cols]` in tiles of 16 rows, in the precision of its file.
#[derive(Debug)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    format: Format,
    lines: Vec<Line>,
}

/// A cache line; gives packed data its alignment.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
#[expect(dead_code, reason = "read and written through `as_bytes`")]
struct Line([u8; 64]);

/// Why a matrix cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The bytes do not hold the elements.
    #[error("a {format} matrix of {rows} x {cols} needs {expected} bytes, got {got}")]
    Length {
        /// Storage of the elements.
        format: Format,
        /// Output rows.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// A row is not a whole number of blocks.
    #[error("rows of {cols} elements are not whole {format} blocks of {} elements", format.block_len())]
    PartialBlock {
        /// Storage of the elements.
        format: Format,
        /// Inputs.
        cols: usize,
    },
}

impl PackedMatrix {
    /// Output rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The precision of the weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes that every pass over the matrix reads.
    pub fn num_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    pub(crate) fn tile_bytes(&self) -> usize {
        tile_bytes(self.format, self.cols)
    }

    /// The bytes from tile `tile_index` to the end.
    pub(crate) fn tile(&self, tile_index: usize) -> &[u8] {
        &as_bytes(&self.lines)[tile_index * self.tile_bytes()..]
    }
}

/// Bytes of a tile over `cols` inputs.
fn tile_bytes(format: Format, cols: usize) -> usize {
    if format.is_quantized() {
        with_scheme!(format, S => cols / BLOCK_INPUTS / S::GROUP_BLOCKS * S::GROUP_BYTES)
    } else {
        cols * TILE_ROWS * format.block_bytes()
    }
}

fn as_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: lines are plain bytes without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn as_bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: lines are plain bytes without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}
