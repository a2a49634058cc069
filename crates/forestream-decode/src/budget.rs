//! The cost model: how many draft nodes are worth verifying in a pass.
//!
//! A pass over n nodes takes t(n) seconds, measured once per machine and model, and followed while decoding (`pace.rs`).
//! With the drafts' nodes in falling order of their acceptance probability, a pass that verifies the best B of them emits
//! `1 + sum of the B probabilities` tokens on average; the B of the highest rate is taken. B = 0 is plain decoding. Several
//! sequences share one ranking.

use std::sync::Arc;

use crate::round::active;
use crate::{DecodeError, LiveCurve, Sequence};

/// No pass is believed to take less than this part of what was measured.
const LEAST_PART: f64 = 0.1;

/// How many nodes a pass may verify.
#[derive(Clone, Debug)]
pub enum Budget {
    /// As many as pay, by the measured cost of a pass.
    Auto(CostCurve),
    /// As many as pay, by what passes take now.
    Live(Arc<LiveCurve>),
    /// At most this many for each sequence, root included.
    Fixed(usize),
}

impl Budget {
    /// The most nodes that a sequence may draft, root included; at least 1.
    pub fn max_nodes(&self) -> usize {
        match self {
            Self::Auto(cost) => cost.max_nodes(),
            Self::Live(curve) => curve.max_nodes(),
            Self::Fixed(nodes) => (*nodes).max(1),
        }
    }

    /// Seconds since some moment, where somebody asks.
    pub(crate) fn clock(&self) -> f64 {
        match self {
            Self::Live(curve) => curve.clock(),
            Self::Auto(_) | Self::Fixed(_) => 0.0,
        }
    }
}

/// Seconds of a pass over n nodes: measured at some n, linear between, never falling.
#[derive(Debug, PartialEq)]
pub struct CostCurve {
    points: Vec<(usize, f64)>,
    /// Seconds of drafting besides the pass, with 1, 2, ... streams in all; empty for a drafter that takes no time.
    draft_seconds: Vec<f64>,
}

impl Clone for CostCurve {
    fn clone(&self) -> Self {
        Self { points: self.points.clone(), draft_seconds: self.draft_seconds.clone() }
    }

    /// Keeps the allocations.
    fn clone_from(&mut self, other: &Self) {
        self.points.clone_from(&other.points);
        self.draft_seconds.clone_from(&other.draft_seconds);
    }
}

impl CostCurve {
    /// A curve through measured (nodes, seconds). A busy machine only ever adds time, so an earlier point above a later one is
    /// noise, and lowered to it.
    ///
    /// # Errors
    /// [`DecodeError::CostCurve`] without points, for sizes that do not grow from 1 or more, and for times that are not
    /// positive.
    pub fn new(points: &[(usize, f64)]) -> Result<Self, DecodeError> {
        let mut last_nodes = 0;
        for &(nodes, seconds) in points {
            let is_positive = seconds.is_finite() && seconds > 0.0;
            if nodes <= last_nodes || !is_positive {
                return Err(DecodeError::CostCurve { nodes, seconds });
            }
            last_nodes = nodes;
        }
        if points.is_empty() {
            return Err(DecodeError::CostCurve { nodes: 0, seconds: 0.0 });
        }
        let mut points = points.to_vec();
        lower_to_later(points.iter_mut().map(|(_, seconds)| seconds));
        Ok(Self { points, draft_seconds: Vec::new() })
    }

    /// The same passes with a drafter that takes this long with 1, 2, ... streams; noise is lowered here too.
    pub fn with_draft_seconds(mut self, mut draft_seconds: Vec<f64>) -> Self {
        lower_to_later(draft_seconds.iter_mut());
        self.draft_seconds = draft_seconds;
        self
    }

    /// Seconds that drafting takes with 1, 2, ... streams, for keeping them in a file.
    pub fn draft_points(&self) -> &[f64] {
        &self.draft_seconds
    }

    /// Seconds that drafting takes with `num_streams` streams, those of all sequences of a pass; beyond the measured numbers
    /// the mean slope goes on.
    pub fn draft_seconds(&self, num_streams: usize) -> f64 {
        let [first, .., last] = self.draft_seconds[..] else {
            return self.draft_seconds.first().copied().unwrap_or(0.0);
        };
        let measured = self.draft_seconds.len();
        let slope = (last - first) / (measured - 1) as f64;
        match self.draft_seconds.get(num_streams.max(1) - 1) {
            Some(&seconds) => seconds,
            None => last + slope * (num_streams - measured) as f64,
        }
    }

