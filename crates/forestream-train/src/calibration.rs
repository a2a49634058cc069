//! How a stream's confidence turns into acceptance: by depth, a logistic regression on held-out proposals.

use forestream_model::streams::Calibration;

/// A proposal: the log-odds of its probability, and whether it was the target.
pub(crate) type Proposal = (f32, bool);

/// Newton's method settles within a few of these.
const ITERATIONS: usize = 25;
/// Holds the curve near the identity where there are but a few labels, or all agree.
const RIDGE: f64 = 1.0;
/// Beyond these, probabilities are as good as certain.
const EDGE: f32 = 1e-6;

/// The log-odds of a probability, as [`Calibration::apply`] takes them.
pub(crate) fn log_odds(p: f32) -> f32 {
    let p = p.clamp(EDGE, 1.0 - EDGE);
    (p / (1.0 - p)).ln()
}

/// The curve that gives the labels the greatest likelihood; the identity without proposals.
pub(crate) fn fit(proposals: &[Proposal]) -> Calibration {
    let (mut slope, mut intercept) = (1.0_f64, 0.0_f64);
    if proposals.is_empty() {
        return Calibration::default();
    }
    for _ in 0..ITERATIONS {
        // The ridge pulls towards the identity.
        let mut gradient = [RIDGE * (1.0 - slope), -RIDGE * intercept];
        let mut hessian = [RIDGE, 0.0, RIDGE];
        for &(x, is_target) in proposals {
            let x = f64::from(x);
            let p = 1.0 / (1.0 + (-(slope * x + intercept)).exp());
            let (error, curvature) = (f64::from(u8::from(is_target)) - p, p * (1.0 - p));
            gradient[0] += error * x;
            gradient[1] += error;
            hessian[0] += curvature * x * x;
            hessian[1] += curvature * x;
            hessian[2] += curvature;
        }
        let determinant = hessian[0] * hessian[2] - hessian[1] * hessian[1];
        let step = [
            (hessian[2] * gradient[0] - hessian[1] * gradient[1]) / determinant,
            (hessian[0] * gradient[1] - hessian[1] * gradient[0]) / determinant,
        ];
        // A full step can overshoot where labels are rare.
        let scale = (2.0 / step[0].abs().max(step[1].abs())).min(1.0);
        slope += scale * step[0];
        intercept += scale * step[1];
    }
    Calibration { slope: slope as f32, intercept: intercept as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proposals over a grid of log-odds with as many targets as the curve says.
    fn proposals(slope: f64, intercept: f64) -> Vec<Proposal> {
        let mut all = Vec::new();
        for step in -40..=40 {
            let x = f64::from(step) / 10.0;
            let p = 1.0 / (1.0 + (-(slope * x + intercept)).exp());
            let targets = (p * 1000.0).round() as usize;
            all.extend((0..1000).map(|index| (x as f32, index < targets)));
        }
        all
    }

    #[test]
    fn the_curve_behind_the_labels_is_found() {
        for (slope, intercept) in [(1.0, 0.0), (0.6, -0.8), (1.4, 0.5), (0.2, -3.0)] {
            let fitted = fit(&proposals(slope, intercept));
            assert!((f64::from(fitted.slope) - slope).abs() < 0.02, "{slope} {intercept}: {fitted:?}");
            assert!((f64::from(fitted.intercept) - intercept).abs() < 0.02, "{slope} {intercept}: {fitted:?}");
        }
    }

    #[test]
    fn few_or_equal_labels_give_finite_curves() {
        assert_eq!(fit(&[]), Calibration::default());
        for label in [false, true] {
            let fitted = fit(&[(0.5, label), (-1.0, label), (2.0, label)]);
            assert!(fitted.slope.is_finite() && fitted.intercept.is_finite(), "{fitted:?}");
        }
    }

    #[test]
    fn log_odds_match_the_curve_they_are_for() {
        for p in [0.0, 1e-4, 0.3, 0.999, 1.0] {
            assert!((Calibration::default().apply(p) - p).abs() < 1e-4);
            assert!(log_odds(p).is_finite());
        }
    }
}
