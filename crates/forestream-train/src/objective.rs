//! The loss of rows and its gradient with respect to their logits, in plain loops.
//!
//! The gradient is computed here and handed to the differentiable model, which saves the graph of a softmax over
//! thousands of rows and leaves one place where an objective is defined. Rows run in parallel and are added up in their
//! order, so that no result depends on the number of threads.

use forestream_model::{Isa, TokenId, exponentials};
use rayon::prelude::*;

use crate::settings::Objective;
use crate::targets::{Target, Targets};

/// What a set of rows gave that foresee the next token: main rows, or the early exit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct NextTokenScore {
    /// Sum of losses.
    pub(crate) loss: f64,
    /// Rows whose most probable token was the target.
    pub(crate) hits: u64,
    /// All rows with a target.
    pub(crate) rows: u64,
    /// Rows that have a loss: those whose target can be predicted.
    pub(crate) scored: u64,
}

impl NextTokenScore {
    /// Adds what other rows gave.
    pub(crate) fn add(&mut self, other: Self) {
        self.loss += other.loss;
        self.hits += other.hits;
        self.rows += other.rows;
        self.scored += other.scored;
    }

    /// The mean loss of the rows that have one.
    pub(crate) fn mean_loss(&self) -> f64 {
        self.loss / self.scored.max(1) as f64
    }

    /// The share of rows whose most probable token was the target.
    pub(crate) fn accuracy(&self) -> f64 {
        self.hits as f64 / self.rows.max(1) as f64
    }
}

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

/// Scores the rows of `logits` `[rows, vocabulary]` and replaces them by the gradient of the loss, which is the weighted
/// sum over rows divided by `divisor`.
///
/// # Panics
/// If the objective needs a teacher and the targets have none.
pub(crate) fn score_rows(logits: &mut [f32], targets: &Targets, objective: Objective, divisor: f64) -> Score {
    let mut score = Score::new(targets.num_streams);
    let width = logits.len() / targets.rows.len();
    let rows = logits.par_chunks_exact_mut(width).enumerate();
    let rows: Vec<_> = rows.map(|(row, logits)| score_row(logits, targets, row, objective, divisor)).collect();
    for (row, (is_hit, loss)) in rows.into_iter().enumerate() {
        let (depth, weight) = (row % targets.num_streams, f64::from(targets.weight(row)));
        score.rows[depth] += u64::from(targets.rows[row] != Target::None);
        score.hits[depth] += u64::from(is_hit);
        score.loss += weight * loss;
        score.weight += weight;
    }
    score
}

/// Whether the most probable token of a row is its target, and its loss; its logits become the gradient.
fn score_row(logits: &mut [f32], targets: &Targets, row: usize, objective: Objective, divisor: f64) -> (bool, f64) {
    let (target, weight) = (targets.rows[row], targets.weight(row));
    if weight == 0.0 {
        logits.fill(0.0);
        return (false, 0.0);
    }
    let best = softmax(logits);
    let taught = || targets.taught(row).expect("the trainer gives a teacher where one is needed");
    let scale = (f64::from(weight) / divisor) as f32;
    let loss = match (objective, target) {
        (Objective::Ce, Target::Row(token)) => cross_entropy(logits, token as usize, scale),
        (Objective::Ce, _) => unreachable!("a row without token has no weight"),
        (Objective::Kl, _) => divergence(logits, taught(), scale),
        (Objective::Tv, _) => variation(logits, taught(), scale),
        (Objective::Lk, _) => hybrid(logits, taught(), scale),
    };
    (target == Target::Row(best as u32), loss)
}

/// Cross entropy of main rows over the whole vocabulary: scores the rows of `logits` and replaces them by the gradient
/// of their summed loss times `scale`.
pub(crate) fn main_cross_entropy(logits: &mut [f32], targets: &[TokenId], scale: f32) -> NextTokenScore {
    next_token(logits, targets, |logits, &target| {
        let best = softmax(logits);
        let loss = cross_entropy(logits, target as usize, scale);
        NextTokenScore { loss, hits: u64::from(best == target as usize), rows: 1, scored: 1 }
    })
}

/// Cross entropy of the early exit over the draft vocabulary, the same way; tokens outside it count as misses and teach
/// nothing.
pub(crate) fn exit_cross_entropy(logits: &mut [f32], targets: &[Target], scale: f32) -> NextTokenScore {
    next_token(logits, targets, |logits, target| {
        let &Target::Row(token) = target else {
            logits.fill(0.0);
            return NextTokenScore {
                rows: u64::from(*target == Target::OutsideVocabulary),
                ..NextTokenScore::default()
            };
        };
        let best = softmax(logits);
        let loss = cross_entropy(logits, token as usize, scale);
        NextTokenScore { loss, hits: u64::from(best == token as usize), rows: 1, scored: 1 }
    })
}

