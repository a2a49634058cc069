//! The forward pass of streams: from boundary states and emitted tokens to logits over the draft vocabulary.
//!
//! Streams are extra rows of the top layers; each sees the main rows up to its position and the lower streams of it. The
//! base is frozen. Source: Speculative Streaming (arXiv 2402.11131), sections 3.1 and 3.2; token conditioning and sampler
//! are described in `docs/streams.md`.

use burn_tensor::{Tensor, TensorData, activation};
use forestream_model::streams::StreamPosition;

use crate::attention::{Block, Shape, StreamAttention};
use crate::layer::{Changes, rms_norm};
use crate::rotation::Rotation;
use crate::{BurnError, Segment, StreamBase, StreamWeights};

/// Logits of all streams, differentiable in `weights`.
///
/// # Errors
/// A segment that contradicts the base model or itself, or none at all.
///
/// # Shapes
/// `[rows, draft vocabulary]`; rows lie text by text, position by position, stream by stream.
pub fn stream_logits(base: &StreamBase, weights: &StreamWeights, segments: &[Segment]) -> Result<Tensor<2>, BurnError> {
    let pass = Pass::new(base, weights, segments)?;
    let states = pass.sample(pass.states());
    Ok(states.matmul(base.head.clone().transpose()))
}

/// States of all streams after the final norm and before the sampler, differentiable in `weights`.
///
/// # Errors
/// As [`stream_logits`].
///
/// # Shapes
/// `[rows, hidden]`; rows as in [`stream_logits`].
pub fn stream_states(base: &StreamBase, weights: &StreamWeights, segments: &[Segment]) -> Result<Tensor<2>, BurnError> {
    Ok(Pass::new(base, weights, segments)?.states())
}

/// A pass over checked segments.
struct Pass<'a> {
    base: &'a StreamBase,
    weights: &'a StreamWeights,
    segments: &'a [Segment],
    /// Positions over all segments.
    num_positions: usize,
    num_streams: usize,
}

impl<'a> Pass<'a> {
    fn new(base: &'a StreamBase, weights: &'a StreamWeights, segments: &'a [Segment]) -> Result<Self, BurnError> {
        let streams = &base.adapter.streams;
        for (index, segment) in segments.iter().enumerate() {
            segment.check(index, &base.decoder, [streams.num_msa_layers, streams.num_streams])?;
        }
        let num_positions = segments.iter().map(|segment| segment.num_positions(base.decoder.hidden_size)).sum();
        match num_positions {
            0 => Err(BurnError::Empty),
            _ => Ok(Self { base, weights, segments, num_positions, num_streams: streams.num_streams }),
        }
    }

    fn states(&self) -> Tensor<2> {
        let base = self.base;
        let blocks = |segment| Block::of_segment(segment, &base.decoder, &base.device);
        let blocks: Vec<_> = self.segments.iter().flat_map(blocks).collect();
        let attention = StreamAttention::new(Shape::new(&base.decoder, self.num_streams), &base.device);
        let rotation = Rotation::new(&self.positions(), &base.frequencies, &base.device);
        let changes = Changes { weights: self.weights, prefix: "layers", lora: base.adapter.lora.as_ref() };
        let mut rows = self.start();
        for (index, layer) in base.layers.iter().enumerate() {
            let heads = layer.heads(&rows, &rotation, changes);
            let attended = attention.attend(heads, &blocks, index);
            rows = layer.finish(rows, attended, changes);
        }
        rms_norm(rows, Some(&base.norm), base.decoder.rms_norm_eps)
    }

    /// `M_t + P_j`, and `W n(emb(x_{t+1}))` with token conditioning, `[rows, hidden]`.
    fn start(&self) -> Tensor<2> {
        let (width, gamma) = (self.base.decoder.hidden_size, self.num_streams);
        let boundary = self.segments.iter().flat_map(|segment| &segment.boundary).copied().collect();
        let mut states = self.upload(boundary, width);
        if self.base.adapter.streams.token_conditioning {
            let next = self.embed(|position| position..position + 1);
            states = next.matmul(self.weights.tensor("token_conditioning.weight").clone().transpose()) + states;
        }
        let offsets = self.weights.tensor("stream_embeddings").clone().reshape([1, gamma, width]);
        let rows = states.reshape([self.num_positions, 1, width]) + offsets;
        rows.reshape([self.num_positions * gamma, width])
    }

    /// Adds the sampler's correction by parent token, where there is a sampler.
    fn sample(&self, states: Tensor<2>) -> Tensor<2> {
        if self.base.adapter.streams.sampler_size.is_none() {
            return states;
        }
        let project = |x: Tensor<2>, name: &str| x.matmul(self.weights.tensor(name).clone().transpose());
        let parents = self.parents();
        let inner = activation::silu(project(parents, "sampler.down_proj.weight"));
        states + project(inner, "sampler.up_proj.weight")
    }

    /// Normalized embeddings of the parents of what streams propose: `x_{t+j}` for stream j, `[rows, hidden]`.
    fn parents(&self) -> Tensor<2> {
        self.embed(|position| position..position + self.num_streams)
    }

    /// Rotary positions of all rows.
    fn positions(&self) -> Vec<usize> {
        let rule = self.base.adapter.streams.position;
        let offset = |stream: usize| match rule {
            StreamPosition::Following => stream + 1,
            StreamPosition::Anchor => 0,
        };
        let mut positions = Vec::with_capacity(self.num_positions * self.num_streams);
        for segment in self.segments {
            let last = segment.first_position + segment.num_positions(self.base.decoder.hidden_size);
            for position in segment.first_position..last {
                positions.extend((0..self.num_streams).map(|stream| position + offset(stream)));
            }
        }
        positions
    }

    /// Normalized embeddings of the tokens at `range(position)` of each segment's list, for each of its positions.
    fn embed(&self, range: impl Fn(usize) -> std::ops::Range<usize>) -> Tensor<2> {
        let width = self.base.decoder.hidden_size;
        let mut tokens = Vec::new();
        for segment in self.segments {
            let positions = 0..segment.num_positions(width);
            tokens.extend(positions.flat_map(|position| &segment.tokens[range(position)]));
        }
        let rows = self.base.embeddings.rows(tokens);
        rms_norm(self.upload(rows, width), None, self.base.decoder.rms_norm_eps)
    }

    fn upload(&self, values: Vec<f32>, width: usize) -> Tensor<2> {
        let rows = values.len() / width;
        Tensor::from_data(TensorData::new(values, [rows, width]), &self.base.device)
    }
}
