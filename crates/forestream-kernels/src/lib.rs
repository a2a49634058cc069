//! Numbers in slices: quantized matrix products, tree attention, norms, rotary embedding.
//!
//! This crate owns every loop that costs time, and all `unsafe` code of the project except memory mapping. It knows no
//! models, files, tokens or tensors. Its promise is *batch invariance*: an output element depends on its own inputs
//! alone, through one canonical order of operations that every instruction set follows.

pub mod formats;
