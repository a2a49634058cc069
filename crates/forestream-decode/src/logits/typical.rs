//! Locally typical sampling (arXiv 2202.00666): tokens whose surprise is close to the expected surprise.
//!
//! Surprise is `ln total - log_weight` and its expectation `ln total - E[log_weight]`; in the difference the logarithm
//! cancels, so none is taken.

use super::Distribution;

/// Keeps the most typical candidates that together reach `typical_p`, the one that crosses it included.
pub(crate) fn apply(distribution: &mut Distribution, typical_p: f32) {
    if typical_p >= 1.0 {
        return;
    }
    distribution.sum_up();
    let total = distribution.total;
    let weighted = distribution.candidates.iter().map(|c| f64::from(c.weight) * f64::from(c.log_weight));
    let expected = weighted.sum::<f64>() / total;
    let distance = |log_weight: f32| (f64::from(log_weight) - expected).abs();
    distribution
        .candidates
        .sort_unstable_by(|a, b| distance(a.log_weight).total_cmp(&distance(b.log_weight)).then(a.token.cmp(&b.token)));
    distribution.keep_leading_mass(typical_p);
}
