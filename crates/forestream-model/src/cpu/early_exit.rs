//! The early exit: where the streams begin, a guess at the model's own next tokens tells which draft nodes go on.
//!
//! `E (h + B A h)` with `h` the normalized boundary state, `E` the head that drafts, and a trained low-rank map: the state is
//! not final yet, and the map makes up for the layers that are missing. Never changes a token, only how many are accepted.
//! Source: Speculative Streaming (arXiv 2402.11131), parallel tree draft pruning; `docs/speculative-streaming.md`.

use std::ops::Range;

use forestream_kernels::{Activations, matmul, rms_norm};

use super::CpuModel;
use super::low_rank::LowRank;
use crate::{NodeId, Outputs, Passing, Row, TokenId};

/// The early exit of an adapter, ready to run.
#[derive(Debug)]
pub(super) struct EarlyExit {
    pub(super) change: LowRank,
    /// By token: its row in the draft head, where it has one.
    pub(super) columns: Vec<Option<u32>>,
}

impl EarlyExit {
    /// Row `i` of the draft head belongs to `draft_vocabulary[i]`.
    pub(super) fn new(change: LowRank, draft_vocabulary: &[TokenId], vocab_size: usize) -> Self {
        let mut columns = vec![None; vocab_size];
        for (column, &token) in draft_vocabulary.iter().enumerate() {
            columns[token as usize] = Some(column as u32);
        }
        Self { change, columns }
    }
}

/// Buffers of an early exit.
#[derive(Debug, Default)]
pub(super) struct ExitScratch {
    /// The rows that go on, where not all do.
    pub(super) kept: Vec<usize>,
    /// The outputs among them.
    pub(super) outputs: Vec<usize>,
    /// Rows that have children.
    parents: Vec<usize>,
    /// By row: whether it goes on.
    is_kept: Vec<bool>,
    passing: Passing,
    /// Normalized states of the parents, `[parents, hidden_size]`.
    states: Vec<f32>,
    /// `[parents, rank]`
    inner: Vec<f32>,
    /// `[parents, draft vocabulary]`
    logits: Vec<f32>,
    /// By parent: the logarithm of the sum of its logits' exponentials.
    log_sums: Vec<f32>,
}

impl CpuModel {
    /// Finds the rows of a pass that go on behind the boundary, into `scratch.kept`; returns whether some do not.
    ///
    /// `residual` has the states of all rows, `[rows, hidden_size]`.
    pub(super) fn early_exit(
        &self,
        rows: &[Row<'_>],
        residual: &[f32],
        activations: &mut Activations,
        scratch: &mut ExitScratch,
    ) -> bool {
        let Some(exit) = self.streams.as_ref().and_then(|streams| streams.early_exit.as_ref()) else { return false };
        scratch.find_parents(rows);
        if scratch.parents.is_empty() {
            return false;
        }
        self.exit_logits(exit, residual, activations, scratch);
        scratch.choose(rows, &exit.columns);
        let num_rows = scratch.is_kept.len();
        scratch.kept.clear();
        scratch.kept.extend((0..num_rows).filter(|&row| scratch.is_kept[row]));
        scratch.kept.len() < num_rows
    }

    /// Logits of all parents, and the logarithms of their sums.
    fn exit_logits(
        &self,
        exit: &EarlyExit,
        residual: &[f32],
        activations: &mut Activations,
        scratch: &mut ExitScratch,
    ) {
        let (width, shape) = (self.config.hidden_size, [scratch.parents.len(), self.config.hidden_size]);
        let (states, inner, logits) = (&mut scratch.states, &mut scratch.inner, &mut scratch.logits);
        states.resize(shape[0] * width, 0.0);
        for (to, &row) in states.chunks_exact_mut(width).zip(&scratch.parents) {
            rms_norm(self.isa, &residual[row * width..][..width], &self.norm, self.config.rms_norm_eps, to);
        }
        let fill = |activations: &mut Activations, states: &[f32]| {
            activations
                .fill(&self.pool, self.isa, shape, &|row, to| to.copy_from_slice(&states[row * width..][..width]));
        };
        fill(activations, states);
        exit.change.reduce(&self.pool, self.isa, activations, inner);
        for (row, to) in states.chunks_exact_mut(width).enumerate() {
            exit.change.add(self.isa, inner, row, (0, to));
        }
        fill(activations, states);
        let head = self.draft_head();
        logits.resize(shape[0] * head.rows(), 0.0);
        matmul(&self.pool, self.isa, activations, std::slice::from_ref(head), logits);
        scratch.log_sums.clear();
        scratch.log_sums.extend(logits.chunks_exact(head.rows()).map(log_sum_exp));
    }
}

impl ExitScratch {
    /// The rows with children, of all trees that may be pruned.
    fn find_parents(&mut self, rows: &[Row<'_>]) {
        self.parents.clear();
        for (row, range) in with_ranges(rows) {
            if let Outputs::Pruned(_) = row.outputs {
                let first = self.parents.len();
                let parents = row.tree.node_ids().filter_map(|node| row.tree.parent(node));
                self.parents.extend(parents.map(|parent| range.start + parent.index()));
                self.parents[first..].sort_unstable();
            }
        }
        self.parents.dedup();
    }

    /// Marks the rows that go on.
    fn choose(&mut self, rows: &[Row<'_>], columns: &[Option<u32>]) {
        let width = self.logits.len() / self.parents.len();
        self.is_kept.clear();
        for (row, range) in with_ranges(rows) {
            let Outputs::Pruned(pruning) = row.outputs else {
                self.is_kept.resize(range.end, true);
                continue;
            };
            let probability = |parent: NodeId, token: TokenId| {
                let column = columns[token as usize]? as usize;
                let index = self.parents.binary_search(&(range.start + parent.index())).ok()?;
                Some((self.logits[index * width + column] - self.log_sums[index]).exp())
            };
            self.is_kept.extend_from_slice(self.passing.decide(pruning, row.tree, probability));
        }
    }
}

/// Each sequence with the rows of its nodes in the pass.
fn with_ranges<'a, 'r>(rows: &'a [Row<'r>]) -> impl Iterator<Item = (&'a Row<'r>, Range<usize>)> {
    rows.iter().scan(0, |first, row| {
        let range = *first..*first + row.tree.len();
        *first = range.end;
        Some((row, range))
    })
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f32>().ln()
}
