//! `e^x` for non-positive `x`: one polynomial, the same bits on every machine.
//!
//! The system's `exp` differs between platforms in the last bit, which could change a drawn token. Only additions and
//! multiplications are used, so the compiler vectorizes it. Range reduction and coefficients: Cephes `expf`.

use super::LANES;

/// Below this the result is zero (the true value is below the smallest normal number).
const LOWEST: f32 = -87.0;
/// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts, of which the first has few bits.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
const COEFFICIENTS: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x` for `x <= 0`, relative error below 2e-7; zero below -87.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let power = shifted - ROUNDER;
    let rest = clamped - power * LN_2_HIGH - power * LN_2_LOW;
    let mut sum = 1.987_569_1e-4;
    for coefficient in COEFFICIENTS {
        sum = sum * rest + coefficient;
    }
    let mantissa = sum * rest * rest + rest + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x > LOWEST { mantissa * scale } else { 0.0 }
}

/// The sum of `e^(logit - largest)`, in a fixed order; what is no number adds nothing.
pub(crate) fn sum_of_exponentials(logits: &[f32], largest: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &logit) in lanes.iter_mut().zip(block) {
            *lane += exp(logit - largest);
        }
    }
    lanes.into_iter().chain(rest.iter().map(|&logit| exp(logit - largest))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_true_value() {
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0.0_f32.to_bits());
        for step in 1..87_000 {
            let x = -(step as f32) / 1000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "{x}: {error}");
        }
    }

    #[test]
    fn exponentials_of_any_number_of_logits_are_summed() {
        for len in [0, 1, 15, 16, 17, 100] {
            let mut logits: Vec<f32> = (0..len).map(|i| -((i * 7 % 13) as f32) / 2.0).collect();
            let exact: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            logits.push(f32::NAN);
            let sum = f64::from(sum_of_exponentials(&logits, 0.0));
            assert!((sum - exact).abs() <= 1e-6 * exact, "{len}: {sum} for {exact}");
        }
    }
}
