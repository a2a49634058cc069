//! `AdamW` over named tensors, in plain loops: the same bits on every run. Source: Loshchilov and Hutter (arXiv 1711.05101).

use std::collections::BTreeMap;

/// Values by tensor name.
pub(crate) type Named = BTreeMap<String, Vec<f32>>;

const BETAS: [f32; 2] = [0.9, 0.95];
const EPSILON: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.01;
/// Decay would pull these towards each other, for nothing.
const WITHOUT_DECAY: &str = "stream_embeddings";

/// Running means of gradients and of their squares.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdamW {
    pub(crate) first_moments: Named,
    pub(crate) second_moments: Named,
}

impl AdamW {
    pub(crate) fn new(weights: &Named) -> Self {
        let zeros: Named = weights.iter().map(|(name, values)| (name.clone(), vec![0.0; values.len()])).collect();
        Self { first_moments: zeros.clone(), second_moments: zeros }
    }

    /// One update with a rate for each tensor; `step` counts from 1.
    ///
    /// # Panics
    /// If the names of weights and gradients differ.
    pub(crate) fn update(&mut self, weights: &mut Named, gradients: &Named, rate: &dyn Fn(&str) -> f32, step: usize) {
        let correct = BETAS.map(|beta| 1.0 / (1.0 - f64::from(beta).powi(step as i32)) as f32);
        for (name, weights) in weights {
            let rate = rate(name);
            let decay = if name == WITHOUT_DECAY { 0.0 } else { rate * WEIGHT_DECAY };
            let first = self.first_moments.get_mut(name).expect("moments have the names of the weights");
            let second = self.second_moments.get_mut(name).expect("moments have the names of the weights");
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((weight, gradient), (first, second)) in weights.iter_mut().zip(&gradients[name]).zip(moments) {
                *first += (1.0 - BETAS[0]) * (gradient - *first);
                *second += (1.0 - BETAS[1]) * (gradient * gradient - *second);
                let root = (*second * correct[1]).sqrt() + EPSILON;
                *weight -= decay * *weight + rate * (*first * correct[0]) / root;
            }
        }
    }
}

/// Scales the gradients of some tensors down to a common norm of at most `limit`; returns the norm that they had.
pub(crate) fn clip(gradients: &mut Named, limit: f64, is_meant: &dyn Fn(&str) -> bool) -> f64 {
    let meant = gradients.iter().filter(|(name, _)| is_meant(name));
    let squares = meant.flat_map(|(_, values)| values).map(|&x| f64::from(x) * f64::from(x));
    let norm = squares.sum::<f64>().sqrt();
    if norm > limit {
        let scale = (limit / norm) as f32;
        let meant = gradients.iter_mut().filter(|(name, _)| is_meant(name));
        meant.flat_map(|(_, values)| values).for_each(|x| *x *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(values: &[f32]) -> Named {
        Named::from([("w".to_owned(), values.to_vec())])
    }

    #[test]
    fn the_first_step_moves_each_weight_by_the_rate() {
        let (mut weights, gradients) = (named(&[0.0, 0.0]), named(&[0.5, -20.0]));
        AdamW::new(&weights).update(&mut weights, &gradients, &|_| 0.01, 1);
        assert!((weights["w"][0] + 0.01).abs() < 1e-6 && (weights["w"][1] - 0.01).abs() < 1e-6, "{weights:?}");
    }

    #[test]
    fn a_quadratic_is_minimized() {
        let mut weights = named(&[3.0, -2.0]);
        let mut optimizer = AdamW::new(&weights);
        for step in 1..=400 {
            let gradients = named(&[weights["w"][0] - 1.0, weights["w"][1] - 1.0]);
            optimizer.update(&mut weights, &gradients, &|_| 0.05, step);
        }
        assert!(weights["w"].iter().all(|w| (w - 1.0).abs() < 0.05), "{weights:?}");
    }

    #[test]
    fn gradients_are_clipped_by_their_common_norm() {
        let mut gradients = named(&[3.0, 4.0]);
        assert_eq!(clip(&mut gradients, 1.0, &|name| name == "other"), 0.0);
        assert_eq!(clip(&mut gradients, 1.0, &|_| true), 5.0);
        assert!((gradients["w"][0] - 0.6).abs() < 1e-6);
        assert!(clip(&mut gradients, 10.0, &|_| true) < 1.01, "small gradients stay as they are");
    }
}
