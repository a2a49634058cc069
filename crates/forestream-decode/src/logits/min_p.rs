//! Min-p: only tokens that are probable enough relative to the most probable one.

use super::Distribution;

/// Keeps candidates of at least `min_p` times the greatest probability.
pub(crate) fn apply(distribution: &mut Distribution, min_p: f32) {
    if min_p > 0.0 {
        // Weights are relative to the most probable token, which has weight 1.
        distribution.candidates.retain(|candidate| candidate.weight >= min_p);
        distribution.sum_up();
    }
}
