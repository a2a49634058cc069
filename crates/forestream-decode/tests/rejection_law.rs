//! Rejection sampling keeps the target's law when the children of a node were drawn without replacement.
//!
//! The children are drawn here, by enumeration, so that a mistake in what the rule believes about them shows.

use forestream_decode::acceptance::Residual;
use forestream_model::TokenId;

const TARGET: [f64; 5] = [0.60, 0.25, 0.10, 0.04, 0.01];
const DRAFT: [f64; 5] = [0.10, 0.50, 0.05, 0.30, 0.05];

fn law(probabilities: &[f64]) -> Vec<(TokenId, f64)> {
    (0..).zip(probabilities.iter().copied()).collect()
}

/// Adds the law of the emitted token to `emitted`, when the next child is drawn from `undrawn` (not normalized).
fn walk(residual: &Residual, undrawn: &[(TokenId, f64)], num_children: usize, weight: f64, emitted: &mut [f64]) {
    if num_children == 0 {
        for &(token, probability) in residual.target_probs() {
            emitted[token as usize] += weight * probability;
        }
        return;
    }
    let total: f64 = undrawn.iter().map(|(_, probability)| probability).sum();
    for &(token, probability) in undrawn {
        let weight = weight * probability / total;
        let accepted = residual.acceptance_probability(token);
        emitted[token as usize] += weight * accepted;
        let mut rest = residual.clone();
        rest.reject(token);
        let undrawn: Vec<_> = undrawn.iter().copied().filter(|&(other, _)| other != token).collect();
        if accepted < 1.0 {
            walk(&rest, &undrawn, num_children - 1, weight * (1.0 - accepted), emitted);
        }
    }
}

#[test]
fn the_emitted_token_has_the_target_law() {
    let distance: f64 = TARGET.iter().zip(DRAFT).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
    assert!(TARGET[0] > 0.5 && distance > 0.4, "the laws must be peaked and differ, or mistakes stay unseen");
    for num_children in 0..=4 {
        let mut emitted = [0.0; 5];
        let residual = Residual::new(law(&TARGET), law(&DRAFT));
        walk(&residual, &law(&DRAFT), num_children, 1.0, &mut emitted);
        for (token, (got, expected)) in emitted.iter().zip(TARGET).enumerate() {
            assert!((got - expected).abs() < 1e-12, "token {token} of {num_children} children: {got} for {expected}");
        }
    }
}
