//! Low-rank changes of the projections: which ones the rows of a kind carry.

use burn_tensor::Tensor;
use forestream_model::streams::{AdapterConfig, LoraConfig, MAIN_LAYERS, Projection, STREAM_LAYERS};

use crate::StreamWeights;

/// The changes that rows of one kind carry, added up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes<'a> {
    sets: Vec<(&'a StreamWeights, &'static str, &'a LoraConfig)>,
}

impl<'a> Changes<'a> {
    /// None: the base as it is.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Those of main rows: the task's, in joint mode.
    pub(crate) fn of_main_rows(weights: &'a StreamWeights, adapter: &'a AdapterConfig) -> Self {
        Self { sets: adapter.main_lora.iter().map(|main| (weights, MAIN_LAYERS, &main.lora)).collect() }
    }

    /// Those of streams: their own on top of the main rows'.
    pub(crate) fn of_streams(weights: &'a StreamWeights, adapter: &'a AdapterConfig) -> Self {
        let mut changes = Self::of_main_rows(weights, adapter);
        changes.sets.extend(adapter.lora.iter().map(|lora| (weights, STREAM_LAYERS, lora)));
        changes
    }

    /// The sum of the changes of this projection, `[outputs, inputs]`; `None` where there is none.
    pub(crate) fn of_weight(&self, layer: usize, projection: Projection) -> Option<Tensor<2>> {
        let change = |&(weights, prefix, lora): &(&StreamWeights, &str, &LoraConfig)| {
            let [a, b] = weights.lora(prefix, layer, projection)?;
            Some(b.clone().matmul(a.clone()).mul_scalar(lora.scaling()))
        };
        self.sets.iter().filter_map(change).reduce(|sum, change| sum + change)
    }

    /// `projected`, plus `scale * x A^T B^T` of each change of this projection.
    pub(crate) fn add(
        &self,
        mut projected: Tensor<2>,
        x: &Tensor<2>,
        layer: usize,
        projection: Projection,
    ) -> Tensor<2> {
        for &(weights, prefix, lora) in &self.sets {
            if let Some([a, b]) = weights.lora(prefix, layer, projection) {
                let inner = x.clone().matmul(a.clone().transpose()).mul_scalar(lora.scaling());
                projected = projected + inner.matmul(b.clone().transpose());
            }
        }
        projected
    }
}
