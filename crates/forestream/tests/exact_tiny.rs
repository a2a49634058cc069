//! The exactness contract on small random models of every architecture: token ids never depend on how they are made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use forestream::{
    AdapterChoice, Engine, EngineOptions, GenerateOptions, Isa, Pruning, SamplingSettings, StreamPass,
    StreamingOptions, TokenId, TreeShape,
};
use forestream_decode::strategies::{self, Resources};
use forestream_decode::{Budget, Round, Sequence, SequenceOptions};
use forestream_model::streams::TrainingMode;

#[path = "support/adapter.rs"]
mod adapter;

const PROMPTS: &[&str] = &["one two three one two three one two", "Hello, wörld! 你好", "a"];
const MAX_TOKENS: usize = 40;

fn models() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let mut models: Vec<PathBuf> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    assert!(models.len() >= 3, "the models are missing");
    models
}

/// Greedy, and everything that a sampler does at once.
fn samplings() -> [SamplingSettings; 2] {
    let greedy = SamplingSettings { seed: 11, ..SamplingSettings::default() };
    let drawn = SamplingSettings {
        temperature: 0.8,
        top_p: 0.95,
        min_p: 0.01,
        repeat_penalty: 1.05,
        presence_penalty: 0.1,
        logit_bias: vec![(5, 0.5)],
        ..greedy.clone()
    };
    [greedy, drawn]
}

/// Token ids, and how many draft tokens were accepted.
fn generate(engine: &Engine, prompt: &str, options: &GenerateOptions) -> (Vec<TokenId>, usize) {
    let mut session = engine.session();
    let prompt = session.plain_prompt(prompt).unwrap();
    let mut answer = session.generate(&prompt, options).unwrap();
    for piece in answer.by_ref() {
        piece.unwrap();
    }
    let report = answer.finish();
    (report.token_ids, report.timings.draft_n_accepted)
}

#[test]
fn strategies_threads_budgets_and_instruction_sets_give_the_same_ids() {
    let num_accepted: usize = models().iter().map(|model| check(model)).sum();
    assert!(num_accepted > 100, "only {num_accepted} draft tokens were accepted: the test shows little");
}

fn check(model: &Path) -> usize {
    let (mut expected, mut num_accepted) = (Vec::new(), 0);
    let directory = tempfile::tempdir().unwrap();
    adapter::write_random_adapter(model, directory.path());
    let streams = AdapterChoice::Directory(directory.path().to_owned());
    // Threads split rows the same way on every instruction set; the matrix on the default model has all pairs.
    for (isa, threads) in Isa::available().into_iter().map(|isa| (isa, 2)).chain([(Isa::best(), 1)]) {
        let adapter = streams.clone();
        let options = EngineOptions { threads: Some(threads), isa: Some(isa), adapter, ..EngineOptions::default() };
        let engine = Engine::open(model, &options).unwrap();
        let (ids, accepted) = all_ids(&engine, expected.is_empty());
        num_accepted += accepted;
        if expected.is_empty() {
            expected = ids;
        } else {
            assert_eq!(ids, expected, "{} on {} with {threads} threads", model.display(), isa.name());
        }
    }
    num_accepted
}

