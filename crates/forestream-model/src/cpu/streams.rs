//! Streams on the CPU: the deferred and the fused pass, and the proposals that follow a concrete parent.
//!
//! In the deferred pass the stream rows of a sequence are a chain of provisional rows behind its committed ones: stream `j` then sees all main
//! rows and streams `1..=j`, and stands at position `t + j`, by the same rules as any other tree. Its layers are copies of
//! the top layers with the LoRA added (`load_streams.rs`), so a stream row costs what a main row does.

use std::ops::Range;
use std::sync::PoisonError;

use forestream_kernels::{Activations, PackedMatrix, add_assign, matmul, rms_norm_in_place, silu_mul};

use super::CpuModel;
use super::early_exit::EarlyExit;
use super::layer::Layer;
use super::pass::Pass;
use super::value_rotation::ValueRotation;
use crate::streams::{AdapterConfig, Anchor, Streams};
use crate::{Hidden, ModelError, NodeId, Row, TokenId};

/// An adapter, ready to run.
#[derive(Debug)]
pub(super) struct CpuStreams {
    pub(super) config: AdapterConfig,
    /// The top layers as stream rows use them.
    pub(super) layers: Vec<Layer>,
    /// `[num_streams, hidden_size]`; `None` where the rotation of values tells streams apart.
    pub(super) embeddings: Option<Vec<f32>>,
    pub(super) value_rotation: Option<ValueRotation>,
    /// `[hidden_size, hidden_size]`.
    pub(super) token_conditioning: Option<[PackedMatrix; 1]>,
    pub(super) sampler: Option<Sampler>,
    /// `[draft_vocabulary, hidden_size]`; `None` where streams propose from the whole vocabulary.
    pub(super) draft_head: Option<PackedMatrix>,
    pub(super) draft_vocabulary: Vec<TokenId>,
    pub(super) early_exit: Option<EarlyExit>,
    /// The weight of a norm that has none, `[hidden_size]`.
    pub(super) ones: Vec<f32>,
}

/// The MLP that tells a stream which token its proposals follow.
///
/// `E (S + U z) = E S + (E U) z`: the head times the second projection is multiplied out at load, so that a parent costs a
/// product with `sampler_size` columns and not one with the head.
#[derive(Debug)]
pub(super) struct Sampler {
    /// `[sampler_size, hidden_size]`.
    pub(super) down_proj: [PackedMatrix; 1],
    /// `E U`, `[draft_vocabulary, sampler_size]`.
    pub(super) head_up_proj: [PackedMatrix; 1],
}

/// Buffers of a stream pass.
#[derive(Debug, Default)]
pub(super) struct StreamScratch {
    inputs: Activations,
    /// Outputs of token conditioning, `[rows, hidden_size]`.
    offsets: Vec<f32>,
    /// `[rows, sampler_size]`.
    inner: Vec<f32>,
}

impl StreamScratch {
    /// What token conditioning adds for one anchor.
    fn offset(&self, index: usize, width: usize) -> Option<&[f32]> {
        self.offsets.get(index * width..(index + 1) * width)
    }
}

impl Streams for CpuModel {
    fn adapter(&self) -> &AdapterConfig {
        &self.attached().config
    }

    fn num_parameters(&self) -> usize {
        self.attached().config.num_parameters(&self.config)
    }

    fn draft_vocabulary(&self) -> &[TokenId] {
        &self.attached().draft_vocabulary
    }

