//! What stream rows read of the frozen model: boundary states, and main keys and values of the layers with streams.
//!
//! Computed by the fast engine when a step needs them; nothing is kept, on disk or otherwise. Source: Speculative
//! Streaming (arXiv 2402.11131), appendix C: segment attention.

use std::ops::Range;

use forestream_burn::Segment;
use forestream_model::{
    BLOCK_LEN, Checkpoint, CpuModel, DecoderConfig, Hidden, KvCache, LoadOptions, Model, ModelError, NodeId, Outputs,
    Row, TokenId, TokenTree,
};

use crate::data::Example;

/// Tokens of a pass.
const PASS_LEN: usize = 256;
/// Positions of a segment: attention scores grow with segments times contexts.
const SEGMENT_LEN: usize = 128;

/// The frozen model, which makes segments of examples.
pub(crate) struct FeatureExtractor {
    model: CpuModel,
    first_msa_layer: usize,
    num_streams: usize,
}

/// What a text leaves in the frozen model.
struct Trace {
    /// States where the streams begin, from some position on.
    boundary: Vec<f32>,
    /// Keys and values of all positions.
    cache: KvCache,
}

impl FeatureExtractor {
    /// Loads the frozen model.
    ///
    /// # Errors
    /// As [`CpuModel::load`].
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        first_msa_layer: usize,
        num_streams: usize,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        let mut model = CpuModel::load(checkpoint, options)?;
        model.keep_boundary(first_msa_layer);
        Ok(Self { model, first_msa_layer, num_streams })
    }

    /// The sizes of the model.
    pub(crate) fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    /// The positions of an example that have targets, in segments of consecutive ones.
    ///
    /// # Errors
    /// If a pass fails.
    pub(crate) fn segments(&self, example: &Example) -> Result<Vec<Segment>, ModelError> {
        let text = example.text();
        let first = example.prompt.len() - 1;
        let end = first + example.num_positions();
        let trace = self.run(&text[..end], first)?;
        let starts = (first..end).step_by(SEGMENT_LEN);
        Ok(starts.map(|start| self.segment(&text, &trace, first, start..(start + SEGMENT_LEN).min(end))).collect())
    }

    /// Runs `text` and keeps the boundary states from position `first` on.
    fn run(&self, text: &[TokenId], first: usize) -> Result<Trace, ModelError> {
        let mut cache = self.model.new_cache(text.len());
        let (mut hidden, mut boundary) = (Hidden::new(), Vec::new());
        let (before, kept) = text.split_at(first);
        let passes = before.chunks(PASS_LEN).map(|tokens| (tokens, Outputs::None));
        for (tokens, outputs) in passes.chain(kept.chunks(PASS_LEN).map(|tokens| (tokens, Outputs::All))) {
            let tree = TokenTree::chain(tokens);
            self.model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs }], &mut hidden)?;
            let nodes: Vec<NodeId> = tree.node_ids().collect();
            cache.commit(&nodes);
            for row in 0..hidden.num_rows() {
                boundary.extend_from_slice(hidden.boundary(row).expect("the model keeps the boundary"));
            }
        }
        Ok(Trace { boundary, cache })
    }

    fn segment(&self, text: &[TokenId], trace: &Trace, first: usize, positions: Range<usize>) -> Segment {
        let width = self.config().hidden_size;
        let layers = self.first_msa_layer..self.config().num_hidden_layers;
        let (keys, values) = layers.map(|layer| keys_and_values(&trace.cache, layer, positions.end)).unzip();
        let num_tokens = positions.len() + self.num_streams;
        let tokens = text[positions.start + 1..].iter().copied().chain(std::iter::repeat(0)).take(num_tokens);
        Segment {
            first_position: positions.start,
            boundary: trace.boundary[(positions.start - first) * width..(positions.end - first) * width].to_vec(),
            tokens: tokens.collect(),
            keys,
            values,
        }
    }
}

/// The first `context` keys and values of a layer, `[kv_heads, context, head_dim]` each.
fn keys_and_values(cache: &KvCache, layer: usize, context: usize) -> (Vec<f32>, Vec<f32>) {
    let shape = cache.shape();
    let (heads, width) = (shape.num_kv_heads, shape.head_dim);
    let mut keys = Vec::with_capacity(heads * context * width);
    let mut values = Vec::with_capacity(heads * context * width);
    for head in 0..heads {
        for start in (0..context).step_by(BLOCK_LEN) {
            let (block_keys, block_values) = cache.block(start / BLOCK_LEN, layer, head);
            let len = BLOCK_LEN.min(context - start);
            for row in 0..len {
                keys.extend((0..width).map(|channel| block_keys[channel * BLOCK_LEN + row].to_f32()));
            }
            values.extend(block_values[..len * width].iter().map(|x| x.to_f32()));
        }
    }
    (keys, values)
}
