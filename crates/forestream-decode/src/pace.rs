//! Passes as they are now: a measured curve, corrected by what passes take while decoding.
//!
//! A machine changes under its curve: neighbors come and go, memory or arithmetic gets dearer, the text gets longer. With
//! `c(n)` the measured seconds of a pass over n nodes, passes are taken to need
//!
//! ```text
//! scale * c(n) + slope * (n - 1) * c(1)
//! ```
//!
//! and the two numbers follow by least squares from the last passes, older ones weighing less and less; until there are
//! some, the measured curve counts as if it had been seen. Drafts have one factor. Only sizes of trees follow from it,
//! never a token.

use std::sync::{Mutex, PoisonError};

use crate::CostCurve;

/// How much of its weight a pass keeps after each later one.
const MEMORY: f64 = 0.99;
/// As so many passes of either size the measured curve counts.
const PRIOR_WEIGHT: f64 = 4.0;
/// The sizes at which it does.
const PRIOR_NODES: [usize; 2] = [1, 8];
/// A pass that takes more than so many times what was expected, or less than that part of it, was disturbed, and counts as
/// if it had taken that much.
const DISTURBED: f64 = 1.25;

/// A cost curve that follows the machine, for all texts of a process.
pub struct LiveCurve {
    clock: Box<dyn Fn() -> f64 + Send + Sync>,
    pace: Mutex<Pace>,
}

impl LiveCurve {
    /// Starts from a `measured` curve; `clock` tells seconds since some moment.
    pub fn new(measured: CostCurve, clock: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        Self { clock: Box::new(clock), pace: Mutex::new(Pace::new(measured)) }
    }

    /// The largest size that was measured.
    pub fn max_nodes(&self) -> usize {
        self.with(|pace| pace.measured.max_nodes())
    }

    /// What passes take now.
    pub fn now(&self) -> CostCurve {
        self.with(|pace| pace.now.clone())
    }

    /// Makes `cost` what passes take now.
    pub(crate) fn read(&self, cost: &mut CostCurve) {
        self.with(|pace| cost.clone_from(&pace.now));
    }

    /// Seconds since some moment.
    pub(crate) fn clock(&self) -> f64 {
        (self.clock)()
    }

    /// Learns from a pass over `nodes` nodes, all with logits, that began at `start`.
    pub(crate) fn record_pass(&self, nodes: usize, start: f64) {
        let seconds = self.clock() - start;
        self.with(|pace| pace.record_pass(nodes, seconds));
    }

