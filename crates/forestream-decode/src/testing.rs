//! A model for tests: peaked laws that depend on every token of the path, as read back from the cache.
//!
//! Each pass writes every node's token and position into key and value rows, and computes hidden states from what it reads
//! back: of all committed slots, then of the node's ancestors. A row in the wrong slot, a wrong ancestor or a wrong commit
//! order changes the logits. The law leans on the last token and a bit of
//! the one before it, so that text repeats itself and drafting can help.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, AdapterConfig, Anchor, BaseModel, Calibration, StreamConfig, StreamIdentity,
    StreamPosition, Streams, TrainingMode,
};
use forestream_model::{
    BLOCK_LEN, CacheShape, DecoderConfig, Hidden, KvCache, Model, ModelError, NodeId, Outputs, RopeConfig, RopeScaling,
    RopeStyle, Row, TokenId,
};

use crate::random::mix;
#[cfg(test)]
use crate::{Draft, DraftRequest, Drafter, Limits, Random};

const SHAPE: CacheShape = CacheShape { num_layers: 2, num_kv_heads: 2, head_dim: 2 };
/// Half-precision numbers hold integers up to 2048 exactly.
const BASE: usize = 1024;
/// Four 16-bit pieces of each of two hashes.
const HIDDEN_SIZE: usize = 8;
/// How much of a stream's logits its own state decides: a draft from another state is another one.
const OPINION: f32 = 1.0;

/// What a prefix of the text comes down to.
#[derive(Clone, Copy, Debug, Default)]
struct Prefix {
    /// A hash of all (token, position) pairs.
    whole: u64,
    last: TokenId,
    before_last: TokenId,
}

impl Prefix {
    fn then(self, (token, position): (TokenId, usize)) -> Self {
        let pair = (u64::from(token) << 32) | position as u64;
        Self { whole: mix(self.whole ^ mix(pair.wrapping_add(1))), last: token, before_last: self.last }
    }
}

