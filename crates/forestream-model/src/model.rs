//! The interface of a target model: one pass over several token trees, logits only where asked.

use std::ops::Range;

use crate::streams::Streams;
use crate::{DecoderConfig, KvCache, ModelError, NodeId, Pruning, TokenTree};

/// Which nodes of a tree will be asked for logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outputs {
    /// None: the pass only fills the cache.
    None,
    /// The last node (the end of a prompt).
    Last,
    /// Every node (a draft under verification).
    All,
    /// Every node that the model's early exit lets pass; the others end where the streams begin. Every node, in a model
    /// without early exit.
    Pruned(Pruning),
}

impl Outputs {
    /// The nodes that this asks for in a tree of `len` nodes; always a range at the end of the tree.
    pub fn nodes(self, len: usize) -> Range<usize> {
        match self {
            Self::None => len..len,
            Self::Last => len - 1..len,
            Self::All | Self::Pruned(_) => 0..len,
        }
    }
}

/// One sequence's part of a pass.
#[derive(Debug)]
pub struct Row<'a> {
    /// What to run, after everything that the cache has committed.
    pub tree: &'a TokenTree,
    /// The sequence's cache; the pass writes one provisional row per node.
    pub cache: &'a mut KvCache,
    /// Which nodes will be asked for logits.
    pub outputs: Outputs,
}

/// Final hidden states (after the last norm) of the nodes that were asked for, reused between passes.
///
/// States lie sequence after sequence, node after node: `[rows, hidden_size]`.
#[derive(Debug, Default)]
pub struct Hidden {
    states: Vec<f32>,
    /// States of the same rows where the streams begin, `[rows, hidden_size]`; empty without streams.
    boundary: Vec<f32>,
    hidden_size: usize,
    /// The node of each row.
    nodes: Vec<usize>,
    /// The rows of each sequence.
    sequences: Vec<Range<usize>>,
}

impl Hidden {
    /// An empty holder; the first pass sizes it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for a pass and returns the states to fill, `[rows, hidden_size]`.
    pub fn reset(&mut self, rows: &[Row<'_>], hidden_size: usize) -> &mut [f32] {
        self.hidden_size = hidden_size;
        self.sequences.clear();
        self.nodes.clear();
        for row in rows {
            let first = self.nodes.len();
            self.nodes.extend(row.outputs.nodes(row.tree.len()));
            self.sequences.push(first..self.nodes.len());
        }
        self.states.clear();
        self.states.resize(self.nodes.len() * hidden_size, 0.0);
        self.boundary.clear();
        &mut self.states
    }

    /// Makes room for `num_rows` states that belong to no tree, and returns them, `[num_rows, hidden_size]`.
    pub fn resize(&mut self, num_rows: usize, hidden_size: usize) -> &mut [f32] {
        self.hidden_size = hidden_size;
        self.sequences.clear();
        self.nodes.clear();
        self.boundary.clear();
        self.states.clear();
        self.states.resize(num_rows * hidden_size, 0.0);
        &mut self.states
    }

    /// Makes room for the boundary states of the rows of [`Hidden::reset`] and returns it, `[rows, hidden_size]`.
    pub fn reset_boundary(&mut self) -> &mut [f32] {
        self.boundary.resize(self.states.len(), 0.0);
        &mut self.boundary
    }

    /// Takes the states for boundary states too, for a model whose streams begin behind its last layer.
    pub fn keep_states_as_boundary(&mut self) {
        self.boundary.clone_from(&self.states);
    }

    /// Drops all rows but these, given in their order; row `i` is then the former row `rows[i]`.
    pub fn keep(&mut self, rows: &[usize]) {
        let width = self.hidden_size;
        for (to, &from) in rows.iter().enumerate() {
            self.nodes[to] = self.nodes[from];
            for states in [&mut self.states, &mut self.boundary] {
                if !states.is_empty() {
                    states.copy_within(from * width..(from + 1) * width, to * width);
                }
            }
        }
        self.nodes.truncate(rows.len());
        self.states.truncate(rows.len() * width);
        self.boundary.truncate(rows.len() * width);
        for sequence in &mut self.sequences {
            let kept = |end: usize| rows.partition_point(|&row| row < end);
            *sequence = kept(sequence.start)..kept(sequence.end);
        }
    }

    /// The states to fill, `[rows, hidden_size]`.
    pub fn states_mut(&mut self) -> &mut [f32] {
        &mut self.states
    }

    /// Number of rows over all sequences.
    pub fn num_rows(&self) -> usize {
        self.states.len().checked_div(self.hidden_size).unwrap_or(0)
    }

    /// The row of `node` in sequence `sequence_index` of the pass; `None` where it was not asked for, or was pruned.
    pub fn row_of(&self, sequence_index: usize, node: NodeId) -> Option<usize> {
        let rows = self.sequences[sequence_index].clone();
        let offset = self.nodes[rows.clone()].binary_search(&node.index()).ok()?;
        Some(rows.start + offset)
    }

    /// The state of one row, `[hidden_size]`.
    pub fn state(&self, row: usize) -> &[f32] {
        &self.states[row * self.hidden_size..][..self.hidden_size]
    }

    /// The state of one row where the streams begin (`M` at layer L0, not normalized), `[hidden_size]`; `None` when the
    /// model does not keep it.
    pub fn boundary(&self, row: usize) -> Option<&[f32]> {
        self.boundary.get(row * self.hidden_size..(row + 1) * self.hidden_size)
    }

    /// The rows of sequence `sequence_index` of the pass.
    pub fn rows_of(&self, sequence_index: usize) -> Range<usize> {
        self.sequences[sequence_index].clone()
    }

    /// The states of consecutive rows, `[rows, hidden_size]`.
    pub fn states(&self, rows: Range<usize>) -> &[f32] {
        &self.states[rows.start * self.hidden_size..rows.end * self.hidden_size]
    }
}

/// A target model: token trees in, hidden states and logits out.
///
/// Implementations are batch-invariant: a node's hidden state and logits depend on the tokens of its own path and
/// committed prefix alone, bit for bit, whatever else is in the pass.
pub trait Model: Send + Sync {
    /// Sizes and switches.
    fn config(&self) -> &DecoderConfig;

    /// An empty cache for one sequence of at most `capacity` positions.
    fn new_cache(&self, capacity: usize) -> KvCache;

    /// One pass over every row's tree: appends provisional cache rows and fills `hidden`.
    ///
    /// # Errors
    /// A token outside the vocabulary, or more positions than a cache has room for; the caches are then unchanged.
    fn forward(&self, rows: &mut [Row<'_>], hidden: &mut Hidden) -> Result<(), ModelError>;

    /// Vocabulary logits of consecutive rows of `hidden`, written to `logits` as `[rows, vocab_size]`.
    fn logits(&self, hidden: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>);

    /// The speculative streams of this model; `None` without an adapter.
    fn streams(&self) -> Option<&dyn Streams> {
        None
    }
}
