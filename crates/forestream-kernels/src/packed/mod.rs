//! Weight matrices rearranged at load for the matrix product.

pub(crate) mod layout;
mod memory;
mod pack;
mod unpack;

use layout::{BLOCK_INPUTS, Scheme, TILE_ROWS, with_scheme};

use crate::formats::Format;

use memory::Region;

pub use memory::WeightMemory;
pub use pack::RowOrder;

/// A weight matrix `[rows, cols]` in tiles of 16 rows, in the precision of its file.
#[derive(Debug)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    format: Format,
    region: Region,
}

/// Why a matrix cannot be packed.
#[derive(Debug, thiserror::Error)]
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
    /// The system has no memory left.
    #[error("no memory for {bytes} bytes of packed weights")]
    Memory {
        /// Bytes that the matrix needs.
        bytes: usize,
        /// What the system said.
        #[source]
        source: std::io::Error,
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

    /// Bytes of a matrix of `rows` times `cols` weights once it is packed.
    pub fn packed_bytes(format: Format, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(TILE_ROWS) * tile_bytes(format, cols)
    }

    /// Bytes that every pass over the matrix reads.
    pub fn num_bytes(&self) -> usize {
        self.region.bytes().len()
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    pub(crate) fn tile_bytes(&self) -> usize {
        tile_bytes(self.format, self.cols)
    }

    /// The bytes from tile `tile_index` to the end.
    pub(crate) fn tile(&self, tile_index: usize) -> &[u8] {
        &self.region.bytes()[tile_index * self.tile_bytes()..]
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
