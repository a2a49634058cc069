//! One decoder layer over tensors: norms, projections with optional low-rank changes, rotation, MLP.
//!
//! The weights are constants; gradients flow through them to the rows and to the changes, and none is computed for the
//! weights themselves. Attention is the caller's: main rows and streams see different keys.

use burn_tensor::{Device, Tensor, TensorData, activation};
use forestream_model::streams::{LoraConfig, Projection};
use forestream_model::{Checkpoint, DecoderConfig, ModelError};

use crate::StreamWeights;
use crate::rotation::Rotation;

/// One decoder layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    index: usize,
    epsilon: f32,
    head_dim: usize,
    /// In the order of [`Projection::ALL`].
    projections: Vec<Linear>,
    /// `[1, hidden]`.
    input_norm: Tensor<2>,
    /// `[1, hidden]`.
    post_attention_norm: Tensor<2>,
    /// Of queries and keys, `[1, 1, head_dim]`.
    head_norms: Option<[Tensor<3>; 2]>,
}

/// A frozen projection.
#[derive(Clone, Debug)]
struct Linear {
    /// `[outputs, inputs]`, as in the checkpoint.
    weight: Tensor<2>,
    /// `[1, outputs]`.
    bias: Option<Tensor<2>>,
}

/// Low-rank changes that rows of one kind carry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changes<'a> {
    pub(crate) weights: &'a StreamWeights,
    /// `layers` for streams.
    pub(crate) prefix: &'static str,
    pub(crate) lora: Option<&'a LoraConfig>,
}

/// Queries, keys and values of rows, rotated, `[rows, heads, head_dim]`.
pub(crate) struct Heads {
    pub(crate) queries: Tensor<3>,
    pub(crate) keys: Tensor<3>,
    pub(crate) values: Tensor<3>,
}

impl Layer {
    /// Normalizes rows and projects them to rotated queries and keys, and to values.
    ///
    /// # Shapes
    /// `rows`: `[rows, hidden]`.
    pub(crate) fn heads(&self, rows: &Tensor<2>, rotation: &Rotation, changes: Changes<'_>) -> Heads {
        let normalized = rms_norm(rows.clone(), Some(&self.input_norm), self.epsilon);
        let project = |projection| {
            let projected = self.project(normalized.clone(), projection, changes);
            let [rows, width] = projected.dims();
            projected.reshape([rows, width / self.head_dim, self.head_dim])
        };
        let [mut queries, mut keys] = [project(Projection::QProj), project(Projection::KProj)];
        if let Some([query_norm, key_norm]) = &self.head_norms {
            queries = rms_norm(queries, Some(query_norm), self.epsilon);
            keys = rms_norm(keys, Some(key_norm), self.epsilon);
        }
        Heads { queries: rotation.apply(queries), keys: rotation.apply(keys), values: project(Projection::VProj) }
    }

    /// Adds attention's output and the MLP to the rows that they were computed from.
    ///
    /// # Shapes
    /// `rows`: `[rows, hidden]`; `attended`: `[rows, query heads * head_dim]`.
    pub(crate) fn finish(&self, rows: Tensor<2>, attended: Tensor<2>, changes: Changes<'_>) -> Tensor<2> {
        let rows = rows + self.project(attended, Projection::OProj, changes);
        let normalized = rms_norm(rows.clone(), Some(&self.post_attention_norm), self.epsilon);
        let gate = activation::silu(self.project(normalized.clone(), Projection::GateProj, changes));
        let inner = gate * self.project(normalized, Projection::UpProj, changes);
        rows + self.project(inner, Projection::DownProj, changes)
    }

    /// `x W^T + b`, plus the change `scale * x A^T B^T` where there is one.
    fn project(&self, x: Tensor<2>, projection: Projection, changes: Changes<'_>) -> Tensor<2> {
        let linear = &self.projections[projection as usize];
        let mut projected = x.clone().matmul(linear.weight.clone().transpose());
        if let Some(lora) = changes.lora
            && let Some([a, b]) = changes.weights.lora(changes.prefix, self.index, projection)
        {
            let inner = x.matmul(a.clone().transpose()).mul_scalar(lora.alpha / lora.rank as f32);
            projected = projected + inner.matmul(b.clone().transpose());
        }
        match &linear.bias {
            Some(bias) => projected + bias.clone(),
            None => projected,
        }
    }
}

/// Root-mean-square norm over the last dimension.
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Option<&Tensor<D>>, epsilon: f32) -> Tensor<D> {
    let scale = (x.clone() * x.clone()).mean_dim(D - 1).add_scalar(epsilon).sqrt().recip();
    match weight {
        Some(weight) => x * scale * weight.clone(),
        None => x * scale,
    }
}

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

    pub(crate) fn upload(&self, values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, shape), self.device)
    }
}
