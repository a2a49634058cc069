//! From a checkpoint to packed weights.

use std::sync::Mutex;

use forestream_kernels::formats::Format;
use forestream_kernels::{PackedMatrix, RowOrder, ThreadPool, WeightMemory};

use super::layer::Layer;
use super::low_rank::LayerChanges;
use super::pass::Workspace;
use super::{CpuModel, LoadOptions};
use crate::{Checkpoint, ModelError, Weight};

impl CpuModel {
    /// Packs the weights of `checkpoint`; the files are not needed afterwards.
    ///
    /// # Errors
    /// A weight that is missing or has the wrong shape.
    pub fn load(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let pool = ThreadPool::new(options.num_threads.max(1));
        let loader = Loader::new(checkpoint, &pool);
        // The largest matrices come first: while one is packed, its pages of the file are in memory too.
        let lm_head = (!config.tie_word_embeddings).then(|| loader.vocabulary_matrix("lm_head.weight")).transpose()?;
        let embed_tokens = loader.vocabulary_matrix("model.embed_tokens.weight")?;
        let layers = (0..config.num_hidden_layers).map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
        let norm = loader.vector("model.norm.weight", config.hidden_size)?;
        let frequencies = config.rope.frequencies(config.head_dim);
        let workspace = Mutex::new(Workspace::new(options.num_threads.max(1)));
        Ok(Self {
            isa: options.isa,
            embed_tokens,
            layers,
            norm,
            lm_head,
            frequencies,
            boundary: None,
            streams: None,
            workspace,
            config,
            pool,
        })
    }
}

/// Packs weights of a checkpoint.
pub(super) struct Loader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) pool: &'a ThreadPool,
    memory: WeightMemory,
}

impl<'a> Loader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, pool: &'a ThreadPool) -> Self {
        Self { checkpoint, pool, memory: WeightMemory::new() }
    }

    /// A matrix `[vocab_size, hidden_size]`.
    fn vocabulary_matrix(&self, name: &str) -> Result<PackedMatrix, ModelError> {
        let config = self.checkpoint.config();
        self.matrix(name, config.vocab_size, config.hidden_size, RowOrder::Same)
    }

    /// Decoder layer `index`.
    pub(super) fn layer(&self, index: usize) -> Result<Layer, ModelError> {
        let config = self.checkpoint.config();
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q_len = config.num_attention_heads * config.head_dim;
        let kv_len = config.num_key_value_heads * config.head_dim;
        let rotary = self.checkpoint.rotary_order();
        let projection =
            |which: &str, rows, cols, order| self.matrix(&name(&format!("{which}.weight")), rows, cols, order);
        Ok(Layer {
            input_layernorm: self.vector(&name("input_layernorm.weight"), hidden)?,
            qkv_proj: [
                projection("self_attn.q_proj", q_len, hidden, rotary)?,
                projection("self_attn.k_proj", kv_len, hidden, rotary)?,
                projection("self_attn.v_proj", kv_len, hidden, RowOrder::Same)?,
            ],
            qkv_bias: if config.has_qkv_bias { Some(self.biases(index, q_len, kv_len)?) } else { None },
            qk_norm: if config.has_qk_norm { Some(self.head_norms(index)?) } else { None },
            o_proj: [projection("self_attn.o_proj", hidden, q_len, RowOrder::Same)?],
            post_attention_layernorm: self.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up_proj: [
                projection("mlp.gate_proj", inner, hidden, RowOrder::Same)?,
                projection("mlp.up_proj", inner, hidden, RowOrder::Same)?,
            ],
            down_proj: [projection("mlp.down_proj", hidden, inner, RowOrder::Same)?],
            changes: LayerChanges::default(),
        })
    }

    fn biases(&self, index: usize, q_len: usize, kv_len: usize) -> Result<Vec<f32>, ModelError> {
        let mut biases = Vec::with_capacity(q_len + 2 * kv_len);
        let rotary = self.checkpoint.rotary_order();
        for (which, len, order) in [("q", q_len, rotary), ("k", kv_len, rotary), ("v", kv_len, RowOrder::Same)] {
            let bias = self.vector(&format!("model.layers.{index}.self_attn.{which}_proj.bias"), len)?;
            biases.extend((0..len).map(|row| bias[order.source(row)]));
        }
        Ok(biases)
    }

    fn head_norms(&self, index: usize) -> Result<[Vec<f32>; 2], ModelError> {
        let order = self.checkpoint.rotary_order();
        let norm = |which: &str| -> Result<Vec<f32>, ModelError> {
            let head_dim = self.checkpoint.config().head_dim;
            let norm = self.vector(&format!("model.layers.{index}.self_attn.{which}_norm.weight"), head_dim)?;
            Ok((0..head_dim).map(|row| norm[order.source(row)]).collect())
        };
        Ok([norm("q")?, norm("k")?])
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.checkpoint.weight(name)?.expect_shape(1, len)?.to_f32())
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize, order: RowOrder) -> Result<PackedMatrix, ModelError> {
        let weight: Weight<'_> = self.checkpoint.weight(name)?.expect_shape(rows, cols)?;
        let matrix = self.pack(name, weight.format, [rows, cols], &weight.bytes, order)?;
        self.checkpoint.release(); // the file's pages are not needed again
        Ok(matrix)
    }

    /// Packs a matrix of the given shape; `name` is for the error.
    pub(super) fn pack(
        &self,
        name: &str,
        format: Format,
        shape: [usize; 2],
        bytes: &[u8],
        order: RowOrder,
    ) -> Result<PackedMatrix, ModelError> {
        PackedMatrix::pack(self.pool, &self.memory, format, shape, bytes, order).map_err(|error| {
            ModelError::Malformed {
                path: self.checkpoint.path().into(),
                problem: format!("the weight `{name}`: {error}"),
            }
        })
    }
}
