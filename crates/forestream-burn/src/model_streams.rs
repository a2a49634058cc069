//! Streams of the whole decoder over tensors: what a drafter asks of a model with an adapter.
//!
//! The deferred and the fused pass are one computation here: the streams of a position, with the main rows of its path as
//! their context. They are made as in training, from copies of the cache's rows, and nothing of them enters a cache.

use std::ops::Range;

use burn_tensor::{Int, Tensor, TensorData, activation};
use forestream_model::streams::{Adapter, AdapterConfig, Anchor, Streams, TrainingMode};
use forestream_model::{Hidden, KvCache, ModelError, NodeId, Row, TokenId};

use crate::cache_rows::keys_and_values;
use crate::changes::Changes;
use crate::early_exit;
use crate::layer::rms_norm;
use crate::model::{BurnModel, values_of};
use crate::{Segment, StreamBase, StreamWeights, stream_states};

/// An adapter, ready to run.
#[derive(Clone)]
pub(crate) struct ModelStreams {
    /// What the adapter's file says.
    config: AdapterConfig,
    /// The model's top layers, with the changes of main rows in their weights.
    base: StreamBase,
    weights: StreamWeights,
    draft_vocabulary: Vec<TokenId>,
}

impl BurnModel {
    /// Gives the model the streams of `adapter`, and adds what it changes of main rows to the weights.
    ///
    /// # Panics
    /// If the adapter belongs to a model of other sizes; [`Adapter::open`] refuses such a one.
    pub fn attach(&mut self, adapter: Adapter) {
        let main_config = AdapterConfig { lora: None, ..adapter.config.clone() };
        let weights_of = |config| StreamWeights::from_values(config, &self.config, &adapter.tensors, &self.device);
        let main_weights = weights_of(&main_config).frozen();
        let stream_config = AdapterConfig { mode: TrainingMode::Lossless, main_lora: None, ..adapter.config.clone() };
        let weights = weights_of(&stream_config).frozen();
        for layer in &mut self.layers {
            layer.add(&Changes::of_main_rows(&main_weights, &main_config));
        }
        let first = adapter.config.first_msa_layer(&self.config);
        self.boundary = Some(first);
        let draft_vocabulary = match adapter.draft_vocabulary {
            tokens if tokens.is_empty() => (0..self.config.vocab_size as TokenId).collect(),
            tokens => tokens,
        };
        let base = StreamBase {
            decoder: self.config.clone(),
            adapter: stream_config,
            device: self.device.clone(),
            layers: self.layers[first..].to_vec(),
            norm: self.norm.clone(),
            head: self.head_of(&draft_vocabulary),
            main_head: None,
            embeddings: self.embeddings.clone(),
            frequencies: self.frequencies.clone(),
        };
        let base = match adapter.inner_features.as_slice() {
            [] => base,
            features => base.narrowed_to(features),
        };
        self.streams = Some(ModelStreams { config: adapter.config, base, weights, draft_vocabulary });
    }

    /// The rows of the LM head for `tokens`.
    fn head_of(&self, tokens: &[TokenId]) -> Tensor<2> {
        let tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let shape = [tokens.len()];
        self.lm_head.clone().select(0, Tensor::<1, Int>::from_data(TensorData::new(tokens, shape), &self.device))
    }
}

