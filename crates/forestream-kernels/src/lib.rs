//! Numbers in slices: quantized matrix products, tree attention, norms, rotary embedding.
//!
//! This crate owns every loop that costs time, and all `unsafe` code of the project except memory mapping. It knows no
//! models, files, tokens or tensors. Its promise is *batch invariance*: an output element depends on its own inputs
//! alone, through one canonical order of operations that every instruction set follows.
#![expect(unsafe_code, reason = "vector intrinsics and disjoint writes from several threads")]
#![expect(clippy::inline_always, reason = "lanes must be compiled into the function that enables their features")]
#![expect(clippy::needless_range_loop, reason = "rows and halves run through several arrays at once")]

mod activations;
mod attention;
pub mod formats;
mod math;
mod matmul;
mod packed;
mod prefetch;
mod rows;
mod shared_slice;
mod simd;
mod thread_pool;

pub use activations::{Activations, InputShape};
pub use attention::{Attention, AttentionScratch, BLOCK_SLOTS, HeadBlocks, Visible};
pub use matmul::{Join, Joined, add_product, matmul, matmul_add, matmul_join};
pub use packed::{PackError, PackedMatrix, RowOrder, WeightMemory};
pub use rows::{add_assign, exponentials, rms_norm, rms_norm_in_place, rotate_heads, silu_mul};
pub use simd::{Isa, LANES};
pub use thread_pool::ThreadPool;
