//! Narrow streams: they learn, go on from others, and refuse widths that do not fit.

use std::path::Path;

use forestream_model::streams::Adapter;
use forestream_train::{Start, TrainJob, Trainer};

use crate::{Change, Watcher, base, job, make_joint, settings};

/// The same run with narrow streams.
pub(crate) fn make_narrow(job: &mut TrainJob<'_>) {
    job.adapter.streams.intermediate_size = Some(16);
}

#[test]
fn narrow_streams_learn_and_go_on_from_wide_ones_and_from_themselves() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [wide, narrow, from_wide, on] = ["wide", "narrow", "from-wide", "on"].map(|name| directory.path().join(name));
    let open = |output: &Path| Adapter::open(output, base.config(), &base.fingerprint()).unwrap();
    let run = |job: TrainJob<'_>| {
        let mut watcher = Watcher::default();
        Trainer::new(job).unwrap().run(Start::Fresh, &mut watcher).unwrap();
        (watcher.reports[0].loss, watcher.evaluations.last().unwrap().1.loss)
    };
    let narrow_job = |output: &Path, initial: Option<&Path>, steps| {
        let mut job = TrainJob { initial: initial.map(open), ..job(&base, output, settings(steps)) };
        make_narrow(&mut job);
        job
    };

    let (first, last) = run(narrow_job(&narrow, None, 24));
    assert!(last < 0.7 * first, "{first} {last}");
    let adapter = open(&narrow);
    let inner = base.config().intermediate_size;
    assert!(adapter.inner_features.iter().all(|features| features.len() == 16 && features[15] < inner as u32));
    let first_ones: Vec<u32> = (0..16).collect();
    assert!(adapter.inner_features.iter().all(|features| *features != first_ones), "they are chosen by the data");
    let layer = base.config().num_hidden_layers - 1;
    assert_eq!(adapter.tensors[&format!("layers.{layer}.mlp.down_proj.lora_A.weight")].len(), 4 * 16);
    assert_eq!(adapter.tensors[&format!("layers.{layer}.mlp.up_proj.lora_B.weight")].len(), 16 * 4);

    let (_, of_wide) = run(job(&base, &wide, settings(24)));
    let (start, _) = run(narrow_job(&from_wide, Some(&wide), 1));
    assert!(start < 0.7 * first, "what wide streams have learnt is kept: {start} of {first}, wide {of_wide}");
    let (start, _) = run(narrow_job(&on, Some(&narrow), 1));
    assert!(start < 0.7 * first, "narrow streams go on: {start} of {first}");
    assert_eq!(open(&on).inner_features, adapter.inner_features);

    // An adapter whose model gets the streams is named when its run is resumed, too.
    let stopped = directory.path().join("stopped");
    let mut watcher = Watcher { stop_after: Some(1), ..Watcher::default() };
    Trainer::new(narrow_job(&stopped, Some(&narrow), 2)).unwrap().run(Start::Fresh, &mut watcher).unwrap();
    let resumed = narrow_job(&stopped, Some(&narrow), 2);
    Trainer::new(resumed).unwrap().run(Start::Resume, &mut Watcher::default()).unwrap();
    assert_eq!(open(&stopped).inner_features, adapter.inner_features);
}

/// What the weights in a checkpoint have learnt is for the inner features of one adapter.
#[test]
fn a_narrow_run_resumes_with_the_adapter_that_it_began_with() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let first = directory.path().join("first");
    let mut first_job = job(&base, &first, settings(1));
    make_narrow(&mut first_job);
    Trainer::new(first_job).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    let one = Adapter::open(&first, base.config(), &base.fingerprint()).unwrap();
    let mut other = one.clone();
    other.inner_features[0] = (0..16).collect();
    let output = directory.path().join("run");
    let start = |adapter: &Adapter, start, watcher: &mut Watcher| {
        let mut job = TrainJob { initial: Some(adapter.clone()), ..job(&base, &output, settings(3)) };
        make_narrow(&mut job);
        Trainer::new(job).unwrap().run(start, watcher)
    };
    start(&one, Start::Fresh, &mut Watcher { stop_after: Some(1), ..Watcher::default() }).unwrap();
    let error = start(&other, Start::Resume, &mut Watcher::default()).unwrap_err().to_string();
    assert!(error.contains("checkpoint.safetensors") && error.contains("--init-from"), "{error}");
    start(&one, Start::Resume, &mut Watcher::default()).unwrap();
}

#[test]
fn a_width_of_streams_that_does_not_fit_is_refused() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let narrow = directory.path().join("narrow");
    let mut narrow_job = job(&base, &narrow, settings(1));
    make_narrow(&mut narrow_job);
    Trainer::new(narrow_job).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    let initial = Adapter::open(&narrow, base.config(), &base.fingerprint()).unwrap();
    let refused: &[(&str, Change)] = &[
        ("from 1 to 64", &|job| job.adapter.streams.intermediate_size = Some(65)),
        ("--adapter", &|job| {
            make_narrow(job);
            make_joint(job);
        }),
        ("streams of 16 inner features", &|job| job.initial = Some(initial.clone())),
        ("streams of 16 inner features", &|job| {
            job.initial = Some(initial.clone());
            job.adapter.streams.intermediate_size = Some(8);
        }),
    ];
    for (expected, change) in refused {
        let mut job = job(&base, &directory.path().join("refused"), settings(1));
        change(&mut job);
        let Err(error) = Trainer::new(job) else { panic!("{expected} was accepted") };
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[test]
fn narrow_streams_lose_their_lowest_layers_and_get_further_ones() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let open = |output: &Path| Adapter::open(output, base.config(), &base.fingerprint()).unwrap();
    let run = |name: &str, num_msa_layers, initial, steps| {
        let output = directory.path().join(name);
        let mut job = TrainJob { initial, ..job(&base, &output, settings(steps)) };
        make_narrow(&mut job);
        job.adapter.streams.num_msa_layers = num_msa_layers;
        let mut watcher = Watcher::default();
        Trainer::new(job).unwrap().run(Start::Fresh, &mut watcher).unwrap();
        (open(&output), watcher.reports[0].loss)
    };
    let (two, first) = run("two", 2, None, 1);
    let (one, _) = run("one", 1, Some(two.clone()), 24);
    assert_ne!(two.inner_features[0], two.inner_features[1], "else the test shows nothing");
    assert_eq!(one.inner_features, two.inner_features[1..]);

    let (grown, start) = run("grown", 2, Some(one.clone()), 1);
    assert!(start < 0.7 * first, "what they have learnt is kept: {start} of {first}");
    assert_eq!(grown.inner_features[1], one.inner_features[0]);
    let chosen = &grown.inner_features[0];
    assert!(chosen.len() == 16 && *chosen != grown.inner_features[1], "those of a new layer are its own: {chosen:?}");
}
