//! Typical acceptance: keeps draft tokens that are plausible enough. Lossy: the text's law is not the target's.
//!
//! A draft token is accepted when its target probability exceeds min(epsilon, delta * e^-H), H the entropy. Source:
//! Medusa, arXiv 2401.10774. Kept as a labelled baseline; never a default.

use forestream_model::{NodeId, TokenId};

use super::{Acceptance, Walk};
use crate::DecodeError;
use crate::logits::{Distribution, exponential::exp};

/// Accepts the most probable child that passes a threshold; lossy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Typical {
    /// The probability above which a token is accepted anyway.
    pub epsilon: f64,
    /// The factor on `e^-entropy`.
    pub delta: f64,
}

impl Default for Typical {
    /// The values of the Medusa repository.
    fn default() -> Self {
        Self { epsilon: 0.09, delta: 0.3 }
    }
}

impl Typical {
    fn threshold(&self, distribution: &Distribution) -> f64 {
        // e^-H = e^E[log_weight] / total, since log p = log_weight - ln total.
        let candidates = distribution.candidates();
        let sum: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
        let weighted: f64 = candidates.iter().map(|c| f64::from(c.weight) * f64::from(c.log_weight)).sum();
        self.epsilon.min(self.delta * f64::from(exp((weighted / sum) as f32)) / sum)
    }

    fn decide(&self, walk: &mut Walk<'_>) -> Result<(TokenId, Option<NodeId>), DecodeError> {
        let (draft, node) = (walk.draft, walk.node());
        let uniform = walk.random().uniform(walk.position(), 0);
        let distribution = walk.distribution()?;
        let threshold = self.threshold(distribution);
        let plausible = draft.tree().children(node).filter_map(|child| {
            let probability = distribution.probability(draft.tree().token(child));
            (probability > threshold).then_some((probability, child))
        });
        let best = plausible.reduce(|best, next| if next.0 > best.0 { next } else { best });
        Ok(match best {
            Some((_, child)) => (draft.tree().token(child), Some(child)),
            None => (distribution.draw(uniform), None),
        })
    }
}

impl Acceptance for Typical {
    fn walk(&mut self, walk: &mut Walk<'_>) -> Result<(), DecodeError> {
        loop {
            let (token, child) = self.decide(walk)?;
            if walk.emit(token, child).is_break() {
                return Ok(());
            }
        }
    }
}
