//! A run that is asked to stop does so at the next moment, and goes on later as if nothing had happened.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use forestream_model::streams::Adapter;
use forestream_train::{
    CHECKPOINT, Evaluation, LOG, Observer, Origin, Outcome, PROVENANCE, Start, StepReport, TrainJob, TrainSettings,
    Trainer,
};

use serde_json::Value;

use crate::{Change, Watcher, base, job, make_joint, make_narrow, names, settings, tensors};

/// Asks to stop when it has been asked so many times.
struct Interrupter {
    patience: usize,
    num_asked: Cell<usize>,
}

impl Interrupter {
    fn after(patience: usize) -> Self {
        Self { patience, num_asked: Cell::new(0) }
    }
}

impl Observer for Interrupter {
    fn step(&mut self, _: &StepReport) {}

    fn evaluated(&mut self, _: usize, _: &Evaluation) {}

    fn saved(&mut self, _: usize) {}

    fn is_stop_asked(&self) -> bool {
        self.num_asked.set(self.num_asked.get() + 1);
        self.num_asked.get() > self.patience
    }
}

/// The lines of evaluations in the log.
fn evaluations(output: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(output.join(LOG)).unwrap();
    log.lines().filter(|line| line.contains("evaluation")).map(str::to_owned).collect()
}

#[test]
fn a_run_that_is_stopped_at_any_moment_goes_on_to_the_same_end() {
    let changes: [fn(&mut TrainJob<'_>); 3] = [|_| {}, make_joint, make_narrow];
    for change in changes {
        let (base, directory) = (base(), tempfile::tempdir().unwrap());
        let run = |output: &Path, start, observer: &mut dyn Observer| {
            let settings = TrainSettings { save_steps: 2, eval_steps: 1, ..settings(2) };
            let mut job = job(&base, output, settings);
            job.training.examples.truncate(5);
            job.held_out.examples.truncate(3);
            change(&mut job);
            Trainer::new(job).unwrap().run(start, observer).unwrap()
        };
        let open = |output: &Path| Adapter::open(output, base.config(), &base.fingerprint()).unwrap();
        let whole = directory.path().join("whole");
        let mut counter = Interrupter::after(usize::MAX);
        let expected = run(&whole, Start::Fresh, &mut counter);
        for patience in 0..counter.num_asked.get() {
            let output = directory.path().join(patience.to_string());
            let outcome = run(&output, Start::Fresh, &mut Interrupter::after(patience));
            assert!(matches!(outcome, Outcome::Stopped(_)), "asked {patience} times: {outcome:?}");
            assert_eq!(run(&output, Start::Resume, &mut Watcher::default()), expected, "asked {patience} times");
            assert!(tensors(&output) == tensors(&whole), "asked {patience} times");
            assert!(open(&output) == open(&whole), "asked {patience} times");
            assert_eq!(evaluations(&output), evaluations(&whole), "asked {patience} times");
            assert_eq!(names(&output), names(&whole));
        }
    }
}

#[test]
fn an_evaluation_that_fails_loses_no_step() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [whole, failed] = ["whole", "failed"].map(|name| directory.path().join(name));
    let run = |output: &Path, start, observer: &mut dyn Observer| {
        let settings = TrainSettings { save_steps: 2, eval_steps: 2, ..settings(4) };
        Trainer::new(job(&base, output, settings)).unwrap().run(start, observer)
    };
    run(&whole, Start::Fresh, &mut Watcher::default()).unwrap();
    run(&failed, Start::Fresh, &mut Watcher { stop_after: Some(1), ..Watcher::default() }).unwrap();
    let in_the_way = failed.join(PROVENANCE).with_extension("partial");
    std::fs::create_dir(&in_the_way).unwrap();
    let mut watcher = Watcher::default();
    let error = run(&failed, Start::Resume, &mut watcher).unwrap_err().to_string();
    assert!(error.contains(PROVENANCE) && error.contains("intact"), "{error}");
    assert_eq!(watcher.saved, [2], "before the evaluation");
    std::fs::remove_dir(&in_the_way).unwrap();
    let mut watcher = Watcher::default();
    run(&failed, Start::Resume, &mut watcher).unwrap();
    assert_eq!(watcher.evaluations[0].0, 2, "the evaluation that failed is made again");
    assert_eq!(watcher.reports[0].step, 3, "no step is");
    assert!(tensors(&failed) == tensors(&whole));
    assert_eq!(evaluations(&failed), evaluations(&whole));
}

fn provenance(output: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(output.join("provenance.json")).unwrap()).unwrap()
}