    /// The least score with which any node can pay: what the cheapest further node costs, in passes over one.
    pub(crate) fn min_score(&self) -> f32 {
        let slopes = self.points.windows(2).map(|pair| (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0) as f64);
        let least = slopes.fold(f64::INFINITY, f64::min) / self.points[0].1;
        if least.is_finite() { least as f32 } else { 0.0 }
    }

    /// Becomes `measured`, times `scale`, with `slope` passes over one node more for each further node: never falling, nor
    /// quicker than a tenth of what was measured.
    pub(crate) fn follow(&mut self, measured: &Self, scale: f64, slope: f64) {
        let further = slope * measured.points[0].1;
        for (now, &(nodes, seconds)) in self.points.iter_mut().zip(&measured.points) {
            now.1 = (scale * seconds + further * (nodes - 1) as f64).max(LEAST_PART * seconds);
        }
        lower_to_later(self.points.iter_mut().map(|(_, seconds)| seconds));
    }

    /// Drafts take `scale` times what was `measured`.
    pub(crate) fn follow_drafts(&mut self, measured: &Self, scale: f64) {
        for (now, seconds) in self.draft_seconds.iter_mut().zip(&measured.draft_seconds) {
            *now = scale * seconds;
        }
    }

    /// The measured points, for keeping them in a file.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }

    /// The largest size that was measured.
    pub fn max_nodes(&self) -> usize {
        self.points[self.points.len() - 1].0
    }

    /// Seconds of a pass over `nodes` nodes; beyond the measured sizes the last slope goes on.
    pub fn seconds(&self, nodes: usize) -> f64 {
        let after = self.points.partition_point(|&(size, _)| size < nodes);
        let (left, right) = match (after, self.points.len()) {
            (0, _) | (_, 1) => return self.points[0].1,
            (after, len) if after == len => (self.points[len - 2], self.points[len - 1]),
            (after, _) => (self.points[after - 1], self.points[after]),
        };
        let slope = (right.1 - left.1) / (right.0 - left.0) as f64;
        left.1 + slope * (nodes - left.0) as f64
    }

    /// How many of the nodes with these falling `scores` make the best rate, in a pass that goes on from `base`.
    pub fn best_count(&self, base: PassBase, scores: impl Iterator<Item = f32>) -> usize {
        let seconds = |nodes: usize| base.seconds + self.seconds(nodes);
        let mut best = (0, base.tokens as f64 / seconds(base.nodes));
        let mut expected = base.tokens as f64;
        for (index, score) in scores.enumerate() {
            expected += f64::from(score);
            let rate = expected / seconds(base.nodes + index + 1);
            if rate > best.1 {
                best = (index + 1, rate);
            }
        }
        best.0
    }
}

/// What the nodes of a sequence cost while its draft grows, as if it were alone in the pass: others make them dearer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Price<'a> {
    /// What passes cost.
    pub(crate) cost: &'a CostCurve,
    /// What the draft has cost already.
    pub(crate) draft_seconds: f64,
}

impl Price<'_> {
    /// Tokens per second with the best of the nodes of these falling `scores`, root included.
    pub(crate) fn best_rate(self, scores: &[f32]) -> f64 {
        let mut tokens = 0.0;
        let rates = scores.iter().zip(1..).map(|(&score, nodes)| {
            tokens += f64::from(score);
            self.rate(tokens, nodes)
        });
        rates.fold(0.0, f64::max)
    }

    /// Whether nodes of at most `score`, however many, can make a better rate than `best` with the best of those of `scores`.
    pub(crate) fn can_pay(self, scores: &[f32], score: f32, best: f64) -> bool {
        let nodes = scores.partition_point(|&other| other >= score);
        let tokens: f64 = scores[..nodes].iter().copied().map(f64::from).sum();
        (1..=self.cost.max_nodes().saturating_sub(nodes))
            .any(|more| self.rate(tokens + more as f64 * f64::from(score), nodes + more) > best)
    }

    fn rate(self, tokens: f64, nodes: usize) -> f64 {
        tokens / (self.draft_seconds + self.cost.seconds(nodes))
    }
}

/// What a pass has without the nodes that may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassBase {
    /// Nodes that are in it anyway.
    pub nodes: usize,
    /// Tokens that it emits anyway.
    pub tokens: usize,
    /// Seconds that went into drafting: the more these are, the more nodes it takes to earn them.
    pub seconds: f64,
}

/// The draft nodes of all sequences of a pass, ranked by score.
#[derive(Debug, Default)]
pub(crate) struct NodeRanking {
    /// Score, and the index of the sequence.
    nodes: Vec<(f32, usize)>,
    /// Nodes that each sequence keeps, root included.
    counts: Vec<usize>,
}