/// Is told the rows of a pass, and whether they are those of streams.
type WatchRows = dyn Fn(&[Row<'_>], bool) + Send + Sync;

/// What is called before each pass.
struct Watch(Box<WatchRows>);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// A model whose laws are hashes.
#[derive(Debug)]
pub struct FakeModel {
    config: DecoderConfig,
    /// How peaked the laws are; 0 is uniform.
    sharpness: f32,
    /// By node of the tree at hand.
    prefixes: Mutex<Vec<Prefix>>,
    num_passes: AtomicUsize,
    num_stream_passes: AtomicUsize,
    num_fused_passes: AtomicUsize,
    num_depths: AtomicUsize,
    watch: Option<Watch>,
    max_nodes: AtomicUsize,
    adapter: AdapterConfig,
    /// The tokens that streams can propose: not in the order of their ids.
    draft_vocabulary: Vec<TokenId>,
}

impl FakeModel {
    /// A model over `vocab_size` tokens.
    pub fn new(vocab_size: usize, sharpness: f32) -> Self {
        let config = DecoderConfig {
            architecture: "llama".to_owned(),
            hidden_size: HIDDEN_SIZE,
            intermediate_size: HIDDEN_SIZE,
            num_hidden_layers: SHAPE.num_layers,
            num_attention_heads: SHAPE.num_kv_heads,
            num_key_value_heads: SHAPE.num_kv_heads,
            head_dim: SHAPE.head_dim,
            vocab_size,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope: RopeConfig { theta: 10000.0, style: RopeStyle::Halves, scaling: RopeScaling::None },
            tie_word_embeddings: true,
            has_qkv_bias: false,
            has_qk_norm: false,
        };
        let draft_vocabulary = (0..vocab_size as TokenId).rev().filter(|token| token % 5 != 4).collect();
        let adapter = adapter(&config);
        Self {
            config,
            sharpness,
            prefixes: Mutex::default(),
            num_passes: AtomicUsize::new(0),
            num_stream_passes: AtomicUsize::new(0),
            num_fused_passes: AtomicUsize::new(0),
            num_depths: AtomicUsize::new(0),
            watch: None,
            max_nodes: AtomicUsize::new(0),
            adapter,
            draft_vocabulary,
        }
    }

    /// Rates proposals by the calibration of their depth.
    #[must_use]
    pub fn calibrated(mut self, calibration: Vec<Calibration>) -> Self {
        self.adapter.calibration = calibration;
        self
    }

    /// Has so many streams instead of three.
    #[must_use]
    pub fn with_streams(mut self, num_streams: usize) -> Self {
        self.adapter.streams.num_streams = num_streams;
        self
    }

    /// Calls `watch` before each pass and each deferred stream pass, with its rows and whether they are those of streams.
    #[must_use]
    pub fn watched(mut self, watch: impl Fn(&[Row<'_>], bool) + Send + Sync + 'static) -> Self {
        self.watch = Some(Watch(Box::new(watch)));
        self
    }

    /// Passes so far.
    pub fn num_passes(&self) -> usize {
        self.num_passes.load(Ordering::Relaxed)
    }

    /// Deferred stream passes so far.
    pub fn num_stream_passes(&self) -> usize {
        self.num_stream_passes.load(Ordering::Relaxed)
    }

    /// Fused stream passes so far.
    pub fn num_fused_passes(&self) -> usize {
        self.num_fused_passes.load(Ordering::Relaxed)
    }

    /// Depths of drafts so far for which the parents were asked.
    pub fn num_depths(&self) -> usize {
        self.num_depths.load(Ordering::Relaxed)
    }

    /// The most nodes that any tree of a pass has had since the last call.
    pub fn take_max_nodes(&self) -> usize {
        self.max_nodes.swap(0, Ordering::Relaxed)
    }

    /// The logits after the given hashes.
    fn logit(&self, state: &[f32], token: usize) -> f32 {
        let hash = |pieces: &[f32]| pieces.iter().fold(0, |hash, &piece| (hash << 16) | piece as u64);
        let (whole, recent) = (hash(&state[..4]), hash(&state[4..]));
        let surprise = unit(whole.wrapping_add(token as u64 * 0x79b9));
        self.sharpness * (leaning(recent, token as TokenId) + 0.25 * surprise)
    }

    fn begin(&self, rows: &[Row<'_>], of_streams: bool) {
        if let Some(Watch(watch)) = &self.watch {
            watch(rows, of_streams);
        }
    }

    fn check(&self, row: &Row<'_>) -> Result<(), ModelError> {
        let vocab_size = self.config.vocab_size;
        for node in row.tree.node_ids() {
            let token = row.tree.token(node);
            if token as usize >= vocab_size {
                return Err(ModelError::TokenOutOfRange { token, vocab_size });
            }
        }
        Ok(())
    }

    /// Writes the rows of a tree, then derives each node's prefix from what it reads back.
    fn run(row: &mut Row<'_>, prefixes: &mut Vec<Prefix>) {
        let (len, tree) = (row.cache.len(), row.tree);
        for node in tree.node_ids() {
            write_slot(row.cache, len + node.index(), tree.token(node), len + tree.depth(node));
        }
        let committed = (0..len).fold(Prefix::default(), |prefix, slot| prefix.then(read_slot(row.cache, slot)));
        prefixes.clear();
        for node in tree.node_ids() {
            let before = tree.parent(node).map_or(committed, |parent: NodeId| prefixes[parent.index()]);
            prefixes.push(before.then(read_slot(row.cache, len + node.index())));
        }
    }
}

/// A hash of the last two tokens of a text.
fn recent(before_last: TokenId, last: TokenId) -> u64 {
    mix((u64::from(before_last % 2) << 32) | u64::from(last))
}

/// The second hash of a state.
fn hash_of_boundary(state: &[f32]) -> u64 {
    state[4..].iter().fold(0, |hash, &piece| (hash << 16) | piece as u64)
}

/// How much a text that ends in these tokens leans to `token`.
fn leaning(recent: u64, token: TokenId) -> f32 {
    unit(recent.wrapping_add(u64::from(token) * 0x9e37)).powi(3)
}

fn unit(number: u64) -> f32 {
    (mix(number) >> 40) as f32 / (1_u64 << 24) as f32
}

/// Three streams in the second layer.
fn adapter(config: &DecoderConfig) -> AdapterConfig {
    AdapterConfig {
        format_version: ADAPTER_FORMAT_VERSION,
        base_model: BaseModel {
            name: "fake".to_owned(),
            fingerprint: String::new(),
            architecture: config.architecture.clone(),
        },
        mode: TrainingMode::Lossless,
        streams: StreamConfig {
            num_streams: 3,
            num_msa_layers: 1,
            position: StreamPosition::Following,
            identity: StreamIdentity::Embedding,
            token_conditioning: false,
            sampler_size: Some(4),
            intermediate_size: None,
            draft_vocab_size: None,
            early_exit_rank: None,
        },
        lora: None,
        main_lora: None,
        calibration: Vec::new(),
    }
}

/// Layer `l`, head `h` keeps token and position, each in two digits, marked by layer and head.
fn write_slot(cache: &mut KvCache, slot: usize, token: TokenId, position: usize) {
    let token = token as usize;
    for layer in 0..SHAPE.num_layers {
        let mark = |number: usize, head: usize| ((number + layer + 2 * head) % BASE) as f32;
        let key = [mark(token % BASE, 0), mark(token / BASE, 0), mark(token % BASE, 1), mark(token / BASE, 1)];
        let value =
            [mark(position % BASE, 0), mark(position / BASE, 0), mark(position % BASE, 1), mark(position / BASE, 1)];
        cache.write(layer, slot, &key, &value);
    }
}

/// Token and position of a slot.
///
/// # Panics
/// If layers or heads disagree: then a row was moved in parts.
fn read_slot(cache: &KvCache, slot: usize) -> (TokenId, usize) {
    let mut first = None;
    for layer in 0..SHAPE.num_layers {
        for head in 0..SHAPE.num_kv_heads {
            let (keys, values) = cache.block(slot / BLOCK_LEN, layer, head);
            let lane = slot % BLOCK_LEN;
            let digit = |number: f32| (number as usize + 2 * BASE - layer - 2 * head) % BASE;
            let key = |channel: usize| digit(keys[channel * BLOCK_LEN + lane].to_f32());
            let value = |channel: usize| digit(values[lane * SHAPE.head_dim + channel].to_f32());
            let row = ((key(0) + BASE * key(1)) as TokenId, value(0) + BASE * value(1));
            assert_eq!(*first.get_or_insert(row), row, "layer {layer}, head {head} of slot {slot}");
        }
    }
    first.expect("there is at least one layer")
}

/// An early exit that believes in no token that three divides.
fn prune(rows: &[Row<'_>], hidden: &mut Hidden) {
    if !rows.iter().any(|row| matches!(row.outputs, Outputs::Pruned(_))) {
        return;
    }
    let mut kept = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let is_doubted = |node: NodeId| node != NodeId::ROOT && row.tree.token(node) % 3 == 0;
        let passes = |node: NodeId| {
            let path = std::iter::successors(Some(node), |&node| row.tree.parent(node));
            !matches!(row.outputs, Outputs::Pruned(_)) || !path.into_iter().any(is_doubted)
        };
        kept.extend(row.tree.node_ids().filter(|&node| passes(node)).filter_map(|node| hidden.row_of(index, node)));
    }
    hidden.keep(&kept);
}

impl Model for FakeModel {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::new(SHAPE, capacity)
    }

    fn forward(&self, rows: &mut [Row<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        rows.iter().try_for_each(|row| self.check(row))?;
        self.begin(rows, false);
        for row in rows.iter_mut() {
            row.cache.reserve(row.tree)?;
        }
        self.num_passes.fetch_add(1, Ordering::Relaxed);
        let mut prefixes = self.prefixes.lock().expect("no test panics while it holds the lock");
        let mut states = hidden.reset(rows, HIDDEN_SIZE).chunks_exact_mut(HIDDEN_SIZE);
        for row in rows.iter_mut() {
            self.max_nodes.fetch_max(row.tree.len(), Ordering::Relaxed);
            Self::run(row, &mut prefixes);
            for node in row.outputs.nodes(row.tree.len()) {
                let Prefix { whole, last, before_last } = prefixes[node];
                let pieces = [whole, recent(before_last, last)]
                    .into_iter()
                    .flat_map(|hash| [48, 32, 16, 0].map(|bits| hash >> bits));
                let state = states.next().expect("one state for each node that was asked for");
                for (channel, piece) in state.iter_mut().zip(pieces) {
                    *channel = f32::from(piece as u16);
                }
            }
        }
        hidden.keep_states_as_boundary();
        prune(rows, hidden);
        Ok(())
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        logits.clear();
        for row in rows {
            let state = hidden.state(row);
            logits.extend((0..self.config.vocab_size).map(|token| self.logit(state, token)));
        }
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(self)
    }
}

/// Streams that know the concrete parent, and lean a little to what the state says that they start from.
impl Streams for FakeModel {
    fn adapter(&self) -> &AdapterConfig {
        &self.adapter
    }

    fn num_parameters(&self) -> usize {
        self.adapter.num_parameters(&self.config)
    }

    fn draft_vocabulary(&self) -> &[TokenId] {
        &self.draft_vocabulary
    }

    fn run(&self, rows: &mut [Row<'_>], anchors: &[Anchor<'_>], states: &mut Hidden) -> Result<(), ModelError> {
        self.num_stream_passes.fetch_add(1, Ordering::Relaxed);
        self.begin(rows, true);
        for (row, anchor) in rows.iter_mut().zip(anchors) {
            let (last, len) = (*row.cache.tokens().last().expect("streams follow a committed token"), row.cache.len());
            let expected = recent(row.cache.tokens().get(len.wrapping_sub(2)).copied().unwrap_or(0), last);
            assert_eq!(
                hash_of_boundary(anchor.boundary),
                expected,
                "the boundary state is that of the last committed token"
            );
            row.cache.reserve(row.tree)?;
            for node in row.tree.node_ids() {
                write_slot(row.cache, len + node.index(), anchor.next_token, 999); // nobody may read this later
            }
        }
        states.reset(rows, HIDDEN_SIZE);
        let starts = rows.iter().zip(anchors).flat_map(|(row, anchor)| row.tree.node_ids().map(|_| anchor.boundary));
        for (state, boundary) in states.states_mut().chunks_exact_mut(HIDDEN_SIZE).zip(starts) {
            state.copy_from_slice(boundary);
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
        assert!(nodes.iter().all(|&node| hidden.row_of(sequence_index, node).is_some()));
        self.num_fused_passes.fetch_add(1, Ordering::Relaxed);
        let num_streams = self.adapter.streams.num_streams;
        row.cache.reserve_more(num_streams * nodes.len())?;
        let first = row.cache.len() + row.tree.len();
        for slot in first..first + num_streams * nodes.len() {
            write_slot(row.cache, slot, 1, 999); // nobody may read this later
        }
        states.resize(num_streams * nodes.len(), HIDDEN_SIZE);
        for (state, node) in states.states_mut().chunks_exact_mut(num_streams * HIDDEN_SIZE).zip(nodes) {
            let boundary = hidden.row_of(sequence_index, *node).and_then(|row| hidden.boundary(row));
            let boundary = boundary.expect("the pass left the states of all nodes");
            state.chunks_exact_mut(HIDDEN_SIZE).for_each(|state| state.copy_from_slice(boundary));
        }
        Ok(())
    }

    fn stream_logits(&self, states: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        logits.clear();
        for row in rows {
            let hash = hash_of_boundary(states.state(row));
            logits.extend(self.draft_vocabulary.iter().map(|token| OPINION * leaning(hash, *token)));
        }
    }

    fn parent_logits(&self, parents: &[TokenId], logits: &mut Vec<f32>) {
        self.num_depths.fetch_add(1, Ordering::Relaxed);
        logits.clear();
        for &parent in parents {
            let lean = |token: &TokenId| self.sharpness * leaning(recent(0, parent), *token);
            logits.extend(self.draft_vocabulary.iter().map(lean));
        }
    }
}

/// What `drafter` proposes after `context`, with a fake model as target.
#[cfg(test)]
pub(crate) fn propose(drafter: &mut dyn Drafter, context: &[TokenId], limits: Limits) -> Draft {
    let target = FakeModel::new(limits.vocab_size, 1.0);
    let mut draft = Draft::new(context[context.len() - 1]);
    let (cache, random) = (&mut target.new_cache(256), Random::draft(0));
    let (cost, expected) = (None, 0.0);
    let mut request = DraftRequest { target: &target, cache, context, limits, random, cost, expected };
    drafter.draft(&mut request, &mut draft).expect("the fake model refuses nothing");
    draft
}
