//! A draft: a token tree with, for each node, how probable its acceptance is thought to be.
//!
//! Scores only steer the budget; a wrong score costs speed and never changes a token. A drafter that *drew* the children
//! of a node from a law of its own may say so (`set_draft_probs`), for acceptance by rejection.

use std::ops::Range;

use forestream_model::streams::Anchor;
use forestream_model::{Hidden, KvCache, Model, NodeId, Pruning, TokenId, TokenTree};

use crate::worth::PassReport;
use crate::{CostCurve, DecodeError, Random};

/// What a drafter may know and use.
pub struct DraftRequest<'a> {
    /// The model that will verify.
    pub target: &'a dyn Model,
    /// The sequence's cache, committed up to the last token but one. A drafter may use provisional rows; it must not commit.
    pub cache: &'a mut KvCache,
    /// Prompt and answer so far; the last token is the root.
    pub context: &'a [TokenId],
    /// How large the tree may be.
    pub limits: Limits,
    /// The drafter's own random numbers; the target never uses them.
    pub random: Random,
    /// What passes cost, where that is known and decides.
    pub cost: Option<&'a CostCurve>,
    /// How many tokens other drafters expect the round to accept of what they have proposed already.
    pub expected: f32,
}

/// How large a tree may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The most nodes, root included; at least 1.
    pub max_nodes: usize,
    /// The greatest depth of a node; 0 allows the root alone.
    pub max_depth: usize,
    /// Tokens from here on do not exist.
    pub vocab_size: usize,
    /// Nodes of a lower score will not be verified.
    pub min_score: f32,
}

/// Streams of the target that a draft waits for.
pub struct AwaitedStreams<'a> {
    /// A chain with one node for each stream; its tokens are not read.
    pub chain: &'a TokenTree,
    /// Where the streams start.
    pub anchor: Anchor<'a>,
}

/// A pass before its verification.
pub struct UnverifiedPass<'a> {
    /// The model that ran it.
    pub target: &'a dyn Model,
    /// The tree that went through it.
    pub draft: &'a Draft,
    /// Hidden states of the pass; rows are found with `hidden.row_of(sequence_index, node)`.
    pub hidden: &'a Hidden,
    /// Which sequence of the pass this is.
    pub sequence_index: usize,
    /// The sequence's cache with the tree's provisional rows. A drafter may add rows behind them.
    pub cache: &'a mut KvCache,
}

/// A round after verification: what a drafter may learn from.
pub struct VerifiedRound<'a> {
    /// The model that verified.
    pub target: &'a dyn Model,
    /// The tree that went through the target: the draft, cut to the budget; after a prompt, a chain.
    pub draft: &'a Draft,
    /// Hidden states of the pass; rows are found with `hidden.row_of(sequence_index, node)`.
    pub hidden: &'a Hidden,
    /// Which sequence of the pass this is.
    pub sequence_index: usize,
    /// The accepted nodes, root first; their rows are committed.
    pub path: &'a [NodeId],
    /// Prompt and answer, this round's tokens included.
    pub context: &'a [TokenId],
    /// How many tokens the round emitted: the end of `context`.
    pub num_emitted: usize,
    /// The sequence's cache, committed up to the last token but one.
    pub cache: &'a mut KvCache,
    /// The whole pass in numbers, where its cost is known and decides.
    pub report: Option<&'a PassReport<'a>>,
}

/// Proposes tokens.
pub trait Drafter: Send {
    /// Adds nodes to `draft`, whose root is the last token of the context, best ones first.
    ///
    /// # Errors
    /// When the drafter's own model fails.
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError>;

    /// Whether it ever proposes anything, so that a budget for larger trees is of use. So it is unless overridden.
    fn drafts(&self) -> bool {
        true
    }

    /// The streams of the target that the draft waits for, after [`Drafter::draft`]: one pass runs those of all sequences.
    /// None unless overridden.
    fn awaited_streams(&self) -> Option<AwaitedStreams<'_>> {
        None
    }

    /// Goes on with `draft` after the awaited streams have run; `logits` are theirs, `[streams, draft_vocabulary]`.
    ///
    /// # Errors
    /// When the drafter's own model fails.
    fn draft_from_streams(
        &mut self,
        _request: &mut DraftRequest<'_>,
        _logits: &[f32],
        _draft: &mut Draft,
    ) -> Result<(), DecodeError> {
        Ok(())
    }

    /// Looks at a pass that will emit tokens before it is verified. Does nothing unless overridden.
    ///
    /// # Errors
    /// When the drafter's own model fails.
    fn inspect(&mut self, _pass: UnverifiedPass<'_>) -> Result<(), DecodeError> {
        Ok(())
    }

    /// Learns from a verified round. Does nothing unless overridden.
    ///
    /// # Errors
    /// When the drafter's own model fails.
    fn observe(&mut self, _round: VerifiedRound<'_>) -> Result<(), DecodeError> {
        Ok(())
    }
}

