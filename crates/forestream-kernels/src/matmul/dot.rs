//! What an instruction set must do for quantized products: exact integer dot products of a block.

use crate::activations::QuantBlock;
use crate::packed::layout::Scheme;
use crate::simd::Simd;

/// Integer lanes and block dot products, one lane per output row.
///
/// # Safety
/// As for [`Simd`].
pub(crate) trait Dot: Simd {
    /// Sixteen `i32` lanes.
    type I32: Copy;

    unsafe fn to_f32(a: Self::I32) -> Self::F32;
    /// Reads 16 unsigned bytes as numbers.
    unsafe fn load_u8(from: *const u8) -> Self::F32;
    /// Reads 16 signed bytes as numbers.
    unsafe fn load_i8(from: *const u8) -> Self::F32;

    /// Dot products of a packed block with 32 activations of each of `N` rows: the sums over the block in element 0, or,
    /// for schemes with two halves, over 16 inputs each.
    ///
    /// `quants` points to `S::QUANT_BYTES` bytes.
    unsafe fn dot_block<S: Scheme, const N: usize>(
        quants: *const u8,
        rows: [*const QuantBlock; N],
    ) -> [[Self::I32; 2]; N];
}
