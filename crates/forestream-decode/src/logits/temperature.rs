//! Temperature: logits to weights over the whole vocabulary.

use forestream_model::TokenId;

use super::{Candidate, Distribution, exponential::exp};

/// Independent sums, so that the compiler can use vector instructions.
const LANES: usize = 8;

/// Fills `distribution` with every token whose probability reaches `floor`; the total covers all tokens.
///
/// `weights` is a buffer, `max` the greatest logit.
pub(crate) fn weigh(
    logits: &[f32],
    (temperature, max): (f32, f32),
    floor: impl Fn(f64) -> f32,
    weights: &mut Vec<f32>,
    distribution: &mut Distribution,
) {
    weights.clear();
    weights.extend(logits.iter().map(|&logit| exp((logit - max) / temperature)));
    distribution.total = sum(weights);
    let floor = floor(distribution.total);
    distribution.candidates.clear();
    distribution.candidates.reserve(logits.len()); // once: a flatter law later on must not allocate
    let kept = weights.iter().enumerate().filter(|&(_, &weight)| weight >= floor && weight > 0.0);
    distribution.candidates.extend(kept.map(|(token, &weight)| Candidate {
        token: token as TokenId,
        log_weight: (logits[token] - max) / temperature,
        weight,
    }));
}

/// The sum in a fixed order: one sum per lane, then the lanes.
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let chunks = weights.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(weight);
        }
    }
    lanes.into_iter().chain(rest.iter().map(|&weight| f64::from(weight))).sum()
}