/// The ids of every prompt and sampling, the same for every strategy and budget; and accepted draft tokens.
fn all_ids(engine: &Engine, with_auto_budget: bool) -> (Vec<Vec<TokenId>>, usize) {
    let (mut all, mut num_accepted) = (Vec::new(), 0);
    for sampling in samplings() {
        for prompt in PROMPTS {
            let run = |strategy: &str, budget| {
                let (strategy, pruning) = match strategy.split_once(": ") {
                    Some(("threshold", strategy)) => (strategy, Some(Pruning::Threshold(0.02))),
                    Some((_, strategy)) => (strategy, Some(Pruning::Best(4))),
                    None => (strategy, None),
                };
                let (strategy, pass) = match strategy.strip_prefix("fused ") {
                    Some(strategy) => (strategy, StreamPass::Fused),
                    None => (strategy, StreamPass::Deferred),
                };
                let tree =
                    if pass == StreamPass::Fused { TreeShape::Static { top_k: 2 } } else { TreeShape::BestFirst };
                let options = GenerateOptions {
                    strategy: strategy.to_owned(),
                    streaming: StreamingOptions { pass, tree, pruning },
                    budget,
                    max_tokens: Some(MAX_TOKENS),
                    ..GenerateOptions::new(sampling.clone())
                };
                generate(engine, prompt, &options)
            };
            let (plain, _) = run("none", None);
            let mut cases = vec![
                ("ngram", Some(4)),
                ("ngram", Some(16)),
                ("streaming", Some(12)),
                ("fused streaming", Some(15)),
                ("best nodes: streaming", Some(12)),
                ("threshold: fused streaming", Some(15)),
                ("ngram,streaming", Some(5)),
            ];
            cases.extend(with_auto_budget.then_some(("auto", None))); // measuring costs takes a while
            for (strategy, budget) in cases {
                let (ids, accepted) = run(strategy, budget);
                assert_eq!(ids, plain, "{} {prompt:?} {strategy} {budget:?} {sampling:?}", engine.name());
                num_accepted += accepted;
            }
            all.push(plain);
        }
    }
    (all, num_accepted)
}

/// The sizes of the paper's own checks; no child is no draft. A joint adapter's own text is the measure of its drafts.
#[test]
fn whole_static_trees_of_any_size_give_the_same_ids() {
    let model = models().into_iter().find(|model| model.ends_with("tiny-llama")).unwrap();
    let mut num_accepted = 0;
    let (lossless, joint) = (TrainingMode::Lossless, TrainingMode::Joint);
    for (num_streams, mode) in [(1, lossless), (3, lossless), (4, lossless), (1, joint), (3, joint), (4, joint)] {
        let directory = tempfile::tempdir().unwrap();
        adapter::write_random_streams(&model, num_streams, mode, directory.path());
        let adapter = AdapterChoice::Directory(directory.path().to_owned());
        let engine = Engine::open(&model, &EngineOptions { adapter, ..EngineOptions::default() }).unwrap();
        num_accepted += [0, 1, 3, 5].map(|top_k| check_static_trees(&engine, num_streams, top_k)).iter().sum::<usize>();
    }
    assert!(num_accepted > 20, "only {num_accepted} draft tokens were accepted: the test shows little");
}

/// Compares whole trees of `top_k` children with plain decoding, after one token and after several; accepted draft tokens.
fn check_static_trees(engine: &Engine, num_streams: usize, top_k: usize) -> usize {
    const MAX_TOKENS: usize = 16;
    let num_nodes: usize = (0..=num_streams as u32).map(|depth| usize::pow(top_k, depth)).sum();
    let tree = TreeShape::Static { top_k };
    let mut num_accepted = 0;
    for (sampling, prompt) in samplings().iter().zip([vec![70], vec![70, 71, 72, 70, 71]]) {
        let run = |strategy: &str, streaming: StreamingOptions| {
            let drafter = strategies::build(strategy, &Resources::of(engine.model(), streaming)).unwrap();
            let options =
                SequenceOptions { sampling: sampling.clone(), max_tokens: MAX_TOKENS, ..SequenceOptions::default() };
            // Larger than the context, so that the fused pass has rows for all streams.
            let cache = engine.model().new_cache(prompt.len() + MAX_TOKENS + (1 + num_streams) * num_nodes);
            let mut sequence = Sequence::new(engine.config(), &prompt, cache, drafter, options).unwrap();
            let (mut round, mut largest) = (Round::new(Budget::Fixed(num_nodes.max(2))), 1);
            while sequence.finish_reason().is_none() {
                round.run(engine.model(), &mut [&mut sequence]).unwrap();
                if sequence.stats().rounds > 0 {
                    largest = largest.max(sequence.draft().tree().len());
                }
            }
            (sequence.completion().to_vec(), largest, sequence.stats().accepted)
        };
        let (plain, ..) = run("none", StreamingOptions::default());
        for pass in [StreamPass::Deferred, StreamPass::Fused] {
            for pruning in [None, Some(Pruning::Threshold(0.02))] {
                let (ids, largest, accepted) = run("streaming", StreamingOptions { pass, tree, pruning });
                let case = format!("{num_streams} streams, {top_k} children, {pass:?}, {pruning:?}");
                assert_eq!(ids, plain, "{case}");
                assert_eq!(largest, num_nodes, "{case}");
                num_accepted += accepted;
            }
        }
    }
    num_accepted
}

