//! Measurements by a clock that the measured model moves itself.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Mutex;

use forestream_decode::testing::FakeModel;
use forestream_model::streams::{AdapterConfig, Anchor, Streams};
use forestream_model::{DecoderConfig, Hidden, KvCache, ModelError, NodeId, Outputs, Row, TokenId};

use super::*;

/// A model whose passes take this long.
pub(in crate::cost_curve) struct TimedModel {
    model: FakeModel,
    seconds_per_pass: f64,
    seconds_per_node: f64,
    now: Mutex<f64>,
    /// Nodes of each verification pass.
    passes: Mutex<Vec<usize>>,
}

impl TimedModel {
    pub(in crate::cost_curve) fn new(seconds_per_pass: f64, seconds_per_node: f64) -> Self {
        let (now, passes) = (Mutex::new(0.0), Mutex::default());
        Self { model: FakeModel::new(50, 1.0), seconds_per_pass, seconds_per_node, now, passes }
    }

    pub(in crate::cost_curve) fn now(&self) -> f64 {
        *self.now.lock().unwrap()
    }

    fn work(&self, rows: &[Row<'_>]) {
        let nodes: usize = rows.iter().map(|row| row.tree.len()).sum();
        *self.now.lock().unwrap() += self.seconds_per_pass + self.seconds_per_node * nodes as f64;
    }

    fn measure(&self, note: Option<fn(&str)>, is_stopped: Option<fn() -> bool>) -> MeasuredCurve {
        measure(self, &Supervision { clock: &|| self.now(), note, is_stopped }).unwrap()
    }

    /// How often trees of this size were verified.
    fn num_passes(&self, nodes: usize) -> usize {
        self.passes.lock().unwrap().iter().filter(|&&len| len == nodes).count()
    }
}

impl Model for TimedModel {
    fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        self.model.new_cache(capacity)
    }

    fn forward(&self, rows: &mut [Row<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.work(rows);
        let verified = rows.iter().filter(|row| matches!(row.outputs, Outputs::All));
        self.passes.lock().unwrap().extend(verified.map(|row| row.tree.len()));
        self.model.forward(rows, hidden)
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        self.model.logits(hidden, rows, logits);
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(self)
    }
}

impl Streams for TimedModel {
    fn adapter(&self) -> &AdapterConfig {
        self.model.adapter()
    }

    fn num_parameters(&self) -> usize {
        self.model.num_parameters()
    }

    fn draft_vocabulary(&self) -> &[TokenId] {
        self.model.draft_vocabulary()
    }

    fn run(&self, rows: &mut [Row<'_>], anchors: &[Anchor<'_>], states: &mut Hidden) -> Result<(), ModelError> {
        self.work(rows);
        self.model.run(rows, anchors, states)
    }

    fn run_fused(
        &self,
        row: &mut Row<'_>,
        hidden: &Hidden,
        sequence_index: usize,
        nodes: &[NodeId],
        states: &mut Hidden,
    ) -> Result<(), ModelError> {
        self.model.run_fused(row, hidden, sequence_index, nodes, states)
    }

    fn stream_logits(&self, states: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        self.model.stream_logits(states, rows, logits);
    }

    fn parent_logits(&self, parents: &[TokenId], logits: &mut Vec<f32>) {
        self.model.parent_logits(parents, logits);
    }
}

fn assert_rises(curve: &CostCurve) {
    assert!(curve.points().windows(2).all(|pair| pair[0].1 < pair[1].1), "{curve:?}");
    assert!(curve.draft_points().windows(2).all(|pair| pair[0] < pair[1]), "{curve:?}");
}

#[test]
fn quick_passes_are_all_measured_as_often_as_they_may() {
    let model = TimedModel::new(3e-5, 1e-5);
    let measured = model.measure(None, None);
    for &(nodes, seconds) in measured.curve.points() {
        assert!((seconds - 1e-5 * (3 + nodes) as f64).abs() < 1e-9, "{nodes} nodes took {seconds}");
        assert!(nodes == 1 || model.num_passes(nodes) == 4 * (1 + 2), "{nodes}: {}", model.num_passes(nodes));
    }
    assert_eq!((measured.curve.points().len(), measured.is_complete), (SIZES.len(), true));
    for (streams, seconds) in (1..).zip(measured.curve.draft_points()) {
        assert!((seconds - 1e-5 * f64::from(3 + streams)).abs() < 1e-9, "{streams} streams took {seconds}");
    }
}

#[test]
fn slow_passes_end_the_measurement_after_few() {
    let model = TimedModel::new(0.0, 1.0);
    let curve = model.measure(None, None).curve;
    assert_eq!(*model.passes.lock().unwrap(), [1, 2]);
    assert_rises(&curve);
    assert_eq!((curve.max_nodes(), curve.draft_points().len()), (32, 3));
    assert!((curve.seconds(32) - 32.0).abs() < 1e-9, "{curve:?}");
}

#[test]
fn a_measurement_takes_five_seconds_and_a_pass_at_most() {
    for seconds_per_node in [1e-6, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.5] {
        for seconds_per_pass in [0.0, 3.0 * seconds_per_node, 20.0 * seconds_per_node] {
            let model = TimedModel::new(seconds_per_pass, seconds_per_node);
            let curve = model.measure(None, None).curve;
            let largest = *model.passes.lock().unwrap().iter().max().unwrap();
            let longest = seconds_per_pass + seconds_per_node * largest as f64;
            // Four passes over one or two nodes, one of them a draft, are always there.
            let limit = (5.0 + longest).max(4.0 * seconds_per_pass + 5.0 * seconds_per_node) + 1e-6;
            assert!(model.now() <= limit, "{} s with {seconds_per_pass} + n {seconds_per_node}", model.now());
            assert_rises(&curve);
            for &(nodes, seconds) in curve.points() {
                let expected = seconds_per_pass + seconds_per_node * nodes as f64;
                assert!(seconds > 0.999 * expected, "{nodes} nodes take {expected}, not {seconds}");
            }
        }
    }
}

#[test]
fn what_was_not_measured_is_not_free() {
    let model = TimedModel::new(1.5, 0.0);
    let curve = model.measure(None, None).curve;
    assert_rises(&CostCurve::new(&curve.points()[1..]).unwrap());
    assert!(curve.seconds(32) > 2.0 * curve.seconds(2), "{curve:?}");
}

thread_local! {
    static NOTES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static IS_STOPPED: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn who_waits_is_told_once() {
    let note: fn(&str) = |text| NOTES.with_borrow_mut(|notes| notes.push(text.to_owned()));
    for (seconds_per_node, num_notes) in [(1e-5, 0), (0.1, 1), (1.0, 1)] {
        TimedModel::new(0.0, seconds_per_node).measure(Some(note), None);
        let notes = NOTES.take();
        assert_eq!(notes.len(), num_notes, "{notes:?}");
    }
}

#[test]
fn who_waits_can_end_it() {
    let measure = |seconds_per_node| {
        let model = TimedModel::new(0.0, seconds_per_node);
        let measured = model.measure(Some(|_| IS_STOPPED.set(true)), Some(|| IS_STOPPED.get()));
        IS_STOPPED.set(false);
        assert_rises(&measured.curve);
        (model.now(), measured.is_complete)
    };
    let (seconds, is_complete) = measure(0.01);
    assert!(seconds < 0.7 && !is_complete, "{seconds}");
    let (seconds, is_complete) = measure(1.0);
    assert!(seconds < 2.1 && !is_complete, "{seconds}");
    assert!(measure(1e-5).1, "nobody stopped it");
}
