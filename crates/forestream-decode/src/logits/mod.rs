//! The stages between logits and the distribution that is drawn from, one file each.
//!
//! Order: penalties, logit bias, temperature, top-k, top-p, min-p, typical (`docs/decoding.md` says why). The first two
//! change logits in place; the others work on a [`Distribution`]. All arithmetic is in one fixed order.

pub(crate) mod distribution;
pub(crate) mod exponential;
pub(crate) mod logit_bias;
pub(crate) mod min_p;
pub(crate) mod penalties;
pub(crate) mod temperature;
pub(crate) mod top_k;
pub(crate) mod top_p;
pub(crate) mod typical;

pub use distribution::{Candidate, Distribution};

use forestream_model::TokenId;

/// Independent maxima, so that the compiler can use vector instructions.
const LANES: usize = 16;

/// The greatest logit; minus infinity when there is none. Not-a-number is skipped.
pub(crate) fn max(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max })
}

/// The lowest token among those of the greatest logit, and that logit.
pub(crate) fn argmax(logits: &[f32]) -> (TokenId, f32) {
    let max = max(logits);
    let token = logits.iter().position(|&logit| logit == max).unwrap_or(0);
    (token as TokenId, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_lowest_of_equal_tokens() {
        for len in [1, 15, 16, 17, 100] {
            for best in 0..len {
                let mut logits: Vec<f32> = (0..len).map(|i| -((i * 7 % 13) as f32)).collect();
                logits[best] = 3.0;
                logits[len - 1] = 3.0;
                assert_eq!(argmax(&logits), (best as TokenId, 3.0));
            }
        }
        assert_eq!(max(&[f32::NAN, -2.0]).to_bits(), (-2.0_f32).to_bits());
    }
}
