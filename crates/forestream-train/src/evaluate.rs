//! How well streams foresee held-out text, and in joint mode how well main rows predict it.

use forestream_burn::{StreamBase, StreamWeights};
use forestream_model::streams::Calibration;
use forestream_model::{Isa, exponentials};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::calibration::{self, Proposal};
use crate::data::Example;
use crate::measure::Measurement;
use crate::objective::{NextTokenScore, Score, exit_cross_entropy, main_cross_entropy, maximum, tau};
use crate::pieces::{Piece, run, values};
use crate::progress::NextTokenFigures;
use crate::targets::{Target, Targets};

/// Proposals of a row that the calibration looks at.
const NUM_PROPOSALS: usize = 4;

/// What streams are worth on held-out examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss of streams over weighted targets.
    pub loss: f64,
    /// The main rows, where they are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<NextTokenFigures>,
    /// The early exit, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_exit: Option<NextTokenFigures>,
    /// By depth: how often the most probable token is the target, given that the tokens before it are right.
    pub accuracy: Vec<f64>,
    /// `1 + sum_k prod_(i<=k) accuracy_i`.
    pub tau: f64,
    /// Tokens per pass of greedy decoding with a chain of the most probable tokens, walked through the examples.
    pub chain: f64,
    /// By depth: how confidence turns into acceptance.
    pub calibration: Vec<Calibration>,
    /// Positions that were looked at.
    pub num_positions: usize,
}

impl Evaluation {
    /// Whether everything in it is a number: weights that diverged give others.
    pub(crate) fn is_finite(&self) -> bool {
        let others = [&self.main, &self.early_exit].into_iter().flatten().map(|figures| figures.loss);
        let calibration = self.calibration.iter().flat_map(|line| [line.slope, line.intercept]).map(f64::from);
        others.chain(calibration).chain([self.loss]).all(f64::is_finite)
    }
}

/// Sums over pieces or examples.
struct Sums {
    score: Score,
    main: NextTokenScore,
    early_exit: NextTokenScore,
    /// By depth.
    proposals: Vec<Vec<Proposal>>,
    /// By position of a piece: the number of leading streams that are right.
    accepted: Vec<usize>,
    num_passes: usize,
    num_tokens: usize,
    num_positions: usize,
}

/// Runs the trained rows over all positions of `examples`; `None` where it was asked to stop.
///
/// # Errors
/// If a pass fails.
pub(crate) fn evaluate(
    measurement: &mut Measurement<'_>,
    base: &StreamBase,
    weights: &StreamWeights,
    examples: &[Example],
) -> Result<Option<Evaluation>, TrainError> {
    let mut sums = Sums::new(base.adapter().streams.num_streams);
    let of_piece = |piece| Sums::of(piece, base, weights);
    let is_whole = measurement.run(examples, of_piece, |pieces| sums.add_example(pieces))?;
    Ok(is_whole.then(|| sums.evaluation()))
}

impl Sums {
    fn new(num_streams: usize) -> Self {
        Self {
            score: Score::new(num_streams),
            main: NextTokenScore::default(),
            early_exit: NextTokenScore::default(),
            proposals: vec![Vec::new(); num_streams],
            accepted: Vec::new(),
            num_passes: 0,
            num_tokens: 0,
            num_positions: 0,
        }
    }

    /// Those of a piece.
    fn of(piece: Piece, base: &StreamBase, weights: &StreamWeights) -> Result<Self, TrainError> {
        let mut sums = Self::new(piece.targets.num_streams);
        let logits = run(base, weights, vec![piece.input])?;
        sums.add(values(logits.streams), &piece.targets);
        if let Some(logits) = logits.early_exit {
            sums.early_exit.add(exit_cross_entropy(&mut values(logits), &piece.targets.next, 0.0));
        }
        if let Some(logits) = logits.main {
            sums.main.add(main_cross_entropy(&mut values(logits), &piece.main_targets, 0.0));
        }
        Ok(sums)
    }

    /// Adds all pieces of an example.
    fn add_example(&mut self, pieces: Vec<Self>) {
        let mut accepted = Vec::new();
        for piece in pieces {
            self.score.add(&piece.score);
            self.main.add(piece.main);
            self.early_exit.add(piece.early_exit);
            self.proposals.iter_mut().zip(piece.proposals).for_each(|(all, own)| all.extend(own));
            self.num_positions += piece.num_positions;
            accepted.extend(piece.accepted);
        }
        self.walk(&accepted);
    }

