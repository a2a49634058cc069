//! Row operations between matrix products: RMS norm, rotary embedding, gated activation, residual sum.
//!
//! Sums run in 16 lanes over the row and are folded once at the end; everything else is element by element.

use crate::math::silu;
use crate::simd::{Isa, LANES, Simd, dispatch, fold_sum};

/// `to = row / sqrt(mean(row^2) + epsilon) * weight`.
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm(isa: Isa, row: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
    assert!(row.len() == weight.len() && row.len() == to.len(), "row, weight and result are of one length");
    dispatch!(isa, norm(row: &[f32] = row, weight: &[f32] = weight, epsilon: f32 = epsilon, to: &mut [f32] = to));
}

/// `row = row / sqrt(mean(row^2) + epsilon) * weight`.
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm_in_place(isa: Isa, row: &mut [f32], weight: &[f32], epsilon: f32) {
    assert_eq!(row.len(), weight.len(), "row and weight");
    dispatch!(isa, norm_in_place(row: &mut [f32] = row, weight: &[f32] = weight, epsilon: f32 = epsilon));
}

/// Rotates each head of `row`: channels `i` and `i + head_dim / 2` by the angle whose cosine and sine are given,
/// `[head_dim / 2]` each.
///
/// # Panics
/// When the row is not a whole number of heads.
pub fn rotate_heads(isa: Isa, row: &mut [f32], cosines: &[f32], sines: &[f32]) {
    assert!(cosines.len() == sines.len() && row.len().is_multiple_of(2 * cosines.len().max(1)));
    dispatch!(isa, rotate(row: &mut [f32] = row, cosines: &[f32] = cosines, sines: &[f32] = sines));
}

/// `to = silu(gate) * up`.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul(isa: Isa, gate: &[f32], up: &[f32], to: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == to.len(), "gate, up and result are of one length");
    dispatch!(isa, gated(gate: &[f32] = gate, up: &[f32] = up, to: &mut [f32] = to));
}

/// `row += addend`.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(row: &mut [f32], addend: &[f32]) {
    assert_eq!(row.len(), addend.len(), "row and addend");
    for (x, y) in row.iter_mut().zip(addend) {
        *x += y;
    }
}

/// Reads up to 16 elements; missing ones are zero.
#[inline(always)]
unsafe fn load_padded<S: Simd>(from: &[f32]) -> S::F32 {
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    // SAFETY: as for `Simd`; 16 elements.
    unsafe { S::load(lanes.as_ptr()) }
}

#[inline(always)]
unsafe fn inverse_rms<S: Simd>(row: &[f32], epsilon: f32) -> f32 {
    // SAFETY: called through `dispatch!`; chunks hold 16 elements.
    unsafe {
        let mut sum = S::splat(0.0);
        let chunks = row.chunks_exact(LANES);
        let tail = chunks.remainder();
        for chunk in chunks {
            let x = S::load(chunk.as_ptr());
            sum = S::fma(x, x, sum);
        }
        if !tail.is_empty() {
            let x = load_padded::<S>(tail);
            sum = S::fma(x, x, sum);
        }
        1.0 / (fold_sum(S::to_array(sum)) / row.len() as f32 + epsilon).sqrt()
    }
}

#[inline(always)]
unsafe fn norm<S: Simd>(row: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
    // SAFETY: called through `dispatch!`.
    let factor = unsafe { inverse_rms::<S>(row, epsilon) };
    for ((to, x), weight) in to.iter_mut().zip(row).zip(weight) {
        *to = x * factor * weight;
    }
}

#[inline(always)]
unsafe fn norm_in_place<S: Simd>(row: &mut [f32], weight: &[f32], epsilon: f32) {
    // SAFETY: called through `dispatch!`.
    let factor = unsafe { inverse_rms::<S>(row, epsilon) };
    for (x, weight) in row.iter_mut().zip(weight) {
        *x = *x * factor * weight;
    }
}

#[inline(always)]
unsafe fn rotate<S: Simd>(row: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = cosines.len();
    if half == 0 {
        return;
    }
    for head in row.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for i in 0..half {
            let (x, y) = (first[i], second[i]);
            first[i] = x.mul_add(cosines[i], -(y * sines[i]));
            second[i] = y.mul_add(cosines[i], x * sines[i]);
        }
    }
}

#[inline(always)]
unsafe fn gated<S: Simd>(gate: &[f32], up: &[f32], to: &mut [f32]) {
    let chunks = gate.chunks(LANES).zip(up.chunks(LANES)).zip(to.chunks_mut(LANES));
    for ((gate, up), to) in chunks {
        // SAFETY: called through `dispatch!`; whole chunks hold 16 elements.
        unsafe {
            if to.len() == LANES {
                S::store(S::mul(silu::<S>(S::load(gate.as_ptr())), S::load(up.as_ptr())), to.as_mut_ptr());
            } else {
                let lanes = S::mul(silu::<S>(load_padded::<S>(gate)), load_padded::<S>(up));
                to.copy_from_slice(&S::to_array(lanes)[..to.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize, factor: f32) -> Vec<f32> {
        (0..len).map(|i| ((i * 29 % 37) as f32 - 18.0) * factor).collect()
    }

    /// Runs `f` on every instruction set, holds them against each other, and returns the common result.
    fn on_all(f: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
        let reference = f(Isa::PORTABLE);
        for isa in Isa::available() {
            assert_eq!(f(isa), reference, "{}", isa.name());
        }
        reference
    }

    #[test]
    fn norms_have_unit_mean_square() {
        for len in [1, 15, 16, 64, 172, 576] {
            let x = row(len, 0.3);
            let weight = vec![2.0; len];
            let got = on_all(|isa| {
                let mut to = vec![0.0; len];
                rms_norm(isa, &x, &weight, 1e-5, &mut to);
                let mut in_place = x.clone();
                rms_norm_in_place(isa, &mut in_place, &weight, 1e-5);
                assert_eq!(to, in_place);
                to
            });
            let mean: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / len as f64;
            for (got, x) in got.iter().zip(&x) {
                let exact = 2.0 * f64::from(*x) / (mean + 1e-5).sqrt();
                assert!((f64::from(*got) - exact).abs() <= 1e-6 * exact.abs(), "{got}, not {exact}");
            }
        }
    }

    #[test]
    fn rotation_by_a_quarter_turn_swaps_the_halves() {
        for half in [4, 32, 40] {
            let x = row(4 * half, 1.0);
            let got = on_all(|isa| {
                let mut x = x.clone();
                rotate_heads(isa, &mut x, &vec![0.0; half], &vec![1.0; half]);
                x
            });
            for (got, x) in got.chunks(2 * half).zip(x.chunks(2 * half)) {
                let expected: Vec<f32> = x[half..].iter().map(|x| -x).chain(x[..half].iter().copied()).collect();
                assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn gated_activation_matches_its_formula() {
        for len in [1, 16, 172, 1536] {
            let (gate, up) = (row(len, 0.4), row(len, 0.1));
            let got = on_all(|isa| {
                let mut to = vec![0.0; len];
                silu_mul(isa, &gate, &up, &mut to);
                to
            });
            for ((got, gate), up) in got.iter().zip(&gate).zip(&up) {
                let gate = f64::from(*gate);
                let exact = gate / (1.0 + (-gate).exp()) * f64::from(*up);
                assert!((f64::from(*got) - exact).abs() <= 1e-6 * exact.abs() + 1e-9, "{got}, not {exact}");
            }
        }
    }
}
