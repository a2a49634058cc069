//! Runs on a tiny random model: they learn, they resume bit for bit, and they refuse what they cannot do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod draft_vocabulary;
mod interrupted;
mod narrow;
mod output;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use forestream_burn::NamedDevice;
use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, BaseModel, LoraConfig, StreamConfig, StreamIdentity, TrainingMode,
};
use forestream_model::{Checkpoint, CpuModel, Hidden, LoadOptions, Model, Outputs, Row, TokenTree};
use forestream_train::{
    CHECKPOINT, Dataset, EVENTS, Evaluation, Example, JointSettings, LOG, Objective, Observer, Origin, Outcome, Preset,
    Start, StepReport, TrainError, TrainJob, TrainSettings, Trainer,
};
use narrow::make_narrow;
use safetensors::SafeTensors;
use serde_json::Value;
use support::names;

/// Keeps the reports, and asks to stop after a step.
#[derive(Default)]
struct Watcher {
    reports: Vec<StepReport>,
    evaluations: Vec<(usize, Evaluation)>,
    saved: Vec<usize>,
    stop_after: Option<usize>,
}

impl Observer for Watcher {
    fn step(&mut self, report: &StepReport) {
        self.reports.push(report.clone());
    }

    fn evaluated(&mut self, step: usize, evaluation: &Evaluation) {
        self.evaluations.push((step, evaluation.clone()));
    }

    fn saved(&mut self, step: usize) {
        self.saved.push(step);
    }

    fn is_stop_asked(&self) -> bool {
        self.reports.last().is_some_and(|report| Some(report.step) == self.stop_after)
    }
}

fn base() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
    Checkpoint::open(&path).unwrap()
}

/// Texts that count upwards from different numbers: easily foreseen.
fn counting(name: &str, count: u32) -> Dataset {
    let text = |index: u32| (0..14).map(move |i| 10 + (7 * index + i) % 60);
    let examples = (0..count).map(|index| Example { prompt: vec![1, 5], completion: text(index).collect() });
    Dataset {
        name: name.to_owned(),
        sha256: format!("{count:064x}"),
        examples: examples.collect(),
        selection: None,
        num_too_short: 0,
        num_cut: 0,
    }
}

fn job<'a>(base: &'a Checkpoint, output: &Path, settings: TrainSettings) -> TrainJob<'a> {
    let streams = StreamConfig {
        num_streams: 2,
        num_msa_layers: 1,
        sampler_size: Some(16),
        intermediate_size: None,
        draft_vocab_size: Some(80),
        ..Preset::Fast.streams(base.config(), TrainingMode::Lossless)
    };
    let base_model = BaseModel {
        name: "tiny-llama".to_owned(),
        fingerprint: base.fingerprint(),
        architecture: base.config().architecture.clone(),
    };
    TrainJob {
        base,
        load_options: LoadOptions::default(),
        adapter: AdapterConfig {
            format_version: ADAPTER_FORMAT_VERSION,
            base_model,
            mode: TrainingMode::Lossless,
            streams,
            lora: Some(LoraConfig { rank: 4, ..Preset::Fast.lora() }),
            main_lora: None,
            calibration: Vec::new(),
        },
        training: counting("train.jsonl", 40),
        held_out: counting("dev.jsonl", 6),
        settings,
        device: <&NamedDevice>::default(),
        trace_memory: 1 << 30,
        output: output.to_owned(),
        fitted: None,
        initial: None,
        origin: Origin {
            command: "forestream train".to_owned(),
            previous: Some("the adapter before".into()),
            ..Origin::default()
        },
    }
}

fn settings(steps: usize) -> TrainSettings {
    TrainSettings {
        lr: 1e-2,
        batch_tokens: 60,
        steps: Some(steps),
        save_steps: 4,
        eval_steps: 3,
        ..TrainSettings::default()
    }
}

