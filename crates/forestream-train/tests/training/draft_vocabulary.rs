//! The tokens that streams can propose, where they go on from others.

use std::path::Path;

use forestream_model::streams::Adapter;
use forestream_train::{Start, TrainJob, Trainer};

use crate::{Watcher, base, job, settings};

#[test]
fn streams_that_go_on_can_still_propose_what_they_could() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let open = |output: &Path| Adapter::open(output, base.config(), &base.fingerprint()).unwrap();
    let first = directory.path().join("first");
    Trainer::new(job(&base, &first, settings(1))).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    let before = open(&first).draft_vocabulary;
    for size in [80, 20, 8] {
        let output = directory.path().join(size.to_string());
        let mut on = TrainJob { initial: Some(open(&first)), ..job(&base, &output, settings(1)) };
        on.training.examples.truncate(1);
        on.adapter.streams.draft_vocab_size = Some(size);
        let own: Vec<u32> = on.training.examples[0].completion.iter().copied().take(size).collect();
        Trainer::new(on).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
        let others = before.iter().copied().filter(|token| !own.contains(token));
        let expected: Vec<u32> = own.iter().copied().chain(others).take(size).collect();
        assert_eq!(open(&output).draft_vocabulary, expected, "{size} tokens at most");
    }
}

#[test]
fn a_run_is_not_resumed_with_the_tokens_of_another_adapter() {
    let (base, directory) = (base(), tempfile::tempdir().unwrap());
    let [first, output] = ["first", "run"].map(|name| directory.path().join(name));
    Trainer::new(job(&base, &first, settings(1))).unwrap().run(Start::Fresh, &mut Watcher::default()).unwrap();
    let one = Adapter::open(&first, base.config(), &base.fingerprint()).unwrap();
    let mut other = one.clone();
    other.draft_vocabulary.reverse();
    let run = |initial: &Adapter, start, watcher: &mut Watcher| {
        let mut job = TrainJob { initial: Some(initial.clone()), ..job(&base, &output, settings(2)) };
        job.training.examples.truncate(1);
        job.adapter.streams.draft_vocab_size = Some(20);
        Trainer::new(job).unwrap().run(start, watcher)
    };
    run(&one, Start::Fresh, &mut Watcher { stop_after: Some(1), ..Watcher::default() }).unwrap();
    let error = run(&other, Start::Resume, &mut Watcher::default()).unwrap_err().to_string();
    assert!(error.contains("init_from.draft_vocabulary"), "{error}");
    run(&one, Start::Resume, &mut Watcher::default()).unwrap();
}
