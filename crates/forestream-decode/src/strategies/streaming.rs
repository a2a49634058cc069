//! Speculative Streaming: the model's own streams guess the tokens after the next one.
//!
//! ```text
//! observe             keeps the boundary state of the accepted node
//! draft               asks for its streams, which run together with those of other sequences (deferred pass)
//! draft_from_streams  stream j proposes depth j, one parent after another
//! ```
//!
//! The logits of a depth are the stream's own plus what the concrete parent adds. A child's score is its parent's times the
//! calibrated probability of the proposal, so that the tree is ranked path by path; the budget keeps the best nodes. Scores
//! fall along every path, so a node that the budget drops among those of its depth and above has no descendant that it keeps.
//! Source: Speculative Streaming (arXiv 2402.11131); best-first trees: `DDTree` (arXiv 2604.12989); `docs/speculative-streaming.md`.

use forestream_model::streams::{Anchor, Calibration, Streams};
use forestream_model::{Hidden, NodeId, Outputs, Pruning, Row, TokenId, TokenTree};

use super::{Requires, Resources, Strategy};
use crate::budget::Price;
use crate::draft::{AwaitedStreams, DraftRequest, UnverifiedPass, VerifiedRound};
use crate::logits::{exponential::sum_of_exponentials, max};
use crate::worth::Worth;
use crate::{DecodeError, Draft, Drafter, Limits};

pub(super) static STRATEGY: Strategy = Strategy {
    name: "streaming",
    summary: "the model's own speculative streams, from a trained adapter",
    requires: Requires::Streams,
    build,
};

fn build(resources: &Resources<'_>) -> Result<Box<dyn Drafter>, DecodeError> {
    let StreamingOptions { pass, pruning, .. } = resources.streaming;
    let has_early_exit = resources.streams.is_some_and(|streams| streams.early_exit_rank.is_some());
    let needs_emitted_token = resources.streams.is_some_and(|streams| streams.token_conditioning);
    let missing = if pruning.is_some() && !has_early_exit {
        "an adapter with an early exit for pruning; train one with --early-exit-rank"
    } else if pass == StreamPass::Fused && needs_emitted_token {
        "an adapter without token conditioning for the fused pass, in which the emitted token is not known yet; train one \
         with --no-token-conditioning"
    } else {
        return Ok(Box::new(Streaming::new(resources.streaming)));
    };
    Err(DecodeError::MissingResource { strategy: STRATEGY.name, missing })
}

/// When streams run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamPass {
    /// After acceptance, for the accepted node alone.
    #[default]
    Deferred,
    /// Before verification, for every node of the tree, as in the paper. Streams with token conditioning cannot, since the
    /// emitted token is not known yet.
    Fused,
}

/// Which nodes a draft has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TreeShape {
    /// The most probable ones, whatever their depth.
    #[default]
    BestFirst,
    /// The same number of children for every node down to the last stream: the paper's static tree.
    Static {
        /// Children of each node (k).
        top_k: usize,
    },
}

/// How streams draft; never changes a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StreamingOptions {
    /// When streams run.
    pub pass: StreamPass,
    /// Which nodes a draft has.
    pub tree: TreeShape,
    /// Which draft tokens the early exit ends; `None` lets all pass.
    pub pruning: Option<Pruning>,
}

/// Children that a parent may have in a best-first tree.
const MAX_CHILDREN: usize = 8;
/// Parents of a depth whose children are looked at in a best-first tree.
const MAX_PARENTS: usize = 6;
/// Less probable nodes are not worth looking at.
const MIN_SCORE: f32 = 0.02;
/// Nor are tokens of a lower probability after their parent, before calibration.
const NEGLIGIBLE: f32 = 1e-4;
/// Columns that are looked at together.
const BLOCK: usize = 32;

