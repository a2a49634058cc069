//! Measurements by a clock that the measured model moves itself.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex};

use forestream_decode::testing::FakeModel;
use forestream_model::{Outputs, Row};

use super::*;

/// A model whose passes take this long.
pub(in crate::cost_curve) struct TimedModel {
    pub(in crate::cost_curve) model: FakeModel,
    work: Arc<Mutex<Work>>,
}

#[derive(Default)]
struct Work {
    seconds: f64,
    /// Nodes of each verification pass.
    passes: Vec<usize>,
}

impl TimedModel {
    pub(in crate::cost_curve) fn new(seconds_per_pass: f64, seconds_per_node: f64) -> Self {
        let work = Arc::new(Mutex::new(Work::default()));
        let own = Arc::clone(&work);
        let watch = move |rows: &[Row<'_>], of_streams: bool| {
            let mut work = own.lock().unwrap();
            let nodes: usize = rows.iter().map(|row| row.tree.len()).sum();
            work.seconds += seconds_per_pass + seconds_per_node * nodes as f64;
            let verified = rows.iter().filter(|row| !of_streams && matches!(row.outputs, Outputs::All));
            work.passes.extend(verified.map(|row| row.tree.len()));
        };
        Self { model: FakeModel::new(50, 1.0).watched(watch), work }
    }

    pub(in crate::cost_curve) fn now(&self) -> f64 {
        self.work.lock().unwrap().seconds
    }

    fn passes(&self) -> Vec<usize> {
        self.work.lock().unwrap().passes.clone()
    }

    fn measure(&self, note: Option<fn(&str)>, is_stopped: Option<fn() -> bool>) -> MeasuredCurve {
        measure(&self.model, &Supervision { clock: &|| self.now(), note, is_stopped }).unwrap()
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
        let num_passes = model.passes().iter().filter(|&&len| len == nodes).count();
        assert!(nodes == 1 || num_passes == 4 * (1 + 2), "{nodes}: {num_passes}");
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
    assert_eq!(model.passes(), [1, 2]);
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
            let largest = model.passes().into_iter().max().unwrap();
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
