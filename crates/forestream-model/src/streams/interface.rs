//! What a model with streams offers a drafter.

use std::ops::Range;

use crate::{Hidden, ModelError, NodeId, Row, TokenId};

use super::AdapterConfig;

/// Where the streams of one sequence start.
#[derive(Clone, Copy, Debug)]
pub struct Anchor<'a> {
    /// The boundary state of the last committed token ([`Hidden::boundary`]), `[hidden_size]`.
    pub boundary: &'a [f32],
    /// The token that was emitted after it.
    pub next_token: TokenId,
}

/// Speculative streams, in two forms that give the same states because main rows never read streams: after acceptance, for
/// the accepted node alone (the deferred pass), or for all nodes of a tree before it is verified (the paper's fused pass).
pub trait Streams: Send + Sync {
    /// Sizes and switches.
    fn adapter(&self) -> &AdapterConfig;

    /// Number of trained parameters.
    fn num_parameters(&self) -> usize;

    /// The token of each column of the logits.
    fn draft_vocabulary(&self) -> &[TokenId];

    /// Runs the streams of several sequences through the top layers.
    ///
    /// Row `i`'s tree is a chain with one node for each of its streams (at most γ; its tokens are not read), its cache ends with
    /// the token of `anchors[i]`. The caches may gain provisional rows, which the next pass drops. `states` are normalized.
    ///
    /// # Errors
    /// A cache without room for the chain; the caches are then unchanged.
    fn run(&self, rows: &mut [Row<'_>], anchors: &[Anchor<'_>], states: &mut Hidden) -> Result<(), ModelError>;

    /// Runs the streams of `nodes` of a tree that went through [`crate::Model::forward`] and is not committed yet.
    ///
    /// `hidden` is what that pass left, `sequence_index` the number of the tree's sequence in it. The cache may gain γ
    /// provisional rows for each node. States lie node after node, stream after stream, and are normalized.
    ///
    /// # Errors
    /// A cache without room.
    ///
    /// # Panics
    /// With token conditioning: the token that will follow a node is not known before verification.
    fn run_fused(
        &self,
        row: &mut Row<'_>,
        hidden: &Hidden,
        sequence_index: usize,
        nodes: &[NodeId],
        states: &mut Hidden,
    ) -> Result<(), ModelError>;

    /// Logits of streams by their states alone, `[rows, draft_vocabulary]`.
    fn stream_logits(&self, states: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>);

    /// What proposals that follow each of these `parents` add to that, `[parents, draft_vocabulary]`; empty without a
    /// sampler.
    fn parent_logits(&self, parents: &[TokenId], logits: &mut Vec<f32>);
}