/// The sum of the scores of rows that foresee the next token.
fn next_token<T: Sync>(
    logits: &mut [f32],
    targets: &[T],
    score_row: impl Fn(&mut [f32], &T) -> NextTokenScore + Sync,
) -> NextTokenScore {
    let width = logits.len() / targets.len();
    let rows = logits.par_chunks_exact_mut(width).zip(targets.par_iter());
    let rows: Vec<NextTokenScore> = rows.map(|(logits, target)| score_row(logits, target)).collect();
    let mut score = NextTokenScore::default();
    for row in rows {
        score.add(row);
    }
    score
}

/// Probabilities below this are as good as none.
const SMALLEST: f32 = 1e-30;

/// `-ln q_token`; turns probabilities `q` into the gradient by the logits, scaled.
fn cross_entropy(q: &mut [f32], token: usize, scale: f32) -> f64 {
    let loss = -f64::from(q[token].max(SMALLEST)).ln();
    for x in q.iter_mut() {
        *x *= scale;
    }
    q[token] -= scale;
    loss
}

/// `sum_i p_i ln (p_i / (m q_i))` with the mass `m = sum_i p_i`: of tokens that streams cannot propose nothing is learned,
/// and what is left counts by how often it is asked for; the same way.
fn divergence(q: &mut [f32], p: &[f32], scale: f32) -> f64 {
    let mass: f64 = p.iter().copied().map(f64::from).sum();
    let mut loss = 0.0;
    for (q, &p) in q.iter_mut().zip(p) {
        if p > 0.0 {
            loss += f64::from(p) * (f64::from(p) / (mass * f64::from(q.max(SMALLEST)))).ln();
        }
        *q = scale * (mass as f32 * *q - p);
    }
    loss
}

/// `1 - sum_i min(p_i, q_i)`, the probability that a draft token is rejected, the same way.
fn variation(q: &mut [f32], p: &[f32], scale: f32) -> f64 {
    let accepted: f64 = q.iter().zip(p).map(|(&q, &p)| f64::from(q.min(p))).sum();
    let sure = |q: f32, p: f32| if q > p { 0.0 } else { 1.0 };
    let sum: f32 = q.iter().zip(p).map(|(&q, &p)| q * sure(q, p)).sum();
    for (q, &p) in q.iter_mut().zip(p) {
        *q *= scale * (sum - sure(*q, p));
    }
    1.0 - accepted
}

/// How fast the divergence fades as more is accepted; our choice.
const FADING: f64 = 3.0;

/// `w KL + (1 - w) TV` with `w = e^(-3 a)`, where `a = 1 - TV` is the acceptance so far and counts as a constant; the same way.
/// Source: LK losses (arXiv 2602.23881), the adaptive hybrid.
fn hybrid(q: &mut [f32], p: &[f32], scale: f32) -> f64 {
    let mut of_variation = q.to_vec();
    let tv = variation(&mut of_variation, p, scale);
    let weight = (-FADING * (1.0 - tv)).exp();
    let kl = divergence(q, p, scale);
    for (q, of_variation) in q.iter_mut().zip(of_variation) {
        *q = weight as f32 * *q + (1.0 - weight) as f32 * of_variation;
    }
    weight * kl + (1.0 - weight) * tv
}

/// Turns logits into probabilities; returns the index of the greatest.
pub(crate) fn softmax(logits: &mut [f32]) -> usize {
    let (best, max) = maximum(logits);
    let sum = exponentials(Isa::best(), logits, max);
    for x in logits.iter_mut() {
        *x /= sum;
    }
    best
}