/// A proposed tree; reused from round to round.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    tree: TokenTree,
    /// By node: the estimated probability that this round accepts it.
    scores: Vec<f32>,
    /// Parents whose children were drawn, and where their law lies in `draft_probs`.
    drawn: Vec<(NodeId, Range<usize>)>,
    draft_probs: Vec<(TokenId, f64)>,
    /// Which nodes the target's early exit may end.
    pruning: Option<Pruning>,
    /// What drafting has cost, by the measured curve.
    seconds: f64,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            tree: TokenTree::root(0),
            scores: vec![1.0],
            drawn: Vec::new(),
            draft_probs: Vec::new(),
            pruning: None,
            seconds: 0.0,
        }
    }
}

impl Draft {
    /// A draft of a root alone.
    pub fn new(root: TokenId) -> Self {
        let mut draft = Self::default();
        draft.reset(root);
        draft
    }

    /// Drops all nodes and starts again from `root`, keeping allocations.
    pub fn reset(&mut self, root: TokenId) {
        self.tree.reset(root);
        self.scores.clear();
        self.scores.push(1.0);
        self.drawn.clear();
        self.draft_probs.clear();
        self.pruning = None;
        self.seconds = 0.0;
    }

    /// Makes room for `num_nodes` nodes.
    pub(crate) fn reserve(&mut self, num_nodes: usize) {
        self.tree.reserve(num_nodes);
        self.scores.reserve(num_nodes.saturating_sub(self.scores.len()));
    }

    /// Proposes `token` after `parent`; `score` estimates the probability that the round accepts it.
    ///
    /// A score above the parent's is lowered to it: no node is accepted without its parent.
    ///
    /// # Panics
    /// If `parent` is not in the tree.
    pub fn push(&mut self, parent: NodeId, token: TokenId, score: f32) -> NodeId {
        self.push_score(parent, score);
        self.tree.push(parent, token)
    }

    /// Adds a node that is computed but never accepted; `score` is its worth beside draft tokens.
    ///
    /// # Panics
    /// If `parent` is not in the tree.
    pub fn push_probe(&mut self, parent: NodeId, token: TokenId, score: f32) -> NodeId {
        self.push_score(parent, score);
        self.tree.push_probe(parent, token)
    }

    fn push_score(&mut self, parent: NodeId, score: f32) {
        let score = if score > 0.0 { score } else { 0.0 }; // not-a-number becomes 0
        self.scores.push(score.min(self.scores[parent.index()]));
    }

    /// Declares that the children of `node` were drawn from `law`, in order of addition, without replacement.
    pub fn set_draft_probs(&mut self, node: NodeId, law: impl IntoIterator<Item = (TokenId, f64)>) {
        let start = self.draft_probs.len();
        self.draft_probs.extend(law);
        self.drawn.push((node, start..self.draft_probs.len()));
    }

    /// The law that the children of `node` were drawn from; `None` where they were chosen.
    pub fn draft_probs(&self, node: NodeId) -> Option<&[(TokenId, f64)]> {
        let (_, range) = self.drawn.iter().find(|(parent, _)| *parent == node)?;
        Some(&self.draft_probs[range.clone()])
    }

    /// Lets the target's early exit end nodes.
    pub fn set_pruning(&mut self, pruning: Pruning) {
        self.pruning = Some(pruning);
    }

    /// Which nodes the target's early exit may end; `None` where it may end none.
    pub fn pruning(&self) -> Option<Pruning> {
        self.pruning
    }

    /// Adds what drafting has cost, by [`CostCurve::draft_seconds`]: a round has to earn that too.
    pub fn add_seconds(&mut self, seconds: f64) {
        self.seconds += seconds;
    }

    /// What drafting has cost, in seconds; 0 where it is not known.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The proposed tokens.
    pub fn tree(&self) -> &TokenTree {
        &self.tree
    }

    /// The estimated probability that the round accepts `node`.
    pub fn score(&self, node: NodeId) -> f32 {
        self.scores[node.index()]
    }