impl ModelStreams {
    /// Drops what the early exit ends from a pass over `rows`.
    ///
    /// All layers have computed these nodes in vain: this saves nothing, and ends what the engine ends.
    pub(crate) fn end_improbable(&self, rows: &[Row<'_>], hidden: &mut Hidden) {
        let kept = early_exit::passing(&self.base, &self.weights, &self.draft_vocabulary, rows, hidden);
        if let Some(kept) = kept {
            hidden.keep(&kept);
        }
    }

    fn width(&self) -> usize {
        self.base.decoder.hidden_size
    }

    /// The streams of the last row in `slots`, which are those of a text from its start.
    fn segment(&self, cache: &KvCache, slots: &[usize], boundary: &[f32], next_token: TokenId) -> Segment {
        let layers = self.base.first_layer()..self.base.decoder.num_hidden_layers;
        let planes = layers.map(|layer| keys_and_values(cache, layer, slots, slots.len()).into());
        let (keys, values) = planes.unzip();
        // Only the first token is read: sampler and head are asked for later.
        let tokens = vec![next_token; 1 + self.config.streams.num_streams];
        Segment { first_position: slots.len() - 1, boundary: boundary.to_vec(), tokens, keys, values }
    }

    /// Normalized states of all streams of each segment, `[segments, num_streams, hidden_size]`.
    fn states(&self, segments: &[Segment]) -> Vec<f32> {
        values_of(stream_states(&self.base, &self.weights, segments).expect("cache and model are of one shape"))
    }

    fn upload(&self, values: Vec<f32>) -> Tensor<2> {
        let shape = [values.len() / self.width(), self.width()];
        Tensor::from_data(TensorData::new(values, shape), &self.base.device)
    }

    fn multiply(&self, x: Tensor<2>, name: &str) -> Tensor<2> {
        x.matmul(self.weights.tensor(name).clone().transpose())
    }

    fn multiply_head(&self, states: Tensor<2>, logits: &mut Vec<f32>) {
        *logits = values_of(states.matmul(self.base.head.clone().transpose()));
    }
}

impl Streams for ModelStreams {
    fn adapter(&self) -> &AdapterConfig {
        &self.config
    }

    fn num_parameters(&self) -> usize {
        self.config.num_parameters(&self.base.decoder)
    }

    fn draft_vocabulary(&self) -> &[TokenId] {
        &self.draft_vocabulary
    }

    fn run(&self, rows: &mut [Row<'_>], anchors: &[Anchor<'_>], states: &mut Hidden) -> Result<(), ModelError> {
        assert_eq!(rows.len(), anchors.len(), "one anchor for each sequence");
        for row in rows.iter() {
            let (capacity, needed) = (row.cache.capacity(), row.cache.len() + row.tree.len());
            if needed > capacity {
                return Err(ModelError::ContextFull { capacity, needed });
            }
        }
        let segment = |(row, anchor): (&Row<'_>, &Anchor<'_>)| {
            let slots: Vec<usize> = (0..row.cache.len()).collect();
            self.segment(row.cache, &slots, anchor.boundary, anchor.next_token)
        };
        let segments: Vec<Segment> = rows.iter().zip(anchors).map(segment).collect();
        let mut to = states.reset(rows, self.width());
        let all = self.states(&segments);
        for (row, streams) in rows.iter().zip(all.chunks_exact(self.config.streams.num_streams * self.width())) {
            let (own, rest) = to.split_at_mut(row.tree.len() * self.width());
            own.copy_from_slice(&streams[..own.len()]); // lower streams do not depend on the others
            to = rest;
        }
        Ok(())
    }

    fn run_fused(
        &self,
        row: &mut Row<'_>,
        hidden: &Hidden,
        sequence_index: usize,
        nodes: &[NodeId],
        states: &mut Hidden,
    ) -> Result<(), ModelError> {
        assert!(!self.config.streams.token_conditioning, "the next token of a node is not known before verification");
        let committed = row.cache.len();
        let segment = |&node: &NodeId| {
            let path = row.tree.path(node);
            let slots: Vec<usize> = (0..committed).chain(path.iter().map(|node| committed + node.index())).collect();
            let boundary = hidden.row_of(sequence_index, node).and_then(|row| hidden.boundary(row));
            self.segment(row.cache, &slots, boundary.expect("the pass left the states of all nodes"), 0)
        };
        let segments: Vec<Segment> = nodes.iter().map(segment).collect();
        let to = states.resize(nodes.len() * self.config.streams.num_streams, self.width());
        to.copy_from_slice(&self.states(&segments));
        Ok(())
    }

    fn stream_logits(&self, states: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        self.multiply_head(self.upload(states.states(rows).to_vec()), logits);
    }

    fn parent_logits(&self, parents: &[TokenId], logits: &mut Vec<f32>) {
        logits.clear();
        if self.config.streams.sampler_size.is_none() || parents.is_empty() {
            return;
        }
        let embeddings = self.upload(self.base.embeddings.rows(parents.iter().copied()));
        let embeddings = rms_norm(embeddings, None, self.base.decoder.rms_norm_eps);
        let inner = activation::silu(self.multiply(embeddings, "sampler.down_proj.weight"));
        self.multiply_head(self.multiply(inner, "sampler.up_proj.weight"), logits);
    }
}
