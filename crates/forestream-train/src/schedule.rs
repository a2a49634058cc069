//! The learning rate over a run: warm-up, then half a cosine.

/// The share of a run in which the rate rises.
const WARM_UP: f64 = 0.03;
/// The share of the peak that is left at the end.
const FLOOR: f64 = 0.1;

/// The factor of the peak rate when the share `progress` of the run is done.
pub(crate) fn factor(progress: f64) -> f64 {
    let progress = progress.clamp(0.0, 1.0);
    if progress < WARM_UP {
        return progress / WARM_UP;
    }
    let falling = (progress - WARM_UP) / (1.0 - WARM_UP);
    FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (std::f64::consts::PI * falling).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_falls_and_keeps_a_floor() {
        for (progress, expected) in [(0.0, 0.0), (0.015, 0.5), (0.03, 1.0), (0.515, 0.55), (1.0, 0.1), (2.0, 0.1)] {
            assert!((factor(progress) - expected).abs() < 1e-9, "{progress}: {}", factor(progress));
        }
    }
}