impl NodeRanking {
    /// Cuts the planned drafts to the nodes that pay.
    pub(crate) fn cut(&mut self, cost: &CostCurve, sequences: &mut [&mut Sequence]) {
        self.nodes.clear();
        self.nodes.reserve(cost.max_nodes() * sequences.len());
        let mut base = PassBase::default();
        for (index, sequence) in active(sequences).enumerate() {
            let draft = sequence.draft();
            base.tokens += usize::from(sequence.will_emit());
            base.seconds += draft.seconds();
            if sequence.has_choice() {
                base.nodes += 1;
                self.nodes.extend(draft.tree().node_ids().skip(1).map(|node| (draft.score(node), index)));
            } else {
                base.nodes += draft.tree().len();
            }
        }
        if self.nodes.is_empty() {
            return;
        }
        self.nodes.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let best = cost.best_count(base, self.nodes.iter().map(|&(score, _)| score));
        self.counts.clear();
        self.counts.resize(sequences.len(), 1);
        for &(_, index) in &self.nodes[..best] {
            self.counts[index] += 1;
        }
        for (sequence, &count) in active(sequences).zip(&self.counts) {
            if sequence.has_choice() && count < sequence.draft().tree().len() {
                sequence.keep_best(count);
            }
        }
    }
}

/// Lowers each time to those of more work that come after it.
fn lower_to_later<'a>(seconds: impl DoubleEndedIterator<Item = &'a mut f64>) {
    seconds.rev().fold(f64::INFINITY, |later, seconds| {
        *seconds = seconds.min(later);
        *seconds
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_interpolated_and_never_falls() {
        let curve = CostCurve::new(&[(1, 2.0), (4, 5.0), (8, 4.0), (16, 13.0)]).unwrap();
        let cases = [(0, 2.0), (1, 2.0), (4, 4.0), (6, 4.0), (8, 4.0), (12, 8.5), (16, 13.0), (24, 22.0)];
        for (nodes, expected) in cases {
            assert!((curve.seconds(nodes) - expected).abs() < 1e-12, "{nodes}");
        }
        assert!((CostCurve::new(&[(1, 2.0)]).unwrap().seconds(9) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn drafts_of_more_streams_than_were_measured_go_on_with_the_slope() {
        let curve = |seconds: &[f64]| CostCurve::new(&[(1, 1.0)]).unwrap().with_draft_seconds(seconds.to_vec());
        let cases = [(&[][..], 3, 0.0), (&[0.5], 3, 0.5), (&[0.5, 0.6, 0.9], 0, 0.5), (&[0.5, 0.6, 0.9], 2, 0.6)];
        for (seconds, num_streams, expected) in cases {
            assert!((curve(seconds).draft_seconds(num_streams) - expected).abs() < 1e-12, "{seconds:?} {num_streams}");
        }
        assert!((curve(&[0.5, 0.6, 0.9]).draft_seconds(5) - 1.3).abs() < 1e-12);
        for num_streams in [1, 5] {
            let seconds = curve(&[0.9, 0.5]).draft_seconds(num_streams);
            assert!((seconds - 0.5).abs() < 1e-12, "noise neither makes streams free nor dear: {seconds}");
        }
    }

    #[test]
    fn impossible_points_are_refused() {
        for points in [&[][..], &[(0, 1.0)], &[(2, 1.0), (2, 1.0)], &[(1, 0.0)], &[(1, f64::NAN)]] {
            assert!(matches!(CostCurve::new(points), Err(DecodeError::CostCurve { .. })), "{points:?}");
        }
    }

    #[test]
    fn the_best_count_balances_gain_and_cost() {
        let flat = CostCurve::new(&[(1, 1.0), (16, 1.0001)]).unwrap();
        let steep = CostCurve::new(&[(1, 1.0), (2, 2.0), (16, 16.0)]).unwrap();
        let knee = CostCurve::new(&[(1, 1.0), (4, 1.0), (5, 3.0), (16, 14.0)]).unwrap();
        let scores = [0.9, 0.8, 0.5, 0.4, 0.1];
        for (curve, expected) in [(flat, 5), (steep, 0), (knee, 3)] {
            let base = PassBase { nodes: 1, tokens: 1, seconds: 0.0 };
            assert_eq!(curve.best_count(base, scores.into_iter()), expected);
        }
        // Alone the second node is not worth its price; beside a draft that has to be paid for, it is.
        let curve = CostCurve::new(&[(1, 1.0), (2, 1.2), (3, 1.7)]).unwrap();
        let count = |seconds| curve.best_count(PassBase { nodes: 1, tokens: 1, seconds }, [0.8, 0.6].into_iter());
        assert_eq!((count(0.0), count(0.6)), (1, 2));
    }
}
