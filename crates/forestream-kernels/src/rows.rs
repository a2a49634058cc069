//! Row operations between matrix products and after them: RMS norm, rotary embedding, gated activation, residual sum,
//! exponentials.
//!
//! Sums run in 16 lanes over the row and are folded once at the end; everything else is element by element.

use crate::math::{exp, silu};
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
pub fn add_assign(isa: Isa, row: &mut [f32], addend: &[f32]) {
    assert_eq!(row.len(), addend.len(), "row and addend");
    dispatch!(isa, add(row: &mut [f32] = row, addend: &[f32] = addend));
}

/// Replaces each value by `e^(value - largest)`, and returns their sum; what lies further below `largest` than 87 counts as if
/// it were there.
pub fn exponentials(isa: Isa, row: &mut [f32], largest: f32) -> f32 {
    dispatch!(isa, exponentiate(row: &mut [f32] = row, largest: f32 = largest) -> f32)
}

/// Reads up to 16 elements; missing ones are zero.
#[inline(always)]
unsafe fn load_padded<S: Simd>(from: &[f32]) -> S::F32 {
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    // SAFETY: as for `Simd`; 16 elements.
    unsafe { S::load(lanes.as_ptr()) }
}

/// Writes the first lanes, as many as `to` has elements.
#[inline(always)]
unsafe fn store_prefix<S: Simd>(value: S::F32, to: &mut [f32]) {
    // SAFETY: as for `Simd`.
    let lanes = unsafe { S::to_array(value) };
    to.copy_from_slice(&lanes[..to.len()]);
}

#[inline(always)]
unsafe fn inverse_rms<S: Simd>(row: &[f32], epsilon: f32) -> f32 {
    let whole = row.len() / LANES * LANES;
    // SAFETY: called through `dispatch!`; vectors lie within the row.
    unsafe {
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < whole {
            let x = S::load(row.as_ptr().add(i));
            sum = S::fma(x, x, sum);
            i += LANES;
        }
        if whole < row.len() {
            let x = load_padded::<S>(&row[whole..]);
            sum = S::fma(x, x, sum);
        }
        1.0 / (fold_sum(S::to_array(sum)) / row.len() as f32 + epsilon).sqrt()
    }
}

#[inline(always)]
unsafe fn norm<S: Simd>(row: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
    to.copy_from_slice(row);
    // SAFETY: called through `dispatch!`.
    unsafe { norm_in_place::<S>(to, weight, epsilon) };
}

#[inline(always)]
unsafe fn norm_in_place<S: Simd>(row: &mut [f32], weight: &[f32], epsilon: f32) {
    let whole = row.len() / LANES * LANES;
    // SAFETY: called through `dispatch!`; both slices are of one length.
    unsafe {
        let factor = S::splat(inverse_rms::<S>(row, epsilon));
        let mut i = 0;
        while i < whole {
            let x = S::mul(S::load(row.as_ptr().add(i)), factor);
            S::store(S::mul(x, S::load(weight.as_ptr().add(i))), row.as_mut_ptr().add(i));
            i += LANES;
        }
        if whole < row.len() {
            let x = S::mul(load_padded::<S>(&row[whole..]), factor);
            store_prefix::<S>(S::mul(x, load_padded::<S>(&weight[whole..])), &mut row[whole..]);
        }
    }
}

/// Rotates the pairs `(x, y)` of 16 channels.
#[inline(always)]
unsafe fn rotate_lanes<S: Simd>(x: S::F32, y: S::F32, cosine: S::F32, sine: S::F32) -> [S::F32; 2] {
    // SAFETY: as for `Simd`.
    unsafe {
        let turned = S::sub(S::splat(0.0), S::mul(y, sine));
        [S::fma(x, cosine, turned), S::fma(y, cosine, S::mul(x, sine))]
    }
}

