//! One decoder layer over tensors: norms, projections with optional low-rank changes, rotation, MLP.
//!
//! The weights are constants; gradients flow through them to the rows and to the changes, and none is computed for the
//! weights themselves. Attention is the caller's: main rows and streams see different keys.

use burn_tensor::{Int, Tensor, TensorData, activation};
use forestream_model::streams::Projection;

use crate::changes::Changes;
use crate::rotation::Rotation;

/// One decoder layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) index: usize,
    pub(crate) epsilon: f32,
    pub(crate) head_dim: usize,
    /// In the order of [`Projection::ALL`].
    pub(crate) projections: Vec<Linear>,
    /// `[1, hidden]`.
    pub(crate) input_norm: Tensor<2>,
    /// `[1, hidden]`.
    pub(crate) post_attention_norm: Tensor<2>,
    /// Of queries and keys, `[1, 1, head_dim]`.
    pub(crate) head_norms: Option<[Tensor<3>; 2]>,
}

/// A frozen projection.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[outputs, inputs]`, as in the checkpoint.
    pub(crate) weight: Tensor<2>,
    /// `[1, outputs]`.
    pub(crate) bias: Option<Tensor<2>>,
}

/// Queries, keys and values of rows, rotated, `[rows, heads, head_dim]`.
pub(crate) struct Heads {
    pub(crate) queries: Tensor<3>,
    pub(crate) keys: Tensor<3>,
    pub(crate) values: Tensor<3>,
}

impl Layer {
    /// Adds changes to the weights for good.
    pub(crate) fn add(&mut self, changes: &Changes<'_>) {
        for projection in Projection::ALL {
            self.projections[projection as usize].weight = self.changed_weight(projection, changes);
        }
    }

    /// Normalizes rows and projects them to rotated queries and keys, and to values.
    ///
    /// # Shapes
    /// `rows`: `[rows, hidden]`.
    pub(crate) fn heads(&self, rows: &Tensor<2>, rotation: &Rotation, changes: &Changes<'_>) -> Heads {
        let normalized = rms_norm(rows.clone(), Some(&self.input_norm), self.epsilon);
        let project = |projection| {
            let projected = self.project(&normalized, projection, changes);
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

    /// Drops all inner features of the MLP but these, for good.
    pub(crate) fn keep(&mut self, features: &[u32]) {
        for (projection, dimension) in [(Projection::GateProj, 0), (Projection::UpProj, 0), (Projection::DownProj, 1)] {
            let weight = &mut self.projections[projection as usize].weight;
            let indices: Vec<i32> = features.iter().map(|&feature| feature as i32).collect();
            let indices = TensorData::new(indices, [features.len()]);
            *weight = weight.clone().select(dimension, Tensor::<1, Int>::from_data(indices, &weight.device()));
        }
    }

    /// Adds attention's output and the MLP to the rows that they were computed from.
    ///
    /// # Shapes
    /// `rows`: `[rows, hidden]`; `attended`: `[rows, query heads * head_dim]`.
    pub(crate) fn finish(&self, rows: Tensor<2>, attended: &Tensor<2>, changes: &Changes<'_>) -> Tensor<2> {
        self.add_mlp(self.add_attention(rows, attended, changes), changes)
    }

    /// Adds attention's output to the rows.
    pub(crate) fn add_attention(&self, rows: Tensor<2>, attended: &Tensor<2>, changes: &Changes<'_>) -> Tensor<2> {
        rows + self.project(attended, Projection::OProj, changes)
    }

    /// Adds the MLP to the rows.
    pub(crate) fn add_mlp(&self, rows: Tensor<2>, changes: &Changes<'_>) -> Tensor<2> {
        let inner = self.inner(&rows, changes);
        rows + self.project(&inner, Projection::DownProj, changes)
    }

    /// The inner features of the MLP, `[rows, intermediate size]`.
    pub(crate) fn inner(&self, rows: &Tensor<2>, changes: &Changes<'_>) -> Tensor<2> {
        let normalized = rms_norm(rows.clone(), Some(&self.post_attention_norm), self.epsilon);
        let gate = activation::silu(self.project(&normalized, Projection::GateProj, changes));
        gate * self.project(&normalized, Projection::UpProj, changes)
    }

    /// The weight of a projection with its changes, `[outputs, inputs]`.
    pub(crate) fn changed_weight(&self, projection: Projection, changes: &Changes<'_>) -> Tensor<2> {
        let weight = self.projections[projection as usize].weight.clone();
        match changes.of_weight(self.index, projection) {
            Some(change) => weight + change,
            None => weight,
        }
    }

    /// `x W^T + b`, plus the changes.
    fn project(&self, x: &Tensor<2>, projection: Projection, changes: &Changes<'_>) -> Tensor<2> {
        let linear = &self.projections[projection as usize];
        let projected = x.clone().matmul(linear.weight.clone().transpose());
        let projected = changes.add(projected, x, self.index, projection);
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