#[test]
fn a_resumed_run_equals_one_that_was_never_interrupted() {
    for change in [&|_: &mut TrainJob<'_>| {}, &make_joint as Change, &make_narrow] {
        check_resume(change);
    }
}

fn check_resume(change: Change) {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let whole = directory.path().join("whole");
    let job = |base, output: &Path, settings| {
        let mut job = job(base, output, settings);
        change(&mut job);
        job
    };
    Trainer::new(job(&base, &whole, settings(10))).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    for stop_after in [1, 3, 7] {
        let output = directory.path().join(format!("stopped-{stop_after}"));
        let mut watcher = Watcher { stop_after: Some(stop_after), ..Watcher::default() };
        let outcome = Trainer::new(job(&base, &output, settings(10))).unwrap().run(Start::Fresh, &mut watcher).unwrap();
        assert_eq!(outcome, Outcome::Stopped(stop_after));
        let mut watcher = Watcher::default();
        let command = "forestream train --resume".to_owned();
        let resumed = TrainJob { origin: Origin { command, ..Origin::default() }, ..job(&base, &output, settings(10)) };
        Trainer::new(resumed).unwrap().run(Start::Resume, &mut watcher).unwrap();
        assert_eq!(watcher.reports[0].step, stop_after + 1);
        for name in ["command", "previous"] {
            assert_eq!(provenance(&output)[name], provenance(&whole)[name], "{name} after a stop at {stop_after}");
        }
        assert!(tensors(&output) == tensors(&whole), "weights and moments differ after a stop at {stop_after}");
        let weights = |output: &PathBuf| std::fs::read(output.join("adapter_model.safetensors")).unwrap();
        assert!(weights(&output) == weights(&whole), "adapters differ after a stop at {stop_after}");
        let lines = |output: &PathBuf| std::fs::read_to_string(output.join(LOG)).unwrap().lines().count();
        assert_eq!(lines(&output), lines(&whole));
    }
}

#[test]
fn a_run_that_was_killed_resumes_from_its_last_checkpoint() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [whole, killed] = ["whole", "killed"].map(|name| directory.path().join(name));
    Trainer::new(job(&base, &whole, settings(8))).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    // Stopping writes a checkpoint of step 6; a killed run has that of step 4 and a longer log.
    let mut watcher = Watcher { stop_after: Some(4), ..Watcher::default() };
    Trainer::new(job(&base, &killed, settings(8))).unwrap().run(Start::Fresh, &mut watcher).unwrap();
    let checkpoint = std::fs::read(killed.join(CHECKPOINT)).unwrap();
    let mut watcher = Watcher { stop_after: Some(6), ..Watcher::default() };
    Trainer::new(job(&base, &killed, settings(8))).unwrap().run(Start::Resume, &mut watcher).unwrap();
    std::fs::write(killed.join(CHECKPOINT), checkpoint).unwrap();
    std::fs::write(killed.join("checkpoint.partial"), b"half").unwrap();
    Trainer::new(job(&base, &killed, settings(8))).unwrap().run(Start::Resume, &mut Watcher::default()).unwrap();
    assert!(tensors(&killed) == tensors(&whole));
    assert_eq!(names(&killed), names(&whole));
}
