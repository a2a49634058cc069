//! The output directory: one run at a time, and nothing that is finished is lost.

use std::fs::File;
use std::path::Path;

use forestream_model::streams::Adapter;
use forestream_train::{
    CHECKPOINT, Evaluation, LOG, Observer, Outcome, PROVENANCE, Start, StepReport, TrainJob, TrainSettings, Trainer,
};

use crate::{Watcher, base, job, make_joint, names, settings};

fn refused(job: TrainJob<'_>, start: Start) -> String {
    Trainer::new(job).unwrap().run(start, &mut Watcher::default()).unwrap_err().to_string()
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Runs one of two steps.
fn stop_early(output: &Path) {
    let base = base();
    let mut watcher = Watcher { stop_after: Some(1), ..Watcher::default() };
    Trainer::new(job(&base, output, settings(2))).unwrap().run(Start::Fresh, &mut watcher).unwrap();
}

#[test]
fn two_runs_do_not_write_into_one_directory() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    stop_early(directory.path());
    let before = std::fs::read(directory.path().join(CHECKPOINT)).unwrap();
    let other = File::options().append(true).open(directory.path().join(LOG)).unwrap();
    other.lock().unwrap(); // as a run does that is under way
    for start in [Start::Fresh, Start::Resume] {
        let error = refused(job(&base, directory.path(), settings(2)), start);
        assert_says(&error, &["another run writes", LOG, "--output"]);
    }
    assert_eq!(std::fs::read(directory.path().join(CHECKPOINT)).unwrap(), before);
    drop(other);
    let mut resumed = Trainer::new(job(&base, directory.path(), settings(2))).unwrap();
    resumed.run(Start::Resume, &mut Watcher::default()).unwrap();
}

#[test]
fn a_run_holds_its_directory_while_it_runs() {
    /// Tries to begin a second run from within the first.
    struct Intruder<'a>(&'a Path, Vec<String>);
    impl Observer for Intruder<'_> {
        fn step(&mut self, _: &StepReport) {
            self.1.push(refused(job(&base(), self.0, settings(1)), Start::Fresh));
        }
        fn evaluated(&mut self, _: usize, _: &Evaluation) {}
        fn saved(&mut self, _: usize) {}
        fn is_stop_asked(&self) -> bool {
            false
        }
    }
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let mut intruder = Intruder(directory.path(), Vec::new());
    Trainer::new(job(&base, directory.path(), settings(1))).unwrap().run(Start::Fresh, &mut intruder).unwrap();
    assert_says(&intruder.1[0], &["another run writes"]);
}

#[test]
fn an_adapter_without_its_checkpoint_is_not_written_over() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    Trainer::new(job(&base, directory.path(), settings(1)))
        .unwrap()
        .run(Start::Fresh, &mut Watcher::default())
        .unwrap();
    for name in [CHECKPOINT, LOG] {
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    let before = names(directory.path());
    let error = refused(job(&base, directory.path(), settings(1)), Start::Fresh);
    let init_from = format!("--init-from {}", directory.path().display());
    assert_says(&error, &["adapter_config.json", "another --output", &init_from]);
    assert_eq!(names(directory.path()), before);
}

#[test]
fn files_of_others_are_not_written_over() {
    let base = base();
    for name in ["README.md", LOG, PROVENANCE] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, "mine").unwrap();
        let error = refused(job(&base, directory.path(), settings(1)), Start::Fresh);
        assert_says(&error, &[name, "written over", "another --output"]);
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names(directory.path()).len()), ("mine", 1));
    }
}

#[test]
fn a_finished_run_is_called_finished() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let run =
        |start| Trainer::new(job(&base, directory.path(), settings(2))).unwrap().run(start, &mut Watcher::default());
    run(Start::Fresh).unwrap();
    let init_from = format!("--init-from {}", directory.path().display());
    for steps in [2, 3] {
        let error = refused(job(&base, directory.path(), settings(steps)), Start::Fresh);
        assert_says(&error, &[CHECKPOINT, "finished run", "another --output", &init_from]);
        assert!(!error.contains("--resume") && !error.contains("unfinished"), "{error}");
    }
    run(Start::Resume).unwrap();
}

