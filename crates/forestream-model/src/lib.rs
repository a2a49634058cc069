//! Token ids to hidden states and logits on the CPU.
//!
//! The three types that matter: [`TokenTree`], the only shape of input; [`KvCache`], committed and provisional rows;
//! and [`Model`], one pass over several sequences at once. The crate knows no sampling, strategies, text or clocks.

pub mod architectures;
mod config;
mod cpu;
mod error;
mod kv_cache;
mod model;
mod pruning;
pub mod streams;
mod token_tree;
pub mod weights;
mod whole_files;

pub use config::{DecoderConfig, RopeConfig, RopeScaling, RopeStyle};
pub use cpu::{CpuModel, LoadOptions};
pub use error::ModelError;
pub use forestream_kernels::formats::Format;
pub use forestream_kernels::{Isa, exponentials};
pub use kv_cache::{BLOCK_LEN, CacheShape, KvCache};
pub use model::{Hidden, Model, Outputs, Row};
pub use pruning::{Passing, Pruning};
pub use token_tree::{NodeId, TokenId, TokenTree};
pub use weights::{Checkpoint, Weight};
pub use whole_files::write_whole;
