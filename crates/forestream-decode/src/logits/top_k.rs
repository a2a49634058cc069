//! Top-k: only the `k` most probable tokens.
//!
//! Temperature does not change the order of tokens, so the selection runs on the logits and weighs what is left.

use forestream_model::TokenId;

use super::{Candidate, Distribution, exponential::exp};

/// Fills `distribution` with the `k` most probable tokens, most probable first; of equal ones the lower ids.
pub(crate) fn weigh(logits: &[f32], (temperature, max): (f32, f32), k: usize, distribution: &mut Distribution) {
    let candidates = &mut distribution.candidates;
    candidates.clear();
    let mut floor = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        // An equal later token has a higher id, so it never displaces one of the best k. No number is no candidate.
        if logit > floor || (candidates.len() < k && !logit.is_nan()) {
            candidates.push(Candidate { token: token as TokenId, log_weight: logit, weight: 0.0 });
            if candidates.len() >= 4 * k {
                floor = keep_best(candidates, k);
            }
        }
    }
    if candidates.len() > k {
        keep_best(candidates, k);
    }
    for candidate in candidates.iter_mut() {
        candidate.log_weight = (candidate.log_weight - max) / temperature;
        candidate.weight = exp(candidate.log_weight);
    }
    distribution.candidates.retain(|candidate| candidate.weight > 0.0);
    distribution.sort();
    distribution.sum_up();
}

/// Keeps the best `k`; returns the least logit among them.
fn keep_best(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    let order = |a: &Candidate, b: &Candidate| b.log_weight.total_cmp(&a.log_weight).then(a.token.cmp(&b.token));
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, order);
    let floor = last.log_weight;
    candidates.truncate(k);
    floor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_no_candidate() {
        let mut logits = vec![f32::NAN; 40];
        logits.extend([1.0, 3.0, 2.0]);
        for k in [1, 2, 40] {
            let mut distribution = Distribution::default();
            weigh(&logits, (1.0, 3.0), k, &mut distribution);
            let tokens: Vec<TokenId> = distribution.candidates.iter().map(|candidate| candidate.token).collect();
            assert_eq!(tokens, [41, 42, 40][..k.min(3)], "top {k}");
        }
    }
}
