//! The engine's streams and these are the same function.

use forestream_burn::{Segment, stream_logits, stream_states};
use forestream_model::streams::Anchor;
use forestream_model::{BLOCK_LEN, CpuModel, Hidden, KvCache, LoadOptions, Model, Outputs, Row, TokenId, TokenTree};

use crate::case::{CASES, Case, JOINT_CASES, Options};
use crate::data;

/// The engine rounds stream keys and values to half precision (an error of 2^-11 each); these rows do not.
const MAX_ERROR: f64 = 1e-3;

/// All positions of a text, with boundary states, keys and values of the engine's own pass.
#[test]
fn states_and_logits_are_those_of_the_engine() {
    for options in CASES.iter().chain(JOINT_CASES) {
        let case = Case::new(options);
        let engine = Engine::new(&case);
        let (segment, tokens) = engine.segment(&case, options);
        let (expected_states, expected_logits) = engine.run(&segment, &tokens, options);
        let segments = [segment];
        let weights = case.weights();
        let states = data(stream_states(&case.base, &weights, &segments).unwrap());
        let logits = data(stream_logits(&case.base, &weights, &segments).unwrap());
        for (got, expected, what) in [(states, expected_states, "states"), (logits, expected_logits, "logits")] {
            let error = relative_error(&got, &expected);
            assert!(error <= MAX_ERROR, "{options:?}: {what} differ by {error:.1e}");
        }
    }
}

/// The engine with a case's adapter.
pub(crate) struct Engine {
    pub(crate) model: CpuModel,
}

impl Engine {
    pub(crate) fn new(case: &Case) -> Self {
        let mut model = CpuModel::load(&case.checkpoint, LoadOptions::default()).unwrap();
        model.attach(case.adapter(), &case.checkpoint).unwrap();
        Self { model }
    }

    /// A segment of all positions but the last ones, and the tokens of the text from its start.
    pub(crate) fn segment(&self, case: &Case, options: &Options) -> (Segment, Vec<TokenId>) {
        let num_positions = 40; // across a block border of the cache
        let tokens = case.segment(0, num_positions + 1, 3).tokens;
        let (cache, hidden) = self.prefill(&tokens[..num_positions]);
        let boundary = (0..num_positions).flat_map(|row| hidden.boundary(row).unwrap()).copied().collect();
        let num_layers = case.base.decoder().num_hidden_layers;
        let first = case.base.adapter().first_msa_layer(case.base.decoder());
        let (keys, values) = (first..num_layers).map(|layer| planes(&cache, layer)).unzip();
        let next = tokens[1..][..num_positions + options.num_streams].to_vec();
        (Segment { first_position: 0, boundary, tokens: next, keys, values }, tokens)
    }

    pub(crate) fn prefill(&self, tokens: &[TokenId]) -> (KvCache, Hidden) {
        let mut cache = self.model.new_cache(64);
        let tree = TokenTree::chain(tokens);
        let mut hidden = Hidden::new();
        let mut rows = [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }];
        self.model.forward(&mut rows, &mut hidden).unwrap();
        cache.commit(&tree.path(tree.last()));
        (cache, hidden)
    }

    /// States and logits of each position's streams, run after its acceptance.
    pub(crate) fn run(&self, segment: &Segment, tokens: &[TokenId], options: &Options) -> (Vec<f32>, Vec<f32>) {
        let streams = self.model.streams().unwrap();
        let width = self.model.config().hidden_size;
        let (mut all_states, mut all_logits) = (Vec::new(), Vec::new());
        for (position, boundary) in segment.boundary.chunks_exact(width).enumerate() {
            let (mut cache, _) = self.prefill(&tokens[..=position]);
            let tree = TokenTree::chain(&vec![0; options.num_streams]);
            let mut states = Hidden::new();
            let mut row = [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }];
            let anchor = Anchor { boundary, next_token: segment.tokens[position] };
            streams.run(&mut row, &[anchor], &mut states).unwrap();
            all_states.extend_from_slice(states.states(0..options.num_streams));
            let (mut logits, mut of_parents) = (Vec::new(), Vec::new());
            streams.stream_logits(&states, 0..options.num_streams, &mut logits);
            streams.parent_logits(&segment.tokens[position..][..options.num_streams], &mut of_parents);
            of_parents.resize(logits.len(), 0.0); // without a sampler
            all_logits.extend(logits.iter().zip(&of_parents).map(|(a, b)| a + b));
        }
        (all_states, all_logits)
    }
}

/// Keys and values of one layer of committed rows, `[kv_heads, positions, head_dim]`.
fn planes(cache: &KvCache, layer: usize) -> (Vec<f32>, Vec<f32>) {
    let shape = cache.shape();
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for head in 0..shape.num_kv_heads {
        for slot in 0..cache.len() {
            let (block_keys, block_values) = cache.block(slot / BLOCK_LEN, layer, head);
            let lane = slot % BLOCK_LEN;
            keys.extend((0..shape.head_dim).map(|channel| block_keys[channel * BLOCK_LEN + lane].to_f32()));
            values.extend(block_values[lane * shape.head_dim..][..shape.head_dim].iter().map(|x| x.to_f32()));
        }
    }
    (keys, values)
}

pub(crate) fn relative_error(values: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(values.len(), reference.len());
    let square = |value: f64| value * value;
    let difference: f64 = values.iter().zip(reference).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = reference.iter().map(|&value| square(value.into())).sum();
    (difference / norm).sqrt()
}
