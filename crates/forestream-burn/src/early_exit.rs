//! The early exit: the model's own next tokens, guessed from boundary states.
//!
//! Source: Speculative Streaming (arXiv 2402.11131), parallel tree draft pruning. The map stands behind the final norm, so that an untrained
//! one leaves what the head makes of the state as it is.

use burn_tensor::{Tensor, TensorData, activation};
use forestream_model::{Hidden, NodeId, Outputs, Passing, Row, TokenId};

use crate::layer::rms_norm;
use crate::model::values_of;
use crate::{BurnError, Segment, StreamBase, StreamWeights};

/// Logits of the early exit at all positions of the segments, differentiable in `weights`; `None` for an adapter without.
///
/// # Errors
/// A segment that contradicts the base model or itself.
///
/// # Shapes
/// `[positions, draft vocabulary]`, segment by segment.
pub fn early_exit_logits(
    base: &StreamBase,
    weights: &StreamWeights,
    segments: &[Segment],
) -> Result<Option<Tensor<2>>, BurnError> {
    let (streams, width) = (&base.adapter.streams, base.decoder.hidden_size);
    for (index, segment) in segments.iter().enumerate() {
        segment.check(index, &base.decoder, [streams.num_msa_layers, streams.num_streams])?;
    }
    let boundary: Vec<f32> = segments.iter().flat_map(|segment| &segment.boundary).copied().collect();
    let shape = [boundary.len() / width, width];
    Ok(logits(base, weights, Tensor::from_data(TensorData::new(boundary, shape), &base.device)))
}

/// `E (h + B A h)` with `h` the normalized boundary state; `None` for an adapter without early exit.
///
/// # Shapes
/// `boundary`: `[positions, hidden]`; the result: `[positions, draft vocabulary]`.
pub(crate) fn logits(base: &StreamBase, weights: &StreamWeights, boundary: Tensor<2>) -> Option<Tensor<2>> {
    base.adapter.streams.early_exit_rank?;
    let multiply = |x: Tensor<2>, name: &str| x.matmul(weights.tensor(name).clone().transpose());
    let normalized = rms_norm(boundary, Some(&base.norm), base.decoder.rms_norm_eps);
    let inner = multiply(normalized.clone(), "early_exit.down_proj.weight");
    let states = normalized + multiply(inner, "early_exit.up_proj.weight");
    Some(states.matmul(base.head.clone().transpose()))
}

/// The rows of a pass that go on: of trees to be pruned, those of nodes that pass; of others, all. `None` where there is
/// nothing to decide.
pub(crate) fn passing(
    base: &StreamBase,
    weights: &StreamWeights,
    draft_vocabulary: &[TokenId],
    rows: &[Row<'_>],
    hidden: &Hidden,
) -> Option<Vec<usize>> {
    base.adapter.streams.early_exit_rank?;
    let (mut kept, mut passing) = (Vec::new(), Passing::default());
    for (index, row) in rows.iter().enumerate() {
        let range = hidden.rows_of(index);
        let Outputs::Pruned(pruning) = row.outputs else {
            kept.extend(range);
            continue;
        };
        let boundary: Vec<f32> = range.clone().filter_map(|row| hidden.boundary(row)).flatten().copied().collect();
        let boundary =
            Tensor::from_data(TensorData::new(boundary, [row.tree.len(), base.decoder.hidden_size]), &base.device);
        let probs = values_of(activation::softmax(logits(base, weights, boundary)?, 1));
        let probability = |parent: NodeId, token| {
            let column = draft_vocabulary.iter().position(|&other| other == token)?;
            Some(probs[parent.index() * draft_vocabulary.len() + column])
        };
        let goes_on = passing.decide(pruning, row.tree, probability);
        kept.extend(range.zip(goes_on).filter(|(_, goes_on)| **goes_on).map(|(row, _)| row));
    }
    Some(kept)
}