/// Changes one thing of a job.
type Change<'a> = &'a dyn Fn(&mut TrainJob<'_>);

/// The same run, whose streams turn their values instead of having embeddings.
fn rotate_values(job: &mut TrainJob<'_>, angle: f32) {
    job.adapter.streams.identity = StreamIdentity::ValueRotation { angle };
}

/// The same run, in which main rows learn to count too.
fn make_joint(job: &mut TrainJob<'_>) {
    let mut main_lora = Preset::main_lora(2);
    main_lora.lora.rank = 4;
    job.adapter.mode = TrainingMode::Joint;
    job.adapter.main_lora = Some(main_lora);
    job.settings.joint = Some(JointSettings { main_lr: 1e-2, ..JointSettings::default() });
}

/// How often the engine's most probable token is the next one of a completion.
fn accuracy_of_main_rows(base: &Checkpoint, adapter: Option<Adapter>, data: &Dataset) -> f64 {
    let mut model = CpuModel::load(base, LoadOptions::default()).unwrap();
    if let Some(adapter) = adapter {
        model.attach(adapter, base).unwrap();
    }
    let (mut hits, mut rows) = (0, 0);
    for example in &data.examples {
        let text = example.text();
        let (mut cache, tree, mut hidden) = (model.new_cache(64), TokenTree::chain(&text), Hidden::new());
        model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
        for (index, &token) in example.completion.iter().enumerate() {
            let (row, mut logits) = (example.prompt.len() - 1 + index, Vec::new());
            model.logits(&hidden, row..row + 1, &mut logits);
            let is_hit = logits.iter().all(|&logit| logit <= logits[token as usize]);
            (hits, rows) = (hits + usize::from(is_hit), rows + 1);
        }
    }
    f64::from(hits as u32) / f64::from(rows as u32)
}

/// All tensors of a checkpoint: weights and moments.
fn tensors(output: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(output.join(CHECKPOINT)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
    tensors.sort();
    tensors
}

#[test]
fn streams_learn_and_the_adapter_is_exported() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let output = directory.path().join("adapter");
    let mut watcher = Watcher::default();
    let mut trainer = Trainer::new(job(&base, &output, settings(30))).unwrap();
    let Outcome::Finished(best) = trainer.run(Start::Fresh, &mut watcher).unwrap() else { panic!("not finished") };

    let losses: Vec<f64> = watcher.reports.iter().map(|report| report.loss).collect();
    assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
    assert!(best.tau > 1.5 && best.chain > 1.5, "{best:?}");
    assert_eq!(watcher.evaluations.len(), 10);
    assert_eq!(watcher.saved, [4, 8, 12, 16, 20, 24, 28, 30]);
    assert_eq!(
        names(&output),
        ["README.md", "adapter_config.json", "adapter_model.safetensors", CHECKPOINT, EVENTS, "provenance.json", LOG]
    );
    let adapter = Adapter::open(&output, base.config(), &base.fingerprint()).unwrap();
    assert_eq!(adapter.config.calibration, best.calibration);
    assert_eq!(adapter.draft_vocabulary.len(), 60, "80 at most, and these texts have fewer tokens");
    let log = std::fs::read_to_string(output.join(LOG)).unwrap();
    assert_eq!(log.lines().count(), 30 + 10);
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.contains("tiny-llama") && card.contains(&format!("{:.2} tokens per pass", best.chain)), "{card}");
    let provenance: Value = serde_json::from_slice(&std::fs::read(output.join("provenance.json")).unwrap()).unwrap();
    assert_eq!(provenance["data"]["file"], "train.jsonl");
    assert_eq!(provenance["evaluation"]["tau"], best.tau);
}

#[test]
fn streams_that_value_rotation_tells_apart_learn_too() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let mut rotated = job(&base, directory.path(), settings(30));
    rotate_values(&mut rotated, 0.5);
    let mut watcher = Watcher::default();
    Trainer::new(rotated).unwrap().run(Start::Fresh, &mut watcher).unwrap();
    let losses: Vec<f64> = watcher.reports.iter().map(|report| report.loss).collect();
    assert!(losses[29] < 0.6 * losses[0], "{losses:?}");
    let adapter = Adapter::open(directory.path(), base.config(), &base.fingerprint()).unwrap();
    assert_eq!(adapter.config.streams.identity, StreamIdentity::ValueRotation { angle: 0.5 });
    assert!(!adapter.tensors.contains_key("stream_embeddings"));
    let card = std::fs::read_to_string(directory.path().join("README.md")).unwrap();
    assert!(card.contains("values turned by 0.5"), "{card}");
}