/// Drafts from the streams of the last accepted node.
#[derive(Debug)]
pub struct Streaming {
    options: StreamingOptions,
    /// The nodes of the last pass whose streams have run, in the order of `states`; fused pass only.
    fused: Vec<NodeId>,
    /// The first row of the accepted node in `states`; fused pass only.
    accepted: Option<usize>,
    /// Boundary state of the last committed token; empty before the first round.
    boundary: Vec<f32>,
    worth: Worth,
    /// One node for each stream that is waited for.
    chain: TokenTree,
    is_waiting: bool,
    /// States of the streams of `fused`.
    states: Hidden,
    /// Logits of the accepted node's streams, `[streams, draft_vocabulary]`; fused pass only.
    fused_logits: Vec<f32>,
    /// `[parents, draft_vocabulary]`
    parent_logits: Vec<f32>,
    /// Logits of one parent's children, `[draft_vocabulary]`
    sums: Vec<f32>,
    /// Nodes of the depth above, best first.
    parents: Vec<Parent>,
    /// What the parents propose.
    children: Vec<Child>,
    /// Scores of the nodes so far that the budget can keep, falling.
    kept_scores: Vec<f32>,
    tokens: Vec<TokenId>,
    proposals: Vec<Proposal>,
}

/// A node that may get children.
#[derive(Clone, Copy, Debug)]
struct Parent {
    node: NodeId,
    token: TokenId,
    score: f32,
}

/// A node that may be added below `parent`.
#[derive(Clone, Copy, Debug)]
struct Child {
    parent: NodeId,
    token: TokenId,
    score: f32,
    /// Of equal scores the first one counts.
    order: usize,
}

/// A column of the logits that may be proposed.
#[derive(Clone, Copy, Debug)]
struct Proposal {
    column: u32,
    logit: f32,
}

impl Streaming {
    /// A drafter that has seen no round yet.
    pub fn new(options: StreamingOptions) -> Self {
        Self {
            options,
            fused: Vec::new(),
            accepted: None,
            boundary: Vec::new(),
            worth: Worth::default(),
            chain: TokenTree::root(0),
            is_waiting: false,
            states: Hidden::new(),
            fused_logits: Vec::new(),
            parent_logits: Vec::new(),
            sums: Vec::new(),
            parents: Vec::new(),
            children: Vec::new(),
            kept_scores: Vec::new(),
            tokens: Vec::new(),
            proposals: Vec::new(),
        }
    }

    /// Asks for the streams behind the last token of `context`.
    fn wait_for(&mut self, num_streams: usize, context: &[TokenId]) {
        let next_token = context[context.len() - 1];
        self.chain.reset(next_token);
        for _ in 1..num_streams {
            self.chain.push(self.chain.last(), next_token);
        }
        self.is_waiting = true;
    }

