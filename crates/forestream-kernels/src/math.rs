//! `exp` and what is made of it: one polynomial for all instruction sets.

use crate::simd::Simd;

/// `e^x`, relative error below 2e-7 for -87 <= x <= 88; smaller inputs give `e^-87`, larger ones `e^88`, NaN NaN.
///
/// Cody and Waite's reduction to |r| <= ln 2 / 2, then the Taylor polynomial of degree 7.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F32) -> S::F32 {
    // ln 2 in two parts; the first has few bits, so that its product with an integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        // The limits come first, since `min` and `max` return the second of a pair with NaN.
        let x = S::max(S::splat(-87.0), S::min(S::splat(88.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-LN2_HIGH), x);
        let r = S::fma(n, S::splat(-LN2_LOW), r);
        let coefficients = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
        let mut sum = S::splat(1.0 / 5040.0);
        let mut i = 0;
        while i < coefficients.len() {
            sum = S::fma(sum, r, S::splat(coefficients[i]));
            i += 1;
        }
        S::mul(sum, S::exp2_of_integer(n))
    }
}

/// `x / (1 + e^-x)`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F32) -> S::F32 {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let one = S::splat(1.0);
        S::div(x, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, LANES, dispatch};

    #[inline(always)]
    unsafe fn apply<S: Simd>(values: &mut [f32]) {
        for chunk in values.chunks_exact_mut(LANES) {
            // SAFETY: called through `dispatch!`.
            unsafe { S::store(exp::<S>(S::load(chunk.as_ptr())), chunk.as_mut_ptr()) };
        }
    }

    #[test]
    fn exp_is_accurate_and_the_same_on_every_instruction_set() {
        let inputs: Vec<f32> = (0..16_000).map(|i| -87.0 + i as f32 * (175.0 / 16_000.0)).collect();
        let mut reference = inputs.clone();
        dispatch!(Isa::PORTABLE, apply(values: &mut [f32] = &mut reference));
        for (x, y) in inputs.iter().zip(&reference) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(*y) - exact).abs() <= 2e-7 * exact, "exp({x}) = {y}, not {exact}");
        }
        for isa in Isa::available() {
            let mut values = inputs.clone();
            dispatch!(isa, apply(values: &mut [f32] = &mut values));
            assert_eq!(values, reference, "{}", isa.name());
        }
    }

    #[test]
    fn exp_keeps_nan_and_bounds_what_is_out_of_range() {
        for isa in Isa::available() {
            let mut values =
                [88.0, 89.0, f32::INFINITY, -87.0, -88.0, f32::NEG_INFINITY, f32::NAN, -f32::NAN].repeat(2);
            dispatch!(isa, apply(values: &mut [f32] = &mut values));
            for half in values.chunks(8) {
                let (bounds, clamped) = ([half[0], half[0], half[3], half[3]], [half[1], half[2], half[4], half[5]]);
                assert_eq!(clamped, bounds, "{}", isa.name());
                assert!(half[..6].iter().all(|x| x.is_finite()) && half[6..].iter().all(|x| x.is_nan()), "{half:?}");
            }
        }
    }
}