#[test]
fn a_joint_run_teaches_main_rows_and_streams() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let mut watcher = Watcher::default();
    let mut job = job(&base, directory.path(), settings(60));
    make_joint(&mut job);
    let held_out = job.held_out.clone();
    let Outcome::Finished(kept) = Trainer::new(job).unwrap().run(Start::Fresh, &mut watcher).unwrap() else {
        panic!("not finished")
    };
    let [first, last] = [&watcher.reports[0], &watcher.reports[59]];
    assert!(last.loss < 0.6 * first.loss, "streams: {} {}", first.loss, last.loss);
    assert!(last.main.unwrap().loss < 0.6 * first.main.unwrap().loss, "{:?} {:?}", first.main, last.main);
    let losses: Vec<f64> = watcher.evaluations.iter().map(|(_, evaluation)| evaluation.main.unwrap().loss).collect();
    let lowest = |count: usize| losses[..count].iter().copied().fold(f64::INFINITY, f64::min);
    let latest_good = (0..losses.len()).rfind(|&index| losses[index] <= 1.01 * lowest(index + 1)).unwrap();
    assert_eq!(kept, watcher.evaluations[latest_good].1, "{losses:?}");

    let adapter = Adapter::open(directory.path(), base.config(), &base.fingerprint()).unwrap();
    assert_eq!(adapter.config.mode, TrainingMode::Joint);
    let before = accuracy_of_main_rows(&base, None, &held_out);
    let after = accuracy_of_main_rows(&base, Some(adapter), &held_out);
    assert!(before < 0.1 && (after - kept.main.unwrap().accuracy).abs() < 0.05, "{before} {after} {kept:?}");
    let card = std::fs::read_to_string(directory.path().join("README.md")).unwrap();
    assert!(card.contains("fits the top 2 layers to a task") && card.contains("perplexity"), "{card}");
}

#[test]
fn streams_of_a_joint_run_are_trained_on_while_its_model_stays() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    let run = |job: TrainJob<'_>| match Trainer::new(job).unwrap().run(Start::Fresh, &mut Watcher::default()) {
        Ok(Outcome::Finished(best)) => best,
        other => panic!("{other:?}"),
    };
    let open = |output: &Path| Adapter::open(output, base.config(), &base.fingerprint()).unwrap();
    let mut joint = job(&base, &first, settings(24));
    make_joint(&mut joint);
    let before = run(joint);
    let joint = open(&first);
    let fitted_job = |settings: TrainSettings| TrainJob {
        fitted: Some(joint.clone()),
        initial: Some(joint.clone()),
        ..job(&base, &second, settings)
    };

    let unchanged = run(fitted_job(TrainSettings { lr: 1e-12, ..settings(1) }));
    std::fs::remove_dir_all(&second).unwrap();
    assert!((unchanged.loss - before.loss).abs() < 1e-2 * before.loss, "{} {}", unchanged.loss, before.loss);
    assert!((unchanged.tau - before.tau).abs() < 0.05, "{} {}", unchanged.tau, before.tau);

    let after = run(fitted_job(settings(24)));
    assert!(after.loss < 0.9 * before.loss && after.tau > before.tau, "{after:?} {before:?}");
    let adapter = open(&second);
    assert_eq!((adapter.config.mode, &adapter.config.main_lora), (TrainingMode::Joint, &joint.config.main_lora));
    for (name, values) in &adapter.tensors {
        assert_eq!(*values == joint.tensors[name], name.starts_with("main."), "{name}");
    }

    std::fs::remove_dir_all(&second).unwrap();
    let mut narrow = fitted_job(settings(24));
    make_narrow(&mut narrow);
    let narrow = run(narrow);
    assert!(narrow.loss < 0.9 * before.loss, "{narrow:?} {before:?}");
    let accuracy = |adapter| accuracy_of_main_rows(&base, Some(adapter), &counting("dev.jsonl", 6));
    assert_eq!(accuracy(open(&second)), accuracy(joint.clone()), "main rows keep all inner features");

    let stopped = directory.path().join("stopped");
    let mut watcher = Watcher { stop_after: Some(1), ..Watcher::default() };
    let job_of =
        |fitted: Adapter| TrainJob { fitted: Some(fitted), output: stopped.clone(), ..fitted_job(settings(3)) };
    Trainer::new(job_of(joint.clone())).unwrap().run(Start::Fresh, &mut watcher).unwrap();
    let mut other = joint.clone();
    other.config.main_lora.as_mut().unwrap().lora.alpha *= 0.5;
    let error = Trainer::new(job_of(other)).unwrap().run(Start::Resume, &mut Watcher::default()).unwrap_err();
    assert!(error.to_string().contains("adapter.task_digest"), "the same tensors, but another model: {error}");

    let mut refused = fitted_job(settings(1));
    make_joint(&mut refused);
    let Err(error) = Trainer::new(refused) else { panic!("a model that stays as it is was to be trained") };
    assert!(error.to_string().contains("--adapter"), "{error}");
}