#[test]
fn what_weights_do_not_depend_on_may_change_when_a_run_is_resumed() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    stop_early(directory.path());
    let mut resumed = job(&base, directory.path(), TrainSettings { save_steps: 1, ..settings(2) });
    resumed.adapter.base_model.name = "the same model elsewhere".to_owned();
    Trainer::new(resumed).unwrap().run(Start::Resume, &mut Watcher::default()).unwrap();
}

#[test]
fn changes_of_a_model_that_are_left_out_are_known() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [joint, second] = ["joint", "second"].map(|name| directory.path().join(name));
    let mut first = job(&base, &joint, settings(1));
    make_joint(&mut first);
    Trainer::new(first).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    let open = || Some(Adapter::open(&joint, base.config(), &base.fingerprint()).unwrap());
    let leaves_out = |job: TrainJob<'_>| Trainer::new(job).unwrap().leaves_out_main_changes();
    assert!(leaves_out(TrainJob { initial: open(), ..job(&base, &second, settings(1)) }));
    assert!(!leaves_out(TrainJob { initial: open(), fitted: open(), ..job(&base, &second, settings(1)) }));
    assert!(!leaves_out(job(&base, &second, settings(1))));
    let mut on = TrainJob { initial: open(), ..job(&base, &second, settings(1)) };
    make_joint(&mut on);
    assert!(!leaves_out(on));
}

#[test]
fn every_setting_comes_back_from_a_checkpoint_as_it_was() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    for (index, depth_decay) in [0.92, 0.97, 0.98].into_iter().enumerate() {
        let output = directory.path().join(index.to_string());
        let run = |start, watcher: &mut Watcher| {
            let settings = TrainSettings { depth_decay, ..settings(2) };
            Trainer::new(job(&base, &output, settings)).unwrap().run(start, watcher).unwrap()
        };
        run(Start::Fresh, &mut Watcher { stop_after: Some(1), ..Watcher::default() });
        assert!(matches!(run(Start::Resume, &mut Watcher::default()), Outcome::Finished(_)), "{depth_decay}");
    }
}

/// Everything that `--adapter` and a reader of the card see.
fn adapter_files(output: &Path) -> [Vec<u8>; 4] {
    ["README.md", "adapter_config.json", "adapter_model.safetensors", PROVENANCE]
        .map(|name| std::fs::read(output.join(name)).unwrap())
}

#[test]
fn an_adapter_that_cannot_be_written_leaves_the_former_one_whole() {
    /// Lets no further provenance be written once there is one.
    struct Blocker<'a>(&'a Path, Vec<[Vec<u8>; 4]>);
    impl Observer for Blocker<'_> {
        fn step(&mut self, _: &StepReport) {}
        fn evaluated(&mut self, _: usize, _: &Evaluation) {
            self.1.push(adapter_files(self.0));
            std::fs::create_dir(self.0.join(PROVENANCE).with_extension("partial")).unwrap();
        }
        fn saved(&mut self, _: usize) {}
        fn is_stop_asked(&self) -> bool {
            false
        }
    }
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let mut blocker = Blocker(directory.path(), Vec::new());
    let mut trainer = Trainer::new(job(&base, directory.path(), settings(12))).unwrap();
    let error = trainer.run(Start::Fresh, &mut blocker).unwrap_err().to_string();
    assert_says(&error, &["cannot write", PROVENANCE, "intact"]);
    assert!(blocker.1 == [adapter_files(directory.path())], "the files of one evaluation");
    let left_behind = |name: &String| name.ends_with(".partial") && name != "provenance.partial";
    assert_eq!(names(directory.path()).iter().find(|name| left_behind(name)), None);
}
