//! What trained rows read of the frozen model: boundary states, and where main rows stay as they are, their keys and
//! values in the layers with streams.
//!
//! Computed by the fast engine when a step first needs them and kept for later epochs as far as memory allows; nothing goes
//! to the disk. Source: Speculative Streaming (arXiv 2402.11131), appendix C: segment attention.

use std::ops::Range;

use forestream_burn::{JointText, Segment};
use forestream_model::streams::Adapter;
use forestream_model::{
    BLOCK_LEN, Checkpoint, CpuModel, DecoderConfig, Hidden, KvCache, LoadOptions, Model, ModelError, NodeId, Outputs,
    Row, TokenId, TokenTree,
};
use half::f16;

use crate::data::Example;
use crate::objective::softmax;
use crate::targets::Teacher;
use crate::trace_memory::{LayerTrace, Trace, TraceMemory};

/// Tokens of a pass.
const PASS_LEN: usize = 256;

/// The frozen model, which makes segments of examples.
pub(crate) struct FeatureExtractor {
    model: CpuModel,
    first_layer: usize,
    num_streams: usize,
    /// The most positions of a segment.
    segment_len: usize,
    /// The tokens whose probabilities streams learn from; none where they learn from the text.
    taught: Option<Vec<TokenId>>,
    /// The cache of the last text: most prompts begin alike, and what they share is not computed again.
    last: Option<KvCache>,
    /// The boundary states of the last text from its first position on, where all positions are asked for.
    last_boundary: Vec<f32>,
    /// What earlier epochs computed.
    memory: TraceMemory,
}

