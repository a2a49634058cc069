//! The forward pass of streams: from boundary states and emitted tokens to logits over the draft vocabulary.
//!
//! Streams are extra rows of the top layers; each sees the main rows up to its position and the lower streams of it. The
//! base is frozen. Source: Speculative Streaming (arXiv 2402.11131), sections 3.1 and 3.2; token conditioning and sampler
//! are additions of this project.

use burn_tensor::{Tensor, TensorData, activation};
use forestream_model::TokenId;
use forestream_model::streams::{Projection, StreamPosition};

use crate::attention::{Block, Plane, Sharing, StreamAttention};
use crate::changes::Changes;
use crate::layer::{Layer, rms_norm};
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
    let streams = streams_of(base, weights, segments)?;
    Ok(streams.logits(final_states(&streams, segments)))
}

/// States of all streams after the final norm and before the sampler, differentiable in `weights`.
///
/// # Errors
/// As [`stream_logits`].
///
/// # Shapes
/// `[rows, hidden]`; rows as in [`stream_logits`].
pub fn stream_states(base: &StreamBase, weights: &StreamWeights, segments: &[Segment]) -> Result<Tensor<2>, BurnError> {
    Ok(final_states(&streams_of(base, weights, segments)?, segments))
}

fn streams_of<'a>(
    base: &'a StreamBase,
    weights: &'a StreamWeights,
    segments: &'a [Segment],
) -> Result<StreamRows<'a>, BurnError> {
    let streams = &base.adapter.streams;
    for (index, segment) in segments.iter().enumerate() {
        segment.check(index, &base.decoder, [streams.num_msa_layers, streams.num_streams])?;
    }
    let anchors = segments.iter().flat_map(|segment| {
        let anchor = |index: usize| Anchor {
            position: segment.first_position + index,
            following: &segment.tokens[index..][..streams.num_streams],
        };
        (0..segment.num_positions(base.decoder.hidden_size)).map(anchor)
    });
    StreamRows::new(base, weights, anchors.collect())
}

/// How much each inner feature of the MLP adds to stream rows, by layer with streams: the sum over all rows of its square,
/// times the square of its column of `down_proj`.
///
/// # Errors
/// As [`stream_logits`].
///
/// # Panics
/// If the device fails.
pub fn inner_energies(
    base: &StreamBase,
    weights: &StreamWeights,
    segments: &[Segment],
) -> Result<Vec<Vec<f32>>, BurnError> {
    let weights = weights.frozen();
    let streams = streams_of(base, &weights, segments)?;
    let mut energies = Vec::new();
    run_layers(&streams, segments, &mut |layer, rows| {
        let inner = layer.inner(rows, &streams.changes);
        let down = layer.changed_weight(Projection::DownProj, &streams.changes);
        let energy = (inner.clone() * inner).sum_dim(0) * (down.clone() * down).sum_dim(0);
        energies.push(energy.try_into_vec_as::<f32>().expect("elements of the asked-for type"));
    });
    Ok(energies)
}

fn final_states(streams: &StreamRows<'_>, segments: &[Segment]) -> Tensor<2> {
    streams.finish(run_layers(streams, segments, &mut |_, _| ()))
}

/// Runs all rows through the layers with streams; `observe` sees them between attention and MLP.
fn run_layers(
    streams: &StreamRows<'_>,
    segments: &[Segment],
    observe: &mut dyn FnMut(&Layer, &Tensor<2>),
) -> Tensor<2> {
    let (base, decoder) = (streams.base, &streams.base.decoder);
    let blocks = |segment: &Segment| {
        Block::cover(segment.first_position, segment.num_positions(decoder.hidden_size), &base.device)
    };
    let blocks: Vec<_> = segments.iter().map(blocks).collect();
    let boundary = segments.iter().flat_map(|segment| &segment.boundary).copied().collect();
    let mut rows = streams.start(streams.upload(boundary));
    for layer in 0..base.stream_layers().len() {
        let plane = |segment: &Segment| {
            let shape = [decoder.num_key_value_heads, segment.context(decoder.hidden_size), decoder.head_dim];
            let upload = |plane: &Vec<f32>| Tensor::from_data(TensorData::new(plane.clone(), shape), &base.device);
            Plane::new(upload(&segment.keys[layer]), upload(&segment.values[layer]))
        };
        let planes: Vec<Plane> = segments.iter().map(plane).collect();
        let texts: Vec<_> = planes.iter().zip(blocks.iter().map(Vec::as_slice)).collect();
        rows = streams.add_attention(layer, rows, &texts);
        observe(&base.stream_layers()[layer], &rows);
        rows = streams.add_mlp(layer, rows);
    }
    rows
}

/// A position whose streams run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchor<'a> {
    pub(crate) position: usize,
    /// The tokens after it, one for each stream.
    pub(crate) following: &'a [TokenId],
}

/// The stream rows of a pass: anchor after anchor, stream after stream.
pub(crate) struct StreamRows<'a> {
    pub(crate) base: &'a StreamBase,
    weights: &'a StreamWeights,
    anchors: Vec<Anchor<'a>>,
    rotation: Rotation,
    /// How values turn, where that tells streams apart.
    value_rotation: Option<Rotation>,
    attention: StreamAttention,
    changes: Changes<'a>,
}

