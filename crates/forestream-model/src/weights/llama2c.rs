//! Checkpoints of llama2.c: seven sizes, then all weights in single precision, one kind of weight after another.
//!
//! Source: `run.c` of karpathy/llama2.c (the order of weights, the sign of the vocabulary size, BOS as the end of a
//! text). The format has no magic number, so the sizes are held against the length of the file.

use std::path::Path;

use forestream_kernels::formats::Format;

use super::contents::TensorInfo;
use super::storage::Storage;
use crate::ModelError;

const HEADER_BYTES: usize = 7 * size_of::<i32>();
/// No size in a header may exceed this, so that products of three fit.
const MAX_SIZE: i32 = 1 << 20;
/// No model may have more layers.
const MAX_LAYERS: i32 = 1 << 10;

/// The sizes of a llama2.c model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Llama2cHeader {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) vocab_size: usize,
    pub(crate) max_position_embeddings: usize,
    /// Stored as the sign of the vocabulary size.
    pub(crate) has_own_lm_head: bool,
}

impl Llama2cHeader {
    fn read(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let Some((fields, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            let problem = format!("truncated: {} bytes, but a llama2.c header has {HEADER_BYTES}", bytes.len());
            return Err(ModelError::malformed(path, problem));
        };
        let field = |index: usize| i32::from_le_bytes(fields.as_chunks().0[index]);
        let check = |value: i32, name: &str, most: i32| {
            if (1..=most).contains(&value) {
                return Ok(value as usize);
            }
            let problem = format!("not a llama2.c checkpoint: {name} is {value}; expected 1 to {most}");
            Err(ModelError::malformed(path, problem))
        };
        let size = |index: usize, name: &str| check(field(index), name, MAX_SIZE);
        let header = Self {
            hidden_size: size(0, "dim")?,
            intermediate_size: size(1, "hidden_dim")?,
            num_hidden_layers: check(field(2), "n_layers", MAX_LAYERS)?,
            num_attention_heads: size(3, "n_heads")?,
            num_key_value_heads: size(4, "n_kv_heads")?,
            vocab_size: check(field(5).saturating_abs(), "vocab_size", MAX_SIZE)?,
            max_position_embeddings: size(6, "seq_len")?,
            has_own_lm_head: field(5) < 0,
        };
        if !header.hidden_size.is_multiple_of(header.num_attention_heads) {
            let (dim, heads) = (header.hidden_size, header.num_attention_heads);
            let problem = format!("not a llama2.c checkpoint: dim {dim} is not a multiple of n_heads {heads}");
            return Err(ModelError::malformed(path, problem));
        }
        Ok(header)
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Names and values for people.
    pub(super) fn printable(&self) -> Vec<(String, String)> {
        [
            ("dim", self.hidden_size),
            ("hidden_dim", self.intermediate_size),
            ("n_layers", self.num_hidden_layers),
            ("n_heads", self.num_attention_heads),
            ("n_kv_heads", self.num_key_value_heads),
            ("vocab_size", self.vocab_size),
            ("seq_len", self.max_position_embeddings),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .to_vec()
    }
}

/// Reads the header and finds the weights.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<(Llama2cHeader, Vec<TensorInfo>), ModelError> {
    let header = Llama2cHeader::read(path, bytes)?;
    let mut table = TensorTable { end: HEADER_BYTES as u128, file_len: bytes.len(), tensors: Vec::new() };
    table.add_all(&header);
    if table.end != bytes.len() as u128 {
        let problem = format!(
            "not a complete llama2.c checkpoint: the sizes in its header need {} bytes, but the file has {}",
            table.end,
            bytes.len()
        );
        return Err(ModelError::malformed(path, problem));
    }
    Ok((header, table.tensors))
}

/// Lays tensors one after another.
struct TensorTable {
    /// Wide enough for any sizes that a header may have.
    end: u128,
    file_len: usize,
    tensors: Vec<TensorInfo>,
}

impl TensorTable {
    fn add_all(&mut self, header: &Llama2cHeader) {
        let Llama2cHeader { hidden_size, intermediate_size, vocab_size, .. } = *header;
        let q_size = header.num_attention_heads * header.head_dim();
        let kv_size = header.num_key_value_heads * header.head_dim();
        let layers = header.num_hidden_layers;
        self.add("model.embed_tokens.weight".into(), vec![vocab_size, hidden_size]);
        self.add_layers(layers, "input_layernorm", &[hidden_size]);
        self.add_layers(layers, "self_attn.q_proj", &[q_size, hidden_size]);
        self.add_layers(layers, "self_attn.k_proj", &[kv_size, hidden_size]);
        self.add_layers(layers, "self_attn.v_proj", &[kv_size, hidden_size]);
        self.add_layers(layers, "self_attn.o_proj", &[hidden_size, q_size]);
        self.add_layers(layers, "post_attention_layernorm", &[hidden_size]);
        self.add_layers(layers, "mlp.gate_proj", &[intermediate_size, hidden_size]);
        self.add_layers(layers, "mlp.down_proj", &[hidden_size, intermediate_size]);
        self.add_layers(layers, "mlp.up_proj", &[intermediate_size, hidden_size]);
        self.add("model.norm.weight".into(), vec![hidden_size]);
        // Two tables of rotary cosines and sines, which nobody reads any more.
        self.skip(header.max_position_embeddings * (header.head_dim() / 2) * 2);
        if header.has_own_lm_head {
            self.add("lm_head.weight".into(), vec![vocab_size, hidden_size]);
        }
    }

    fn add_layers(&mut self, num_layers: usize, name: &str, shape: &[usize]) {
        for layer in 0..num_layers {
            self.add(format!("model.layers.{layer}.{name}.weight"), shape.to_vec());
        }
    }

    /// Adds a tensor; beyond the end of the file only the needed length is counted.
    fn add(&mut self, name: String, shape: Vec<usize>) {
        let start = self.end;
        self.skip(shape.iter().product());
        if self.end <= self.file_len as u128 {
            let range = start as usize..self.end as usize;
            self.tensors.push(TensorInfo {
                name,
                shape,
                storage: Storage::Readable(Format::F32),
                file_index: 0,
                range,
            });
        }
    }

    fn skip(&mut self, num_elements: usize) {
        self.end += num_elements as u128 * size_of::<f32>() as u128;
    }
}