/// The first greatest value and its index.
pub(crate) fn maximum(values: &[f32]) -> (usize, f32) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (values.iter().position(|&x| x == max).unwrap_or(0), max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Teacher;

    const LOGITS: [f32; 12] = [0.1, -0.4, 1.2, 0.0, 2.0, -1.0, 0.3, 0.3, 0.5, 0.1, 0.0, 0.2];

    fn targets(objective: Objective) -> Targets {
        let rows = vec![Target::Row(2), Target::Row(1), Target::OutsideVocabulary];
        // Of the second row nine tenths are for tokens that streams cannot propose, of the third one half.
        let probabilities = vec![0.1, 0.2, 0.3, 0.4, 0.0, 0.1, 0.0, 0.0, 0.35, 0.05, 0.05, 0.05];
        let teacher = (objective != Objective::Ce).then_some(Teacher { probabilities, width: 4 });
        Targets { num_streams: 3, depth_decay: 0.9, rows, next: Vec::new(), teacher }
    }

    #[test]
    fn gradients_are_those_of_the_losses() {
        for objective in [Objective::Ce, Objective::Kl, Objective::Tv] {
            let targets = targets(objective);
            let weight = targets.total_weight();
            let loss = |logits: &[f32]| score_rows(&mut logits.to_vec(), &targets, objective, weight).mean_loss();
            let mut gradient = LOGITS;
            score_rows(&mut gradient, &targets, objective, weight);
            for index in 0..LOGITS.len() {
                let shifted = |by: f32| {
                    let mut logits = LOGITS;
                    logits[index] += by;
                    loss(&logits)
                };
                let expected = (shifted(0.01) - shifted(-0.01)) / 0.02;
                let got = f64::from(gradient[index]);
                assert!((got - expected).abs() < 1e-4, "{objective:?} {index}: {got} {expected}");
            }
        }
    }

    #[test]
    fn the_hybrid_follows_the_divergence_where_little_is_accepted_and_the_variation_where_much_is() {
        let gradient = |objective, logit: f32, probabilities: [f32; 2]| {
            let teacher = Some(Teacher { probabilities: probabilities.to_vec(), width: 2 });
            let targets =
                Targets { num_streams: 1, depth_decay: 0.9, rows: vec![Target::Row(1)], next: Vec::new(), teacher };
            let mut logits = [0.0, logit];
            score_rows(&mut logits, &targets, objective, 1.0);
            logits[1]
        };
        let objectives = [Objective::Kl, Objective::Tv, Objective::Lk];
        for (logit, taught) in [-6.0_f32, 0.0, 1.3].into_iter().flat_map(|x| [(x, [0.2_f32, 0.8]), (x, [0.1, 0.4])]) {
            let q = 1.0 / (1.0 + (-logit).exp());
            let accepted = taught[0].min(1.0 - q) + taught[1].min(q);
            let weight = (-3.0 * accepted).exp();
            let [kl, tv, hybrid] = objectives.map(|name| gradient(name, logit, taught));
            assert!((hybrid - (weight * kl + (1.0 - weight) * tv)).abs() < 1e-6, "{logit}: {hybrid} of {kl} and {tv}");
        }
    }

    #[test]
    fn losses_are_those_of_a_calculation_by_hand() {
        let loss = |objective, probability| {
            let teacher = Some(Teacher { probabilities: vec![probability; 2], width: 2 });
            let targets =
                Targets { num_streams: 1, depth_decay: 0.9, rows: vec![Target::Row(0)], next: Vec::new(), teacher };
            score_rows(&mut [0.0, 3.0_f32.ln()], &targets, objective, 1.0).loss
        };
        // Half of the time each, and a tenth each where the rest is for tokens that streams cannot propose.
        for (probability, accepted) in [(0.5_f32, 0.75_f64), (0.1, 0.2)] {
            let kl = f64::from(probability) * (4.0_f64 / 3.0).ln();
            let (tv, weight) = (1.0 - accepted, (-3.0 * accepted).exp());
            let expected = [4.0_f64.ln(), kl, tv, weight * kl + (1.0 - weight) * tv];
            let objectives = [Objective::Ce, Objective::Kl, Objective::Tv, Objective::Lk];
            for (objective, expected) in objectives.into_iter().zip(expected) {
                let loss = loss(objective, probability);
                assert!((loss - expected).abs() < 1e-6, "{objective:?} of {probability}: {loss} {expected}");
            }
        }
    }

    #[test]
    fn the_gradient_of_main_rows_is_that_of_their_loss() {
        let targets = [2, 1, 0];
        let mut gradient = LOGITS;
        let score = main_cross_entropy(&mut gradient, &targets, 0.25);
        assert_eq!((score.hits, score.rows), (2, 3));
        for index in 0..LOGITS.len() {
            let shifted = |by: f32| {
                let mut logits = LOGITS;
                logits[index] += by;
                main_cross_entropy(&mut logits, &targets, 1.0).loss
            };
            let expected = 0.25 * (shifted(0.01) - shifted(-0.01)) / 0.02;
            assert!((f64::from(gradient[index]) - expected).abs() < 1e-4, "{index}: {} {expected}", gradient[index]);
        }
    }

    #[test]
    fn the_gradient_of_the_early_exit_is_that_of_its_loss() {
        let targets = [Target::Row(2), Target::OutsideVocabulary, Target::Row(0)];
        let mut gradient = LOGITS;
        let score = exit_cross_entropy(&mut gradient, &targets, 0.25);
        assert_eq!((score.hits, score.rows), (2, 3));
        assert!((score.mean_loss() - score.loss / 2.0).abs() < 1e-9, "two of three rows have a loss: {score:?}");
        for index in 0..LOGITS.len() {
            let shifted = |by: f32| {
                let mut logits = LOGITS;
                logits[index] += by;
                exit_cross_entropy(&mut logits, &targets, 1.0).loss
            };
            let expected = 0.25 * (shifted(0.01) - shifted(-0.01)) / 0.02;
            assert!((f64::from(gradient[index]) - expected).abs() < 1e-4, "{index}: {} {expected}", gradient[index]);
        }
    }

    #[test]
    fn rows_outside_the_vocabulary_are_misses_without_weight() {
        let score = score_rows(&mut LOGITS.to_vec(), &targets(Objective::Ce), Objective::Ce, 1.9);
        assert!((score.weight - 1.9).abs() < 1e-6);
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
