//! Medians, spreads and percentiles of a few measurements.

/// The median; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The value below which `percent` of the values lie, interpolated; 0 of nothing.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = percent / 100.0 * last as f64;
    let (left, right) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    left + (right - left) * place.fract()
}

/// The mean; 0 of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The standard deviation of a sample; 0 of fewer than two values.
pub(crate) fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn percentiles_are_interpolated() {
        let values = [4.0, 1.0, 3.0, 2.0];
        for (percent, expected) in [(0.0, 1.0), (50.0, 2.5), (100.0, 4.0), (5.0, 1.15)] {
            assert_close(percentile(&values, percent), expected);
        }
        assert_close(median(&[]), 0.0);
        assert_close(median(&[7.0]), 7.0);
    }

    #[test]
    fn spread_is_that_of_a_sample() {
        assert_close(standard_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]), (32.0_f64 / 7.0).sqrt());
        assert_close(standard_deviation(&[1.0]), 0.0);
        assert_close(mean(&[1.0, 2.0]), 1.5);
    }
}
