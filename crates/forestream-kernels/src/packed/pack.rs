//! From a file's rows to tiles.

use super::layout::{BLOCK_INPUTS, Granularity, STEP_BYTES, STEP_INPUTS, STEPS, Scheme, TILE_ROWS, Width, with_scheme};
use super::{PackError, PackedMatrix, WeightMemory, tile_bytes};
use crate::ThreadPool;
use crate::formats::{Format, PART_LEN};
use crate::shared_slice::SharedSlice;

/// Which row of the file becomes output row `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Row `i`.
    Same,
    /// Within each head of `head_dim` rows, even rows first, then odd ones: turns interleaved rotary pairs
    /// (`2 i`, `2 i + 1`) into halves (`i`, `i + head_dim / 2`).
    HalvesFromInterleaved {
        /// Rows of one head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that becomes output row `row`.
    pub fn source(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::HalvesFromInterleaved { head_dim } => {
                let (head, channel, half) = (row / head_dim, row % head_dim, head_dim / 2);
                head * head_dim + if channel < half { 2 * channel } else { 2 * (channel - half) + 1 }
            }
        }
    }
}

impl PackedMatrix {
    /// Packs a matrix `[rows, cols]` that lies row after row in `bytes`, into a part of `memory`.
    ///
    /// # Errors
    /// When the length of `bytes` contradicts the shape, or the system has no memory left.
    pub fn pack(
        pool: &ThreadPool,
        memory: &WeightMemory,
        format: Format,
        [rows, cols]: [usize; 2],
        bytes: &[u8],
        order: RowOrder,
    ) -> Result<Self, PackError> {
        let row_bytes = format.row_bytes(cols).ok_or(PackError::PartialBlock { format, cols })?;
        let expected = rows.saturating_mul(row_bytes);
        if bytes.len() != expected {
            return Err(PackError::Length { format, rows, cols, expected, got: bytes.len() });
        }
        let tile_len = tile_bytes(format, cols);
        let num_tiles = rows.div_ceil(TILE_ROWS);
        let bytes_needed = num_tiles * tile_len;
        let mut region =
            memory.take(bytes_needed).map_err(|source| PackError::Memory { bytes: bytes_needed, source })?;
        let packed = SharedSlice::new(region.bytes_mut());
        pool.run(num_tiles, &|tile_index, _| {
            // SAFETY: each chunk writes its own tile.
            let tile = unsafe { packed.part(tile_index * tile_len..(tile_index + 1) * tile_len) };
            let row_of = |i: usize| {
                let row = tile_index * TILE_ROWS + i;
                (row < rows).then(|| &bytes[order.source(row) * row_bytes..][..row_bytes])
            };
            pack_tile(format, cols, row_of, tile);
        });
        Ok(Self { rows, cols, format, region })
    }
}

/// Packs up to 16 rows; missing rows stay zero.
fn pack_tile<'a>(format: Format, cols: usize, row_of: impl Fn(usize) -> Option<&'a [u8]>, tile: &mut [u8]) {
    for i in 0..TILE_ROWS {
        let Some(row) = row_of(i) else { continue };
        if format.is_quantized() {
            with_scheme!(format, S => pack_row::<S>(format, cols, row, i, tile));
        } else {
            let size = format.block_bytes();
            for (element, column) in row.chunks_exact(size).zip(tile.chunks_exact_mut(TILE_ROWS * size)) {
                column[i * size..(i + 1) * size].copy_from_slice(element);
            }
        }
    }
}

/// Writes row `i` of a quantized tile.
fn pack_row<S: Scheme>(format: Format, cols: usize, row: &[u8], i: usize, tile: &mut [u8]) {
    let mut quants = [0; PART_LEN];
    for block_index in 0..cols / BLOCK_INPUTS {
        let group = &mut tile[block_index / S::GROUP_BLOCKS * S::GROUP_BYTES..][..S::GROUP_BYTES];
        let (header, blocks) = group.split_at_mut(S::HEADER_BYTES);
        let block = &mut blocks[block_index % S::GROUP_BLOCKS * S::BLOCK_BYTES..][..S::BLOCK_BYTES];
        let (packed_quants, packed_scales) = block.split_at_mut(S::QUANT_BYTES);
        format.unpack_block32(row, block_index, &mut quants);
        pack_quants(S::WIDTH, &quants, i, packed_quants);
        let scales = format.scales32(row, block_index);
        let halves = [scales.block_scale, scales.block_min].map(half::f16::to_le_bytes);
        let wide = if S::GRANULARITY == Granularity::Block { &mut *packed_scales } else { header };
        for (kind, bytes) in halves.iter().enumerate().take(1 + usize::from(S::HAS_MIN)) {
            wide[(kind * TILE_ROWS + i) * 2..][..2].copy_from_slice(bytes);
        }
        if S::GRANULARITY != Granularity::Block {
            for half in 0..S::NUM_HALVES {
                packed_scales[half * TILE_ROWS + i] = scales.sub_scales[half].cast_unsigned();
                if S::HAS_MIN {
                    packed_scales[S::SCALE_BYTES + half * TILE_ROWS + i] = scales.sub_mins[half];
                }
            }
        }
    }
}

/// Spreads a block's 32 quants of row `i` over the steps.
fn pack_quants(width: Width, quants: &[u8; PART_LEN], i: usize, packed: &mut [u8]) {
    for (step, inputs) in quants.chunks_exact(STEP_INPUTS).enumerate() {
        let at = i * STEP_INPUTS;
        if width == Width::Eight {
            packed[step * STEP_BYTES + at..][..STEP_INPUTS].copy_from_slice(inputs);
            continue;
        }
        let (step_of_half, half) = (step % (STEPS / 2), step / (STEPS / 2));
        let (low_plane, high_plane) = packed.split_at_mut(STEP_BYTES * STEPS / 2);
        for (j, quant) in inputs.iter().enumerate() {
            low_plane[step_of_half * STEP_BYTES + at + j] |= (quant & 15) << (4 * half);
            if width == Width::Six {
                high_plane[half * STEP_BYTES + at + j] |= (quant >> 4) << (2 * step_of_half);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_pairs_become_halves() {
        let order = RowOrder::HalvesFromInterleaved { head_dim: 6 };
        let sources: Vec<usize> = (0..12).map(|row| order.source(row)).collect();
        assert_eq!(sources, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let pool = ThreadPool::new(1).unwrap();
        let pack = |shape, len| {
            PackedMatrix::pack(&pool, &WeightMemory::new(), Format::Q4_0, shape, &vec![0; len], RowOrder::Same)
        };
        assert!(matches!(pack([3, 64], 107).unwrap_err(), PackError::Length { expected: 108, got: 107, .. }));
        assert!(matches!(pack([3, 40], 108).unwrap_err(), PackError::PartialBlock { cols: 40, .. }));
        assert!(pack([3, 64], 108).is_ok());
    }
}