    /// Raises the score of `node` to `score`, where another drafter proposes the same token.
    pub(crate) fn raise_score(&mut self, node: NodeId, score: f32) {
        let parent = self.tree.parent(node).map_or(1.0, |parent| self.score(parent));
        let raised = self.score(node).max(score).min(parent);
        self.scores[node.index()] = raised;
    }

    /// How many draft tokens the scores promise.
    pub(crate) fn expected(&self) -> f32 {
        self.scores[1..].iter().sum()
    }

    /// Nodes besides the root, probes included.
    pub fn num_draft_tokens(&self) -> usize {
        self.tree.len() - 1
    }

    /// Whether any children were drawn.
    pub fn is_drawn(&self) -> bool {
        !self.drawn.is_empty()
    }

    /// Makes this the chain of `tokens`, which are not a proposal but given text.
    pub(crate) fn set_chain(&mut self, tokens: &[TokenId]) {
        self.reset(tokens[0]);
        for &token in &tokens[1..] {
            self.push(self.tree.last(), token, 1.0);
        }
    }

    /// Writes the nodes of the highest scores that `limits` allow into `kept`, in their old order.
    ///
    /// Scores fall along every path and ids grow, so that the best nodes always hang together.
    pub(crate) fn cut_into(&self, limits: Limits, order: &mut Vec<NodeId>, kept: &mut Self) {
        let allowed = |node: &NodeId| {
            let is_possible = (self.tree.token(*node) as usize) < limits.vocab_size;
            *node == NodeId::ROOT || (is_possible && self.tree.depth(*node) <= limits.max_depth)
        };
        order.clear();
        order.extend(self.tree.node_ids().filter(allowed));
        order.sort_unstable_by(|a, b| self.score(*b).total_cmp(&self.score(*a)).then(a.cmp(b)));
        order.truncate(limits.max_nodes);
        order.sort_unstable();
        kept.reset(self.tree.token(NodeId::ROOT));
        (kept.pruning, kept.seconds) = (self.pruning, self.seconds);
        // From here on `order[i]` is the old id of new node `i`. Children of a dropped node are dropped with it.
        let mut num_kept = 1;
        for index in 1..order.len() {
            let node = order[index];
            let old_parent = self.tree.parent(node).expect("only the root has no parent");
            let Ok(parent) = order[..num_kept].binary_search(&old_parent) else { continue };
            let parent = NodeId(parent as u32);
            let (token, score) = (self.tree.token(node), self.score(node));
            if self.tree.is_probe(node) {
                kept.push_probe(parent, token, score);
            } else {
                kept.push(parent, token, score);
            }
            order[num_kept] = node;
            num_kept += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_nodes: 4, max_depth: 2, vocab_size: 100, min_score: 0.0 };

    fn cut(draft: &Draft, limits: Limits) -> Draft {
        let mut kept = Draft::default();
        draft.cut_into(limits, &mut Vec::new(), &mut kept);
        kept
    }

    fn tokens(draft: &Draft) -> Vec<(TokenId, usize)> {
        draft.tree().node_ids().map(|node| (draft.tree().token(node), draft.tree().depth(node))).collect()
    }

    #[test]
    fn the_best_nodes_are_kept_with_their_parents() {
        let mut draft = Draft::new(1);
        let weak = draft.push(NodeId::ROOT, 10, 0.1);
        draft.push(weak, 11, 0.9); // lowered to its parent's score
        let strong = draft.push(NodeId::ROOT, 20, 0.8);
        let next = draft.push(strong, 21, 0.5);
        draft.push(next, 22, 0.5); // too deep
        draft.push(strong, 23, 0.4);
        assert_eq!(tokens(&cut(&draft, LIMITS)), [(1, 0), (20, 1), (21, 2), (23, 2)]);
        assert_eq!(tokens(&cut(&draft, Limits { max_nodes: 1, ..LIMITS })), [(1, 0)]);
        assert_eq!(tokens(&cut(&draft, Limits { max_depth: 0, ..LIMITS })), [(1, 0)]);
    }

    #[test]
    fn an_impossible_token_takes_its_descendants_along() {
        let mut draft = Draft::new(1);
        let impossible = draft.push(NodeId::ROOT, 100, 0.9);
        draft.push(impossible, 5, 0.9);
        draft.push_probe(NodeId::ROOT, 6, f32::NAN);
        let kept = cut(&draft, LIMITS);
        assert_eq!(tokens(&kept), [(1, 0), (6, 1)]);
        assert!(kept.tree().is_probe(NodeId(1)));
        assert_eq!(kept.score(NodeId(1)).to_bits(), 0.0_f32.to_bits());
    }
}