    /// Grows the tree depth by depth from `logits`, `[streams, draft_vocabulary]`, as far as nodes can pay where passes have a
    /// `price`.
    fn grow(
        &mut self,
        streams: &dyn Streams,
        logits: &[f32],
        (limits, price): (Limits, Option<Price<'_>>),
        draft: &mut Draft,
    ) {
        self.parents.clear();
        self.parents.push(Parent { node: NodeId::ROOT, token: draft.tree().token(NodeId::ROOT), score: 1.0 });
        self.kept_scores.clear();
        self.kept_scores.push(1.0);
        let min_score = match self.options.tree {
            TreeShape::BestFirst => limits.min_score.max(MIN_SCORE),
            TreeShape::Static { .. } => 0.0,
        };
        let limits = Limits { min_score, ..limits };
        for (stream_index, own) in logits.chunks_exact(streams.draft_vocabulary().len()).enumerate() {
            if let Some(price) = price.filter(|_| self.options.tree == TreeShape::BestFirst) {
                let best = price.best_rate(&self.kept_scores);
                self.parents.retain(|parent| price.can_pay(&self.kept_scores, parent.score, best));
            }
            if self.parents.is_empty() {
                break;
            }
            self.find_children(streams, stream_index, own, limits);
            self.add_children(limits.max_nodes, draft);
        }
    }

    /// Finds what all parents of one depth propose; `own` are the logits of its stream.
    fn find_children(&mut self, streams: &dyn Streams, stream_index: usize, own: &[f32], limits: Limits) {
        let wanted = match self.options.tree {
            TreeShape::BestFirst => (MAX_CHILDREN, NEGLIGIBLE),
            TreeShape::Static { top_k } => (top_k, 0.0),
        };
        let vocabulary = streams.draft_vocabulary();
        let calibration = streams.adapter().calibration.get(stream_index).copied().unwrap_or_default();
        self.tokens.clear();
        self.tokens.extend(self.parents.iter().map(|parent| parent.token));
        streams.parent_logits(&self.tokens, &mut self.parent_logits);
        self.children.clear();
        for (index, parent) in self.parents.iter().enumerate() {
            let added = match self.parent_logits.len() {
                0 => &[],
                _ => &self.parent_logits[index * vocabulary.len()..][..vocabulary.len()],
            };
            let log_sum = find_proposals([own, added], wanted, &mut self.sums, &mut self.proposals);
            for proposal in &self.proposals {
                let score = parent.score * probability(*proposal, log_sum, calibration);
                if score < limits.min_score {
                    break;
                }
                let (token, order) = (vocabulary[proposal.column as usize], self.children.len());
                if (token as usize) < limits.vocab_size {
                    let score = if score > 0.0 { score.min(parent.score) } else { 0.0 }; // as the draft will have it
                    self.children.push(Child { parent: parent.node, token, score, order });
                }
            }
        }
    }

    /// Adds those children that the budget can keep beside the nodes so far, and makes the best of them the next parents.
    fn add_children(&mut self, max_nodes: usize, draft: &mut Draft) {
        let max_parents = match self.options.tree {
            TreeShape::BestFirst => MAX_PARENTS,
            TreeShape::Static { .. } => usize::MAX,
        };
        self.children.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.order.cmp(&b.order)));
        self.parents.clear();
        let num_before = self.kept_scores.len();
        for (index, child) in self.children.iter().enumerate() {
            // Of equal scores the budget keeps the node that was added first.
            let num_better = self.kept_scores[..num_before].partition_point(|&score| score >= child.score) + index;
            if num_better >= max_nodes {
                break;
            }
            let node = draft.push(child.parent, child.token, child.score);
            self.kept_scores.push(child.score);
            if self.parents.len() < max_parents {
                self.parents.push(Parent { node, token: child.token, score: child.score });
            }
        }
        self.kept_scores.sort_unstable_by(|a, b| b.total_cmp(a));
        self.kept_scores.truncate(max_nodes);
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self::new(StreamingOptions::default())
    }
}