impl FeatureExtractor {
    /// Loads the frozen model; layers from `first_layer` on are trained. Segments are whole examples, and nothing is kept
    /// for later epochs.
    ///
    /// # Errors
    /// As [`CpuModel::load`].
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        first_layer: usize,
        num_streams: usize,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        let mut model = CpuModel::load(checkpoint, options)?;
        model.keep_boundary(first_layer);
        let memory = TraceMemory::new(0);
        let (segment_len, last_boundary) = (usize::MAX, Vec::new());
        Ok(Self { model, first_layer, num_streams, segment_len, taught: None, last: None, last_boundary, memory })
    }

    /// Cuts examples into segments of at most `segment_len` positions.
    pub(crate) fn cut(&mut self, segment_len: usize) {
        self.segment_len = segment_len;
    }

    /// Keeps what is computed for later epochs, up to `max_bytes`.
    pub(crate) fn remember(&mut self, max_bytes: usize) {
        self.memory = TraceMemory::new(max_bytes);
    }

    /// Takes the model that `adapter` makes of the base instead.
    ///
    /// # Errors
    /// As [`CpuModel::attach`].
    pub(crate) fn fit(&mut self, adapter: &Adapter, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        self.model.attach(adapter.clone(), checkpoint)?;
        self.model.keep_boundary(self.first_layer);
        Ok(())
    }

    /// Adds the model's own distributions over `tokens` to what is extracted.
    pub(crate) fn teach(&mut self, tokens: Vec<TokenId>) {
        self.taught = Some(tokens);
    }

    /// The sizes of the model.
    pub(crate) fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    /// The positions of an example that have targets, in segments of consecutive ones with their teachers, if any.
    ///
    /// # Errors
    /// If a pass fails.
    pub(crate) fn segments(&mut self, example: &Example) -> Result<Vec<(Segment, Option<Teacher>)>, ModelError> {
        let text = example.text();
        let first = example.prompt.len() - 1;
        let end = first + example.num_positions();
        let trace = if let Some(trace) = self.memory.get(example) {
            trace
        } else {
            let text = &text[..end + usize::from(self.taught.is_some())];
            let trace = self.run(text, first, end)?;
            self.memory.keep(example, trace)
        };
        let starts = (first..end).step_by(self.segment_len);
        let segment = |start: usize| {
            let positions = start..start.saturating_add(self.segment_len).min(end);
            let teacher = self.teacher(&trace, first, &positions);
            (self.segment(&text, &trace, first, positions), teacher)
        };
        Ok(starts.map(segment).collect())
    }

    /// All positions of an example that have targets, for a pass in which main rows are trained too.
    ///
    /// # Errors
    /// If a pass fails.
    pub(crate) fn joint_text(&mut self, example: &Example) -> Result<JointText, ModelError> {
        let text = example.text();
        let first = example.prompt.len() - 1;
        let streams = first..first + example.num_positions();
        let num_tokens = streams.end + self.num_streams;
        let read = &text[..text.len() - 1];
        let trace = if let Some(trace) = self.memory.get(example) {
            trace
        } else {
            let shared = self.shared_len(&read[..read.len() - 1]);
            let added = self.run(read, shared, 0)?;
            self.last_boundary.truncate(shared * self.config().hidden_size);
            self.last_boundary.extend(&added.boundary);
            self.memory.keep(example, Trace { boundary: self.last_boundary.clone(), ..added })
        };
        let boundary = trace.boundary.clone();
        let tokens = text[1..].iter().copied().chain(std::iter::repeat(0)).take(num_tokens).collect();
        Ok(JointText { boundary, tokens, main: first..read.len(), streams })
    }

    /// Runs `text` and takes the boundary states from position `first` on, and the keys and values of `context` positions.
    fn run(&mut self, text: &[TokenId], first: usize, context: usize) -> Result<Trace, ModelError> {
        let mut cache = self.cache_for(&text[..first]);
        let (mut hidden, mut boundary, mut probabilities) = (Hidden::new(), Vec::new(), Vec::new());
        let (before, kept) = (&text[cache.len()..first], &text[first..]);
        let passes = before.chunks(PASS_LEN).map(|tokens| (tokens, Outputs::None));
        for (tokens, outputs) in passes.chain(kept.chunks(PASS_LEN).map(|tokens| (tokens, Outputs::All))) {
            let tree = TokenTree::chain(tokens);
            self.model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs }], &mut hidden)?;
            let nodes: Vec<NodeId> = tree.node_ids().collect();
            cache.commit(&nodes);
            for row in 0..hidden.num_rows() {
                boundary.extend_from_slice(hidden.boundary(row).expect("the model keeps the boundary"));
            }
            if let Some(tokens) = &self.taught {
                self.add_probabilities(&hidden, tokens, &mut probabilities);
            }
        }
        let layers = self.first_layer..self.config().num_hidden_layers;
        let layers = layers.map(|layer| layer_trace(&cache, layer, context)).collect();
        self.last = Some(cache);
        Ok(Trace { boundary, probabilities, layers })
    }

    /// A cache that has what the last text shares with `prompt`.
    fn cache_for(&self, prompt: &[TokenId]) -> KvCache {
        let capacity = self.config().max_position_embeddings;
        match &self.last {
            Some(last) => last.fork(self.shared_len(prompt)),
            None => self.model.new_cache(capacity),
        }
    }

    /// How many tokens the last text and `prompt` begin with alike.
    fn shared_len(&self, prompt: &[TokenId]) -> usize {
        let last = self.last.as_ref().map_or([].as_slice(), KvCache::tokens);
        last.iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }

    /// Adds the softmax over `tokens` of each row.
    fn add_probabilities(&self, hidden: &Hidden, tokens: &[TokenId], probabilities: &mut Vec<f32>) {
        let mut logits = Vec::new();
        self.model.logits(hidden, 0..hidden.num_rows(), &mut logits);
        for logits in logits.chunks_exact(self.config().vocab_size) {
            let start = probabilities.len();
            probabilities.extend(tokens.iter().map(|&token| logits[token as usize]));
            softmax(&mut probabilities[start..]);
        }
    }

    /// The distributions of the positions after the first one, as far as streams foresee.
    fn teacher(&self, trace: &Trace, first: usize, positions: &Range<usize>) -> Option<Teacher> {
        let width = self.taught.as_ref()?.len();
        let last = trace.probabilities.len() / width;
        let rows = positions.start + 1 - first..(positions.end + self.num_streams - first).min(last);
        Some(Teacher { probabilities: trace.probabilities[rows.start * width..rows.end * width].to_vec(), width })
    }

    fn segment(&self, text: &[TokenId], trace: &Trace, first: usize, positions: Range<usize>) -> Segment {
        let width = self.config().hidden_size;
        let context = trace.layers.iter().map(|layer| self.keys_and_values(layer, positions.end));
        let (keys, values) = context.unzip();
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

    /// The first `len` keys and values of a layer, `[kv_heads, len, head_dim]` each.
    fn keys_and_values(&self, layer: &LayerTrace, len: usize) -> (Vec<f32>, Vec<f32>) {
        let heads = self.config().num_key_value_heads;
        let first = |all: &[f16]| {
            let of_head = all.chunks_exact(all.len() / heads);
            of_head.flat_map(|head| &head[..len * self.config().head_dim]).map(|x| x.to_f32()).collect()
        };
        (first(&layer.keys), first(&layer.values))
    }
}

/// The first `context` keys and values of a layer.
fn layer_trace(cache: &KvCache, layer: usize, context: usize) -> LayerTrace {
    let shape = cache.shape();
    let (heads, width) = (shape.num_kv_heads, shape.head_dim);
    let mut keys = Vec::with_capacity(heads * context * width);
    let mut values = Vec::with_capacity(heads * context * width);
    for head in 0..heads {
        for start in (0..context).step_by(BLOCK_LEN) {
            let (block_keys, block_values) = cache.block(start / BLOCK_LEN, layer, head);
            let len = BLOCK_LEN.min(context - start);
            for row in 0..len {
                keys.extend((0..width).map(|channel| block_keys[channel * BLOCK_LEN + row]));
            }
            values.extend(&block_values[..len * width]);
        }
    }
    LayerTrace { keys, values }
}
