//! The loss of stream rows and its gradient with respect to their logits, in plain loops.
//!
//! The gradient is computed here and handed to the differentiable model, which saves the graph of a softmax over
//! thousands of rows and leaves one place where an objective is defined.

use crate::targets::{Target, Targets};

/// What a set of stream rows gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Score {
    /// Weighted sum of losses.
    pub(crate) loss: f64,
    /// Sum of weights.
    pub(crate) weight: f64,
    /// By depth: rows whose most probable token was the target.
    pub(crate) hits: Vec<u64>,
    /// By depth: rows with a target.
    pub(crate) rows: Vec<u64>,
}

impl Score {
    pub(crate) fn new(num_streams: usize) -> Self {
        Self { loss: 0.0, weight: 0.0, hits: vec![0; num_streams], rows: vec![0; num_streams] }
    }

    /// Adds what other rows gave.
    pub(crate) fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.weight += other.weight;
        self.hits.iter_mut().zip(&other.hits).for_each(|(sum, x)| *sum += x);
        self.rows.iter_mut().zip(&other.rows).for_each(|(sum, x)| *sum += x);
    }

    /// The mean loss over weighted targets.
    pub(crate) fn mean_loss(&self) -> f64 {
        if self.weight == 0.0 { 0.0 } else { self.loss / self.weight }
    }

    /// By depth: the share of rows whose most probable token was the target.
    pub(crate) fn accuracy(&self) -> Vec<f64> {
        self.hits.iter().zip(&self.rows).map(|(&hits, &rows)| hits as f64 / rows.max(1) as f64).collect()
    }
}

/// Tokens per pass if each depth succeeds with its own probability: `1 + sum_k prod_(i<=k) accuracy_i`.
pub(crate) fn tau(accuracy: &[f64]) -> f64 {
    let reached = accuracy.iter().scan(1.0, |product, accuracy| {
        *product *= accuracy;
        Some(*product)
    });
    1.0 + reached.sum::<f64>()
}

/// Cross entropy: scores the rows of `logits` `[rows, vocabulary]` and replaces them by the gradient of the loss, which
/// is the weighted sum over rows divided by `total_weight`.
pub(crate) fn cross_entropy(logits: &mut [f32], targets: &Targets, total_weight: f64) -> Score {
    let mut score = Score::new(targets.num_streams);
    let width = logits.len() / targets.rows.len();
    for (row, logits) in logits.chunks_exact_mut(width).enumerate() {
        let depth = row % targets.num_streams;
        let weight = targets.weight(row);
        score.rows[depth] += u64::from(targets.rows[row] != Target::None);
        let Target::Row(target) = targets.rows[row] else {
            logits.fill(0.0);
            continue;
        };
        let target = target as usize;
        let (best, max) = maximum(logits);
        score.hits[depth] += u64::from(best == target);
        let log_probability = logits[target] - max;
        let sum = exponentials(logits, max);
        score.loss += f64::from(weight) * (f64::from(sum).ln() - f64::from(log_probability));
        score.weight += f64::from(weight);
        let scale = (f64::from(weight) / total_weight) as f32;
        let factor = scale / sum;
        for x in logits.iter_mut() {
            *x *= factor;
        }
        logits[target] -= scale;
    }
    score
}

/// The first greatest value and its index.
pub(crate) fn maximum(values: &[f32]) -> (usize, f32) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (values.iter().position(|&x| x == max).unwrap_or(0), max)
}

/// Replaces each value by `exp(value - max)`; returns their sum.
pub(crate) fn exponentials(values: &mut [f32], max: f32) -> f32 {
    for x in values.iter_mut() {
        *x = (*x - max).exp();
    }
    values.iter().map(|&x| f64::from(x)).sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 12] = [0.1, -0.4, 1.2, 0.0, 2.0, -1.0, 0.3, 0.3, 0.5, 0.1, 0.0, 0.2];

    fn targets() -> Targets {
        Targets { num_streams: 3, rows: vec![Target::Row(2), Target::Row(1), Target::OutsideVocabulary] }
    }

    fn loss(logits: &[f32]) -> f64 {
        cross_entropy(&mut logits.to_vec(), &targets(), 1.9).mean_loss()
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let mut gradient = LOGITS;
        let score = cross_entropy(&mut gradient, &targets(), 1.9);
        assert!((score.weight - 1.9).abs() < 1e-6);
        for index in 0..LOGITS.len() {
            let shifted = |by: f32| {
                let mut logits = LOGITS;
                logits[index] += by;
                loss(&logits)
            };
            let expected = (shifted(0.01) - shifted(-0.01)) / 0.02;
            assert!((f64::from(gradient[index]) - expected).abs() < 1e-4, "{index}: {} {expected}", gradient[index]);
        }
    }

    #[test]
    fn rows_outside_the_vocabulary_are_misses_without_weight() {
        let score = cross_entropy(&mut LOGITS.to_vec(), &targets(), 1.9);
        assert_eq!((score.hits.clone(), score.rows.clone()), (vec![1, 0, 0], vec![1, 1, 1]));
        assert_eq!(score.accuracy(), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn tau_multiplies_accuracies() {
        assert_eq!(tau(&[]), 1.0);
        assert_eq!(tau(&[0.5, 0.5]), 1.75);
        assert_eq!(tau(&[0.0, 1.0]), 1.0);
    }
}