    /// Learns from a draft with `num_streams` streams that began at `start`.
    pub(crate) fn record_draft(&self, num_streams: usize, start: f64) {
        let seconds = self.clock() - start;
        self.with(|pace| pace.record_draft(num_streams, seconds));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Pace) -> T) -> T {
        work(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for LiveCurve {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.with(|pace| formatter.debug_tuple("LiveCurve").field(&pace.now).finish())
    }
}

/// What has been seen of the machine.
struct Pace {
    measured: CostCurve,
    now: CostCurve,
    passes: Line,
    /// Factor of drafts.
    drafting: f64,
}

impl Pace {
    fn new(measured: CostCurve) -> Self {
        Self { now: measured.clone(), measured, passes: Line::default(), drafting: 1.0 }
    }

    fn record_pass(&mut self, nodes: usize, seconds: f64) {
        if nodes > self.measured.max_nodes() {
            return;
        }
        let expected = self.now.seconds(nodes);
        let seconds = seconds.clamp(expected / DISTURBED, expected * DISTURBED);
        self.passes.add(self.steepness(nodes), seconds / self.measured.seconds(nodes));
        let prior = PRIOR_NODES.map(|nodes| self.steepness(nodes));
        let (scale, slope) = self.passes.fit(prior);
        self.now.follow(&self.measured, scale, slope);
    }

    fn record_draft(&mut self, num_streams: usize, seconds: f64) {
        let expected = self.measured.draft_seconds(num_streams);
        if expected > 0.0 {
            let factor = (seconds / expected).clamp(self.drafting / DISTURBED, self.drafting * DISTURBED);
            self.drafting += (1.0 - MEMORY) * (factor - self.drafting);
            self.now.follow_drafts(&self.measured, self.drafting);
        }
    }

    /// What the slope's term is in passes over as many nodes: `(n - 1) c(1) / c(n)`.
    fn steepness(&self, nodes: usize) -> f64 {
        (nodes - 1) as f64 * self.measured.seconds(1) / self.measured.seconds(nodes)
    }
}

/// Sums for a line through points that lose weight with time.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    fn add(&mut self, x: f64, y: f64) {
        for sum in [&mut self.weight, &mut self.x, &mut self.y, &mut self.xx, &mut self.xy] {
            *sum *= MEMORY;
        }
        self.put(x, y, 1.0);
    }

    fn put(&mut self, x: f64, y: f64, weight: f64) {
        self.weight += weight;
        self.x += weight * x;
        self.y += weight * y;
        self.xx += weight * x * x;
        self.xy += weight * x * y;
    }

    /// Height at 0 and slope, with the `prior` points at a height of 1 beside the others.
    fn fit(mut self, prior: [f64; 2]) -> (f64, f64) {
        for x in prior {
            self.put(x, 1.0, PRIOR_WEIGHT);
        }
        let spread = self.weight * self.xx - self.x * self.x;
        let slope = (self.weight * self.xy - self.x * self.y) / spread;
        if slope.is_finite() { ((self.y - slope * self.x) / self.weight, slope) } else { (self.y / self.weight, 0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> CostCurve {
        let points = [(1, 2.0), (2, 2.0), (3, 2.1), (4, 2.1), (6, 2.4), (8, 2.7), (16, 4.6), (32, 9.0)];
        CostCurve::new(&points).unwrap().with_draft_seconds(vec![0.3, 0.5])
    }

    /// The curve after 300 passes of up to six nodes, each of `seconds`, of which every tenth was disturbed.
    fn after(seconds: impl Fn(usize) -> f64) -> CostCurve {
        let mut pace = Pace::new(measured());
        for index in 0..300 {
            let nodes = 1 + index * 7 % 6;
            let factor = if index % 10 == 9 { 8.0 } else { 1.0 };
            pace.record_pass(nodes, factor * seconds(nodes));
        }
        pace.now
    }

    #[test]
    fn a_curve_that_holds_stays() {
        let mut pace = Pace::new(measured());
        for nodes in [1, 3, 6, 8, 2] {
            pace.record_pass(nodes, measured().seconds(nodes));
        }
        for nodes in 1..=32 {
            assert!((pace.now.seconds(nodes) / measured().seconds(nodes) - 1.0).abs() < 1e-9, "{nodes}");
        }
    }

    #[test]
    fn memory_and_arithmetic_change_by_themselves() {
        let slower = |nodes: usize| 1.5 * measured().seconds(nodes);
        let steeper = |nodes: usize| 1.7 + 0.3 * (nodes - 1) as f64;
        let flatter = |nodes: usize| 2.3 + 0.05 * (nodes - 1) as f64;
        for seconds in [&slower as &dyn Fn(usize) -> f64, &steeper, &flatter] {
            let curve = after(seconds);
            for nodes in 1..=6 {
                let (got, expected) = (curve.seconds(nodes), seconds(nodes));
                assert!((got / expected - 1.0).abs() < 0.12, "{nodes}: {got} for {expected}");
            }
        }
    }

    #[test]
    fn whatever_passes_take_the_curve_stays_one() {
        for seconds in [1e-9, 1e9] {
            for sizes in [&[1][..], &[8], &[32], &[1, 32], &[1, 2, 40]] {
                let mut pace = Pace::new(measured());
                for index in 0..2000 {
                    let nodes = sizes[index % sizes.len()];
                    pace.record_pass(nodes, if nodes == 1 { 1.0 / seconds } else { seconds });
                }
                let times: Vec<f64> = (1..=40).map(|nodes| pace.now.seconds(nodes)).collect();
                assert!(times.iter().all(|seconds| seconds.is_finite() && *seconds > 0.0), "{sizes:?}: {times:?}");
                assert!(times.is_sorted(), "{sizes:?}: {times:?}");
            }
        }
    }

    #[test]
    fn drafts_follow_too() {
        let mut pace = Pace::new(measured());
        for _ in 0..1000 {
            pace.record_draft(2, 0.8);
        }
        assert!((pace.now.draft_seconds(1) - 0.48).abs() < 1e-3 && (pace.now.draft_seconds(2) - 0.8).abs() < 1e-3);
    }
}