#[test]
fn what_is_kept_for_later_epochs_changes_nothing() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let distilled: Change<'_> = &|job| job.settings.objective = Objective::Kl;
    let changes: [(&str, Change<'_>); 3] =
        [("lossless", &|_| {}), ("kl", distilled), ("joint", &|job| make_joint(job))];
    for (name, change) in changes {
        let outputs = [0, 40_000, 1 << 30].map(|trace_memory| {
            let output = directory.path().join(format!("{name}-{trace_memory}"));
            let mut job = job(&base, &output, settings(12));
            job.training.examples.truncate(10);
            change(&mut job);
            let mut watcher = Watcher::default();
            Trainer::new(TrainJob { trace_memory, ..job }).unwrap().run(Start::Fresh, &mut watcher).unwrap();
            assert!(watcher.reports[11].epoch >= 2, "later epochs: {}", watcher.reports[11].epoch);
            tensors(&output)
        });
        assert!(outputs[0] == outputs[1], "{name}: nothing and some");
        assert!(outputs[0] == outputs[2], "{name}: nothing and everything");
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for change in [&|_: &mut TrainJob<'_>| {}, &make_joint as Change, &make_narrow] {
        let (base, directory) = (base(), tempfile::tempdir().unwrap());
        let outputs = [1, 2, 5].map(|num_threads| {
            let output = directory.path().join(num_threads.to_string());
            let mut job = job(&base, &output, TrainSettings { batch_tokens: 520, ..settings(3) });
            (job.training, job.held_out) = (counting("train.jsonl", 90), counting("dev.jsonl", 40));
            change(&mut job);
            job.load_options.num_threads = num_threads;
            let mut watcher = Watcher::default();
            Trainer::new(job).unwrap().run(Start::Fresh, &mut watcher).unwrap();
            let adapter = Adapter::open(&output, base.config(), &base.fingerprint()).unwrap();
            (tensors(&output), watcher.evaluations, adapter)
        });
        let [one, two, five] = &outputs;
        for (others, name) in [(two, "two"), (five, "five")] {
            assert!(one.0 == others.0, "weights and moments with {name} threads");
            assert_eq!(one.1, others.1, "figures and calibration with {name} threads");
            assert!(one.2 == others.2, "adapters and their inner features with {name} threads");
        }
    }
}

#[test]
fn resuming_another_run_is_refused_with_the_difference() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let output = directory.path();
    let mut watcher = Watcher { stop_after: Some(1), ..Watcher::default() };
    Trainer::new(job(&base, output, settings(5))).unwrap().run(Start::Fresh, &mut watcher).unwrap();
    let said = |job: TrainJob<'_>, start| {
        Trainer::new(job).unwrap().run(start, &mut Watcher::default()).unwrap_err().to_string()
    };
    let changed = |change: Change| {
        let mut job = job(&base, output, settings(5));
        change(&mut job);
        said(job, Start::Resume)
    };
    let cases: &[(&str, Change)] = &[
        ("lr = 0.01, but now it is 0.02", &|job| job.settings.lr = 0.02),
        ("steps = 5, but now it is 6", &|job| job.settings.steps = Some(6)),
        ("streams.num_streams = 2, but now it is 3", &|job| job.adapter.streams.num_streams = 3),
        ("base_model.fingerprint", &|job| job.adapter.base_model.fingerprint = "other".to_owned()),
        ("data.sha256", &|job| job.training.sha256 = "other".to_owned()),
        ("mode = \"lossless\", but now it is \"joint\"", &make_joint),
        ("data.selection = absent, but now it is \"2 rows\"", &|job| {
            job.training.selection = Some("2 rows".to_owned());
        }),
        ("eval_data.sha256", &|job| job.held_out.sha256 = "other".to_owned()),
    ];
    for (expected, change) in cases {
        let error = changed(*change);
        assert!(error.contains(expected) && error.contains("--resume"), "{expected}: {error}");
    }
    let quantized = self::base().quantized(forestream_model::Format::Q8_0).unwrap();
    let error = said(job(&quantized, output, settings(5)), Start::Resume);
    assert!(error.contains("quantize = absent, but now it is \"Q8_0\""), "{error}");
    let error = said(job(&base, output, settings(5)), Start::Fresh);
    assert!(error.contains("--resume") && error.contains(CHECKPOINT), "{error}");
    let error = said(job(&base, &output.join("empty"), settings(5)), Start::Resume);
    assert!(error.contains("no checkpoint"), "{error}");
}

