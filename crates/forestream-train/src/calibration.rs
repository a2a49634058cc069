//! How a stream's confidence turns into acceptance: by depth, a logistic regression on held-out proposals.

use forestream_model::streams::Calibration;

/// A proposal: the log-odds of its probability, and whether it was the target.
pub(crate) type Proposal = (f32, bool);

/// Newton's method settles within a few of these.
const ITERATIONS: usize = 50;
/// A smaller step changes nothing.
const SMALLEST_STEP: f64 = 1e-9;
/// Holds the curve near the identity where there are but a few labels, or all agree.
const RIDGE: f64 = 1.0;
/// Beyond these, probabilities are as good as certain.
const EDGE: f32 = 1e-6;

/// The log-odds of a probability, as [`Calibration::apply`] takes them.
pub(crate) fn log_odds(p: f32) -> f32 {
    let p = p.clamp(EDGE, 1.0 - EDGE);
    (p / (1.0 - p)).ln()
}

/// The curve that gives the labels the greatest likelihood; the identity without proposals. It never falls: a proposal does not
/// become less likely by being more probable.
pub(crate) fn fit(proposals: &[Proposal]) -> Calibration {
    let mut curve = Curve { slope: 1.0, intercept: 0.0 };
    if proposals.is_empty() {
        return Calibration::default();
    }
    let mut likelihood = curve.likelihood(proposals);
    for _ in 0..ITERATIONS {
        let step = curve.step(proposals);
        let length = step[0].abs().max(step[1].abs());
        // Where confidence is nearly certain and sometimes wrong, a full step overshoots, and the next one back again.
        let mut scale = (2.0 / length).min(1.0);
        let better = loop {
            if scale * length < SMALLEST_STEP || !length.is_finite() {
                break None;
            }
            let next = curve.moved(step, scale);
            let next_likelihood = next.likelihood(proposals);
            if next_likelihood > likelihood {
                break Some((next, next_likelihood));
            }
            scale *= 0.5;
        };
        let Some(better) = better else { break };
        (curve, likelihood) = better;
    }
    Calibration { slope: curve.slope as f32, intercept: curve.intercept as f32 }
}

/// A curve on its way to the best one.
#[derive(Clone, Copy)]
struct Curve {
    slope: f64,
    intercept: f64,
}

impl Curve {
    /// The logarithm of the labels' probability, less what the ridge takes for the distance from the identity.
    fn likelihood(self, proposals: &[Proposal]) -> f64 {
        let of_label = |&(x, is_target): &Proposal| {
            let log_odds = self.slope * f64::from(x) + self.intercept;
            let against = if is_target { -log_odds } else { log_odds };
            -(against.max(0.0) + (-against.abs()).exp().ln_1p())
        };
        let distance = (1.0 - self.slope).powi(2) + self.intercept.powi(2);
        proposals.iter().map(of_label).sum::<f64>() - 0.5 * RIDGE * distance
    }

    /// Newton's step towards the greatest likelihood; along the intercept alone where the slope would fall below 0.
    fn step(self, proposals: &[Proposal]) -> [f64; 2] {
        // The ridge pulls towards the identity.
        let mut gradient = [RIDGE * (1.0 - self.slope), -RIDGE * self.intercept];
        let mut hessian = [RIDGE, 0.0, RIDGE];
        for &(x, is_target) in proposals {
            let x = f64::from(x);
            let p = 1.0 / (1.0 + (-(self.slope * x + self.intercept)).exp());
            let (error, curvature) = (f64::from(u8::from(is_target)) - p, p * (1.0 - p));
            gradient[0] += error * x;
            gradient[1] += error;
            hessian[0] += curvature * x * x;
            hessian[1] += curvature * x;
            hessian[2] += curvature;
        }
        if self.slope == 0.0 && gradient[0] < 0.0 {
            return [0.0, gradient[1] / hessian[2]];
        }
        let determinant = hessian[0] * hessian[2] - hessian[1] * hessian[1];
        [
            (hessian[2] * gradient[0] - hessian[1] * gradient[1]) / determinant,
            (hessian[0] * gradient[1] - hessian[1] * gradient[0]) / determinant,
        ]
    }

    fn moved(self, [slope, intercept]: [f64; 2], scale: f64) -> Self {
        Self { slope: (self.slope + scale * slope).max(0.0), intercept: self.intercept + scale * intercept }
    }
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

    /// As an overfitted drafter proposes: certain, and sometimes wrong.
    #[test]
    fn certain_proposals_that_are_sometimes_wrong_get_their_share() {
        let certain = log_odds(1.0);
        for (num_right, expected) in [(500, 0.5), (750, 0.75), (999, 0.999)] {
            let proposals: Vec<Proposal> = (0..1000).map(|index| (certain, index < num_right)).collect();
            let share = fit(&proposals).apply(1.0);
            assert!((share - expected).abs() < 0.01, "{num_right}: {share}");
        }
        // The second choices of such a drafter, certain to be wrong, are right at times.
        let mut proposals: Vec<Proposal> = (0..1000).map(|index| (certain, index % 4 > 0)).collect();
        proposals.extend((0..3000).map(|index| (-certain, index % 12 == 0)));
        let fitted = fit(&proposals);
        assert!(fitted.slope > 0.05 && fitted.apply(1.0) > 0.7 && fitted.apply(0.0) < 0.1, "{fitted:?}");
    }

    /// Full steps alone end at a slope of 0.02 here; the expected curve is that of an independent program.
    #[test]
    fn a_step_that_makes_it_worse_is_shortened() {
        let groups = [(-4.292_151_4, 1, 1000), (12.366_647, 50, 5), (log_odds(1.0), 50, 50)];
        let of_group = |(x, num_right, num_wrong): (f32, usize, usize)| {
            (0..num_right + num_wrong).map(move |index| (x, index < num_right))
        };
        let fitted = fit(&groups.into_iter().flat_map(of_group).collect::<Vec<_>>());
        assert!((fitted.slope - 0.330).abs() < 0.01 && (fitted.intercept + 3.806).abs() < 0.05, "{fitted:?}");
    }

    #[test]
    fn proposals_of_weights_that_diverged_end_too() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(fit(&[(odd, true), (0.5, false), (odd, false)]), Calibration::default(), "{odd}");
        }
    }

    #[test]
    fn a_curve_never_falls() {
        let contrary: Vec<Proposal> =
            (0..4000).map(|index| if index % 2 == 0 { (3.0, false) } else { (-3.0, true) }).collect();
        let fitted = fit(&contrary);
        assert!(fitted.slope.abs() < 1e-6 && (fitted.apply(0.5) - 0.5).abs() < 0.01, "{fitted:?}");
    }

    #[test]
    fn log_odds_match_the_curve_they_are_for() {
        for p in [0.0, 1e-4, 0.3, 0.999, 1.0] {
            assert!((Calibration::default().apply(p) - p).abs() < 1e-4);
            assert!(log_odds(p).is_finite());
        }
    }
}