impl Drafter for Streaming {
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        let Some(streams) = request.target.streams() else { return Ok(()) };
        let room = request.cache.capacity() - request.cache.len();
        let num_streams = streams.adapter().streams.num_streams.min(request.limits.max_depth).min(room);
        if self.boundary.is_empty() || num_streams == 0 {
            return Ok(());
        }
        let num_streams = self.worth.decide(request.cost, num_streams, request.expected);
        if num_streams == 0 {
            return Ok(());
        }
        if let Some(pruning) = self.options.pruning {
            draft.set_pruning(pruning);
        }
        let Some(first) = self.accepted else {
            self.wait_for(num_streams, request.context);
            return Ok(());
        };
        // Before verification nobody knew which node would be accepted: the streams of all of them ran.
        let num_rows = self.fused.len() * streams.adapter().streams.num_streams;
        draft.add_seconds(request.cost.map_or(0.0, |cost| cost.draft_seconds(num_rows)));
        let mut logits = std::mem::take(&mut self.fused_logits);
        streams.stream_logits(&self.states, first..first + num_streams, &mut logits);
        let price = request.cost.map(|cost| Price { cost, draft_seconds: draft.seconds() });
        self.grow(streams, &logits, (request.limits, price), draft);
        self.fused_logits = logits;
        Ok(())
    }

    fn awaited_streams(&self) -> Option<AwaitedStreams<'_>> {
        let anchor = Anchor { boundary: &self.boundary, next_token: self.chain.token(NodeId::ROOT) };
        self.is_waiting.then_some(AwaitedStreams { chain: &self.chain, anchor })
    }

    fn draft_from_streams(
        &mut self,
        request: &mut DraftRequest<'_>,
        logits: &[f32],
        draft: &mut Draft,
    ) -> Result<(), DecodeError> {
        self.is_waiting = false;
        if let Some(streams) = request.target.streams() {
            let num_streams = self.chain.len();
            let price = request.cost.map(|cost| Price { cost, draft_seconds: cost.draft_seconds(num_streams) });
            self.grow(streams, logits, (request.limits, price), draft);
        }
        Ok(())
    }

    fn inspect(&mut self, pass: UnverifiedPass<'_>) -> Result<(), DecodeError> {
        self.fused.clear();
        // While the streams rest nobody would read their states.
        let is_wanted = self.options.pass == StreamPass::Fused && !self.worth.is_resting();
        let Some(streams) = pass.target.streams().filter(|_| is_wanted) else { return Ok(()) };
        let config = &streams.adapter().streams;
        let tree = pass.draft.tree();
        self.fused.extend(tree.node_ids().filter(|&node| pass.hidden.row_of(pass.sequence_index, node).is_some()));
        let room = pass.cache.capacity() - pass.cache.len() - tree.len();
        // Registered drafters have no token conditioning here, `build` sees to that; those of `Streaming::new` may.
        if config.token_conditioning || room < self.fused.len() * config.num_streams {
            self.fused.clear(); // the deferred pass will do
            return Ok(());
        }
        let mut row = Row { tree, cache: pass.cache, outputs: Outputs::All };
        Ok(streams.run_fused(&mut row, pass.hidden, pass.sequence_index, &self.fused, &mut self.states)?)
    }

    fn observe(&mut self, round: VerifiedRound<'_>) -> Result<(), DecodeError> {
        let last = round.path[round.path.len() - 1];
        let num_streams = round.target.streams().map_or(0, |streams| streams.adapter().streams.num_streams);
        self.accepted = self.fused.iter().position(|&node| node == last).map(|index| index * num_streams);
        let row = round.hidden.row_of(round.sequence_index, last);
        self.boundary.clear();
        if let Some(state) = row.and_then(|row| round.hidden.boundary(row)) {
            self.boundary.extend_from_slice(state);
        }
        self.worth.record(round.report, round.draft, round.num_emitted);
        Ok(())
    }
}

/// Sums the logits and finds the `num_children` best columns, best first, fewer where others are less probable than `floor`;
/// returns the logarithm of the sum of exponentials.
fn find_proposals(
    [own, added]: [&[f32]; 2],
    (num_children, floor): (usize, f32),
    sums: &mut Vec<f32>,
    proposals: &mut Vec<Proposal>,
) -> f32 {
    sums.clear();
    if added.is_empty() {
        sums.extend_from_slice(own);
    } else {
        sums.extend(own.iter().zip(added).map(|(own, added)| own + added));
    }
    let largest = max(sums);
    let log_sum = largest + sum_of_exponentials(sums, largest).ln();
    find_best(sums, num_children, log_sum + floor.ln(), proposals);
    log_sum
}

/// The `count` best columns, of equal ones the first, without those below `floor`.
fn find_best(logits: &[f32], count: usize, mut floor: f32, best: &mut Vec<Proposal>) {
    let by_logit = |a: &Proposal, b: &Proposal| b.logit.total_cmp(&a.logit).then(a.column.cmp(&b.column));
    best.clear();
    for (block, first) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        // Nearly all blocks have nothing to offer.
        if max(block) < floor {
            continue;
        }
        let proposals = (first..).zip(block).map(|(column, &logit)| Proposal { column, logit });
        best.extend(proposals.filter(|proposal| proposal.logit >= floor));
        if best.len() > count + BLOCK {
            best.select_nth_unstable_by(count, by_logit);
            best.truncate(count);
            floor = best.iter().fold(f32::INFINITY, |least, proposal| least.min(proposal.logit));
        }
    }
    best.sort_unstable_by(by_logit);
    best.truncate(count);
}

/// How probably the target agrees, given that it has agreed so far.
fn probability(proposal: Proposal, log_sum: f32, calibration: Calibration) -> f32 {
    calibration.apply((proposal.logit - log_sum).exp())
}

#[cfg(test)]
mod tests;