#[test]
fn weights_of_another_adapter_are_a_start() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    Trainer::new(job(&base, &first, settings(12))).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    let open = || Some(Adapter::open(&first, base.config(), &base.fingerprint()).unwrap());
    let start = TrainJob { initial: open(), ..job(&base, &second, settings(1)) };
    let report = Trainer::new(start).unwrap().measure_step().unwrap();
    let fresh = Trainer::new(job(&base, &second, settings(1))).unwrap().measure_step().unwrap();
    assert!(report.loss < 0.7 * fresh.loss, "{} {}", report.loss, fresh.loss);
    assert!(!second.exists(), "measuring writes nothing");

    let mut other = TrainJob { initial: open(), ..job(&base, &second, settings(1)) };
    other.adapter.streams.sampler_size = Some(8);
    let Err(error) = Trainer::new(other) else { panic!("another size was accepted") };
    assert!(error.to_string().contains("sampler.down_proj.weight"), "{error}");
}

#[test]
fn streams_and_layers_can_be_added_later_and_left_out() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let train = |name: &str, (num_streams, num_msa_layers), initial, lr| {
        let output = directory.path().join(name);
        let mut job = TrainJob { initial, ..job(&base, &output, TrainSettings { lr, ..settings(1) }) };
        (job.adapter.streams.num_streams, job.adapter.streams.num_msa_layers) = (num_streams, num_msa_layers);
        Trainer::new(job).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
        Adapter::open(&output, base.config(), &base.fingerprint()).unwrap()
    };
    let still = 1e-30; // a rate whose steps change no number in half precision
    let first = train("first", (2, 1), None, 1e-3);
    let embeddings = &first.tensors["stream_embeddings"];
    let (one, two) = embeddings.split_at(embeddings.len() / 2);
    assert_ne!(one, two, "else the test shows nothing");
    let more = train("more", (4, 2), Some(first.clone()), still);
    assert_eq!(more.tensors["stream_embeddings"], [one, two, two, two].concat());
    for (name, values) in &more.tensors {
        let is_nothing = values.iter().all(|&value| value == 0.0);
        match first.tensors.get(name) {
            Some(former) if name != "stream_embeddings" => assert_eq!(values, former, "{name}"),
            Some(_) => {}
            None => assert_eq!(is_nothing, name.ends_with("lora_B.weight"), "{name}"),
        }
    }
    let fewer = train("fewer", (1, 1), Some(more), still);
    assert_eq!(fewer.tensors["stream_embeddings"], one);
    assert_eq!(fewer.tensors.len(), first.tensors.len());
}

#[test]
fn an_early_exit_learns_beside_the_streams_and_can_be_added_later() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [without, with, later] = ["without", "with", "later"].map(|name| directory.path().join(name));
    let run = |job: TrainJob<'_>| {
        let mut watcher = Watcher::default();
        Trainer::new(job).unwrap().run(Start::Fresh, &mut watcher).unwrap();
        let loss = |evaluation: &Evaluation| evaluation.early_exit.map(|exit| exit.loss);
        let [first, last] = [0, watcher.evaluations.len() - 1].map(|index| loss(&watcher.evaluations[index].1));
        (first, last, watcher.reports[0].clone())
    };
    assert_eq!(run(job(&base, &without, settings(12))).1, None);

    let mut beside = job(&base, &with, settings(30));
    beside.adapter.streams.early_exit_rank = Some(8);
    let (first, last, _) = run(beside);
    assert!(last.unwrap() < 0.8 * first.unwrap(), "{first:?} {last:?}");
    let card = std::fs::read_to_string(with.join("README.md")).unwrap();
    assert!(card.contains("early exit"), "{card}");

    let initial = Some(Adapter::open(&without, base.config(), &base.fingerprint()).unwrap());
    let mut added = TrainJob { initial, ..job(&base, &later, settings(6)) };
    added.adapter.streams.early_exit_rank = Some(8);
    let (_, _, report) = run(added);
    let trained = Trainer::new(job(&base, &later, settings(6))).unwrap().measure_step().unwrap();
    assert!(report.loss < 0.7 * trained.loss, "the streams go on: {} {}", report.loss, trained.loss);
    assert!(Adapter::open(&later, base.config(), &base.fingerprint()).is_ok());
}

