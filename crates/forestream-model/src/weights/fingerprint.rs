//! A short identity of a base model, so that an adapter can refuse a wrong one.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::contents::Contents;
use crate::DecoderConfig;

/// Bytes that are read from the start of a sampled tensor.
const SAMPLE_BYTES: usize = 64 << 10;
/// About so many tensors are sampled, evenly over the table.
const NUM_SAMPLES: usize = 24;

/// SHA-256 over sizes, tensor table and samples, in hexadecimal.
pub(super) fn of(contents: &Contents, config: &DecoderConfig) -> String {
    let mut tensors: Vec<_> = contents.tensors().iter().collect();
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    let mut hasher = Sha256::new();
    // Every field is written with its length or on its own line, so that different tables cannot look alike.
    hasher.update(sizes(config));
    for tensor in &tensors {
        hasher.update(format!("{:?} {:?} {}\n", tensor.name, tensor.shape, tensor.storage));
    }
    for tensor in tensors.iter().step_by(tensors.len().div_ceil(NUM_SAMPLES).max(1)) {
        let bytes = contents.bytes_of(tensor);
        hasher.update(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
    }
    hexadecimal(&hasher.finalize())
}

/// Bytes as hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
        text
    })
}

fn sizes(config: &DecoderConfig) -> String {
    format!(
        "{} {} {} {} {} {} {} {}\n",
        config.architecture,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size
    )
}
