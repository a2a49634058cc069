//! What trained rows read of the frozen model: boundary states, and where main rows stay as they are, their keys and
//! values in the layers with streams.
//!
//! Computed by the fast engine when a step first needs them and kept for later epochs as far as memory allows; nothing goes
//! to the disk. Source: Speculative Streaming (arXiv 2402.11131), appendix C: segment attention.

use std::ops::Range;
use std::sync::Arc;

use forestream_burn::{JointText, Segment};
use forestream_model::streams::Adapter;
use forestream_model::{
    BLOCK_LEN, Checkpoint, CpuModel, DecoderConfig, Hidden, Isa, KvCache, LoadOptions, Model, ModelError, NodeId,
    Outputs, Row, TokenId, TokenTree, exponentials,
};
use half::f16;

use crate::data::Example;
use crate::objective::maximum;
use crate::targets::Teacher;
use crate::trace_memory::{LayerTrace, Trace, TraceMemory};

/// Tokens of a pass.
const PASS_LEN: usize = 256;

/// A segment before its pass. It sees the keys and values of all positions before it and shares them with the other
/// segments of its text: copies would make the memory of a step grow with the square of a text's length.
#[derive(Clone, Debug)]
pub(crate) struct TracedSegment {
    trace: Arc<Trace>,
    /// The position of the trace's first boundary state.
    first_traced: usize,
    positions: Range<usize>,
    following: Vec<TokenId>,
    hidden_size: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl TracedSegment {
    /// The position of the first row.
    pub(crate) fn first_position(&self) -> usize {
        self.positions.start
    }

    /// The tokens after its positions, and one more for each stream.
    pub(crate) fn following(&self) -> &[TokenId] {
        &self.following
    }

    /// The same with numbers of its own, as a pass takes it.
    pub(crate) fn to_segment(&self) -> Segment {
        let [start, end] = [self.positions.start, self.positions.end]
            .map(|position| (position - self.first_traced) * self.hidden_size);
        Segment {
            first_position: self.positions.start,
            boundary: self.trace.boundary[start..end].to_vec(),
            tokens: self.following.clone(),
            keys: self.trace.layers.iter().map(|layer| self.visible(&layer.keys)).collect(),
            values: self.trace.layers.iter().map(|layer| self.visible(&layer.values)).collect(),
        }
    }

    /// What the last position sees of a layer's keys or values, `[kv_heads, positions, head_dim]`.
    fn visible(&self, all: &[f16]) -> Vec<f32> {
        let of_head = all.chunks_exact(all.len() / self.num_kv_heads);
        of_head.flat_map(|head| &head[..self.positions.end * self.head_dim]).map(|x| x.to_f32()).collect()
    }
}

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
    pub(crate) fn segments(&mut self, example: &Example) -> Result<Vec<(TracedSegment, Option<Teacher>)>, ModelError> {
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

    /// Adds the probabilities of `tokens` in each row. The softmax is over all tokens, so these add up to less than 1 where
    /// the model expects others.
    fn add_probabilities(&self, hidden: &Hidden, tokens: &[TokenId], probabilities: &mut Vec<f32>) {
        let mut logits = Vec::new();
        self.model.logits(hidden, 0..hidden.num_rows(), &mut logits);
        for logits in logits.chunks_exact_mut(self.config().vocab_size) {
            let (_, max) = maximum(logits);
            let sum = exponentials(Isa::best(), logits, max);
            probabilities.extend(tokens.iter().map(|&token| logits[token as usize] / sum));
        }
    }

    /// The distributions of the positions after the first one, as far as streams foresee.
    fn teacher(&self, trace: &Trace, first: usize, positions: &Range<usize>) -> Option<Teacher> {
        let width = self.taught.as_ref()?.len();
        let last = trace.probabilities.len() / width;
        let rows = positions.start + 1 - first..(positions.end + self.num_streams - first).min(last);
        Some(Teacher { probabilities: trace.probabilities[rows.start * width..rows.end * width].to_vec(), width })
    }

    fn segment(
        &self,
        text: &[TokenId],
        trace: &Arc<Trace>,
        first_traced: usize,
        positions: Range<usize>,
    ) -> TracedSegment {
        let num_tokens = positions.len() + self.num_streams;
        let following = text[positions.start + 1..].iter().copied().chain(std::iter::repeat(0)).take(num_tokens);
        TracedSegment {
            trace: Arc::clone(trace),
            first_traced,
            following: following.collect(),
            positions,
            hidden_size: self.config().hidden_size,
            num_kv_heads: self.config().num_key_value_heads,
            head_dim: self.config().head_dim,
        }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn extractor(segment_len: usize) -> FeatureExtractor {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut features = FeatureExtractor::load(&checkpoint, 1, 2, LoadOptions::default()).unwrap();
        features.cut(segment_len);
        features
    }

    fn example(len: usize) -> Example {
        Example { prompt: vec![1, 9], completion: (0..len as TokenId).map(|index| 5 + index % 97).collect() }
    }

    /// Numbers that the segments of a text hold until they are used: their own, and those of each trace once.
    fn num_held(len: usize) -> usize {
        let segments = extractor(8).segments(&example(len)).unwrap();
        let mut traces = Vec::<&Arc<Trace>>::new();
        for (segment, _) in &segments {
            if !traces.iter().any(|trace| Arc::ptr_eq(trace, &segment.trace)) {
                traces.push(&segment.trace);
            }
        }
        let of_layer = |layer: &LayerTrace| layer.keys.len() + layer.values.len();
        let of_trace = |trace: &&Arc<Trace>| trace.boundary.len() + trace.layers.iter().map(of_layer).sum::<usize>();
        let own: usize = segments.iter().map(|(segment, _)| segment.following.len()).sum();
        own + traces.iter().map(of_trace).sum::<usize>()
    }

    #[test]
    fn what_segments_hold_grows_as_the_text_does() {
        let [half, whole] = [100, 200].map(num_held);
        assert!(half > 100 * 64, "the states of all positions at least");
        assert!(whole < 2 * half + half / 10, "{whole} numbers of a text twice as long as one of {half}");
    }

    #[test]
    fn a_segment_sees_what_the_whole_text_sees_up_to_its_end() {
        let example = example(30);
        let whole = extractor(usize::MAX).segments(&example).unwrap().pop().unwrap().0.to_segment();
        let (width, head_len) = (64, whole.keys[0].len() / 2);
        let mut boundary = Vec::new();
        for (segment, _) in extractor(8).segments(&example).unwrap() {
            let segment = segment.to_segment();
            boundary.extend_from_slice(&segment.boundary);
            let end = segment.first_position + segment.boundary.len() / width;
            for (planes, all) in [(&segment.keys, &whole.keys), (&segment.values, &whole.values)] {
                let seen: Vec<f32> =
                    all[0].chunks_exact(head_len).flat_map(|head| &head[..end * 16]).copied().collect();
                assert_eq!(planes, &[seen], "up to position {end}");
            }
        }
        assert_eq!(boundary, whole.boundary);
    }

    #[test]
    fn a_teacher_has_the_probabilities_among_all_tokens() {
        let taught: Vec<TokenId> = vec![7, 3, 300];
        let (mut features, example) = (extractor(usize::MAX), example(12));
        features.teach(taught.clone());
        let (_, teacher) = features.segments(&example).unwrap().pop().unwrap();
        let (text, mut hidden, mut logits) = (example.text(), Hidden::new(), Vec::new());
        let (mut cache, tree) = (features.model.new_cache(64), TokenTree::chain(&text));
        let rows = &mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }];
        features.model.forward(rows, &mut hidden).unwrap();
        // Streams of the prompt's end foresee what the row after it does, and so on.
        for (index, row) in teacher.unwrap().probabilities.chunks_exact(taught.len()).enumerate() {
            let position = example.prompt.len() + index;
            features.model.logits(&hidden, position..position + 1, &mut logits);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            for (&token, &got) in taught.iter().zip(row) {
                let expected = f64::from(logits[token as usize]).exp() / sum;
                assert!((f64::from(got) / expected - 1.0).abs() < 1e-4, "{position} {token}: {got} {expected}");
            }
        }
    }
}
