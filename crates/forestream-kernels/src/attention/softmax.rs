//! Scores to weights.

use crate::math::exp;
use crate::simd::{LANES, Simd, fold_sum};

/// Replaces scores by `exp(score - largest)` and returns their sum.
#[inline(always)]
pub(super) unsafe fn softmax_numerators<S: Simd>(scores: &mut [f32]) -> f32 {
    let whole = scores.len() / LANES * LANES;
    // SAFETY: called through `dispatch!`; vectors lie within the scores.
    unsafe {
        let mut lanes = [scores[0]; LANES];
        lanes[..scores.len() - whole].copy_from_slice(&scores[whole..]);
        let mut largest = S::load(lanes.as_ptr());
        let mut i = 0;
        while i < whole {
            largest = S::max(largest, S::load(scores.as_ptr().add(i)));
            i += LANES;
        }
        let largest = fold_max(S::to_array(largest));
        let shift = S::splat(largest);
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < whole {
            let at = scores.as_mut_ptr().add(i);
            let numerator = exp::<S>(S::sub(S::load(at), shift));
            S::store(numerator, at);
            sum = S::add(sum, numerator);
            i += LANES;
        }
        if whole < scores.len() {
            let tail = &mut scores[whole..];
            let mut lanes = [largest; LANES];
            lanes[..tail.len()].copy_from_slice(tail);
            let mut numerators = S::to_array(exp::<S>(S::sub(S::load(lanes.as_ptr()), shift)));
            numerators[tail.len()..].fill(0.0);
            tail.copy_from_slice(&numerators[..tail.len()]);
            sum = S::add(sum, S::load(numerators.as_ptr()));
        }
        fold_sum(S::to_array(sum))
    }
}

/// The largest lane.
#[inline(always)]
fn fold_max(lanes: [f32; LANES]) -> f32 {
    let mut largest = lanes[0];
    for i in 1..LANES {
        largest = if lanes[i] > largest { lanes[i] } else { largest };
    }
    largest
}
