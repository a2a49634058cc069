//! One pass forward and backward: segments in, scores and gradients out.

use forestream_burn::tensor::{Tensor, TensorData};
use forestream_burn::{Segment, StreamBase, StreamWeights, stream_logits};

use crate::TrainError;
use crate::adamw::Named;
use crate::objective::{Score, score_rows};
use crate::settings::Objective;
use crate::targets::Targets;

/// Logits that are held at once; larger steps are computed in parts whose gradients add up.
const MAX_LOGITS: usize = 48 << 20;

/// Segments of a step with their targets.
pub(crate) struct Batch {
    pub(crate) segments: Vec<Segment>,
    pub(crate) targets: Vec<Targets>,
}

impl Batch {
    pub(crate) fn num_positions(&self) -> usize {
        self.targets.iter().map(|targets| targets.rows.len() / targets.num_streams).sum()
    }

    /// Takes the leading segments that together have at most `max_rows` rows, and at least one.
    fn take_part(&mut self, max_rows: usize) -> Self {
        let (mut count, mut rows) = (0, 0);
        for targets in &self.targets {
            rows += targets.rows.len();
            if count > 0 && rows > max_rows {
                break;
            }
            count += 1;
        }
        Self { segments: self.segments.drain(..count).collect(), targets: self.targets.drain(..count).collect() }
    }
}

/// Scores of a batch, and the gradients of its loss.
///
/// # Errors
/// If a pass fails.
pub(crate) fn gradients(
    base: &StreamBase,
    weights: &StreamWeights,
    mut batch: Batch,
    objective: Objective,
) -> Result<(Score, Named), TrainError> {
    let num_streams = base.adapter().streams.num_streams;
    let total_weight = batch.targets.iter().map(Targets::total_weight).sum::<f64>().max(f64::MIN_POSITIVE);
    let mut score = Score::new(num_streams);
    let mut sums = Named::new();
    while !batch.segments.is_empty() {
        let Batch { segments, targets } = batch.take_part(MAX_LOGITS / base.draft_vocab_size());
        let logits = stream_logits(base, weights, &segments)?;
        let [rows, width] = logits.dims();
        let mut values = logits.clone().try_into_vec_as::<f32>().expect("elements of the asked-for type");
        let mut rest = values.as_mut_slice();
        for targets in &targets {
            let (own, others) = rest.split_at_mut(targets.rows.len() * width);
            score.add(&score_rows(own, targets, objective, total_weight));
            rest = others;
        }
        // The product with a constant has that constant as its gradient.
        let device = logits.device().without_autodiff();
        let gradient = Tensor::<2>::from_data(TensorData::new(values, [rows, width]), &device);
        add_gradients(&(logits * gradient).sum(), weights, &mut sums);
    }
    Ok((score, sums))
}

fn add_gradients(loss: &Tensor<1>, weights: &StreamWeights, sums: &mut Named) {
    let mut gradients = loss.backward();
    for name in weights.names() {
        let tensor = weights.tensor(name);
        let Some(gradient) = tensor.grad_remove(&mut gradients) else { continue };
        let values = gradient.try_into_vec_as::<f32>().expect("elements of the asked-for type");
        match sums.get_mut(name) {
            Some(sum) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            None => {
                sums.insert(name.to_owned(), values);
            }
        }
    }
}
