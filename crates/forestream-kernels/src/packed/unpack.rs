//! One row of a packed matrix as numbers: what an embedding lookup reads.

use half::{bf16, f16};

use super::PackedMatrix;
use super::layout::{
    BLOCK_INPUTS, Granularity, HALVES_BYTES, STEP_BYTES, STEP_INPUTS, STEPS, Scheme, TILE_ROWS, Width, with_scheme,
};
use crate::formats::Format;

impl PackedMatrix {
    /// Writes row `row`, `[cols]`; the same bits as dequantizing the file's row.
    ///
    /// # Panics
    /// When there is no such row or `to` has the wrong length.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.rows && to.len() == self.cols, "row {row} of {}, {} of {}", self.rows, to.len(), self.cols);
        let (tile, lane) = (self.tile(row / TILE_ROWS), row % TILE_ROWS);
        if self.format.is_quantized() {
            with_scheme!(self.format, S => quantized_row::<S>(tile, lane, to));
            return;
        }
        let size = self.format.block_bytes();
        for (column, to) in tile.chunks_exact(TILE_ROWS * size).zip(to) {
            let bytes = &column[lane * size..];
            *to = match self.format {
                Format::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                Format::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                _ => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            };
        }
    }
}

fn half_at(bytes: &[u8], lane: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]).to_f32()
}

fn quantized_row<S: Scheme>(tile: &[u8], lane: usize, to: &mut [f32]) {
    for (block_index, to) in to.chunks_exact_mut(BLOCK_INPUTS).enumerate() {
        let group = &tile[block_index / S::GROUP_BLOCKS * S::GROUP_BYTES..][..S::GROUP_BYTES];
        let (header, blocks) = group.split_at(S::HEADER_BYTES);
        let block = &blocks[block_index % S::GROUP_BLOCKS * S::BLOCK_BYTES..][..S::BLOCK_BYTES];
        let (quants, packed_scales) = block.split_at(S::QUANT_BYTES);
        for (i, to) in to.iter_mut().enumerate() {
            let half = i * S::NUM_HALVES / BLOCK_INPUTS;
            let (scale, min) = scale_and_min::<S>(header, packed_scales, half, lane);
            let quant = quant_at(S::WIDTH, quants, i, lane) - S::ZERO_POINT;
            let value = scale * quant as f32;
            *to = if S::HAS_MIN { value + S::MIN_SIGN as f32 * min } else { value };
        }
    }
}

/// Scale and minimum of one half of a block, for one row of the tile.
fn scale_and_min<S: Scheme>(header: &[u8], packed: &[u8], half: usize, lane: usize) -> (f32, f32) {
    if S::GRANULARITY == Granularity::Block {
        let min = if S::HAS_MIN { half_at(&packed[HALVES_BYTES..], lane) } else { 0.0 };
        return (half_at(packed, lane), min);
    }
    let at = half * TILE_ROWS + lane;
    let scale = half_at(header, lane) * f32::from(packed[at].cast_signed());
    if !S::HAS_MIN {
        return (scale, 0.0);
    }
    (scale, half_at(&header[HALVES_BYTES..], lane) * f32::from(packed[S::SCALE_BYTES + at]))
}

/// The stored integer of input `i` of a block, for one row of the tile.
fn quant_at(width: Width, quants: &[u8], i: usize, lane: usize) -> i32 {
    let (step, byte) = (i / STEP_INPUTS, lane * STEP_INPUTS + i % STEP_INPUTS);
    if width == Width::Eight {
        return i32::from(quants[step * STEP_BYTES + byte]);
    }
    let (step_of_half, half) = (step % (STEPS / 2), step / (STEPS / 2));
    let low = (quants[step_of_half * STEP_BYTES + byte] >> (4 * half)) & 15;
    if width == Width::Four {
        return i32::from(low);
    }
    let high = (quants[(STEPS / 2 + half) * STEP_BYTES + byte] >> (2 * step_of_half)) & 3;
    i32::from(low | high << 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RowOrder, ThreadPool, WeightMemory};

    #[test]
    fn rows_come_back_with_the_bits_of_the_file() {
        let pool = ThreadPool::new(1).unwrap();
        for format in Format::ALL {
            let (rows, cols) = (21, 512);
            let row_bytes = format.row_bytes(cols).unwrap();
            // Bytes below 0x78 keep every half-precision scale finite.
            let bytes: Vec<u8> = (0..rows * row_bytes).map(|i| ((i * 7919 + i / 251) % 0x78) as u8).collect();
            let matrix =
                PackedMatrix::pack(&pool, &WeightMemory::new(), format, [rows, cols], &bytes, RowOrder::Same).unwrap();
            let (mut expected, mut got) = (vec![0.0; cols], vec![0.0; cols]);
            for row in 0..rows {
                format.dequantize_row(&bytes[row * row_bytes..][..row_bytes], &mut expected);
                matrix.row(row, &mut got);
                assert_eq!(got, expected, "{format} row {row}");
            }
        }
    }
}