#[inline(always)]
unsafe fn rotate<S: Simd>(row: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = cosines.len();
    let whole = half / LANES * LANES;
    let num_heads = row.len().checked_div(2 * half).unwrap_or(0);
    for head in 0..num_heads {
        let (first, second) = row[head * 2 * half..(head + 1) * 2 * half].split_at_mut(half);
        // SAFETY: called through `dispatch!`; vectors lie within the halves.
        unsafe {
            let mut i = 0;
            while i < whole {
                let (x, y) = (first.as_mut_ptr().add(i), second.as_mut_ptr().add(i));
                let (cosine, sine) = (S::load(cosines.as_ptr().add(i)), S::load(sines.as_ptr().add(i)));
                let [turned_x, turned_y] = rotate_lanes::<S>(S::load(x), S::load(y), cosine, sine);
                S::store(turned_x, x);
                S::store(turned_y, y);
                i += LANES;
            }
            if whole < half {
                let (x, y) = (load_padded::<S>(&first[whole..]), load_padded::<S>(&second[whole..]));
                let (cosine, sine) = (load_padded::<S>(&cosines[whole..]), load_padded::<S>(&sines[whole..]));
                let [turned_x, turned_y] = rotate_lanes::<S>(x, y, cosine, sine);
                store_prefix::<S>(turned_x, &mut first[whole..]);
                store_prefix::<S>(turned_y, &mut second[whole..]);
            }
        }
    }
}

#[inline(always)]
unsafe fn gated<S: Simd>(gate: &[f32], up: &[f32], to: &mut [f32]) {
    let whole = to.len() / LANES * LANES;
    // SAFETY: called through `dispatch!`; all three slices are of one length.
    unsafe {
        let mut i = 0;
        while i < whole {
            let activation = silu::<S>(S::load(gate.as_ptr().add(i)));
            S::store(S::mul(activation, S::load(up.as_ptr().add(i))), to.as_mut_ptr().add(i));
            i += LANES;
        }
        if whole < to.len() {
            let activation = silu::<S>(load_padded::<S>(&gate[whole..]));
            store_prefix::<S>(S::mul(activation, load_padded::<S>(&up[whole..])), &mut to[whole..]);
        }
    }
}

#[inline(always)]
unsafe fn add<S: Simd>(row: &mut [f32], addend: &[f32]) {
    let whole = row.len() / LANES * LANES;
    // SAFETY: called through `dispatch!`; both slices are of one length.
    unsafe {
        let mut i = 0;
        while i < whole {
            let to = row.as_mut_ptr().add(i);
            S::store(S::add(S::load(to), S::load(addend.as_ptr().add(i))), to);
            i += LANES;
        }
    }
    for i in whole..row.len() {
        row[i] += addend[i];
    }
}

#[inline(always)]
unsafe fn exponentiate<S: Simd>(row: &mut [f32], largest: f32) -> f32 {
    let whole = row.len() / LANES * LANES;
    // SAFETY: called through `dispatch!`; vectors lie within the row.
    unsafe {
        let largest = S::splat(largest);
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < whole {
            let power = exp::<S>(S::sub(S::load(row.as_ptr().add(i)), largest));
            sum = S::add(sum, power);
            S::store(power, row.as_mut_ptr().add(i));
            i += LANES;
        }
        let rest = &mut row[whole..];
        store_prefix::<S>(exp::<S>(S::sub(load_padded::<S>(rest), largest)), rest);
        fold_sum(S::to_array(sum)) + rest.iter().sum::<f32>()
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
    fn exponentials_match_their_formula_and_add_up() {
        for len in [0, 1, 15, 16, 17, 100, 8192] {
            let x = row(len, 0.5);
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut got = on_all(|isa| {
                let mut values = x.clone();
                let sum = exponentials(isa, &mut values, largest);
                values.push(sum);
                values
            });
            let sum = f64::from(got.pop().unwrap());
            let exact: Vec<f64> = x.iter().map(|&x| f64::from(x - largest).exp()).collect();
            assert!((sum - exact.iter().sum::<f64>()).abs() <= 1e-5 * sum, "{len}: {sum}");
            for (got, exact) in got.into_iter().zip(exact) {
                assert!((f64::from(got) - exact).abs() <= 2e-7 * exact, "{got}, not {exact}");
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
