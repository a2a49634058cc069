//! Logit bias: a number added to the logits of chosen tokens.

use forestream_model::TokenId;

/// Adds each bias; minus infinity bans a token. Ids beyond the vocabulary are refused before a sequence starts.
pub(crate) fn apply(logits: &mut [f32], bias: &[(TokenId, f32)]) {
    for &(token, bias) in bias {
        logits[token as usize] += bias;
    }
}