    fn run(&self, rows: &mut [Row<'_>], anchors: &[Anchor<'_>], states: &mut Hidden) -> Result<(), ModelError> {
        assert_eq!(rows.len(), anchors.len(), "one anchor for each sequence");
        let streams = self.attached();
        self.check(rows)?;
        for row in rows.iter_mut() {
            row.cache.reserve(row.tree)?;
        }
        let width = self.config.hidden_size;
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = &mut *workspace;
        states.reset(rows, width);
        self.condition(anchors, &mut workspace.streams);
        let num_rows: usize = rows.iter().map(|row| row.tree.len()).sum();
        workspace.residual.resize(num_rows * width, 0.0);
        let mut first = 0;
        for (index, (row, anchor)) in rows.iter().zip(anchors).enumerate() {
            let starts = &mut workspace.residual[first * width..(first + row.tree.len()) * width];
            self.start(anchor.boundary, workspace.streams.offset(index, width), starts);
            first += row.tree.len();
        }
        Pass::over_chains(self, workspace, rows).run_streams(streams, states);
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
        let streams = self.attached();
        assert!(streams.token_conditioning.is_none(), "the next token of a node is not known before verification");
        let (width, num_streams) = (self.config.hidden_size, streams.config.streams.num_streams);
        row.cache.reserve_more(nodes.len() * num_streams)?;
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = &mut *workspace;
        workspace.residual.resize(nodes.len() * num_streams * width, 0.0);
        for (&node, starts) in nodes.iter().zip(workspace.residual.chunks_exact_mut(num_streams * width)) {
            let boundary = hidden.row_of(sequence_index, node).and_then(|row| hidden.boundary(row));
            self.start(boundary.expect("the pass left the states of all nodes"), None, starts);
        }
        states.resize(nodes.len() * num_streams, width);
        let pass = Pass::over_streams(self, workspace, std::slice::from_mut(row), (nodes, num_streams));
        pass.run_streams(streams, states);
        Ok(())
    }

    fn stream_logits(&self, states: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        self.multiply_head(states, rows, self.draft_head(), logits);
    }

    fn parent_logits(&self, parents: &[TokenId], logits: &mut Vec<f32>) {
        logits.clear();
        let Some(sampler) = &self.attached().sampler else { return };
        let (num_rows, size) = (parents.len(), sampler.down_proj[0].rows());
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let StreamScratch { inputs, inner, .. } = &mut workspace.streams;
        self.fill_embeddings(inputs, num_rows, &|index| parents[index]);
        inner.resize(num_rows * size, 0.0);
        matmul(&self.pool, self.isa, inputs, &sampler.down_proj, inner);
        let ones = &self.attached().ones[..size];
        inputs.fill(&self.pool, self.isa, [num_rows, size], &|row, to| {
            silu_mul(self.isa, &inner[row * size..][..size], ones, to);
        });
        logits.resize(num_rows * sampler.head_up_proj[0].rows(), 0.0);
        matmul(&self.pool, self.isa, inputs, &sampler.head_up_proj, logits);
    }
}

impl CpuModel {
    fn attached(&self) -> &CpuStreams {
        self.streams.as_ref().expect("streams are handed out only where an adapter is attached")
    }

    /// The head that streams and the early exit are read with, `[draft_vocabulary, hidden_size]`.
    pub(super) fn draft_head(&self) -> &PackedMatrix {
        self.attached().draft_head.as_ref().unwrap_or(self.lm_head())
    }

    /// `M`, plus `P_j` and the `offset` where there are any, for as many streams as `starts` has rows.
    fn start(&self, boundary: &[f32], offset: Option<&[f32]>, starts: &mut [f32]) {
        let width = self.config.hidden_size;
        let embeddings = self.attached().embeddings.as_deref();
        for (index, start) in starts.chunks_exact_mut(width).enumerate() {
            start.copy_from_slice(boundary);
            if let Some(offset) = offset {
                add_assign(self.isa, start, offset);
            }
            if let Some(embeddings) = embeddings {
                add_assign(self.isa, start, &embeddings[index * width..][..width]);
            }
        }
    }

    /// `W norm(emb(y))` of each anchor's next token, into `offsets`.
    fn condition(&self, anchors: &[Anchor<'_>], scratch: &mut StreamScratch) {
        scratch.offsets.clear();
        let Some(weight) = &self.attached().token_conditioning else { return };
        self.fill_embeddings(&mut scratch.inputs, anchors.len(), &|index| anchors[index].next_token);
        scratch.offsets.resize(anchors.len() * self.config.hidden_size, 0.0);
        matmul(&self.pool, self.isa, &scratch.inputs, weight, &mut scratch.offsets);
    }

    /// Normalized embeddings of tokens, `[rows, hidden_size]`.
    fn fill_embeddings(&self, inputs: &mut Activations, rows: usize, token: &(dyn Fn(usize) -> TokenId + Sync)) {
        let width = self.config.hidden_size;
        let (epsilon, ones) = (self.config.rms_norm_eps, &self.attached().ones[..width]);
        inputs.fill(&self.pool, self.isa, [rows, width], &|index, to| {
            self.embed_tokens.row(token(index) as usize, to);
            rms_norm_in_place(self.isa, to, ones, epsilon);
        });
    }
}
