//! From a checkpoint to frozen tensors.

use std::sync::Arc;

use burn_tensor::{Device, Tensor, TensorData};
use forestream_model::streams::Projection;
use forestream_model::{Checkpoint, DecoderConfig, Format, ModelError, TokenId};

use crate::layer::{Layer, Linear};

/// Reads frozen layers from a checkpoint.
pub(crate) struct Loader<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) device: &'a Device,
}

impl Loader<'_> {
    pub(crate) fn layer(&self, index: usize) -> Result<Layer, ModelError> {
        let config = self.checkpoint.config();
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
        let projections = Projection::ALL.into_iter().map(|projection| self.linear(index, projection));
        let layer = Layer {
            index,
            epsilon: config.rms_norm_eps,
            head_dim: config.head_dim,
            projections: projections.collect::<Result<_, _>>()?,
            input_norm: self.vector(&name("input_layernorm.weight"), config.hidden_size)?,
            post_attention_norm: self.vector(&name("post_attention_layernorm.weight"), config.hidden_size)?,
            head_norms: if config.has_qk_norm { Some(self.head_norms(index)?) } else { None },
        };
        self.checkpoint.release();
        Ok(layer)
    }

    /// A vector as a row, `[1, len]`.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Tensor<2>, ModelError> {
        Ok(self.upload(self.checkpoint.weight(name)?.expect_shape(1, len)?.to_f32(), [1, len]))
    }

    fn linear(&self, index: usize, projection: Projection) -> Result<Linear, ModelError> {
        let config: &DecoderConfig = self.checkpoint.config();
        let [outputs, inputs] = projection.shape(config);
        let name = |kind: &str| format!("model.layers.{index}.{}.{kind}", projection.path());
        let read = |kind: &str, shape: [usize; 2], row_len: usize| -> Result<Tensor<2>, ModelError> {
            let values = self.checkpoint.weight(&name(kind))?.expect_shape(shape[0], shape[1])?.to_f32();
            Ok(self.upload(self.in_rotary_order(values, projection, row_len), shape))
        };
        let is_qkv = matches!(projection, Projection::QProj | Projection::KProj | Projection::VProj);
        let bias = (is_qkv && config.has_qkv_bias).then(|| read("bias", [1, outputs], 1)).transpose()?;
        Ok(Linear { weight: read("weight", [outputs, inputs], inputs)?, bias })
    }

    fn head_norms(&self, index: usize) -> Result<[Tensor<3>; 2], ModelError> {
        let head_dim = self.checkpoint.config().head_dim;
        let read = |which: &str, projection| -> Result<Tensor<3>, ModelError> {
            let name = format!("model.layers.{index}.self_attn.{which}_norm.weight");
            let values = self.checkpoint.weight(&name)?.expect_shape(1, head_dim)?.to_f32();
            Ok(self.upload(self.in_rotary_order(values, projection, 1), [1, head_dim]).unsqueeze())
        };
        Ok([read("q", Projection::QProj)?, read("k", Projection::KProj)?])
    }

    /// Rows of queries and keys in the order that rotates halves.
    fn in_rotary_order(&self, values: Vec<f32>, projection: Projection, row_len: usize) -> Vec<f32> {
        if !matches!(projection, Projection::QProj | Projection::KProj) {
            return values;
        }
        let row = |row: usize| &values[self.checkpoint.rotary_row(row) * row_len..][..row_len];
        (0..values.len() / row_len).flat_map(row).copied().collect()
    }

    /// The input embeddings.
    pub(crate) fn embeddings(&self) -> Result<Table, ModelError> {
        Table::read(self.checkpoint, "model.embed_tokens.weight")
    }

    /// The LM head, which may be the embeddings.
    pub(crate) fn lm_head(&self, embeddings: &Table) -> Result<Table, ModelError> {
        if self.checkpoint.config().tie_word_embeddings {
            return Ok(embeddings.clone());
        }
        Table::read(self.checkpoint, "lm_head.weight")
    }

    /// The rows of these tokens, `[tokens, hidden]`.
    pub(crate) fn upload_rows(&self, table: &Table, tokens: impl IntoIterator<Item = TokenId>) -> Tensor<2> {
        let rows = table.rows(tokens);
        let shape = [rows.len() / table.cols, table.cols];
        self.upload(rows, shape)
    }

    fn upload(&self, values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, shape), self.device)
    }
}

/// A matrix with a row for each token, in the bytes of the checkpoint; rows are decoded when asked for.
#[derive(Clone)]
pub(crate) struct Table {
    format: Format,
    bytes: Arc<[u8]>,
    row_bytes: usize,
    cols: usize,
}

impl Table {
    pub(crate) fn read(checkpoint: &Checkpoint, name: &str) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let weight = checkpoint.weight(name)?.expect_shape(config.vocab_size, config.hidden_size)?;
        let row_bytes = weight.bytes.len() / weight.rows;
        Ok(Self { format: weight.format, cols: weight.cols, row_bytes, bytes: weight.bytes.into() })
    }

    /// The rows of these tokens, one after another.
    pub(crate) fn rows(&self, tokens: impl IntoIterator<Item = TokenId>) -> Vec<f32> {
        let mut rows = Vec::new();
        for token in tokens {
            let start = rows.len();
            rows.resize(start + self.cols, 0.0);
            let bytes = &self.bytes[token as usize * self.row_bytes..][..self.row_bytes];
            self.format.dequantize_row(bytes, &mut rows[start..]);
        }
        rows
    }
}