#[test]
fn what_cannot_be_trained_or_written_is_an_error() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let refused: &[(&str, Change)] = &[
        ("--lr", &|job| job.settings.lr = 0.0),
        ("--lr", &|job| job.settings.lr = f64::NAN),
        ("--depth-decay", &|job| job.settings.depth_decay = 0.0),
        ("--depth-decay", &|job| job.settings.depth_decay = 1.1),
        ("--save-steps", &|job| job.settings.save_steps = 0),
        ("--mode", &|job| job.settings.joint = Some(JointSettings::default())),
        ("--objective", &|job| {
            make_joint(job);
            job.settings.objective = Objective::Kl;
        }),
        ("--main-loss-weight", &|job| {
            make_joint(job);
            job.settings.joint = Some(JointSettings { main_loss_weight: -1.0, ..JointSettings::default() });
        }),
        ("num_msa_layers", &|job| job.adapter.streams.num_msa_layers = 3),
        ("value_rotation.angle must be from 0 to 0.785", &|job| rotate_values(job, 0.8)),
        ("--value-rotation: leaves nothing to train", &|job| {
            rotate_values(job, 0.5);
            job.adapter.lora = None;
            (job.adapter.streams.token_conditioning, job.adapter.streams.sampler_size) = (false, None);
        }),
        ("draft_vocab_size", &|job| job.adapter.streams.draft_vocab_size = Some(321)),
    ];
    for (expected, change) in refused {
        let mut job = job(&base, directory.path(), settings(2));
        change(&mut job);
        let Err(error) = Trainer::new(job) else { panic!("{expected} was accepted") };
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    let file = directory.path().join("file");
    std::fs::write(&file, b"in the way").unwrap();
    let error =
        Trainer::new(job(&base, &file, settings(2))).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap_err();
    assert!(matches!(&error, TrainError::Write { path, .. } if *path == file), "{error}");

    for eval_steps in [9, 1] {
        let exploding = TrainSettings { lr: 1e30, warm_up: 0.0, eval_steps, ..settings(9) };
        let output = directory.path().join(format!("exploding-{eval_steps}"));
        let mut trainer = Trainer::new(job(&base, &output, exploding)).unwrap();
        let error = trainer.run(Start::Fresh, &mut Watcher::default()).unwrap_err().to_string();
        assert!(error.contains("with a lower --lr in another --output") && error.contains("kept adapter"), "{error}");
        assert!(!output.join("adapter_config.json").exists(), "weights that diverged are no adapter");
    }
}

#[test]
fn streams_learn_the_models_own_distributions() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    for (objective, share) in [(Objective::Kl, 0.9), (Objective::Tv, 0.95), (Objective::Lk, 0.95)] {
        let output = directory.path().join(format!("{objective:?}"));
        let mut watcher = Watcher::default();
        let settings = TrainSettings { objective, eval_steps: 100, ..settings(30) };
        Trainer::new(job(&base, &output, settings)).unwrap().run(Start::Fresh, &mut watcher).unwrap();
        let losses: Vec<f64> = watcher.reports.iter().map(|report| report.loss).collect();
        assert!(losses[29] < share * losses[0], "{objective:?}: {losses:?}");
    }
}

#[test]
fn the_loss_weighs_depths_as_asked_for() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let loss = |depth_decay| {
        let settings = TrainSettings { depth_decay, ..settings(1) };
        Trainer::new(job(&base, directory.path(), settings)).unwrap().measure_step().unwrap().loss
    };
    let [even, first] = [1.0, 0.01].map(loss);
    assert!((even / first - 1.0).abs() > 1e-4, "all depths {even}, almost only the first {first}");
}

#[test]
fn a_limit_of_time_ends_a_run() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let limited = TrainSettings { max_minutes: Some(1e-6), ..settings(1000) };
    let mut watcher = Watcher::default();
    let outcome = Trainer::new(job(&base, directory.path(), limited)).unwrap().run(Start::Fresh, &mut watcher).unwrap();
    assert!(matches!(outcome, Outcome::Finished(_)));
    assert_eq!(watcher.reports.len(), 1);
    assert_eq!(watcher.saved, [1]);
}
