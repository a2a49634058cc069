//! Numbers in slices: quantized matrix products, tree attention, norms, rotary embedding.
//!
//! This crate owns every loop that costs time, and all `unsafe` code of the project except memory mapping. It knows no
//! models, files, tokens or tensors. Its promise is *batch invariance*: an output element depends on its own inputs
//! alone, through one canonical order of operations that every instruction set follows.
#![expect(unsafe_code, reason = "vector intrinsics and disjoint writes from several threads")]

pub mod formats;
mod math;
mod shared_slice;
mod simd;
mod thread_pool;

pub use simd::{Isa, LANES};
pub use thread_pool::ThreadPool;