#[test]
fn answers_of_one_loop_are_those_that_each_gives_alone() {
    for model in models() {
        let directory = tempfile::tempdir().unwrap();
        adapter::write_random_adapter(&model, directory.path());
        let adapter = AdapterChoice::Directory(directory.path().to_owned());
        let engine = Engine::open(&model, &EngineOptions { adapter, ..EngineOptions::default() }).unwrap();
        let (mut sequences, mut alone) = (Vec::new(), Vec::new());
        for sampling in samplings() {
            for (prompt, strategy) in PROMPTS.iter().zip(["streaming", "ngram,streaming", "none"]) {
                let plain = GenerateOptions { strategy: "none".to_owned(), ..GenerateOptions::new(sampling.clone()) };
                alone.push(generate(&engine, prompt, &GenerateOptions { max_tokens: Some(MAX_TOKENS), ..plain }).0);
                let resources = Resources::of(engine.model(), StreamingOptions::default());
                let drafter = strategies::build(strategy, &resources).unwrap();
                let options = SequenceOptions {
                    sampling: sampling.clone(),
                    max_tokens: MAX_TOKENS,
                    stop_tokens: engine.stop_tokens(),
                    ..SequenceOptions::default()
                };
                let prompt = engine.session().plain_prompt(prompt).unwrap();
                let sequence = Sequence::new(engine.config(), &prompt, engine.new_cache(), drafter, options);
                sequences.push(sequence.unwrap());
            }
        }
        let mut round = Round::new(Budget::Fixed(6));
        while sequences.iter().any(|sequence| sequence.finish_reason().is_none()) {
            round.run(engine.model(), &mut sequences.iter_mut().collect::<Vec<_>>()).unwrap();
        }
        let together: Vec<&[TokenId]> = sequences.iter().map(Sequence::completion).collect();
        assert_eq!(together, alone, "{}", model.display());
    }
}

#[test]
fn a_cache_with_the_beginning_of_the_prompt_changes_nothing() {
    for model in models() {
        let engine = Engine::open(&model, &EngineOptions::default()).unwrap();
        let options =
            GenerateOptions { max_tokens: Some(20), budget: Some(8), ..GenerateOptions::new(samplings()[1].clone()) };
        let mut session = engine.session();
        let mut prompt = session.plain_prompt("one two three").unwrap();
        for _ in 0..3 {
            let mut answer = session.generate(&prompt, &options).unwrap();
            answer.by_ref().for_each(|piece| drop(piece.unwrap()));
            let report = answer.finish();
            let mut fresh = engine.session();
            let mut answer = fresh.generate(&prompt, &options).unwrap();
            answer.by_ref().for_each(|piece| drop(piece.unwrap()));
            assert_eq!(answer.token_ids(), report.token_ids, "{}", model.display());
            prompt.extend(report.token_ids);
            prompt.extend(session.plain_prompt(" and then one two").unwrap());
        }
        let mut answer = session.generate(&prompt, &options).unwrap();
        answer.by_ref().for_each(|piece| drop(piece.unwrap()));
        assert!(answer.finish().timings.cache_n > 20, "the cache was reused");
    }
}
