//! Rejection sampling for drawn drafts: exact in law, not in bits.
//!
//! Children that were drawn from a law q without replacement are tested one after the other: accept with probability
//! min(1, p/q); after a rejection p becomes the normalized positive part of p - q, and q loses the token. The token that
//! is emitted has exactly the law p. Sources: arXiv 2211.17192, and 2305.09781 for several children. Where children were
//! chosen, not drawn, the rule is sample and match.

use forestream_model::{NodeId, TokenId};

use super::{Acceptance, Walk};
use crate::DecodeError;

/// Accepts drawn children by the ratio of target and draft probability.
#[derive(Clone, Debug, Default)]
pub struct Rejection {
    /// Of the node that is decided; only its allocations outlive that.
    residual: Residual,
}

/// What is left of target and draft law after some rejections. Both add up to 1, until nothing is left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Residual {
    target_probs: Vec<(TokenId, f64)>,
    draft_probs: Vec<(TokenId, f64)>,
}

impl Residual {
    /// Starts from the two laws.
    pub fn new(target_probs: Vec<(TokenId, f64)>, draft_probs: Vec<(TokenId, f64)>) -> Self {
        Self { target_probs, draft_probs }
    }

    /// Starts again from two other laws, keeping allocations.
    fn restart(&mut self, target_probs: impl Iterator<Item = (TokenId, f64)>, draft_probs: &[(TokenId, f64)]) {
        self.target_probs.clear();
        self.target_probs.extend(target_probs);
        self.draft_probs.clear();
        self.draft_probs.extend_from_slice(draft_probs);
    }

    /// The probability with which a drawn `token` is to be accepted.
    pub fn acceptance_probability(&self, token: TokenId) -> f64 {
        let target_prob = probability(&self.target_probs, token);
        let draft_prob = probability(&self.draft_probs, token);
        if target_prob > 0.0 { (target_prob / draft_prob).min(1.0) } else { 0.0 }
    }

    /// Takes the rejected `token` out of both laws.
    pub fn reject(&mut self, token: TokenId) {
        for (candidate, target_prob) in &mut self.target_probs {
            *target_prob = (*target_prob - probability(&self.draft_probs, *candidate)).max(0.0);
        }
        normalize(&mut self.target_probs);
        self.draft_probs.retain(|&(candidate, _)| candidate != token);
        normalize(&mut self.draft_probs);
    }

    /// The law of the token when every child was rejected.
    pub fn target_probs(&self) -> &[(TokenId, f64)] {
        &self.target_probs
    }

    fn draw(&self, uniform: f64) -> TokenId {
        let mut sum = 0.0;
        let mut last = self.target_probs[0].0;
        for &(token, target_prob) in self.target_probs.iter().filter(|(_, target_prob)| *target_prob > 0.0) {
            sum += target_prob;
            last = token;
            if sum > uniform {
                break;
            }
        }
        last
    }
}

fn probability(law: &[(TokenId, f64)], token: TokenId) -> f64 {
    law.iter().find(|(candidate, _)| *candidate == token).map_or(0.0, |&(_, probability)| probability)
}

fn normalize(law: &mut [(TokenId, f64)]) {
    let total: f64 = law.iter().map(|(_, probability)| probability).sum();
    if total > 0.0 {
        for (_, probability) in law {
            *probability /= total;
        }
    }
}

impl Rejection {
    /// The next token, and the child that carries it.
    fn decide(&mut self, walk: &mut Walk<'_>) -> Result<(TokenId, Option<NodeId>), DecodeError> {
        let draft = walk.draft;
        let node = walk.node();
        let Some(draft_probs) = draft.draft_probs(node) else {
            let token = walk.draw()?;
            return Ok((token, draft.tree().child_with(node, token)));
        };
        let (random, position) = (walk.random(), walk.position());
        let distribution = walk.distribution()?;
        let total = distribution.total;
        let target_probs = distribution.candidates().iter().map(|c| (c.token, f64::from(c.weight) / total));
        let residual = &mut self.residual;
        residual.restart(target_probs, draft_probs);
        let mut num_draws = 0;
        for child in draft.tree().children(node) {
            let token = draft.tree().token(child);
            if random.uniform(position, num_draws) < residual.acceptance_probability(token) {
                return Ok((token, Some(child)));
            }
            residual.reject(token);
            num_draws += 1;
        }
        let token = residual.draw(random.uniform(position, num_draws));
        Ok((token, None))
    }
}

impl Acceptance for Rejection {
    fn walk(&mut self, walk: &mut Walk<'_>) -> Result<(), DecodeError> {
        loop {
            let (token, child) = self.decide(walk)?;
            if walk.emit(token, child).is_break() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: [f64; 6] = [0.62, 0.20, 0.10, 0.05, 0.02, 0.01];
    const DRAFT: [f64; 6] = [0.10, 0.45, 0.05, 0.25, 0.14, 0.01];

    fn law(probabilities: &[f64]) -> Vec<(TokenId, f64)> {
        (0..).zip(probabilities.iter().copied()).collect()
    }

    /// Adds the law of the emitted token to `emitted`, over every sequence of drawn children, exactly.
    fn enumerate(residual: &Residual, num_children: usize, weight: f64, emitted: &mut [f64]) {
        if num_children == 0 {
            for &(token, probability) in residual.target_probs() {
                emitted[token as usize] += weight * probability;
            }
            return;
        }
        for &(token, drawn) in &residual.draft_probs {
            let accepted = residual.acceptance_probability(token);
            emitted[token as usize] += weight * drawn * accepted;
            if accepted < 1.0 {
                let mut rest = residual.clone();
                rest.reject(token);
                enumerate(&rest, num_children - 1, weight * drawn * (1.0 - accepted), emitted);
            }
        }
    }

    #[test]
    fn the_emitted_token_has_the_target_law_exactly() {
        let distance: f64 = TARGET.iter().zip(DRAFT).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
        assert!(TARGET[0] > 0.5 && distance > 0.3, "the laws must be peaked and differ, or errors stay unseen");
        for num_children in 0..=5 {
            let mut emitted = [0.0; 6];
            enumerate(&Residual::new(law(&TARGET), law(&DRAFT)), num_children, 1.0, &mut emitted);
            for (got, expected) in emitted.iter().zip(TARGET) {
                assert!((got - expected).abs() < 1e-12, "{num_children} children: {emitted:?}");
            }
        }
    }
}
