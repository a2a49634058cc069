//! Writes GGUF files, well-formed or not: every field can be set to what no writer would write.

use std::path::{Path, PathBuf};

use super::{f32_bytes, values};

/// Sizes of the model that [`GgufWriter::llama`] writes.
pub(super) const HIDDEN: usize = 8;
pub(super) const INTERMEDIATE: usize = 12;
pub(super) const VOCAB: usize = 6;
pub(super) const KV_SIZE: usize = 4;

#[derive(Clone, Debug)]
pub(super) enum Value {
    U8(u8),
    I32(i32),
    U32(u32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A type number and bytes as they are.
    Raw(u32, Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// In the file's order: columns first.
    pub(super) dimensions: Vec<u64>,
    pub(super) type_id: u32,
    /// Where the data is said to be; where it is, if absent.
    pub(super) offset: Option<u64>,
    pub(super) data: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct GgufWriter {
    pub(super) magic: [u8; 4],
    pub(super) version: u32,
    pub(super) num_tensors: Option<u64>,
    pub(super) num_pairs: Option<u64>,
    pub(super) alignment: usize,
    pub(super) pairs: Vec<(String, Value)>,
    pub(super) tensors: Vec<Tensor>,
}

impl GgufWriter {
    /// A complete model of one layer: two query heads, one key/value head of width 4, tied LM head.
    pub(super) fn llama() -> Self {
        Self::model("llama")
    }

    /// The same model under another name.
    pub(super) fn model(architecture: &str) -> Self {
        let mut writer = Self {
            magic: *b"GGUF",
            version: 3,
            num_tensors: None,
            num_pairs: None,
            alignment: 32,
            pairs: Vec::new(),
            tensors: Vec::new(),
        };
        writer.set("general.architecture", Value::Text(architecture.into()));
        let mut set = |suffix: &str, value| writer.set(&format!("{architecture}.{suffix}"), value);
        set("block_count", Value::U32(1));
        set("context_length", Value::U32(64));
        set("embedding_length", Value::U32(HIDDEN as u32));
        set("feed_forward_length", Value::U32(INTERMEDIATE as u32));
        set("attention.head_count", Value::U32(2));
        set("attention.head_count_kv", Value::U32(1));
        set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        set("rope.freq_base", Value::F32(50_000.0));
        writer.set("tokenizer.ggml.tokens", Value::Texts(["<s>", "a", "é", "", "ab", "c"].map(String::from).into()));
        writer.set("tokenizer.ggml.token_type", Value::I32s(vec![3, 1, 1, 1, 1, -1]));
        writer.set("tokenizer.ggml.scores", Value::F32s(vec![0.0, -1.5, -2.0, -3.0, -4.0, -5.0]));
        writer.set("tokenizer.ggml.eos_token_id", Value::U32(0));

        writer.add("token_embd.weight", &[HIDDEN, VOCAB]);
        writer.add("blk.0.attn_norm.weight", &[HIDDEN]);
        writer.add("blk.0.attn_q.weight", &[HIDDEN, HIDDEN]);
        writer.add("blk.0.attn_k.weight", &[HIDDEN, KV_SIZE]);
        writer.add("blk.0.attn_v.weight", &[HIDDEN, KV_SIZE]);
        writer.add("blk.0.attn_output.weight", &[HIDDEN, HIDDEN]);
        writer.add("blk.0.ffn_norm.weight", &[HIDDEN]);
        writer.add("blk.0.ffn_gate.weight", &[HIDDEN, INTERMEDIATE]);
        writer.add("blk.0.ffn_up.weight", &[HIDDEN, INTERMEDIATE]);
        writer.add("blk.0.ffn_down.weight", &[INTERMEDIATE, HIDDEN]);
        writer.add("output_norm.weight", &[HIDDEN]);
        writer
    }

    /// Sets or replaces a metadata value.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.unset(key);
        self.pairs.push((key.to_owned(), value));
    }

    pub(super) fn unset(&mut self, key: &str) {
        self.pairs.retain(|(name, _)| name != key);
    }

    /// Adds a single-precision tensor whose values depend on its place in the table.
    pub(super) fn add(&mut self, name: &str, dimensions: &[usize]) {
        let data = f32_bytes(&values(dimensions.iter().product(), self.tensors.len()));
        let dimensions = dimensions.iter().map(|&size| size as u64).collect();
        self.tensors.push(Tensor { name: name.to_owned(), dimensions, type_id: 0, offset: None, data });
    }

    pub(super) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the model has this tensor")
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// The file, and the length of what stands in front of the tensor data.
    pub(super) fn bytes(&self) -> (Vec<u8>, usize) {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.num_pairs.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            put_text(&mut out, key);
            put_value(&mut out, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            put_text(&mut out, &tensor.name);
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            out.extend(tensor.dimensions.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        let header_len = out.len();
        out.resize(header_len.next_multiple_of(self.alignment), 0);
        out.extend(data);
        (out, header_len)
    }

    pub(super) fn write(&self, directory: &Path) -> PathBuf {
        write_bytes(directory, &self.bytes().0)
    }
}

pub(super) fn write_bytes(directory: &Path, bytes: &[u8]) -> PathBuf {
    let path = directory.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |type_id: u32, bytes: &[u8]| {
        out.extend(type_id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(number) => put(0, &[*number]),
        Value::I32(number) => put(5, &number.to_le_bytes()),
        Value::U32(number) => put(4, &number.to_le_bytes()),
        Value::U64(number) => put(10, &number.to_le_bytes()),
        Value::F32(number) => put(6, &number.to_le_bytes()),
        Value::Bool(flag) => put(7, &[u8::from(*flag)]),
        Value::Raw(type_id, bytes) => put(*type_id, bytes),
        Value::Text(text) => {
            put(8, &[]);
            put_text(out, text);
        }
        Value::Texts(texts) => {
            put(9, &array_head(8, texts.len()));
            for text in texts {
                put_text(out, text);
            }
        }
        Value::I32s(numbers) => {
            put(9, &array_head(5, numbers.len()));
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Value::F32s(numbers) => {
            put(9, &array_head(6, numbers.len()));
            out.extend(f32_bytes(numbers));
        }
    }
}

/// An array's element type and count.
pub(super) fn array_head(element_type: u32, count: usize) -> Vec<u8> {
    [element_type.to_le_bytes().as_slice(), &(count as u64).to_le_bytes()].concat()
}