impl<'a> StreamRows<'a> {
    pub(crate) fn new(
        base: &'a StreamBase,
        weights: &'a StreamWeights,
        anchors: Vec<Anchor<'a>>,
    ) -> Result<Self, BurnError> {
        if anchors.is_empty() {
            return Err(BurnError::Empty);
        }
        let streams = &base.adapter.streams;
        let offset = |stream: usize| match streams.position {
            StreamPosition::Following => stream + 1,
            StreamPosition::Anchor => 0,
        };
        let positions = anchors
            .iter()
            .flat_map(|anchor| (0..streams.num_streams).map(move |stream| anchor.position + offset(stream)));
        let rotation = Rotation::new(&positions.collect::<Vec<_>>(), &base.frequencies, &base.device);
        let value_rotation = value_rotation(base, anchors.len());
        let attention = StreamAttention::new(Sharing::new(&base.decoder), streams.num_streams, &base.device);
        let changes = Changes::of_streams(weights, &base.adapter);
        Ok(Self { base, weights, anchors, rotation, value_rotation, attention, changes })
    }

    /// `M_t`, plus `P_j` where streams have embeddings, and `W n(emb(x_{t+1}))` with token conditioning.
    ///
    /// # Shapes
    /// `boundary`: `[anchors, hidden]`; the result: `[rows, hidden]`.
    pub(crate) fn start(&self, boundary: Tensor<2>) -> Tensor<2> {
        let [anchors, width] = boundary.dims();
        let mut states = boundary;
        if self.base.adapter.streams.token_conditioning {
            let next = self.embed(self.anchors.iter().map(|anchor| anchor.following[0]));
            states = self.multiply(next, "token_conditioning.weight") + states;
        }
        let streams = &self.base.adapter.streams;
        let (states, num_streams) = (states.reshape([anchors, 1, width]), streams.num_streams);
        let rows = if streams.identity.has_embeddings() {
            states + self.weights.tensor("stream_embeddings").clone().reshape([1, num_streams, width])
        } else {
            states.repeat_dim(1, num_streams)
        };
        rows.reshape([anchors * num_streams, width])
    }

    /// Runs the rows through layer `index` of those with streams; each text has its plane, and blocks of its anchors.
    pub(crate) fn layer(&self, index: usize, rows: Tensor<2>, texts: &[(&Plane, &[Block])]) -> Tensor<2> {
        self.add_mlp(index, self.add_attention(index, rows, texts))
    }

    /// Adds attention of layer `index` of those with streams.
    fn add_attention(&self, index: usize, rows: Tensor<2>, texts: &[(&Plane, &[Block])]) -> Tensor<2> {
        let layer = &self.base.stream_layers()[index];
        let mut heads = layer.heads(&rows, &self.rotation, &self.changes);
        if let Some(rotation) = &self.value_rotation {
            heads.values = rotation.apply(heads.values);
        }
        let attended = self.attention.attend(heads, texts);
        layer.add_attention(rows, &attended, &self.changes)
    }

    /// Adds the MLP of layer `index` of those with streams.
    fn add_mlp(&self, index: usize, rows: Tensor<2>) -> Tensor<2> {
        self.base.stream_layers()[index].add_mlp(rows, &self.changes)
    }

    /// The final norm.
    pub(crate) fn finish(&self, rows: Tensor<2>) -> Tensor<2> {
        rms_norm(rows, Some(&self.base.norm), self.base.decoder.rms_norm_eps)
    }

    /// Logits of final states, with the sampler's correction by parent: `x_{t+j}` for stream j.
    pub(crate) fn logits(&self, mut states: Tensor<2>) -> Tensor<2> {
        if self.base.adapter.streams.sampler_size.is_some() {
            let parents = self.embed(self.anchors.iter().flat_map(|anchor| anchor.following).copied());
            let inner = activation::silu(self.multiply(parents, "sampler.down_proj.weight"));
            states = states + self.multiply(inner, "sampler.up_proj.weight");
        }
        states.matmul(self.base.head.clone().transpose())
    }

    fn multiply(&self, x: Tensor<2>, name: &str) -> Tensor<2> {
        x.matmul(self.weights.tensor(name).clone().transpose())
    }

    /// Normalized embeddings, `[tokens, hidden]`.
    fn embed(&self, tokens: impl Iterator<Item = TokenId>) -> Tensor<2> {
        let rows = self.upload(self.base.embeddings.rows(tokens));
        rms_norm(rows, None, self.base.decoder.rms_norm_eps)
    }

    fn upload(&self, values: Vec<f32>) -> Tensor<2> {
        let width = self.base.decoder.hidden_size;
        let rows = values.len() / width;
        Tensor::from_data(TensorData::new(values, [rows, width]), &self.base.device)
    }
}

/// The rotation of the values of all rows, anchor after anchor; all channels of a stream have one angle.
fn value_rotation(base: &StreamBase, num_anchors: usize) -> Option<Rotation> {
    let streams = &base.adapter.streams;
    let one = streams.identity.value_angle(1)?;
    let streams: Vec<usize> = (0..num_anchors).flat_map(|_| 1..=streams.num_streams).collect();
    Some(Rotation::new(&streams, &vec![one; base.decoder.head_dim / 2], &base.device))
}
