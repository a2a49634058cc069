//! Top-p (nucleus) sampling: the most probable tokens that together reach a probability.

use super::Distribution;

/// Tokens less probable than this, even all together, lie outside the nucleus: they need not be sorted.
pub(crate) fn floor(top_p: f32, total: f64, vocab_size: usize) -> f32 {
    ((1.0 - f64::from(top_p)) * total / vocab_size as f64) as f32
}

/// Keeps the most probable candidates that reach `top_p`, the one that crosses it included.
pub(crate) fn apply(distribution: &mut Distribution, top_p: f32) {
    if top_p < 1.0 {
        distribution.sort();
        distribution.keep_leading_mass(top_p);
    }
}