    fn evaluation(&self) -> Evaluation {
        let accuracy = self.score.accuracy();
        Evaluation {
            loss: self.score.mean_loss(),
            main: NextTokenFigures::of(&self.main),
            early_exit: NextTokenFigures::of(&self.early_exit),
            tau: tau(&accuracy),
            accuracy,
            chain: self.num_tokens as f64 / self.num_passes.max(1) as f64,
            calibration: self.proposals.iter().map(|proposals| calibration::fit(proposals)).collect(),
            num_positions: self.num_positions,
        }
    }

    /// Adds the rows of a piece.
    fn add(&mut self, mut logits: Vec<f32>, targets: &Targets) {
        let width = logits.len() / targets.rows.len();
        let rows = logits.chunks_exact_mut(width);
        for (row, logits) in rows.enumerate() {
            let depth = row % targets.num_streams;
            if depth == 0 {
                self.accepted.push(0);
                self.num_positions += 1;
            }
            let Some(is_hit) = self.add_row(logits, targets, row) else { continue };
            let accepted = self.accepted.last_mut().expect("depth 0 comes first");
            *accepted += usize::from(is_hit && *accepted == depth);
        }
    }

    /// Adds a row; returns whether its most probable token is the target, if it has one.
    fn add_row(&mut self, logits: &mut [f32], targets: &Targets, row: usize) -> Option<bool> {
        let depth = row % targets.num_streams;
        let target = match targets.rows[row] {
            Target::None => return None,
            Target::OutsideVocabulary => None,
            Target::Row(target) => Some(target as usize),
        };
        let (best, max) = maximum(logits);
        let log_probability = target.map(|target| f64::from(logits[target] - max));
        let sum = exponentials(Isa::best(), logits, max);
        self.score.rows[depth] += 1;
        self.score.hits[depth] += u64::from(target == Some(best));
        if let Some(log_probability) = log_probability {
            let weight = f64::from(targets.weight(row));
            self.score.loss += weight * (f64::from(sum).ln() - log_probability);
            self.score.weight += weight;
        }
        for _ in 0..NUM_PROPOSALS.min(logits.len()) {
            let (index, exponential) = maximum(logits);
            self.proposals[depth].push((calibration::log_odds(exponential / sum), target == Some(index)));
            logits[index] = f32::NEG_INFINITY;
        }
        Some(target == Some(best))
    }

    /// Walks through an example as greedy decoding would: a pass emits the accepted tokens and one more.
    fn walk(&mut self, accepted: &[usize]) {
        let mut position = 0;
        while position < accepted.len() {
            self.num_passes += 1;
            self.num_tokens += accepted[position] + 1;
            position += accepted[position] + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Teacher;

    #[test]
    fn streams_count_only_after_streams_that_are_right() {
        let mut sums = Sums::new(2);
        // Most probable tokens: 1 2 | 0 2 | 1 0; targets: 1 2 | 1 2 | 1 -.
        let logits = vec![0., 9., 1., 0., 1., 9., 9., 0., 1., 0., 1., 9., 0., 9., 1., 9., 0., 1.];
        let rows = vec![Target::Row(1), Target::Row(2), Target::Row(1), Target::Row(2), Target::Row(1), Target::None];
        sums.add(logits, &Targets { num_streams: 2, depth_decay: 0.9, rows, next: Vec::new(), teacher: None });
        assert_eq!(sums.accepted, [2, 0, 1]);
        assert_eq!(sums.score.accuracy(), [2.0 / 3.0, 1.0]);
        assert_eq!(sums.proposals[1].len(), 2 * 3, "three tokens give three proposals of a row");
        sums.walk(&[2, 0, 1]);
        assert_eq!((sums.num_passes, sums.num_tokens), (1, 3));
        sums.walk(&[0, 1, 0, 0]);
        assert_eq!((sums.num_passes, sums.num_tokens), (4, 7));
    }

    #[test]
    fn the_loss_is_cross_entropy_whatever_streams_learn_from() {
        let loss = |teacher| {
            let rows = vec![Target::Row(1), Target::OutsideVocabulary, Target::Row(0), Target::None];
            let targets = Targets { num_streams: 2, depth_decay: 0.9, rows, next: Vec::new(), teacher };
            let mut sums = Sums::new(2);
            sums.add(vec![0., 1., 5., 0., 1., 0., 2., 1.], &targets);
            sums.score.mean_loss()
        };
        let taught = loss(Some(Teacher { probabilities: vec![0.5; 8], width: 2 }));
        assert!((loss(None) - taught).abs() < 1e-12, "{} and {taught}", loss(None));
    }
}
