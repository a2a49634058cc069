//! From a path on disk to named weights: GGUF files, Hugging Face directories, llama2.c checkpoints.
//!
//! [`Contents`] is what the files hold; [`Checkpoint`] is a model that this build can run, its weights under their
//! Hugging Face names and checked against the configuration. Knows no decoder and no tokenizer.

mod checkpoint;
mod contents;
mod fingerprint;
mod gguf;
mod json;
mod llama2c;
mod mmap;
mod safetensors;
mod storage;

pub use checkpoint::{Checkpoint, Weight};
pub(crate) use contents::Description;
pub use contents::{Contents, TensorInfo};
pub(crate) use fingerprint::hexadecimal;
pub use gguf::{GgufArray, GgufMetadata, GgufStrings, GgufValue};
pub(crate) use json::JsonFile;
pub(crate) use llama2c::Llama2cHeader;
pub(crate) use mmap::MappedFile;
pub use storage::{ForeignFormat, Storage};
