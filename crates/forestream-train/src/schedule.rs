//! The learning rate over a run: warm-up, then down to a floor along half a cosine or a line.

use serde::{Deserialize, Serialize};

/// The share of the peak that is left at the end.
const FLOOR: f64 = 0.1;

/// How the learning rate goes from its peak to a tenth of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Along half a cosine: slowly at first and at the end.
    Cosine,
    /// Along a line.
    Linear,
}

impl Schedule {
    /// The factor of the peak rate when the share `progress` of the run is done and the first `warm_up` of it rises.
    pub(crate) fn factor(self, warm_up: f64, progress: f64) -> f64 {
        let progress = progress.clamp(0.0, 1.0);
        if progress < warm_up {
            return progress / warm_up;
        }
        let falling = (progress - warm_up) / (1.0 - warm_up);
        let left = match self {
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * falling).cos()),
            Self::Linear => 1.0 - falling,
        };
        FLOOR + (1.0 - FLOOR) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_falls_and_keeps_a_floor() {
        use Schedule::{Cosine, Linear};
        for (schedule, warm_up, progress, expected) in [
            (Cosine, 0.03, 0.0, 0.0),
            (Cosine, 0.03, 0.015, 0.5),
            (Cosine, 0.03, 0.03, 1.0),
            (Cosine, 0.03, 0.515, 0.55),
            (Cosine, 0.03, 2.0, 0.1),
            (Linear, 0.2, 0.1, 0.5),
            (Linear, 0.2, 0.4, 0.775),
            (Linear, 0.2, 1.0, 0.1),
            (Linear, 0.0, 0.0, 1.0),
        ] {
            let factor = schedule.factor(warm_up, progress);
            assert!((factor - expected).abs() < 1e-9, "{schedule:?} {warm_up} {progress}: {factor}");
        }
    }
}
